"""Recreates lost Iceberg metadata from a version's own record, its pages and the delivery records (R5).

This module needs dbt's environment, because `busco.lake.versions` needs pyiceberg.
"""

from __future__ import annotations

from collections.abc import Callable

from busco.errors import BuscoError
from busco.lake.contents import complete, layout_of, read_pages, read_record
from busco.lake.inventory import Broken
from busco.lake.layout import EnvironmentLayout
from busco.lake.manifests import manifests_of
from busco.lake.metadata_json import NONE, Descriptions, copy_metadata
from busco.lake.objects import ObjectStore
from busco.lake.records import Page, Published, Version
from busco.lake.versions import write_list, write_manifests, write_metadata

_UNDESCRIBED = "Its original descriptions are unknown, so it has none."
# Returns a version's descriptions in the dbt project, and the run that made the version (empty if unknown).
Describe = Callable[[Published], tuple[Descriptions, str]]
# Returns a version with all of its files and, for a bronze table, its pages.
Read = Callable[[Published], tuple[Version, list[Page]]]


def reader(store: ObjectStore) -> Read:
    """Returns a function that keeps the last version that it has read, for several lost objects of one version."""
    last: list[tuple[Published, tuple[Version, list[Page]]]] = []

    def read(published: Published) -> tuple[Version, list[Page]]:
        if not last or last[0][0] != published:
            record = read_record(store, published)
            pages = read_pages(store, record.table, record.pages)
            last[:] = [(published, (complete(published, record, pages), pages))]
        return last[0][1]

    return read


def remake(store: ObjectStore, environment: EnvironmentLayout, lost: Broken, describe: Describe, read: Read) -> str:
    """Recreates a missing metadata file, manifest list or manifest under the same key.

    Its content is equivalent to that of the lost object: the table's UUID, the ids of fields and snapshots, and the
    data files are the same. Other missing parts of the version's metadata may be written as well. If a version made in
    format 1 still has its original metadata in the shared location, a copy of that is written, because the records of
    such versions have no statistics.

    Returns a sentence that says what the new object lacks, or an empty string if it lacks nothing.

    Raises:
        BuscoError: one of the records is missing, or the manifest's name is not one that this code would use.
    """
    published = lost.named.part_of
    assert published is not None
    own = layout_of(environment, published)
    version, pages = read(published)
    manifests = manifests_of(store, version, pages)
    if lost.named.kind == "manifest":
        named = [one for one in manifests if own.manifest(version.table, one.name) == lost.named.key]
        if not named:
            raise BuscoError("it was written in an earlier format, or by `busco scrub`, and can't be recreated")
        write_manifests(store, own, version, named)
        return ""
    if lost.named.kind == "manifest list":
        write_list(store, store.url(lost.named.key), version, write_manifests(store, own, version, manifests))
        return ""
    descriptions, run = describe(published)
    known = own.metadata(published.table, published.version, descriptions.hash) == published.metadata
    original = own.shared_metadata(published.table, published.version)
    if lost.named.key != original and not store.missing([original]):
        copy_metadata(store, original, lost.named.key, descriptions if known else NONE)
        return "" if known else _UNDESCRIBED
    properties = {"busco.version": version.version} | ({"busco.run": run} if run else {})
    write_metadata(store, own, version, manifests, descriptions if known else NONE, properties)
    return "" if known else _UNDESCRIBED
