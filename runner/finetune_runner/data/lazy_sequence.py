"""A sequence whose items are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

Item = TypeVar("Item", covariant=True)


class LazySequence(Sequence[Item]):
    """Subclasses say how many items there are (`__len__`) and make one (`item`); a slice is a list of them."""

    @abstractmethod
    def item(self, index: int) -> Item:
        """The item of an index from 0 to the length - 1."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self.item(at) for at in range(*index.indices(len(self)))]
        size = len(self)
        if not -size <= index < size:
            raise IndexError(index)
        return self.item(index % size)


class Joined(LazySequence[Item]):
    """Two sequences as one, without a copy."""

    def __init__(self, first: Sequence[Item], second: Sequence[Item]) -> None:
        self._first = first
        self._second = second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def item(self, index: int) -> Item:
        """See LazySequence."""
        border = len(self._first)
        return self._first[index] if index < border else self._second[index - border]
