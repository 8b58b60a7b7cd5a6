"""Personal data in rows: mail, phone, IBAN, card, IP and national ids (`data/personal_data.py`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import Found, Given, Mode, Phase, Remark, judged, mode_of
from finetune_runner.data.redaction import personal_kinds, redacted
from finetune_runner.data.rewriting import rewritten, texts_of

PHASE: Phase = "rows"
ORDER = 6
"""Before duplicates are looked for: rows that differ in a telephone number only are one row afterwards."""
REDACTED = "CREATE TABLE IF NOT EXISTS redacted(number INTEGER PRIMARY KEY)"
"""Which rows were redacted: `pii_in_test` tells their share once test is split off."""


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.pii says."""
    return mode_of(spec.data.checks.pii)


def check(given: Given) -> list[Remark]:
    """Report, redact or refuse personal data in every split. Raises StageError (INVALID_DATA) in mode fail.

    What was found is told by kind and place, never by its text.
    """
    given.store.database.execute(REDACTED)
    found = Found()
    kinds: Counter[str] = Counter()
    for example in given.rows(*given.store.splits()):
        here = [kind for text in texts_of(example.row) for kind in personal_kinds(text)]
        if here:
            kinds.update(here)
            found.add(example, f"({', '.join(sorted(set(here)))})")
            if given.mode == "fix":
                given.replace(example, rewritten(example.row, redacted))
                given.store.database.execute("INSERT INTO redacted VALUES (?)", (example.number,))
    hint = "remove it, or set data.checks.pii: redact"
    facts = {"kinds": dict(kinds)}
    return [
        replace(remark, facts=facts)
        for remark in judged("pii", given, found, what="[row has|rows have] personal data", hint=hint, fixed="redacted")
    ]
