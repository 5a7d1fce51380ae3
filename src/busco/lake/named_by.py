"""Determines which objects a version's Iceberg metadata names, and checks that it is the metadata of that version."""

from __future__ import annotations

import json

from busco.errors import BuscoError
from busco.lake import avro
from busco.lake.contents import layout_of
from busco.lake.layout import EnvironmentLayout
from busco.lake.metadata_json import location_of, table_uuid
from busco.lake.objects import ObjectStore
from busco.lake.records import Published


def manifest_list(
    store: ObjectStore, environment: EnvironmentLayout, published: Published, key: str, body: bytes
) -> str:
    """Returns the key of the manifest list that a metadata file names.

    Args:
        published: the version that the metadata file was written for.
        key, body: the metadata file's key and content.

    Raises:
        ValueError: this is not the metadata that was written for the version.
    """
    own = layout_of(environment, published)
    metadata = json.loads(body)
    try:
        (snapshot,) = metadata["snapshots"]
        has = (
            metadata["table-uuid"], metadata["location"], metadata["properties"]["busco.version"],
            int(snapshot["summary"]["total-records"]),
        )  # fmt: skip
        named = _key(store, own, published, snapshot["manifest-list"])
    except (AttributeError, KeyError, TypeError, BuscoError) as error:
        raise ValueError(f"it is not the metadata of a version: {error}") from error
    wanted = (
        str(table_uuid(own, published.table)), store.url(location_of(key)), published.version, published.rows,
    )  # fmt: skip
    if has != wanted:
        raise ValueError(f"it is not the metadata of version {published.version}")
    return named


def manifests(
    store: ObjectStore, environment: EnvironmentLayout, published: Published, body: bytes
) -> list[tuple[str, int]]:
    """Returns the keys and sizes of the manifests that a version's manifest list names.

    Args:
        body: the manifest list's content.

    Raises:
        ValueError: this is not a manifest list.
    """
    own = layout_of(environment, published)
    try:
        return [(_key(store, own, published, one["manifest_path"]), one["manifest_length"]) for one in avro.read(body)]
    except (AttributeError, IndexError, KeyError, TypeError, BuscoError) as error:
        raise ValueError(f"it is not a manifest list: {error}") from error


def _key(store: ObjectStore, own: EnvironmentLayout, published: Published, url: str) -> str:
    """Returns the key of an object that a version's metadata names.

    Raises:
        BuscoError: the object does not belong to the metadata of the version's table.
    """
    key = store.key(url)
    if not key.startswith(tuple(f"{folder}{published.table}/" for folder in (own.manifests, *own.all_metadata))):
        raise BuscoError(f"{url} is outside {published.table}'s metadata folders")
    return key
