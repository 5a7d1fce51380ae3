"""Lets pyiceberg read and write objects in the lake bucket, each one as a whole."""

from __future__ import annotations

import hashlib
import io
from typing import Any

from pyiceberg.io import FileIO, InputFile, InputStream, OutputFile, OutputStream

from busco.lake.objects import AlreadyExists, ObjectStore

# The length of the marker that follows an Avro file's header and each of its blocks.
_SYNC = 16


class Objects(FileIO):
    """pyiceberg's file access to the lake bucket."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__()
        self.store = store

    def new_input(self, location: str) -> InputFile:
        return _ObjectInput(self.store, location)

    def new_output(self, location: str) -> OutputFile:
        return ObjectOutput(self.store, location, exclusive=False)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        raise NotImplementedError("files can only be deleted by key")


class _ObjectInput(InputFile):
    def __init__(self, store: ObjectStore, url: str) -> None:
        super().__init__(url)
        self.store, self.key = store, store.key(url)

    def __len__(self) -> int:
        return len(self._body())

    def exists(self) -> bool:
        return self.store.get(self.key) is not None

    def open(self, seekable: bool = True) -> InputStream:  # noqa: ARG002
        return io.BytesIO(self._body())

    def _body(self) -> bytes:
        stored = self.store.get(self.key)
        if stored is None:
            raise FileNotFoundError(self.location)
        return stored.body


class ObjectOutput(OutputFile):
    """An Avro file that is written by a single conditional PUT when it is closed.

    The file's random sync marker is replaced by a hash of its key, so that equal content has the same ETag.

    An `exclusive` file never replaces an existing object: closing it raises AlreadyExists instead or, with `keep`,
    keeps the existing object, whose size is then the file's length. Closing any other file replaces the current object,
    or raises Moved if that object changes in the meantime.
    """

    def __init__(self, store: ObjectStore, url: str, exclusive: bool = True, keep: bool = False) -> None:
        super().__init__(url)
        self.store, self.exclusive, self.keep, self.size = store, exclusive, keep, 0
        self.key = store.key(url)

    def __len__(self) -> int:
        return self.size

    def exists(self) -> bool:
        return False

    def to_input_file(self) -> InputFile:
        raise NotImplementedError("written files can't be read back")

    def create(self, overwrite: bool = False) -> OutputStream:  # noqa: ARG002
        return _Stream(self)


class _Stream(io.BytesIO):
    def __init__(self, target: ObjectOutput) -> None:
        super().__init__()
        self.target = target

    def close(self) -> None:
        if self.closed:
            return
        data = self.getvalue()
        super().close()
        self.target.size = len(data)
        data = data.replace(data[-_SYNC:], hashlib.sha256(self.target.key.encode()).digest()[:_SYNC])
        kind = "application/octet-stream"
        store, key = self.target.store, self.target.key
        before = None if self.target.exclusive else store.get(key)
        if before is None:
            try:
                store.create(key, data, kind)
            except AlreadyExists:
                kept = store.get(key) if self.target.keep else None
                if kept is None:
                    raise
                self.target.size = len(kept.body)
        else:
            store.swap(key, data, before.etag, kind)

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.close()
        else:
            super().close()
