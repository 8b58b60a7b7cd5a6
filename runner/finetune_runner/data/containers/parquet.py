"""Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_runner.data.bytes_in import LONGEST_ROW, is_gzip, other_kind, too_long
from finetune_runner.data.records import BadRow, Record

EXTENSIONS = (".parquet",)
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 64
"""Also where a row group is small on the disk: a dictionary has a text once that many rows have."""
_LOOKED_AT = 32
_SHORTER = "shorten or remove the row"


def read(path: Path, name: str) -> Iterator[Record | BadRow]:
    """Rows of a file, in batches of some megabytes: a row group may be as large as the file."""
    import pyarrow as pa  # takes a while to import
    import pyarrow.parquet as pq

    if is_gzip(path):
        yield BadRow(name, "", "is gzipped; a Parquet file is compressed within", "unpack it with gunzip")
        return
    with path.open("rb") as stream:
        other = other_kind(stream.read(_LOOKED_AT))
    if other is not None and "Parquet" not in other[0]:
        yield BadRow(name, "", *other)
        return
    number = 0
    try:
        # Mapped: a file that is read takes as much memory as its largest row group, whatever the size of the buffer.
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            columns = file.schema_arrow.names
            twice = next((name for name in columns if columns.count(name) > 1), None)
            if twice is not None:
                yield BadRow(name, "", f"two columns are named `{twice}`", "give each column its own name")
                return
            groups = [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
            row_bytes = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=0)
            batch_rows = min(_BATCH_ROWS, max(1, int(_BATCH_BYTES // max(row_bytes, 1))))
            for batch in file.iter_batches(batch_size=batch_rows):
                for value in _values(batch):
                    number += 1
                    if value is None:
                        yield too_long(name, f"row {number}", _SHORTER, last=False)
                    else:
                        yield Record(name, f"row {number}", value)
    except (pa.ArrowException, OSError) as error:
        yield BadRow(name, f"after row {number}", f"not a readable Parquet file: {error}", "write or upload it again")
    except (ValueError, OverflowError) as error:  # a time that Python has no date for, text that is not UTF-8
        yield BadRow(name, f"after row {number}", f"has a value that cannot be read: {error}", "correct or remove it")


def _values(batch: Any) -> Iterator[dict[str, Any] | None]:
    """The rows of a record batch; None for one that is longer than LONGEST_ROW, which is not even unpacked."""
    if batch.nbytes <= LONGEST_ROW:
        yield from batch.to_pylist()
        return
    for at in range(batch.num_rows):
        row = batch.slice(at, 1)
        yield row.to_pylist()[0] if sum(map(_bytes, row.columns)) <= LONGEST_ROW else None


def _bytes(column: Any) -> int:
    """Bytes of a column's values; of a column of categories those that are used, not all that there are."""
    return int((column.dictionary_decode() if hasattr(column, "dictionary_decode") else column).nbytes)
