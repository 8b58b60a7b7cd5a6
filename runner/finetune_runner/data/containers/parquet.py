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
            columns = file.schema_arrow.names
            twice = next((name for name in columns if columns.count(name) > 1), None)
            if twice is not None:
                yield BadRow(name, "", f"two columns are named `{twice}`", "give each column its own name")
                return
            for batch in file.iter_batches(batch_size=1000):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(name, f"row {number}", value)
    except (pa.ArrowException, OSError) as error:
        yield BadRow(name, f"after row {number}", f"not a readable Parquet file: {error}", "write or upload it again")
    except (ValueError, OverflowError) as error:  # a time that Python has no date for, text that is not UTF-8
        yield BadRow(name, f"after row {number}", f"has a value that cannot be read: {error}", "correct or remove it")
