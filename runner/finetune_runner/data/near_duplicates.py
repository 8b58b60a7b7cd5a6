"""Near-duplicates of inputs: MinHash finds candidates, the exact Jaccard similarity decides.

Broder 1997 (resemblance); shingles of three words, 0.85: templated texts that differ in a name or a number stay apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from datasketch import MinHash, MinHashLSH

from finetune_runner.data.rows import Row

SIMILARITY = 0.85
_CANDIDATES = 0.7  # lower than SIMILARITY: MinHash misses few true pairs then, and the exact test removes the others
_PERMUTATIONS = 64
_SHINGLE_WORDS = 3
_COMMON_SHARE = 0.5
_COMMON_FROM_ROWS = 20
_WORD = re.compile(r"\w+")


def input_text(row: Row) -> str:
    """What a row asks: its prompt without system messages, which are usually the same everywhere."""
    return "\n".join(message["content"] for message in row.prompt if message["role"] != "system")


def normal_form(text: str) -> str:
    """Text without differences of case, white space and punctuation."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) or text.strip()


def clusters(texts: Sequence[str]) -> list[int]:
    """The cluster of each text: the index of its first member; texts of one cluster are near-duplicates in a chain."""
    index = _Index(texts)
    parent = list(range(len(index.forms)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for number in range(len(index.forms)):
        for other in index.near(number):
            low, high = sorted((root(number), root(other)))
            parent[high] = low
    first: dict[int, int] = {}
    return [first.setdefault(root(form), row) for row, form in enumerate(index.form_of)]


def leaking(texts: Sequence[str], held_out: Sequence[str]) -> list[int]:
    """Indexes of the texts that are near-duplicates of a held-out text."""
    index = _Index([*held_out, *texts])
    held_forms = set(index.form_of[: len(held_out)])
    found = []
    verdicts: dict[int, bool] = {}
    for number, form in enumerate(index.form_of[len(held_out) :]):
        if form not in verdicts:
            verdicts[form] = form in held_forms or any(other in held_forms for other in index.near(form))
        if verdicts[form]:
            found.append(number)
    return found


class _Index:
    """Distinct normal forms with their shingles. Shingles that most rows share (a common instruction) do not count."""

    def __init__(self, texts: Sequence[str]) -> None:
        numbers: dict[str, int] = {}
        self.form_of = [numbers.setdefault(normal_form(text), len(numbers)) for text in texts]
        self.forms = list(numbers)
        every = [_shingles(form) for form in self.forms]
        if len(every) >= _COMMON_FROM_ROWS:
            counts = Counter(shingle for shingles in every for shingle in shingles)
            common = {shingle for shingle, count in counts.items() if count > _COMMON_SHARE * len(every)}
            every = [shingles - common or frozenset({form}) for shingles, form in zip(every, self.forms, strict=True)]
        self._shingles = every
        self._hashes = MinHash.bulk(
            [[shingle.encode() for shingle in sorted(shingles)] for shingles in every], num_perm=_PERMUTATIONS
        )
        self._lsh = MinHashLSH(threshold=_CANDIDATES, num_perm=_PERMUTATIONS)
        for number, hashed in enumerate(self._hashes):
            self._lsh.insert(number, hashed)

    def near(self, number: int) -> list[int]:
        """Forms that are near-duplicates of a form."""
        mine = self._shingles[number]
        return [
            other
            for other in self._lsh.query(self._hashes[number])
            if other != number and _jaccard(mine, self._shingles[other]) >= SIMILARITY
        ]


def _shingles(form: str) -> frozenset[str]:
    words = form.split()
    if len(words) < _SHINGLE_WORDS:
        return frozenset({form})
    return frozenset(" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(len(words) - _SHINGLE_WORDS + 1))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    both = len(one & other)
    return both / (len(one) + len(other) - both)
