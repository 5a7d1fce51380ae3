"""Runs in Spark's own Python: answers requests with one Spark session, over a connection to the tests.

A request is a pair: `sql` and a statement, whose rows are returned as plain Python values; or `schema` and a table,
whose schema is returned as JSON text. An answer is a pair, too: whether the request succeeded, and the result or the
exception's text.
"""

import sys
from multiprocessing.connection import Client

from pyspark.sql import Row, SparkSession


def plain(value):
    if isinstance(value, Row):
        return {name: plain(inner) for name, inner in value.asDict().items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, dict):
        return {plain(key): plain(inner) for key, inner in value.items()}
    return bytes(value) if isinstance(value, bytearray) else value


def answer(spark, kind, text):
    if kind == "schema":
        return spark.table(text).schema.json()
    return [tuple(plain(value) for value in row) for row in spark.sql(text).collect()]


def main(port, key):
    with Client(("127.0.0.1", int(port)), authkey=key.encode()) as tests:
        spark = SparkSession.builder.getOrCreate()
        while True:
            try:
                request = tests.recv()
            except EOFError:
                return
            try:
                tests.send((True, answer(spark, *request)))
            except Exception as error:
                tests.send((False, str(error)))


if __name__ == "__main__":
    main(*sys.argv[1:])
