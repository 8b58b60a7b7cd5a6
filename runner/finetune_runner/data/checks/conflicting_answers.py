"""The same input with different answers: noise that no model can learn, and a ceiling for every metric."""

from __future__ import annotations

from finetune_api.stages import Finding
from finetune_runner.data.checking import TASK_SPLITS, Given, Phase, Seen, listed
from finetune_runner.data.near_duplicates import input_text, normal_form

PHASE: Phase = "rows"
ORDER = 30


def check(given: Given) -> Seen:
    """Report inputs that have several answers, over all splits of the task."""
    by_input: dict[str, dict[str, str]] = {}
    counts: dict[str, int] = {}
    for split in TASK_SPLITS:
        for example in given.splits.get(split, []):
            asked = normal_form(input_text(example.row))
            by_input.setdefault(asked, {}).setdefault(example.row.answer.strip(), example.origin)
            counts[asked] = counts.get(asked, 0) + 1
    conflicts = [(asked, list(origins.values())) for asked, origins in by_input.items() if len(origins) > 1]
    if not conflicts:
        return Seen()
    rows = sum(counts[asked] for asked, _ in conflicts)
    shown = listed([" against ".join(origins[:2]) for _, origins in conflicts], 3)
    message = f"{len(conflicts)} inputs have different answers ({rows} rows): {shown}; decide on one answer each"
    return Seen([Finding(check="conflictingAnswers", severity="warning", message=message[:512], rows=rows)])
