"""The class of an expected answer, and how messages name it: a label may be personal data, or a whole answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.job.evaluation import Task
from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.json_path import value_at

LABELS_KEPT = 5000
"""More different labels than this are free text whatever the rows: no classification has them."""
_FREE_TEXT_SHARE = 0.5
_FREE_TEXT_FROM = 20
_LONGEST_KEY = 80
_EDGES = " \t\n.,;:!?\"'`\u00a0"


def label_of(answer: str, task: Task) -> str:
    """The label: the value at the task's labelPath, else (and where the answer is not JSON) the whole answer."""
    if task.label_path is None:
        return answer.strip()
    try:
        parsed = json.loads(answer)
    except (ValueError, RecursionError):
        return answer.strip()
    value = value_at(parsed, task.label_path)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def look_like_free_text(labels: int, rows: int) -> bool:
    """Whether so many different labels in so many rows are no classes."""
    return labels > min(max(_FREE_TEXT_FROM, _FREE_TEXT_SHARE * rows), LABELS_KEPT)


@dataclass
class Classes:
    """Rows by class, and the first row of each. Memory: 5,000 classes at most, long labels as their hashes."""

    counts: Counter[str] = field(default_factory=Counter)
    """By key: the label itself while it is short."""
    first: dict[str, str] = field(default_factory=dict)
    """Origin of the first row by key."""
    rows: int = 0

    def add(self, label: str, origin: str) -> None:
        """Count a row."""
        self.rows += 1
        if len(self.counts) <= LABELS_KEPT:
            key = label if len(label) <= _LONGEST_KEY else hashlib.sha256(label.encode()).hexdigest()
            self.counts[key] += 1
            self.first.setdefault(key, origin)

    def names(self, spec: FineTuneJobSpec) -> Mapping[str, str]:
        """What messages call each class: its label where the spec itself writes it, else by the first row that has it.

        Labels of the data are not quoted in status or report: they may be addresses of people, or whole answers.
        """
        written = set(_labels_of_schema(spec.evaluation.task))
        prompts = f"{spec.evaluation.baseline_prompt or ''}\n{spec.data.system_prompt or ''}"
        return {
            key: key if key in written or _is_word_of(key, prompts) else f"class of {self.first[key]}"
            for key in self.counts
        }

    def spelled_alike(self) -> list[tuple[str, str]]:
        """Pairs of keys whose labels differ in case, white space or punctuation at the ends: rarer, more frequent."""
        seen: dict[str, str] = {}
        pairs = []
        for key, _ in self.counts.most_common():
            other = seen.setdefault(" ".join(key.casefold().split()).strip(_EDGES), key)
            if other != key:
                pairs.append((key, other))
        return pairs


def _is_word_of(label: str, text: str) -> bool:
    return bool(label) and re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text) is not None


def _labels_of_schema(task: Task) -> Iterator[str]:
    """Labels that the task's schema lists at labelPath: its enum or const."""
    schema: Any = task.schema_
    for name in (task.label_path or "$").removeprefix("$").split(".")[1:]:
        properties = schema.get("properties") if isinstance(schema, dict) else None
        schema = properties.get(name) if isinstance(properties, dict) else None
    if not isinstance(schema, dict):
        return
    listed = schema.get("enum")
    for value in [*(listed if isinstance(listed, list) else []), *([schema["const"]] if "const" in schema else [])]:
        yield value if isinstance(value, str) else json.dumps(value, sort_keys=True)
