"""Which split a row belongs to: a pure function of seed and content.

A cluster (near-duplicates, or rows of one group) has a key; the hash of seed and key is its place between 0 and 1.
Test is the low end, validation the high end, train the middle. So a row's place does not depend on the other rows.

Limits: the test share falls in steps while small data grow, and then rows move from test to train, never the other
way. A new row that joins an old cluster with a smaller content id gives that cluster a new key, and a new row that
joins two clusters makes one of them.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

Part = Literal["train", "validation", "test"]

TEST_ROWS_WANTED = 220
"""A little above 200: the hash meets a share only about."""
TEST_SHARE_MOST = 0.3
_STEP = 0.05
_FEWEST_CLUSTERS = 3


def test_share(fraction: float, rows: int) -> float:
    """The share of test: `fraction`, raised in steps of 0.05 towards 200 rows, at most 0.3."""
    needed = round(math.ceil(TEST_ROWS_WANTED / max(rows, 1) / _STEP) * _STEP, 2)
    return max(fraction, min(needed, TEST_SHARE_MOST))


def place(seed: int, key: str) -> float:
    """Where a cluster lies between 0 and 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64


def parts(
    clusters: Callable[[], Iterable[tuple[float, str]]], validation: float, test: float
) -> Iterator[tuple[str, Part]]:
    """The split of each cluster.

    A split with a share gets at least one cluster when there are three: the one nearest to its end.

    Args:
        clusters: gives the place and key of each cluster, in their order; called twice.
        validation: share of validation; 0 = none.
        test: share of test; 0 = none.
    """
    counts = Counter(_part_at(where, validation, test) for where, _ in clusters())
    borrowed: dict[int, Part] = {}
    if counts.total() >= _FEWEST_CLUSTERS:
        ends: tuple[tuple[Part, float, int], ...] = (("test", test, 0), ("validation", validation, counts.total() - 1))
        borrowed = {position: part for part, share, position in ends if share and not counts[part]}
        left = counts["train"] - sum(_part_of(position, counts) == "train" for position in borrowed)
        if not left:
            borrowed[counts.total() // 2] = "train"
    for number, (where, key) in enumerate(clusters()):
        yield key, borrowed.get(number) or _part_at(where, validation, test)


def _part_at(where: float, validation: float, test: float) -> Part:
    return "test" if where < test else "validation" if where >= 1 - validation else "train"


def _part_of(position: int, counts: Mapping[Part, int]) -> Part:
    """The split of a cluster by its position in the order of places, before any is borrowed."""
    if position < counts["test"]:
        return "test"
    return "train" if position < counts["test"] + counts["train"] else "validation"


def repetitions(row_id: str, weight: float, seed: int) -> int:
    """How often a row of a dataset of this weight is used per epoch: the whole part, and the rest by the row's hash."""
    whole = math.floor(weight)
    return whole + (place(seed, f"weight:{row_id}") < weight - whole)
