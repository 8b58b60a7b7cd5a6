"""Near-duplicates within a split: they weigh like repetitions, and a test of them says less than its rows promise.

MinHash and the exact Jaccard similarity decide (`data/near_duplicates.py`); Lee et al. 2022 (Deduplicating Training
Data Makes Language Models Better) show what repetition costs. Clusters never cross splits, whatever the mode.
"""

from __future__ import annotations

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import Found, Given, Mode, Phase, Remark, judged, mode_of

PHASE: Phase = "splits"
ORDER = 15

_LATER_ALIKE = """
SELECT number FROM (SELECT number, row_number() OVER (PARTITION BY alike, system ORDER BY number) AS place FROM rows
                    JOIN inputs USING (number) WHERE split = ? AND alike NOT NULL) WHERE place > 1 ORDER BY number
"""
"""Another system message asks for something else about the same input."""
_TRUSTED = ("train", "validation", "test")


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.nearDuplicates says.

    Groups of data.groupBy are clusters of another kind, and where answers are compared or judged a prompt comes several
    times on purpose: both are let be.
    """
    grouped = spec.data.group_by is not None
    return "off" if grouped or spec.method.objective != "sft" else mode_of(spec.data.checks.near_duplicates)


def check(given: Given) -> list[Remark]:
    """Report, drop or refuse every row of a cluster but its first. Raises StageError (INVALID_DATA) in mode fail."""
    assert given.near is not None, "phase splits has the near-duplicates"  # noqa: S101
    remarks: list[Remark] = []
    own_sources = {"validation": given.spec.data.validation.source, "test": given.spec.data.test.source}
    for split in _TRUSTED:
        if own_sources.get(split) is not None:  # the others have the clusters they were split by
            given.near.set_clusters(split, for_leaks=False)
        found = Found()
        numbers = [number for (number,) in given.store.database.execute(_LATER_ALIKE, (split,))]
        for number in numbers:
            example = given.store.example(number)
            found.add(example)
            if given.mode == "fix":
                given.drop(example)
        remarks += judged(
            "nearDuplicates",
            given,
            found,
            what="[row is a near-duplicate|rows are near-duplicates] of an earlier one",
            hint="vary the rows, or set data.checks.nearDuplicates: drop",
            place=split,
        )
    return remarks
