"""What two inputs are compared by: their words without differences that do not count, as hashes of three in a row."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from finetune_runner.data.rows import Row

Shingles = npt.NDArray[np.uint64]
"""Sorted 64-bit hashes."""

_SHINGLE_WORDS = 3
_DIGEST_BYTES = 16
_UNSPACED = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"  # Han
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ebd\u0ec0-\u0ece"  # Thai, Lao
    "\u1000-\u103f\u1050-\u109d\u1780-\u17d3"  # Myanmar, Khmer
)
"""Characters of scripts that put no spaces between words: each counts as a word."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e01ef]"
)
"""Characters that show nothing, in or between words (Unicode: Default_Ignorable_Code_Point)."""
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def input_text(row: Row) -> str:
    """What a row asks: its prompt without system messages, which are usually the same everywhere. Plain text: all."""
    if not row.prompt:
        return row.answer
    return "\n".join(message["content"] for message in row.prompt if message["role"] != "system")


def system_form(row: Row) -> str:
    """The normal form of a row's system messages: another one asks for something else about the same input."""
    return "\n".join(normal_form(message["content"]) for message in row.prompt if message["role"] == "system")


def normal_form(text: str) -> str:
    """Text without differences of case, white space and punctuation, its words apart (see `_UNSPACED`)."""
    return _words(text) or text.strip()


def form_digest(form: str) -> bytes:
    """Identity of a normal form: 128 bits of its sha256."""
    return hashlib.sha256(form.encode("utf-8", "surrogatepass")).digest()[:_DIGEST_BYTES]


def earlier_digests(row: Row) -> list[bytes]:
    """What the earlier answers of a conversation were given to: `form_digest` of the input before each, in order."""
    digests: list[bytes] = []
    so_far = hashlib.sha256()
    begun = False
    for message in row.prompt if any(message["role"] == "assistant" for message in row.prompt) else ():
        if message["role"] == "assistant" and begun:
            digests.append(so_far.digest()[:_DIGEST_BYTES])
        words = _words(message["content"]) if message["role"] != "system" else ""
        if words:
            so_far.update(f"{' ' if begun else ''}{words}".encode("utf-8", "surrogatepass"))
            begun = True
    return digests


def _words(text: str) -> str:
    seen = text if text.isascii() else unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    return " ".join(_WORD.findall(seen.casefold()))


def jaccard(one: Shingles, other: Shingles) -> float:
    """Shared shingles over all shingles of two inputs."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


def shingles_of(form: str) -> Shingles:
    """Sorted 64-bit hashes of the form's three-word shingles; a shorter form is one shingle."""
    words = form.split()
    if len(words) < _SHINGLE_WORDS:
        return np.array([text_hash(form)], np.uint64)
    hashes = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    return np.unique(combined([hashes[at : len(hashes) - _SHINGLE_WORDS + 1 + at] for at in range(_SHINGLE_WORDS)]))


def text_hash(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


_word_hash = lru_cache(maxsize=1 << 16)(text_hash)
"""Remembers words, which come again and again; whole prompts would fill the memory."""


def combined(columns: Sequence[Shingles]) -> Shingles:
    """One hash of several, in their order."""
    total = columns[0] * _PRIME
    for column in columns[1:]:
        total = (total ^ (total >> np.uint64(29))) * _MIX + column * _PRIME
    return total ^ (total >> np.uint64(32))
