"""Rows, jobs and runs of one check, for the tests of checks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import Given, Remark
from finetune_runner.data.near_duplicates import NearDuplicates
from finetune_runner.data.row_store import RowStore
from finetune_runner.data.rows import Parsed, Row, make_row
from tests.runner.stores import store_of

NUMBERS = itertools.count()


def spec(checks: dict[str, Any] | None = None, **parts: Any) -> FineTuneJobSpec:
    """A job over one file of rows."""
    data = {"train": [{"source": "file:///a.jsonl"}], "checks": checks or {}, **parts.pop("data", {})}
    return FineTuneJobSpec.from_wire(
        {"model": {"source": "hf://a/b"}, "output": {"adapterRef": {"name": "x"}}, "data": data, **parts}
    )


def row(asked: str, answer: str, **parts: Any) -> Row:
    """One exchange."""
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return make_row(Parsed(messages, **parts))


def rows(*answers: str) -> list[Row]:
    """Exchanges with these answers, each with a question of its own."""
    return [row(f"Case {next(NUMBERS)}: what is it?", answer) for answer in answers]


def run(
    check: ModuleType,
    of: Mapping[str, Sequence[Row]] | RowStore,
    wanted: FineTuneJobSpec,
    near: NearDuplicates | None = None,
) -> tuple[list[Remark], dict[str, int]]:
    """What a check says, and the rows that are left by split."""
    store = of if isinstance(of, RowStore) else store_of(of)
    mode = check.mode(wanted)
    if mode == "off":
        return [], store.counts()
    remarks = check.check(Given(store, wanted, mode, near=near))
    store.apply()
    return remarks, store.counts()


def said(remarks: Sequence[Remark]) -> str:
    """Severity and message of every remark, a line each."""
    return "\n".join(f"{remark.severity}: {remark.message}" for remark in remarks)


def warned(remarks: Sequence[Remark]) -> list[Remark]:
    """The remarks that are warnings."""
    return [remark for remark in remarks if remark.severity == "warning"]


CLASSIFICATION = {"task": {"type": "classification"}}

GOOD = rows(*["a fine answer"] * 5)

PAIR = row("q", "good", rejected="bad")
TEXT = make_row([{"role": "assistant", "content": "a manual"}])


def with_objective(name: str, **parts: Any) -> FineTuneJobSpec:
    """A job of this objective."""
    base = spec(**parts)
    return base.model_copy(update={"method": base.method.model_copy(update={"objective": name})})
