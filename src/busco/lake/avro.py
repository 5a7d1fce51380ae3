"""Reads Avro files, such as Iceberg manifest lists, without an Avro library, because Airflow's environment has none.

Supports only what Iceberg's files use: object container files with the codec `null` or `deflate`, and with a schema
that has no fixed-length values, enums or references to named types.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from typing import Any

_MAGIC = b"Obj\x01"
_SYNC = 16


def read(body: bytes) -> list[dict[str, Any]]:
    """Returns the records of an Avro object container file (Avro specification 1.11.1, "Object Container Files").

    Raises:
        ValueError: `body` is not such a file, or the file is damaged.
    """
    try:
        return _read(io.BytesIO(body))
    except (EOFError, KeyError, UnicodeDecodeError, struct.error, zlib.error) as error:
        raise ValueError(f"not a readable Avro file: {error}") from error


def _read(stream: io.BytesIO) -> list[dict[str, Any]]:
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("not an Avro file")
    header = _value(stream, {"type": "map", "values": "bytes"})
    schema, codec = json.loads(header["avro.schema"]), header.get("avro.codec", b"null").decode()
    if codec not in ("null", "deflate"):
        raise ValueError(f"the Avro codec {codec} is not supported")
    sync = _bytes(stream, _SYNC)
    records: list[dict[str, Any]] = []
    while stream.tell() < len(stream.getbuffer()):
        count, size = _long(stream), _long(stream)
        block = _bytes(stream, size)
        inner = io.BytesIO(zlib.decompress(block, -zlib.MAX_WBITS) if codec == "deflate" else block)
        records += [_value(inner, schema) for _ in range(count)]
        if _bytes(stream, _SYNC) != sync:
            raise ValueError("an Avro block does not end with the file's sync marker")
    return records


def _value(stream: io.BytesIO, schema: Any) -> Any:
    if isinstance(schema, list):  # a union: the index of the value's type comes first
        return _value(stream, schema[_long(stream)])
    kind = schema["type"] if isinstance(schema, dict) else schema
    match kind:
        case "record":
            return {field["name"]: _value(stream, field["type"]) for field in schema["fields"]}
        case "array":
            return [_value(stream, schema["items"]) for count in _counts(stream) for _ in range(count)]
        case "map":
            return {
                _bytes(stream, _long(stream)).decode(): _value(stream, schema["values"])
                for count in _counts(stream)
                for _ in range(count)
            }
        case "null":
            return None
        case "boolean":
            return _bytes(stream, 1) == b"\x01"
        case "int" | "long":
            return _long(stream)
        case "float":
            return struct.unpack("<f", _bytes(stream, 4))[0]
        case "double":
            return struct.unpack("<d", _bytes(stream, 8))[0]
        case "bytes":
            return _bytes(stream, _long(stream))
        case "string":
            return _bytes(stream, _long(stream)).decode()
        case dict() | list():  # a nested type
            return _value(stream, kind)
    raise ValueError(f"the Avro type {kind} is not supported")


def _counts(stream: io.BytesIO) -> Any:
    """Yields the number of items in each block of an array or map."""
    while count := _long(stream):
        if count < 0:  # the block's size in bytes follows
            count = -count
            _long(stream)
        yield count


def _long(stream: io.BytesIO) -> int:
    """Reads an integer in variable-length zig-zag encoding."""
    result = shift = 0
    while True:
        (byte,) = _bytes(stream, 1)
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (result >> 1) ^ -(result & 1)
        shift += 7


def _bytes(stream: io.BytesIO, size: int) -> bytes:
    found = stream.read(size) if size >= 0 else b""
    if size < 0 or len(found) != size:
        raise EOFError("unexpected end of file")
    return found
