"""The conversations each system is given. Pure: rows in, messages out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

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


def choose_examples(train: Sequence[Row], count: int, seed: int, label_path: str | None, *, classes: bool) -> list[Row]:
    """Few-shot examples: in an order given by seed and content, and for a classification one class after the other."""

    def rank(row: Row) -> str:
        return hashlib.sha256(f"{seed}:few-shot:{row.id}".encode()).hexdigest()

    ordered = sorted(train, key=rank)
    if not classes:
        return ordered[:count]
    by_label: dict[str, list[Row]] = {}
    for row in ordered:
        by_label.setdefault(label_of(row.answer, label_path) or "", []).append(row)
    queues = [by_label[label] for label in sorted(by_label)]
    turns = (queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue))
    return [row for row, _ in zip(turns, range(count), strict=False)]


def majority_answer(train: Sequence[Row], label_path: str | None) -> str:
    """The most frequent answer among those with the most frequent label of train; of equals the smallest text."""
    labels = Counter(label for row in train if (label := label_of(row.answer, label_path)) is not None)
    top = min(labels, key=lambda label: (-labels[label], label), default=None)
    texts = Counter(row.answer for row in train if label_of(row.answer, label_path) == top)
    return min(texts, key=lambda text: (-texts[text], text), default="")
