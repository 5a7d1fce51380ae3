"""Lets pyiceberg read and write objects in the lake bucket, each one as a whole."""

from __future__ import annotations

import io
from typing import Any

from pyiceberg.io import FileIO, InputFile, InputStream, OutputFile, OutputStream

from busco.errors import BuscoError
from busco.lake.objects import ObjectStore


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


def key_of(store: ObjectStore, url: str) -> str:
    """Returns the key in an object's URL.

    Raises:
        BuscoError: the URL is in another bucket.
    """
    prefix = store.url("")
    if not url.startswith(prefix):
        raise BuscoError(f"{url} is not in the lake bucket {store.bucket}")
    return url[len(prefix) :]


class _ObjectInput(InputFile):
    def __init__(self, store: ObjectStore, url: str) -> None:
        super().__init__(url)
        self.store, self.key = store, key_of(store, url)

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
    """A file that is written by a single conditional PUT when it is closed.

    An `exclusive` file never replaces an existing object: closing it raises AlreadyExists instead. Closing any other
    file replaces the current object, or raises Moved if that object changes in the meantime.
    """

    def __init__(self, store: ObjectStore, url: str, exclusive: bool = True) -> None:
        super().__init__(url)
        self.store, self.exclusive, self.size = store, exclusive, 0
        self.key = key_of(store, url)

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
        kind = "application/json" if self.target.key.endswith(".json") else "application/octet-stream"
        store, key = self.target.store, self.target.key
        before = None if self.target.exclusive else store.get(key)
        if before is None:
            store.create(key, data, kind)
        else:
            store.swap(key, data, before.etag, kind)

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.close()
        else:
            super().close()
