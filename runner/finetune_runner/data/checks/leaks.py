"""Leaks: rows to learn from that are (nearly) rows to be judged on. The held-out row stays, the other goes."""

from __future__ import annotations

from finetune_api.stages import Finding
from finetune_runner.data.checking import Given, Phase, Seen, listed
from finetune_runner.data.near_duplicates import input_text, leaking

PHASE: Phase = "splits"
ORDER = 10

_HELD_OUT_FROM = {
    "validation": ("test",),
    "train": ("test", "validation", "out_of_domain"),
    "replay": ("test", "validation", "out_of_domain"),
}


def check(given: Given) -> Seen:
    """Drop rows of validation that are in test, and rows of train and replay that are in any held-out split."""
    findings: list[Finding] = []
    drop: dict[str, set[int]] = {}
    for split, others in _HELD_OUT_FROM.items():
        examples = given.splits.get(split, [])
        held_out = [input_text(example.row) for other in others for example in given.splits.get(other, [])]
        if not examples or not held_out:
            continue
        found = leaking([input_text(example.row) for example in examples], held_out)
        if found:
            drop[split] = set(found)
            where = listed([examples[number].origin for number in found], 3)
            message = f"{split}: {len(found)} rows dropped, their inputs are (nearly) in {' or '.join(others)}: {where}"
            findings.append(Finding(check="leaks", severity="warning", message=message[:512], rows=len(found)))
    return Seen(findings, drop)
