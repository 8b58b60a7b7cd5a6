"""What a pass over the candidates looks for: clusters within a split, or rows near a held-out one. Pure."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from finetune_runner.data.near_duplicate_files import Numbers


class Search(Protocol):
    """What a pass over the candidates looks for."""

    def worth(self, bucket: Numbers) -> bool:
        """Whether a bucket of candidates holds a pair that is still to be compared."""

    def open(self, form: int, others: Numbers) -> Numbers:
        """Those of the others that are still to be compared with the form."""

    def hit(self, form: int, other: int) -> None:
        """They are near-duplicates."""


class Joining:
    """Union of the near-duplicates within one split; the smaller form becomes the root."""

    def __init__(self, size: int, within: npt.NDArray[np.bool_]) -> None:
        self._parent = np.arange(size)
        self._within = within

    def roots(self, forms: Numbers) -> Numbers:
        """The smallest form of each form's cluster."""
        found: Numbers = self._parent[forms]
        while True:
            higher: Numbers = self._parent[found]
            if np.array_equal(higher, found):
                self._parent[forms] = found
                return found
            found = higher

    def worth(self, bucket: Numbers) -> bool:
        """See Search."""
        return len(np.unique(self.roots(bucket[self._within[bucket]]))) > 1

    def open(self, form: int, others: Numbers) -> Numbers:
        """See Search."""
        if not len(others) or not self._within[form]:
            return others[:0]
        inside: Numbers = others[self._within[others]]
        apart: Numbers = inside[self.roots(inside) != self.roots(np.array([form]))[0]]
        return apart

    def hit(self, form: int, other: int) -> None:
        """See Search."""
        low, high = sorted(self.roots(np.array([form, other])).tolist())
        self._parent[high] = low


class Leaking:
    """Forms that are learned from and near a held-out one.

    Where the clusters are known (`roots`, 0 = not), forms of two clusters have been compared and are not near.
    """

    def __init__(self, learned: npt.NDArray[np.bool_], held: npt.NDArray[np.bool_], roots: Numbers) -> None:
        self._learned, self._held, self._roots = learned, held, roots
        self.found = np.where(learned & held, np.arange(len(learned)), 0)
        """By form: the held-out form it is near to; 0 = none."""

    def worth(self, bucket: Numbers) -> bool:
        """See Search."""
        asking = bucket[self._learned[bucket] & (self.found[bucket] == 0)]
        held = bucket[self._held[bucket]]
        if not len(asking) or not len(held):
            return False
        roots = self._roots[asking], self._roots[held]
        return not roots[0].all() or not roots[1].all() or bool(np.isin(*roots).any())

    def open(self, form: int, others: Numbers) -> Numbers:
        """See Search."""
        asks = self._learned[form] and not self.found[form]
        wanted = (self._held[others] & asks) | (self._learned[others] & (self.found[others] == 0) & self._held[form])
        mine, theirs = self._roots[form], self._roots[others]
        chosen: Numbers = others[wanted & ((mine == theirs) | (mine == 0) | (theirs == 0))]
        return chosen

    def hit(self, form: int, other: int) -> None:
        """See Search."""
        for one, held in ((form, other), (other, form)):
            if self._learned[one] and self._held[held] and not self.found[one]:
                self.found[one] = held
