"""What an object's key in the landing bucket means: its table and its file, or why it is neither."""

from __future__ import annotations

import pytest

from busco.ingest.landing import Ignored, Unaddressed, address
from busco.lake.deliveries import Contract

CONTRACTS = [
    Contract("olist", "orders", (), (), "rows"),
    Contract("olist", "customers", (), (), "rows"),
    Contract("erp", "customers", (), (), "rows"),
    Contract("crm", "olist", (), (), "rows"),
]


@pytest.mark.parametrize(
    ("key", "table", "name"),
    [
        ("olist/orders/a.csv", ("olist", "orders"), "a.csv"),
        ("orders/a.csv", ("olist", "orders"), "a.csv"),
        ("orders/2026/01/a.csv.gz", ("olist", "orders"), "2026/01/a.csv.gz"),
        ("erp/customers/a.csv", ("erp", "customers"), "a.csv"),
        ("orders/../a.csv", ("olist", "orders"), "../a.csv"),
        ("orders/ a.csv", ("olist", "orders"), " a.csv"),
    ],
)
def test_a_key_names_its_table_and_its_file(key: str, table: tuple[str, str], name: str) -> None:
    found = address(key, 1, CONTRACTS)
    assert ((found.contract.source, found.contract.table), found.name) == (table, name)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("a.csv", "its folder belongs to no table; the tables' folders are crm/olist/, erp/customers/"),
        ("unknown/a.csv", "olist/orders/"),
        ("Orders/a.csv", "olist/orders/"),
        ("customers/a.csv", "several sources have a table customers; deliver it to erp/customers/ or olist/customers/"),
        # `olist` is a source, so it is no short form of the table crm.olist
        ("olist/a.csv", "its folder belongs to no table"),
        ("orders", "its key has no file name; deliver it to olist/orders/<file>"),
        ("orders/", "its key has no file name"),
        ("orders/..", "its key has no file name"),
        ("orders/day/...gz", "its key has no file name"),
        ("orders/.gz", "its key has no file name"),
    ],
)
def test_a_key_of_no_table_is_refused_with_the_right_folder(key: str, said: str) -> None:
    with pytest.raises(Unaddressed) as refused:
        address(key, 1, CONTRACTS)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("key", "size"), [("orders/", 0), ("olist/orders/2026/", 0), ("_reports/olist/orders/a.json", 9)]
)
def test_folders_and_reports_are_ignored(key: str, size: int) -> None:
    with pytest.raises(Ignored):
        address(key, size, CONTRACTS)
