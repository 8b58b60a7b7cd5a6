"""Held-out rows that an earlier version of the adapter was trained on: it would be compared with on what it knows.

Stage prepare keeps the inputs that those versions learned from (`data/earlier_versions.py`); this finds them again.
"""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.wording import counted
from finetune_runner.data.checking import Found, Given, Mode, Phase, Remark, mode_of
from finetune_runner.data.prepared import Split
from finetune_runner.data.rows import Row
from finetune_runner.data.shingles import form_digest, input_text, normal_form
from finetune_runner.errors import StageError

PHASE: Phase = "versions"
ORDER = 10

SEEN_TABLE = "CREATE TABLE IF NOT EXISTS seen(input BLOB, version TEXT, PRIMARY KEY (input, version)) WITHOUT ROWID"
JUDGED_ON: tuple[Split, ...] = ("test", "out_of_domain")


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.seenBefore says."""
    return mode_of(spec.data.checks.seen_before)


def input_digest(row: Row) -> bytes:
    """Identity of what a row asks, whatever its case, white space and answer."""
    return form_digest(normal_form(input_text(row)))


def check(given: Given) -> list[Remark]:
    """Report or refuse test rows that a version has learned. Raises StageError (INVALID_DATA) in mode fail."""
    database = given.store.database
    database.execute(SEEN_TABLE)
    found: dict[str, Found] = {}
    for example in given.rows(*JUDGED_ON):
        seen = database.execute("SELECT version FROM seen WHERE input = ?", (input_digest(example.row),))
        for (version,) in seen.fetchall():
            found.setdefault(version, Found()).add(example)
    remarks = []
    for version, rows in sorted(found.items()):
        message = (
            f"{version} was trained on {counted(rows.rows, '[row that now judges|rows that now judge]')} "
            f"({', '.join(rows.splits)}): {rows.where()}; "
            f"a comparison with {version} favours it"
        )
        hint = "keep test fixed with data.test.source, or the same data.train and training.seed"
        if given.mode == "fail":
            raise StageError(ExitCode.INVALID_DATA, message, hint, rows.positions[0])
        remarks.append(rows.remark("seenBefore", "warning", f"{message}; {hint}", {"version": version}))
    return remarks
