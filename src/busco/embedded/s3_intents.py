"""Makes the local S3's writes survive kill -9: an object's data and metadata change together or not at all.

MiniStack writes an object's data file first and its sidecar (`.meta.json`: ETag, size, version id) second. If MiniStack
were killed in between, it would then serve the new data under the old ETag, and a client that had seen only the old
data could overwrite the new data by using `If-Match` with that ETag. So each write first records an intent: the new
sidecar and the data's hash. The next start completes the write if its data is on disk, and discards it otherwise. This
protects against a killed process but not against a power failure, because nothing is synced to disk.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from busco.embedded import ministack_contract

# The MiniStack functions that this module wraps or calls, with the parameters that they had when it was written.
EXPECTED = {
    "services.s3._persist_object": ["bucket", "key", "obj"],
    "services.s3._object_disk_path": ["bucket", "key", "account_id"],
    "services.s3._object_meta_from_record": ["obj"],
    "services.s3._key_history_meta": ["bucket_name", "key"],
}


def install(s3: Any, intents: Path) -> None:
    """Makes MiniStack's S3 service, `ministack.services.s3`, record an intent for each write.

    `intents` is a folder next to the objects' folder. Call `repair` on `intents` before importing the service, because
    the import loads all objects.

    Raises:
        RuntimeError: the installed MiniStack is not the version that this patch was written for.
    """
    ministack_contract.check(__name__, EXPECTED, "tests/integration/test_local_s3.py")
    original = s3._persist_object

    def persist(bucket: str, key: str, obj: Any) -> None:
        path = s3._object_disk_path(bucket, key)
        body = obj.get("body") if isinstance(obj, dict) else None
        if path is None or body is None:
            # Only the sidecar changes, and MiniStack replaces it atomically.
            original(bucket, key, obj)
            return
        sidecar = {**s3._object_meta_from_record(obj), **s3._key_history_meta(bucket, key), "key": key}
        intent = intents / f"{hashlib.md5(path.encode(), usedforsecurity=False).hexdigest()}.json"
        _write(intent, {"data": path, "md5": _md5(body), "sidecar": sidecar})
        original(bucket, key, obj)
        intent.unlink()
        # MiniStack keeps each version's bytes in memory until it restarts, so the whole lake would end up in memory.
        # Bytes that are not in memory are read from disk.
        versions = s3._object_versions.get((bucket, key))
        if versions and versions[-1]["version_id"] == obj.get("version_id"):
            versions[-1]["data"] = None

    intents.mkdir(parents=True, exist_ok=True)
    s3._persist_object = persist


def expire_versions(objects: Path, days: float) -> int:
    """Deletes versions that were overwritten or deleted more than `days` days ago; returns how many.

    On AWS, S3's lifecycle rules do this; MiniStack does not support them. Like `repair`, call this before importing the
    service, because the import forgets versions whose bytes are missing.

    Args:
        objects: the folder of the objects.
    """
    before = time.time() - days * 86_400
    # .versions/<account>/<bucket>/<version id>/<key>; the folder's mtime is the time when the version was overwritten
    old = [one for one in objects.glob(".versions/*/*/*") if one.stat().st_mtime < before]
    for folder in old:
        shutil.rmtree(folder)
    return len(old)


def repair(intents: Path) -> int:
    """Completes or discards the writes that a killed server left unfinished; returns how many there were."""
    left = sorted(intents.glob("*.json"))
    for path in left:
        intent = json.loads(path.read_text())
        data = Path(intent["data"])
        sidecar = data.with_name(data.name + ".meta.json")
        if data.is_file() and _md5(data.read_bytes()) == intent["md5"]:
            _write(sidecar, intent["sidecar"])
        for scratch in (data, sidecar):
            scratch.with_name(scratch.name + ".tmp").unlink(missing_ok=True)
        path.unlink()
    for scratch in intents.glob("*.tmp"):
        scratch.unlink()
    return len(left)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _write(path: Path, record: dict[str, Any]) -> None:
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(json.dumps(record))
    scratch.replace(path)
