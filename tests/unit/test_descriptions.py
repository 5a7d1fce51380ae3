"""Iceberg metadata gets the descriptions of the dbt project, also for nested fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from busco.lake.metadata_json import Descriptions, edited


def field(name: str, kind: Any = "string") -> dict[str, Any]:
    return {"id": 1, "name": name, "required": False, "type": kind}


def struct(*fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "struct", "fields": list(fields)}


def list_of(kind: Any) -> dict[str, Any]:
    return {"type": "list", "element-id": 2, "element": kind, "element-required": False}


def map_of(key: Any, value: Any) -> dict[str, Any]:
    return {"type": "map", "key-id": 2, "key": key, "value-id": 3, "value": value, "value-required": False}


def described(column: dict[str, Any], texts: Mapping[str, str]) -> dict[str, str]:
    """Returns the `doc` of each field of the column that has one, by the field's full path."""
    schema = struct(column)
    (schema,) = edited({"schemas": [schema]}, "s3://lake/t", Descriptions("", texts))["schemas"]
    return dict(docs(schema))


def docs(kind: Any, path: str = "") -> Any:
    if isinstance(kind, dict):
        for one in kind.get("fields", ()):
            if "doc" in one:
                yield f"{path}{one['name']}", one["doc"]
            yield from docs(one["type"], f"{path}{one['name']}.")
        for part in ("element", "key", "value"):
            yield from docs(kind.get(part), f"{path}{part}.")


@pytest.mark.parametrize("name", ["value", "key", "element"])
def test_a_struct_s_own_field_does_not_get_the_description_of_the_struct(name: str) -> None:
    price = field("price", struct(field(name), field("currency")))
    assert described(price, {"price": "what was paid"}) == {"price": "what was paid"}
    texts = {f"price.{name}": "the amount", "Price.Currency": "as in ISO 4217"}
    assert described(price, texts) == {f"price.{name}": "the amount", "price.currency": "as in ISO 4217"}


def test_paths_within_lists_and_maps_may_leave_out_the_names_of_their_contents() -> None:
    items = field("items", list_of(struct(field("key"), field("price", map_of("string", struct(field("value")))))))
    expected = {"items": "what was bought", "items.element.key": "the id", "items.element.price.value.value": "net"}
    assert described(items, expected) == expected
    short = {"items": "what was bought", "items.key": "the id", "items.price.value": "net"}
    assert described(items, short) == expected
    assert described(items, {"items": "what was bought"}) == {"items": "what was bought"}
