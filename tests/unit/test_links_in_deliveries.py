"""Deliveries that are not plain files: links, pipes, and files that are replaced while they are read."""

from __future__ import annotations

import os
import socket
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from busco.ingest.files import SourceFile, find
from busco.ingest.refused import Refused
from busco.lake.deliveries import Contract
from busco.lake.records import Column

ORDERS = Contract("raw", "orders", (Column(name="id", type="VARCHAR"),), ("id",), "rows")


def opened(file: SourceFile) -> AbstractContextManager[SourceFile]:
    return file.opened(Path("/unused"))


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    """A folder with a file, next to a folder with files that were not delivered."""
    for name in ("landing/sub/orders-good.csv", "private/orders-secret.csv", "private/inner/orders-deep.csv"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"id\n{name}\n")
    return tmp_path / "landing"


def find_and_read(*paths: Path, follow_links: bool = False) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the accepted files with their content, and the refused files with the reason."""
    found, unknown = find(paths, [ORDERS], None, follow_links)
    read = {}
    for file in found:
        with opened(file) as source:
            read[file.name] = source.path.read_text().split()[1]
    return read, {path.name: reason for path, reason in unknown}


def test_a_link_to_a_file_is_refused_and_its_target_is_named(landing: Path) -> None:
    (landing / "orders-1.csv").symlink_to(landing.parent / "private/orders-secret.csv")
    (landing / "orders-2.csv").symlink_to("sub/orders-good.csv")
    (landing / "orders-3.csv").symlink_to("nowhere")
    read, refused = find_and_read(landing)
    assert set(read) == {"sub/orders-good.csv"}
    assert set(refused) == {"orders-1.csv", "orders-2.csv", "orders-3.csv"}
    assert all("--follow-links" in reason for reason in refused.values())
    assert str(landing.parent / "private/orders-secret.csv") in refused["orders-1.csv"]
    # as if a shell had expanded `landing/*.csv`
    read, refused = find_and_read(*sorted(landing.glob("*.csv")))
    assert (read, set(refused)) == ({}, {"orders-1.csv", "orders-2.csv", "orders-3.csv"})


def test_a_link_to_a_folder_is_refused_whatever_its_name(landing: Path) -> None:
    (landing / "more").symlink_to("../private")
    (landing / "more.csv").symlink_to("../private")
    read, refused = find_and_read(landing)
    assert set(read) == {"sub/orders-good.csv"}
    assert set(refused) == {"more", "more.csv"}


def test_a_folder_that_is_itself_a_link_is_refused(landing: Path) -> None:
    link = landing.with_name("today")
    link.symlink_to(landing)
    read, refused = find_and_read(link)
    assert read == {}
    assert "--follow-links" in refused["today"]
    # links above the specified folder are not checked
    assert set(find_and_read(link / "sub")[0]) == {"orders-good.csv"}


def test_links_are_followed_on_request_and_cycles_end(landing: Path) -> None:
    (landing / "orders-1.csv").symlink_to(landing.parent / "private/orders-secret.csv")
    (landing / "more").symlink_to("../private")
    (landing.parent / "private/round").symlink_to(landing)
    link = landing.with_name("today")
    link.symlink_to(landing)
    read, refused = find_and_read(link, follow_links=True)
    assert set(read) == {
        "sub/orders-good.csv", "orders-1.csv", "more/orders-secret.csv", "more/inner/orders-deep.csv",
    }  # fmt: skip
    assert read["orders-1.csv"] == "private/orders-secret.csv"
    assert refused == {}


def test_a_file_that_becomes_a_link_after_it_was_found_is_refused(landing: Path) -> None:
    (found,), _ = find([landing], [ORDERS], None)
    found.path.unlink()
    found.path.symlink_to(landing.parent / "private/orders-secret.csv")
    with pytest.raises(Refused, match="became a link"), opened(found):
        pass


def test_a_folder_that_becomes_a_link_after_its_files_were_found_is_refused(landing: Path) -> None:
    (landing.parent / "private/orders-good.csv").write_text("id\nsecret\n")
    (found,), _ = find([landing], [ORDERS], None)
    (landing / "sub").rename(landing / "moved")
    (landing / "sub").symlink_to("../private")
    with pytest.raises(Refused, match="became a link"), opened(found):
        pass
    (landing / "sub").unlink()
    (landing / "moved").rename(landing / "sub")
    landing.rename(landing.with_name("gone"))
    landing.symlink_to("gone")
    with pytest.raises(Refused, match="became a link"), opened(found):
        pass


def test_a_file_that_is_replaced_while_open_is_still_read(landing: Path) -> None:
    (found,), _ = find([landing], [ORDERS], None)
    with opened(found) as source:
        found.path.unlink()
        found.path.symlink_to(landing.parent / "private/orders-secret.csv")
        assert source.path.read_text() == "id\nlanding/sub/orders-good.csv\n"


def test_pipes_devices_and_sockets_are_refused_without_waiting_for_them(landing: Path) -> None:
    os.mkfifo(landing / "orders-pipe.csv")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(landing / "orders-socket.csv"))
        read, refused = find_and_read(landing, Path("/dev/null"))
    assert set(read) == {"sub/orders-good.csv"}
    assert "a pipe" in refused["orders-pipe.csv"]
    assert all("a device or a socket" in refused[name] for name in ("orders-socket.csv", "null"))
    # a pipe that replaced a file after the file was found
    file = SourceFile(landing / "orders-pipe.csv", "orders-pipe.csv", ORDERS, landing)
    with pytest.raises(Refused, match="a pipe"), opened(file):
        pass


def test_two_dots_in_a_path_do_not_appear_in_file_names(landing: Path) -> None:
    read, refused = find_and_read(landing / "sub" / "..", landing / "sub" / ".." / "sub" / "orders-good.csv")
    assert set(read) == {"sub/orders-good.csv", "orders-good.csv"}
    assert refused == {}
