"""Conversations that go on from another row: their earlier answers teach what that row asks.

A data set may hold a conversation once for each of its answers, or a question by itself and as the beginning of longer
ones. Such rows belong into one split, and the longer one must not be trained on while the shorter one judges.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import numpy as np

from finetune_runner.data.near_duplicate_files import Numbers

EARLIER_TABLE = "earlier(number INTEGER, turn INTEGER, digest BLOB)"
"""Of every row the digests of what its earlier answers were given to (`shingles.earlier_digests`)."""
_GREETING_WORDS = 4
_GREETING_SHARED = 10
"""So short an opening of more conversations than this (`hello`) says nothing about them (both ours)."""
_LONGEST_EARLIER = """
SELECT number, max(turn), whole FROM (
    SELECT number, turn, (SELECT min(inputs.number) FROM inputs WHERE inputs.digest = earlier.digest) AS whole
    FROM earlier)
WHERE whole NOT NULL GROUP BY number
"""


def earlier_of(database: sqlite3.Connection, form_of: Numbers, text_of: Callable[[int], str]) -> Numbers:
    """By form: that of its longest earlier question which is the whole input of a row; 0 = none.

    Args:
        database: with the tables `inputs` (number, digest of the whole input) and `earlier`.
        form_of: the form of each row.
        text_of: gives the normal form of a form.
    """
    found = np.zeros(len(form_of), np.int64)
    if database.execute("SELECT 1 FROM earlier LIMIT 1").fetchone() is None:
        return found
    database.execute("CREATE INDEX inputs_by_digest ON inputs(digest)")
    for number, _, whole in database.execute(_LONGEST_EARLIER):
        form, earlier = form_of[number], form_of[whole]
        if form != earlier:  # turns without a word add nothing
            found[form] = earlier
    shared = np.bincount(found)
    for form in (np.flatnonzero(shared[1:] > _GREETING_SHARED) + 1).tolist():
        if len(text_of(form).split()) <= _GREETING_WORDS:
            found[found == form] = 0
    return found
