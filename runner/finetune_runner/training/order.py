"""Which examples each optimiser step sees: a pure function of (rows, weights, seed, step).

Nothing about the order is kept in a checkpoint, so a resumed run, a run with another micro-batch after running out of
memory and a run on another number of GPUs see the same examples in the same steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]


def _phase(row_id: str, seed: int) -> float:
    """A number in [0, 1) that belongs to a row: in which epoch a row of weight 0.5 comes first."""
    digest = hashlib.sha256(f"{seed}:{row_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def epoch_indices(row_ids: Sequence[str], weights: ArrayLike, seed: int, epoch: int) -> Indices:
    """Shuffled row indices of one epoch. A row of weight w occurs w times on average: 0.5 every second epoch."""
    phases = np.fromiter((_phase(row_id, seed) for row_id in row_ids), np.float64, len(row_ids))
    share = np.asarray(weights, dtype=np.float64)
    uses = np.floor((epoch + 1) * share + phases) - np.floor(epoch * share + phases)
    indices = np.repeat(np.arange(len(row_ids), dtype=np.int64), uses.astype(np.int64))
    return np.random.default_rng([seed, epoch]).permutation(indices)


def example_stream(row_ids: Sequence[str], weights: ArrayLike, seed: int, examples: int) -> Indices:
    """The first `examples` indices of the epochs, one after the other.

    Raises ValueError when the rows' weights leave nothing to draw from.
    """
    if np.sum(weights) <= 0:
        raise ValueError("there are no rows to train on")
    parts: list[Indices] = []
    total = epoch = 0
    while total < examples:
        parts.append(epoch_indices(row_ids, weights, seed, epoch))
        total += len(parts[-1])
        epoch += 1
    return np.concatenate(parts)[:examples]


def micro_batches(
    step_examples: Sequence[int], lengths: Sequence[int], accumulation: int, world: int, rank: int
) -> list[list[int]]:
    """This rank's micro-batches of one optimiser step, longest first.

    Examples of similar length share a micro-batch and ranks get neighbouring ones, so that little is padded and no rank
    waits; the step's gradient is a sum over its examples and does not depend on this.
    """
    ordered = sorted(step_examples, key=lambda index: (-lengths[index], index))
    size = len(ordered) // (accumulation * world)
    return [ordered[(a * world + rank) * size : (a * world + rank + 1) * size] for a in range(accumulation)]
