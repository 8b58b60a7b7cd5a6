"""Read and check a job's data as prepare would, without a model: `python -m finetune_runner.check_data --job FILE`.

FILE holds a FineTuneJob as JSON. Prints one JSON object: problems (each with field, message, hint), findings, rows per
split and formats. Exit code 0, or that of the first problem. Only `file://` sources are read: no network, no torch.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence, Set
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import Finding
from finetune_runner.command_context import command_context
from finetune_runner.context import StageContext
from finetune_runner.data.checking import Remark, run_checks
from finetune_runner.data.loading import fetch, load
from finetune_runner.data.near_duplicates import NearDuplicates
from finetune_runner.data.pool import split_pool
from finetune_runner.data.row_store import RowStore
from finetune_runner.data.wanted import POOL, split_sources
from finetune_runner.errors import StageError

FILE_SCHEME = "file://"


@dataclass(frozen=True)
class DataProblem:
    """Something that would end prepare."""

    field: str
    message: str
    hint: str
    exit_code: int


@dataclass
class DataReport:
    """What was seen of the data."""

    problems: list[DataProblem] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def to_wire(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "problems": [
                {"field": p.field, "message": p.message, "hint": p.hint, "exitCode": p.exit_code} for p in self.problems
            ],
            "findings": [finding.to_wire() for finding in self.findings],
            **{name: value for name, value in asdict(self).items() if name in ("rows", "formats", "skipped")},
        }


def _read(context: StageContext, store: RowStore, report: DataReport) -> set[str]:
    """Read the local sources; the splits of the others are returned."""
    skipped = set()
    for number, named in enumerate(split_sources(context.task.spec)):
        split, wanted = named.split, named.wanted
        if not wanted.source.startswith(FILE_SCHEME):
            report.skipped.append(f"{wanted.place}: {wanted.source}")
            skipped.add(split)
            continue
        try:
            fetched = fetch(context, wanted, context.scratch / str(number))
            loaded = load(context, fetched, partial(store.add, split))
        except StageError as error:
            report.problems.append(DataProblem(wanted.place, error.message, error.hint, int(error.exit_code)))
            continue
        report.findings += loaded.findings
        report.formats[wanted.place] = loaded.format
    return skipped


def _without(spec: FineTuneJobSpec, skipped: Set[str]) -> FineTuneJobSpec:
    """The job without the held-out sources that were not read: those splits are taken from data.train."""
    unread = {
        name: split.model_copy(update={"source": None})
        for name, split in (("validation", spec.data.validation), ("test", spec.data.test))
        if name in skipped
    }
    return spec.model_copy(update={"data": spec.data.model_copy(update=unread)})


def check(job: FineTuneJob, context: StageContext) -> DataReport:
    """Read every local source, then run the checks that need no model. Every source's first problem is told."""
    report = DataReport()
    with RowStore(context.scratch / "rows.sqlite") as store:
        skipped = _read(context, store, report)
        if report.problems or not store.counts().get(POOL):
            return report
        try:
            _check(_without(job.spec, skipped), store, report)
        except StageError as error:
            report.problems.append(DataProblem("data", error.message, error.hint, int(error.exit_code)))
        report.rows = store.counts()
    return report


def _check(spec: FineTuneJobSpec, store: RowStore, report: DataReport) -> None:
    def say(remarks: Iterable[Remark]) -> None:
        report.findings += [remark.finding for remark in remarks]

    for run in run_checks("rows", store, spec):
        say(run.remarks)
    with NearDuplicates(store) as near:
        split_pool(store, near, spec)
        for run in run_checks("splits", store, spec, near=near):
            say(run.remarks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the job's data and print the report."""
    parser = argparse.ArgumentParser(prog="finetune_runner.check_data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--job", type=Path, required=True, metavar="FILE", help="FineTuneJob as JSON")
    args = parser.parse_args(arguments)
    job = FineTuneJob.from_wire(json.loads(args.job.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory(prefix="finetune-check-") as scratch:
        context = command_context(
            job.spec, Path(scratch), namespace=job.metadata.namespace or "default", name=job.metadata.name
        )
        report = check(job, context)
    print(json.dumps(report.to_wire(), ensure_ascii=False))
    return report.problems[0].exit_code if report.problems else int(ExitCode.SUCCEEDED)


if __name__ == "__main__":
    sys.exit(main())
