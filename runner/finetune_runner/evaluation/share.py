"""Which of the fixed batches a process computes.

Batches are cut before they are shared out, so that the answers do not depend on how many processes there are: batches
of another size or company may round differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Batch = list[int]
"""Indices of the rows of a batch."""


@dataclass(frozen=True)
class Share:
    """Place of this process among those that share the batches; every batch, hence every row, has one owner.

    `lockstep`: all processes make the same number of forward passes, because the model's weights are spread over them.
    Who has run out of batches repeats its last one.
    """

    rank: int = 0
    size: int = 1
    lockstep: bool = False

    def turns(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, bool]]:
        """Batches to compute, in order, and whether each one's result counts."""
        own = list(batches[self.rank :: self.size])
        for batch in own:
            yield batch, True
        if self.lockstep and batches:
            rounds = -(-len(batches) // self.size)
            for _ in range(rounds - len(own)):
                yield own[-1] if own else batches[0], False


WHOLE = Share()
