"""The conversations each system is given. Pure: rows in, messages out."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from bisect import insort
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from finetune_runner.data.rows import Message, Row
from finetune_runner.evaluation.labels import label_of


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """The conversation under a system prompt; a system message of its own is kept behind it."""
    if not system:
        return [dict(message) for message in messages]
    own = [m["content"] for m in messages if m["role"] == "system"]
    rest = [dict(message) for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join([system, *own])}, *rest]


def folded(messages: Sequence[Message]) -> list[Message]:
    """The same conversation for a template without a system role: its text opens the first turn of the user."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    rest = [dict(m) for m in messages if m["role"] != "system"]
    if system and rest and rest[0]["role"] == "user":
        rest[0]["content"] = f"{system}\n\n{rest[0]['content']}"
    return rest


def with_examples(messages: Sequence[Message], examples: Sequence[Row], system: str | None) -> list[Message]:
    """The conversation after worked examples as earlier turns."""
    turns = [dict(m) for row in examples for m in row.messages if m["role"] != "system"]
    prompt = with_system(messages, system)
    head = [m for m in prompt if m["role"] == "system"]
    return [*head, *turns, *(m for m in prompt if m["role"] != "system")]


def choose_examples(train: Iterable[Row], count: int, seed: int, label_path: str | None, *, classes: bool) -> list[Row]:
    """Few-shot examples: in an order given by seed and content, and for a classification one class after the other.

    Of wanted answers only. One pass over train; in memory are at most `count` rows of each of the first `count`
    classes.
    """

    def rank(row: Row) -> str:
        return hashlib.sha256(f"{seed}:few-shot:{row.id}".encode()).hexdigest()

    train = (row for row in train if row.wanted)
    if not classes:
        return heapq.nsmallest(count, train, key=rank)
    by_label: dict[str, list[tuple[str, int, Row]]] = {}
    for number, row in enumerate(train):
        label = label_of(row.said, label_path) or ""
        firsts = by_label.setdefault(label, [])
        insort(firsts, (rank(row), number, row))
        del firsts[count:]
        if len(by_label) > count:  # its turn never comes
            del by_label[max(by_label)]
    queues = [[row for _, _, row in by_label[label]] for label in sorted(by_label)]
    turns = (queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue))
    return [row for row, _ in zip(turns, range(count), strict=False)]


def majority_answer(train: Collection[Row], label_path: str | None) -> str:
    """The most frequent answer among those with the most frequent label of train; of equals the smallest text.

    Of wanted answers only. Four passes over train; in memory are 8 bytes per row.
    """

    def answers() -> Iterable[str]:
        return (row.said for row in train if row.wanted)

    top = _most_frequent(lambda: (label for text in answers() if (label := label_of(text, label_path)) is not None))
    return _most_frequent(lambda: (text for text in answers() if label_of(text, label_path) == top)) or ""


def _most_frequent(texts: Callable[[], Iterable[str]]) -> str | None:
    """The most frequent of the texts, of equals the smallest one; None when there is none."""
    hashes, counts = np.unique(np.array(array("Q", map(_hash, texts()))), return_counts=True)
    most = set(hashes[counts == counts.max(initial=0)].tolist())
    return min((text for text in texts() if _hash(text) in most), default=None)


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
