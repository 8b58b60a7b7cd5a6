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
from collections.abc import Sequence
from typing import Literal

from finetune_runner.data.near_duplicates import clusters, input_text
from finetune_runner.data.rows import Row

Part = Literal["train", "validation", "test"]

TEST_ROWS_WANTED = 220
"""A little above 200: the hash meets a share only about."""
TEST_SHARE_MOST = 0.3
_STEP = 0.05
_FEWEST_CLUSTERS = 3


def cluster_keys(rows: Sequence[Row]) -> list[str]:
    """The key of each row's cluster: its group, else the smallest content id among its near-duplicates."""
    labels = clusters([input_text(row) for row in rows])
    smallest: dict[int, str] = {}
    for row, label in zip(rows, labels, strict=True):
        smallest[label] = min(row.id, smallest.get(label, row.id))
    return [f"group:{row.group}" if row.group else smallest[label] for row, label in zip(rows, labels, strict=True)]


def test_share(fraction: float, rows: int) -> float:
    """The share of test: `fraction`, raised in steps of 0.05 towards 200 rows, at most 0.3."""
    needed = round(math.ceil(TEST_ROWS_WANTED / max(rows, 1) / _STEP) * _STEP, 2)
    return max(fraction, min(needed, TEST_SHARE_MOST))


def place(seed: int, key: str) -> float:
    """Where a cluster lies between 0 and 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64


def assign(keys: Sequence[str], seed: int, validation: float, test: float) -> list[Part]:
    """The split of each row, by the key of its cluster.

    A split with a share gets at least one cluster when there are three: the one nearest to its end.

    Args:
        keys: key of each row's cluster.
        seed: the job's seed.
        validation: share of validation; 0 = none.
        test: share of test; 0 = none.
    """
    places = {key: place(seed, key) for key in keys}
    parts: dict[str, Part] = {
        key: "test" if where < test else "validation" if where >= 1 - validation else "train"
        for key, where in places.items()
    }
    ordered = sorted(places, key=lambda key: (places[key], key))
    if len(ordered) >= _FEWEST_CLUSTERS:
        if test and "test" not in parts.values():
            parts[ordered[0]] = "test"
        if validation and "validation" not in parts.values():
            parts[ordered[-1]] = "validation"
        if "train" not in parts.values():
            parts[ordered[len(ordered) // 2]] = "train"
    return [parts[key] for key in keys]


def repetitions(row: Row, weight: float, seed: int) -> int:
    """How often a row of a dataset of this weight is used per epoch: the whole part, and the rest by the row's hash."""
    whole = math.floor(weight)
    return whole + (place(seed, f"weight:{row.id}") < weight - whole)


def sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """The `count` rows (or all, when there are fewer) with the smallest hash."""
    return sorted(rows, key=lambda row: (place(seed, f"sample:{row.id}"), row.id))[:count]
