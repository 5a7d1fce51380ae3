"""A lake without S3: records are in memory and data files in a folder, so ingesting a file takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import duckdb

from busco.ingest.files import Limits, SourceFile
from busco.ingest.load import Loaded, load
from busco.lake.deliveries import Contract
from busco.lake.objects import ObjectStore
from busco.lake.records import Column, Delivery
from tests.unit.memory_s3 import MemoryS3


class FolderLake(ObjectStore):
    """An object store whose data files DuckDB writes to a local folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(MemoryS3(), "lake")
        self.folder = folder
        self.scratch = folder / "scratch"
        self.scratch.mkdir(parents=True)
        self.connection = duckdb.connect(config={"threads": 2, "memory_limit": "2GB"})

    def url(self, key: str) -> str:
        path = self.folder / "lake" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    def etags(self, prefix: str, written: Mapping[str, int]) -> dict[str, str]:
        return {key: f'"{size}"' for key, size in written.items() if Path(self.url(key)).stat().st_size == size}

    def ingest(
        self,
        content: bytes,
        columns: Sequence[str] = ("a VARCHAR", "b VARCHAR"),
        name: str = "t.csv",
        row_bytes: int = 32_000_000,
        file_bytes: int = 1_000_000_000,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Loaded:
        """Writes a file with this content to `name` below the folder, and ingests it into table `t`."""
        path = self.folder / name
        path.write_bytes(content)
        typed = tuple(Column(name=one.split()[0], type=one.split()[1]) for one in columns)
        contract = Contract("s", "t", typed, (), "rows")
        file = SourceFile(path, name, contract)
        limits = Limits(row_bytes, file_bytes)
        return load(self.connection, self, file, self.scratch, limits, progress)

    @property
    def deliveries(self) -> list[Delivery]:
        return self.read_many(list(self.keys("_lake/deliveries/")), Delivery)

    def rows(self) -> list[tuple[object, ...]]:
        """Returns the newest delivery's rows, each with its row number after its values."""
        newest = max(self.deliveries, key=lambda one: one.ingested_at)
        columns = "* exclude (_source_file, _source_row, _ingested_at), _source_row"
        sql = f"select {columns} from read_parquet('{self.url(newest.object)}') order by _source_row"
        return self.connection.execute(sql).fetchall()

    def quarantined(self) -> list[tuple[object, ...]]:
        """Returns the row number, value and reason of every quarantined row."""
        sql = f"select row, value, reason from read_parquet('{self.folder}/lake/_lake/quarantine/**') order by row"
        return self.connection.execute(sql).fetchall()
