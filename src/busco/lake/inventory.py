"""Lists the objects that an environment's releases name, and finds those that are missing or have changed.

Objects are compared with bucket listings, one for each kind of object and table. If a record contains an object's ETag,
the listed ETag must be the same. Any other object must still be its first version, as far as the bucket keeps versions.
Only objects that name other objects are read: releases, versions' own records, pages, metadata files and manifest
lists. Each of them is read once, no matter how many releases share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from botocore.exceptions import ClientError

from busco.errors import BuscoError
from busco.lake import named_by
from busco.lake.contents import BRONZE
from busco.lake.formats import in_own_place
from busco.lake.layout import TABLE_FOLDERS, EnvironmentLayout, listing
from busco.lake.object_versions import DENIED, listed
from busco.lake.objects import ObjectStore, Stored
from busco.lake.records import Current, Delivery, Page, Published, Release, Version

Parsed = TypeVar("Parsed")
Kind = Literal[
    "pointer",
    "release",
    "record of a version",
    "page",
    "delivery record",
    "data file",
    "metadata",
    "manifest list",
    "manifest",
]
REPLACED: tuple[Kind, ...] = ("record of a version", "delivery record")
METADATA: tuple[Kind, ...] = ("metadata", "manifest list", "manifest")
_NO_STATISTICS: dict[str, Any] = {"statistics": {}}
_THREADS = 16
# S3's error codes for a single object that the caller can't read, such as one that is encrypted with another key.
_UNREADABLE = (*DENIED, "InvalidObjectState", "InvalidRequest")


@dataclass(frozen=True)
class Named:
    """An object that a release names, directly or through another object.

    Attributes:
        table: the table that it belongs to, such as `gold.fct_orders`; for the record of a release, the release's id.
        live: whether the live release names it; otherwise, only older releases do.
        bytes, etag: its size and ETag when it was written; None and empty if no record contains them.
        origin: for a bronze table's data file, the key of its delivery record.
        part_of: for Iceberg metadata, the version that it belongs to.
    """

    key: str
    kind: Kind
    table: str
    live: bool
    bytes: int | None = None
    etag: str = ""
    origin: str = ""
    part_of: Published | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Broken:
    """A named object that is missing, or that differs from what was written.

    Attributes:
        etag: the current object's ETag; empty if the object is missing.
        bytes: the current object's size.
        why: what is wrong with the content of an object whose size and ETag are right; otherwise empty.
    """

    named: Named
    etag: str = ""
    bytes: int = 0
    why: str = ""


@dataclass(frozen=True)
class Survey:
    """What a survey found.

    Attributes:
        release: the live release; None if nothing has been published or its record is missing.
        releases: the live release and the earlier ones whose records still exist, newest first.
        broken: the broken objects, sorted by table and key.
        shared: the versions made in format 1 that have no record or location of their own yet (`formats.upgrade`).
        objects: the number of objects that were compared.
    """

    release: Release | None = None
    releases: tuple[Release, ...] = ()
    broken: tuple[Broken, ...] = ()
    shared: tuple[Published, ...] = ()
    objects: int = 0


class Inventory:
    """The objects that an environment's releases name.

    Parsed objects are cached, so that the next survey reads only what has changed.
    """

    def __init__(self, store: ObjectStore, environment: EnvironmentLayout) -> None:
        self.store, self.environment = store, environment
        self._read: dict[tuple[str, str], Any] = {}

    def survey(self) -> Survey:
        """Compares all objects with their records.

        Raises:
            BuscoError: a record is in a format that this code doesn't know.
        """
        pointer = Named(self.environment.current, "pointer", "the live release", live=True)
        stored = self.store.get(self.environment.current)
        if stored is None:
            # Nothing has been published, the first publish has not finished, or the pointer was deleted.
            return Survey(broken=(Broken(pointer),) if any(self.store.keys(self.environment.releases)) else ())
        try:
            current = stored.parse(Current)
        except (BuscoError, ValueError):
            return Survey(broken=(Broken(pointer, stored.etag, len(stored.body), "it names no release"),))
        return _Survey(self.store, self.environment, current, self._read).run()


class _Survey:
    def __init__(
        self, store: ObjectStore, environment: EnvironmentLayout, current: Current, read: dict[tuple[str, str], Any]
    ) -> None:
        self.store, self.environment, self.current, self.read = store, environment, current, read
        # by prefix and key: ETag, size, and the ETag of the object's first version
        self.listed: dict[str, dict[str, tuple[str, int, str]]] = {}
        self.named: dict[str, Named] = {}
        self.broken: dict[str, Broken] = {}

    def run(self) -> Survey:
        releases = self._releases()
        live = releases[0] if releases and releases[0].release == self.current.release else None
        tables: dict[tuple[str, str], tuple[Published, bool]] = {}
        for release in releases:
            for one in release.tables.values():
                tables.setdefault((one.record, one.metadata), (one, release is live))
        shared = self._shared([one for one, _ in tables.values()])
        found = [(self._in_its_place(one, shared), is_live) for one, is_live in tables.values()]
        self._data(found)
        self._metadata(found)
        return Survey(
            release=live,
            releases=tuple(releases),
            broken=tuple(sorted(self.broken.values(), key=lambda one: (one.named.table, one.named.key))),
            shared=tuple(shared.values()),
            objects=len(self.named),
        )

    # -- what releases name -------------------------------------------------------------------------------------------

    def _releases(self) -> list[Release]:
        """Returns the live release and those before it, newest first, as far as their records are intact."""
        self._list([self.environment.releases])
        listed = self.listed[self.environment.releases]
        # All other records belong to publish attempts that lost to a concurrent one (P1).
        known = self._parse(listed, lambda stored, _: self._with_shared_tables(stored.parse(Release)))
        found: list[Release] = []
        wanted: str | None = self.current.release
        while wanted is not None:
            key = self.environment.release(wanted)
            named = Named(key, "release", wanted, live=not found)
            if not self._compare([named]):
                break
            release = known[key]
            if isinstance(release, BuscoError):  # it is as it was written, by another release of the platform
                raise release
            if isinstance(release, ValueError):
                self._bad(named, str(release))
                break
            found.append(release)
            wanted = release.previous
        return found

    def _with_shared_tables(self, release: Release) -> Release:
        """Returns a release that shares equal versions with other releases, because all of them are kept in memory."""
        tables = {}
        for one in release.tables.values():
            known = self.read.setdefault((one.version, one.metadata), one)
            same = known if known == one else one
            tables[same.table] = same
        return release.model_copy(update={"tables": tables})

    def _shared(self, tables: Sequence[Published]) -> dict[tuple[str, str], Published]:
        """Returns the versions made in format 1 that have no record or location of their own yet."""
        moved = [(one, in_own_place(self.environment, one)) for one in tables]
        targets = [(one, target) for one, target in moved if target is not one]
        keys = [key for _, target in targets for key in (target.record, target.metadata)]
        self._list(map(listing, keys))
        return {
            (one.record, one.metadata): one
            for one, target in targets
            if not all(self._found(key) for key in (target.record, target.metadata))
        }

    def _in_its_place(self, one: Published, shared: dict[tuple[str, str], Published]) -> Published:
        return one if (one.record, one.metadata) in shared else in_own_place(self.environment, one)

    def _data(self, tables: Sequence[tuple[Published, bool]]) -> None:
        """Compares the records of versions, their pages, and the files and delivery records that these name."""
        records = {
            one.record: Named(one.record, "record of a version", one.table, live, etag=one.etag)
            for one, live in reversed(tables)
            if one.inline is None
        }
        versions = self._load(records.values(), _version)
        whole = [(versions[one.record], live) for one, live in tables if one.record in versions]
        whole += [(one.inline, live) for one, live in tables if one.inline is not None]
        pages = {
            key: Named(key, "page", version.table, live, etag=page.etag)
            for version, live in reversed(whole)
            for page in version.pages
            if (key := BRONZE.page(version.table, page.page))
        }
        read = self._load(pages.values(), lambda stored, _: stored.parse(Page))
        files: dict[str, Named] = {}
        for version, live in reversed(whole):
            origins = version.deliveries or ("",) * len(version.files)
            for file, origin in zip(version.files, origins, strict=True):
                files[file.key] = Named(file.key, "data file", version.table, live, file.bytes, file.etag, origin)
            for record in version.deliveries:
                files[record] = Named(record, "delivery record", version.table, live)
        for key, page in read.items():
            table, live = pages[key].table, pages[key].live
            for one in page.deliveries:
                files[one.object] = Named(one.object, "data file", table, live, one.bytes, one.etag, one.record)
                files[one.record] = Named(one.record, "delivery record", table, live)
        self._compare(files.values())
        replaced = [one for one in files.values() if one.kind == "delivery record" and one.key in self.broken]
        self._load(replaced, self._delivery)

    def _delivery(self, stored: Stored, named: Named) -> Delivery:
        """Returns a delivery record.

        Raises:
            ValueError: this is not the record that `busco scrub` has written in place of the first one.
        """
        delivery = stored.parse(Delivery)
        found = self._found(named.key)
        if found is None or delivery.replaces != found[2]:
            raise ValueError("it is not the record that was written")
        return delivery

    def _metadata(self, tables: Sequence[tuple[Published, bool]]) -> None:
        """Compares the Iceberg metadata of versions: metadata files, their manifest lists, and the manifests."""
        files = {
            one.metadata: Named(one.metadata, "metadata", one.table, live, part_of=one)
            for one, live in reversed(tables)
        }
        lists = {
            key: Named(key, "manifest list", files[named].table, files[named].live, part_of=files[named].part_of)
            for named, key in self._load(files.values(), self._manifest_list).items()
        }
        manifests: dict[str, Named] = {}
        for key, found in self._load(lists.values(), self._manifests).items():
            of = lists[key]
            for manifest, size in found:
                live = of.live or (manifest in manifests and manifests[manifest].live)
                manifests[manifest] = Named(manifest, "manifest", of.table, live, size, part_of=of.part_of)
        self._compare(manifests.values())

    def _manifest_list(self, stored: Stored, named: Named) -> str:
        assert named.part_of is not None
        return named_by.manifest_list(self.store, self.environment, named.part_of, named.key, stored.body)

    def _manifests(self, stored: Stored, named: Named) -> list[tuple[str, int]]:
        assert named.part_of is not None
        return named_by.manifests(self.store, self.environment, named.part_of, stored.body)

    # -- comparing ----------------------------------------------------------------------------------------------------

    def _load(self, named: Iterable[Named], parse: Callable[[Stored, Named], Parsed]) -> dict[str, Parsed]:
        """Returns the parsed content of the objects that are still as they were written, by key."""
        wanted = list(named)
        good = {one.key: one for one in self._compare(wanted)}
        # a record that `busco scrub` has written contains the ETag of the record that it replaced
        replaced = {one.key: one for one in wanted if one.kind in REPLACED and self._found(one.key)}
        both = good | replaced
        found = self._parse(both, lambda stored, key: parse(stored, both[key]))
        for key, content in found.items():
            if isinstance(content, BuscoError) and key in good:
                raise content
            if isinstance(content, ValueError) and key in good:
                self._bad(good[key], str(content))
            elif not isinstance(content, BuscoError | ValueError):
                self.broken.pop(key, None)
        return {key: content for key, content in found.items() if not isinstance(content, BuscoError | ValueError)}

    def _compare(self, named: Iterable[Named]) -> list[Named]:
        """Returns the objects whose size and ETag are still as they were written, and records the others as broken."""
        wanted = list(named)
        self._list(listing(one.key) for one in wanted)
        good = []
        for one in wanted:
            self.named[one.key] = one
            etag, size, first = self._found(one.key) or ("", 0, "")
            if etag and etag == (one.etag or first) and one.bytes in (None, size):
                good.append(one)
            else:
                self.broken[one.key] = Broken(one, etag, size)
        return good

    def _bad(self, named: Named, why: str) -> None:
        etag, size, _ = self._found(named.key) or ("", 0, "")
        self.broken[named.key] = Broken(named, etag, size, why)

    def _found(self, key: str) -> tuple[str, int, str] | None:
        return self.listed[listing(key)].get(key)

    def _list(self, prefixes: Iterable[str]) -> None:
        further = sorted({*prefixes} - self.listed.keys())
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            self.listed.update(zip(further, pool.map(self._listing, further), strict=True))

    def _listing(self, prefix: str) -> dict[str, tuple[str, int, str]]:
        """Returns the ETag, the size and the first version's ETag of each object whose key starts with `prefix`.

        Versions are listed only if no record contains the objects' ETags, so that each object can be compared with its
        first version. Otherwise, the current ETag is returned in place of the first one.
        """
        if prefix.startswith(TABLE_FOLDERS) or prefix.split("/")[3] in ("versions", "pages"):
            return {key: (etag, size, etag) for key, (etag, size) in self.store.sizes(prefix).items()}
        # A run creates lost metadata again. Its content is checked, too.
        return listed(self.store, prefix, recreated=prefix.split("/")[3] in ("metadata", "iceberg", "manifests"))

    def _parse(self, keys: Iterable[str], parse: Callable[[Stored, str], Any]) -> dict[str, Any]:
        """Returns what `parse` returns for each object, or the error that it raises. Results are cached.

        The error is a BuscoError if the object is a record in a format that this code doesn't know, and a ValueError if
        it is damaged or can't be read.
        """

        def read(key: str) -> Any:
            known = (key, self.listed[listing(key)][key][0])
            if known not in self.read:
                try:
                    stored = self.store.get(key)
                except ClientError as error:
                    if error.response["Error"]["Code"] not in _UNREADABLE:
                        raise
                    return ValueError(f"it can't be read: {error}")
                if stored is None:
                    return ValueError("it was deleted a moment ago")
                try:
                    self.read[known] = parse(stored, key)
                except (BuscoError, ValueError) as error:
                    self.read[known] = error
            return self.read[known]

        wanted = list(keys)
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            return dict(zip(wanted, pool.map(read, wanted), strict=True))


def _version(stored: Stored, named: Named) -> Version:
    """Returns a version's own record.

    Raises:
        ValueError: this is neither the record that was written, nor the one that `busco scrub` replaced it with.
    """
    version = stored.parse(Version)
    if named.etag not in ("", stored.etag, version.replaces) or version.table != named.table:
        raise ValueError("it is not the record that was written")
    # The statistics, which can be most of a record, are not needed here.
    return version.model_copy(update={"files": tuple(one.model_copy(update=_NO_STATISTICS) for one in version.files)})
