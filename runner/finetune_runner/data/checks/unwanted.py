"""Answers that somebody judged to be bad: kto learns from them, but no model is to be measured against them."""

from __future__ import annotations

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import Found, Given, Mode, Phase, Remark, judged

PHASE: Phase = "splits"
ORDER = 5

_MEASURED_AGAINST = ("test", "out_of_domain")


def mode(spec: FineTuneJobSpec) -> Mode:
    """Always drops."""
    return "fix"


def check(given: Given) -> list[Remark]:
    """Drop rows with label false from test and out of domain, split off data.train or of a source of their own."""
    found = Found()
    for example in given.rows(*_MEASURED_AGAINST):
        if not example.row.wanted:
            found.add(example)
            given.drop(example)
    return judged(
        "unwanted",
        given,
        found,
        what="[answer that is|answers that are] not wanted (label false), in what models are measured against",
        hint="give data.test.source rows with wanted answers",
    )
