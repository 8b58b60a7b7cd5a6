"""Signatures and shingles of inputs in files, found by the number of their form (near_duplicates.py)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_runner.data.minhash import PERMUTATIONS
from finetune_runner.data.shingles import Shingles

Numbers = npt.NDArray[np.int64]
"""Numbers of forms."""
_HEAD = np.dtype([("start", "<i8"), ("size", "<i8"), ("signature", "<u4", (PERMUTATIONS,))])


class IndexFiles:
    """Signature and shingles of each form, found by the form's number."""

    def __init__(self, folder: Path) -> None:
        self._heads = (folder / "heads").open("w+b")
        self._shingles = (folder / "shingles").open("w+b")
        self._end = 0

    def write(self, form: int, signature: npt.NDArray[np.uint32], shingles: Shingles) -> None:
        """Append a form's shingles and write its head."""
        head = np.zeros((), _HEAD)
        head["start"], head["size"], head["signature"] = self._end, len(shingles), signature
        self._heads.seek(form * _HEAD.itemsize)
        self._heads.write(head.tobytes())
        self._shingles.write(shingles.tobytes())
        self._end += shingles.nbytes

    def written(self) -> None:
        """Call after the last `write`: what is buffered goes to the files."""
        self._heads.flush()
        self._shingles.flush()

    def signatures(self, forms: Numbers) -> npt.NDArray[np.uint32]:
        """Signatures of forms, (forms, permutations)."""
        return np.array([self._head(int(form))["signature"] for form in forms], np.uint32)

    def sizes(self, forms: Numbers) -> Numbers:
        """How many shingles each form has."""
        return np.array([self._head(int(form))["size"] for form in forms], np.int64)

    def shingles(self, form: int) -> Shingles:
        """Sorted shingles of a form."""
        head = self._head(form)
        data = os.pread(self._shingles.fileno(), int(head["size"]) * 8, int(head["start"]))
        return np.frombuffer(data, np.uint64)

    def close(self) -> None:
        """Close the files."""
        self._heads.close()
        self._shingles.close()

    def _head(self, form: int) -> npt.NDArray[np.void]:
        data = os.pread(self._heads.fileno(), _HEAD.itemsize, form * _HEAD.itemsize)
        return np.frombuffer(data, _HEAD).reshape(())
