"""What the checks in `data/checks` are given and give, and how they are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import Finding
from finetune_runner.data.loading import Example
from finetune_runner.data.registry import modules_of

Phase = Literal["rows", "splits", "tokens"]
"""rows: before the split; splits: after it; tokens: with lengths."""
Splits = dict[str, list[Example]]
"""By name: pool (before the split), train, validation, test, replay, out_of_domain."""

TASK_SPLITS = ("pool", "train", "validation", "test")
"""Splits whose answers are those of the job's task; the others are general text."""
HELD_OUT = ("validation", "test", "out_of_domain")


@dataclass(frozen=True)
class Length:
    """Tokens of an example before any cutting."""

    total: int
    answer: int


@dataclass(frozen=True)
class Given:
    """What a check sees."""

    splits: Splits
    spec: FineTuneJobSpec
    lengths: Mapping[str, list[Length]] = field(default_factory=dict)
    context_length: int = 0
    """Of the model, in tokens; 0 = unknown."""


@dataclass(frozen=True)
class Seen:
    """What a check says."""

    findings: list[Finding] = field(default_factory=list)
    drop: Mapping[str, set[int]] = field(default_factory=dict)
    """Indexes of rows to drop, by split."""


class Check(Protocol):
    """A module of `data/checks`."""

    PHASE: Phase
    ORDER: int

    def check(self, given: Given) -> Seen:
        """Look at the data. Raises StageError (INVALID_DATA) for what cannot be trained on."""


def run_checks(phase: Phase, given: Given) -> tuple[Splits, list[Finding], dict[str, dict[str, int]]]:
    """Run a phase's checks in their order; each sees what the one before left.

    Returns:
        The rows that stay, the findings, and by check the number of dropped rows per split.
    """
    checks = {name: cast(Check, module) for name, module in modules_of("finetune_runner.data.checks").items()}
    findings: list[Finding] = []
    dropped: dict[str, dict[str, int]] = {}
    splits = given.splits
    for name, check in sorted(checks.items(), key=lambda item: (item[1].ORDER, item[0])):
        if phase != check.PHASE:
            continue
        seen = check.check(Given(splits, given.spec, given.lengths, given.context_length))
        findings.extend(seen.findings)
        if any(seen.drop.values()):
            dropped[name] = {split: len(indexes) for split, indexes in seen.drop.items() if indexes}
            splits = {
                split: [example for number, example in enumerate(examples) if number not in seen.drop.get(split, ())]
                for split, examples in splits.items()
            }
    return splits, findings, dropped


def listed(origins: list[str], shown: int = 5) -> str:
    """The first origins, and how many more there are."""
    more = f" and {len(origins) - shown} more" if len(origins) > shown else ""
    return ", ".join(origins[:shown]) + more
