"""Rows in a file of the scratch folder, read one at a time: what remains in memory is 24 bytes per row.

The file is read by position (`pread`) and not mapped: its pages are the kernel's, shared by all processes of a node and
given back when memory is short, and never count as a process's own.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_runner.data.lazy_sequence import LazySequence
from finetune_runner.data.rows import Row

_ROWS, _HEADS = "rows.jsonl", "heads"
_HEAD = np.dtype([("end", "<i8"), ("id", "<u8"), ("weight", "<f8")])
_HEADS_AT_ONCE = 10_000


class RowFile(LazySequence[Row]):
    """The rows that `write_row_file` left in a folder. Any number of processes may read them."""

    def __init__(self, folder: Path) -> None:
        heads = np.fromfile(folder / _HEADS, _HEAD)
        self._starts = np.concatenate([np.zeros(1, np.int64), heads["end"]])
        self.ids = RowIds(heads["id"].copy())
        self.weights: npt.NDArray[np.float64] = heads["weight"].copy()
        self._file = os.open(folder / _ROWS, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self.weights)

    def item(self, index: int) -> Row:
        """See LazySequence."""
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        return Row.from_wire(json.loads(os.pread(self._file, end - start, start)))


class RowIds(LazySequence[str]):
    """Ids of rows, 8 bytes each. Prepared rows have ids of 16 hexadecimal digits (`rows.content_id`)."""

    def __init__(self, numbers: npt.NDArray[np.uint64]) -> None:
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def item(self, index: int) -> str:
        """See LazySequence."""
        return f"{int(self._numbers[index]):016x}"


def write_row_file(folder: Path, rows: Iterable[Row]) -> None:
    """Write rows into a new folder, for `RowFile`; it is there once it is whole. Raises OSError on a full disk."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.mkdir(parents=True)
    with (unfinished / _ROWS).open("wb") as lines, (unfinished / _HEADS).open("wb") as heads:
        waiting: list[tuple[int, int, float]] = []
        end = 0
        for row in rows:
            end += lines.write(json.dumps(row.to_wire(), ensure_ascii=False).encode() + b"\n")
            waiting.append((end, int(row.id, 16), row.weight))
            if len(waiting) == _HEADS_AT_ONCE:
                heads.write(np.array(waiting, _HEAD).tobytes())
                waiting = []
        heads.write(np.array(waiting, _HEAD).tobytes())
    unfinished.rename(folder)
