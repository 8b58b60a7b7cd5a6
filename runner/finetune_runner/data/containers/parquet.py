"""Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finetune_runner.data.records import BadRow, Record

EXTENSIONS = (".parquet",)


def read(path: Path, name: str) -> Iterator[Record | BadRow]:
    """Rows of a file, in batches."""
    import pyarrow as pa  # takes a while to import
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(name, f"row {number}", value)
    except (pa.ArrowException, OSError) as error:
        yield BadRow(name, f"after row {number}", f"not a readable Parquet file: {error}", "write or upload it again")
