"""Encoded examples on the scratch disk: what training keeps in memory of them is their lengths and places.

Flat files read by position, as in data/row_file.py, and no Arrow: an example is two arrays of one length, and is asked
for by its number. The ranks of a node share one copy, each writing a part of it.
"""

from __future__ import annotations

import os
import time
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_runner.data.lazy_sequence import LazySequence
from finetune_runner.evaluation.likelihood import IGNORED, Encoded
from finetune_runner.training.distributed import World

_TOKEN = np.dtype("<i4")
_BYTES_PER_TOKEN = _TOKEN.itemsize + 1
"""The token, and whether it is learned: a label is its token or IGNORED."""
_LENGTHS_SUFFIX = ".lengths"
_CHECK_EVERY_ROWS = 256
_POLL_S = 0.05


class EncodedRows(LazySequence[Encoded]):
    """Examples as `write_encoded` left them in files, one file after the other.

    In memory: 12 bytes per example.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        parts = [np.fromfile(_lengths_path(path), _TOKEN) for path in paths]
        self.lengths: npt.NDArray[np.int32] = np.concatenate(parts)
        """Tokens of each example."""
        self._first = [0, *accumulate(len(part) for part in parts)]
        self._starts = [_starts(part) for part in parts]
        self._files = [os.open(path, os.O_RDONLY) for path in paths]
        for file in self._files:
            weakref.finalize(self, os.close, file)

    def __len__(self) -> int:
        return len(self.lengths)

    def item(self, index: int) -> Encoded:
        """See LazySequence."""
        part = bisect_right(self._first, index) - 1
        start, size = int(self._starts[part][index - self._first[part]]), int(self.lengths[index])
        data = os.pread(self._files[part], size * _BYTES_PER_TOKEN, start)
        ids = np.frombuffer(data, _TOKEN, size)
        learned = np.frombuffer(data, np.bool_, size, size * _TOKEN.itemsize)
        return ids.tolist(), np.where(learned, ids, IGNORED).tolist()


def write_encoded(path: Path, examples: Iterable[Encoded]) -> None:
    """Write examples to a file, and their lengths beside it. The file is there once it is whole.

    Args:
        path: a new file.
        examples: whose labels are their tokens or IGNORED.

    Raises:
        ValueError: when a label is another token than its own.
        OSError: when the disk is full.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as tokens, _lengths_path(path).open("wb") as lengths:
        for ids, labels in examples:
            token, label = np.array(ids, _TOKEN), np.array(labels, _TOKEN)
            learned = label != IGNORED
            if not np.array_equal(token[learned], label[learned]):
                raise ValueError("a label is neither its token nor ignored")
            tokens.write(token.tobytes() + learned.tobytes())
            lengths.write(np.array([len(token)], _TOKEN).tobytes())
    unfinished.rename(path)


def await_paths(paths: Iterable[Path], check_stop: Callable[[], None]) -> None:
    """Wait until another rank of this node has written these; `check_stop` may raise.

    However long that takes, unlike in a collective: a rank that dies takes the others of its node with it (torchrun).
    """
    for path in paths:
        while not path.exists():
            check_stop()
            time.sleep(_POLL_S)


def encode_shared(
    folder: Path,
    rows: int,
    examples_of: Callable[[int], Sequence[Encoded]],
    world: World,
    check_stop: Callable[[], None],
) -> EncodedRows:
    """The examples of all rows, in their order; each rank of a node encodes a part, and all read all of them.

    Args:
        folder: of the node, which has nothing of that name yet.
        rows: how many there are.
        examples_of: the examples of a row, by its number.
        world: the ranks of a node call this together.
        check_stop: called on the way; raises when the stage shall end.
    """
    paths = [folder / f"part-{rank}" for rank in range(world.local_size)]
    folder.mkdir(parents=True, exist_ok=True)
    bounds = [rows * rank // world.local_size for rank in range(world.local_size + 1)]

    def own() -> Iterable[Encoded]:
        for row in range(bounds[world.local_rank], bounds[world.local_rank + 1]):
            if row % _CHECK_EVERY_ROWS == 0:
                check_stop()
            yield from examples_of(row)

    write_encoded(paths[world.local_rank], own())
    await_paths(paths, check_stop)
    return EncodedRows(paths)


def lengths_of(examples: Sequence[Encoded]) -> array[int]:
    """Tokens of each example, 8 bytes each."""
    if isinstance(examples, EncodedRows):
        return array("q", examples.lengths.astype(np.int64).tobytes())
    return array("q", (len(ids) for ids, _ in examples))


def _lengths_path(path: Path) -> Path:
    return path.with_name(path.name + _LENGTHS_SUFFIX)


def _starts(lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    ends = np.cumsum(lengths, dtype=np.int64) * _BYTES_PER_TOKEN
    starts: npt.NDArray[np.int64] = ends - lengths.astype(np.int64) * _BYTES_PER_TOKEN
    return starts
