"""Read and check a job's data as prepare would, without a model: `python -m finetune_runner.check_data --job FILE`.

FILE holds a FineTuneJob as JSON. Prints one JSON object: problems (each with field, message, hint), findings, rows per
split and formats. Exit code 0, or that of the first problem. Only `file://` sources are read: no network, no torch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.common import Storage
from finetune_api.exit_codes import ExitCode
from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import Finding, JobIdentity, StageTask
from finetune_runner.context import Environment, StageContext, open_context
from finetune_runner.data.checking import Given, Splits, run_checks
from finetune_runner.data.loading import load
from finetune_runner.data.splitting import assign, cluster_keys, test_share
from finetune_runner.data.wanted import split_sources
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


def _read(context: StageContext, report: DataReport) -> Splits:
    splits: Splits = {}
    for number, named in enumerate(split_sources(context.task.spec)):
        split, wanted = named.split, named.wanted
        if not wanted.source.startswith(FILE_SCHEME):
            report.skipped.append(f"{wanted.place}: {wanted.source}")
            continue
        try:
            loaded = load(context, wanted, context.scratch / str(number))
        except StageError as error:
            report.problems.append(DataProblem(wanted.place, error.message, error.hint, int(error.exit_code)))
            continue
        report.findings.append(loaded.finding)
        report.formats[wanted.place] = loaded.format
        splits[split] = [*splits.get(split, []), *loaded.examples]
    return splits


def _split(spec: FineTuneJobSpec, splits: Splits) -> Splits:
    pool = splits["pool"]
    keys = cluster_keys([example.row for example in pool])
    validation = 0.0 if "validation" in splits else spec.data.validation.fraction
    test = 0.0 if "test" in splits else test_share(spec.data.test.fraction, len(pool))
    parts = assign(keys, spec.training.seed, validation, test)
    assigned: Splits = {
        name: [*splits.get(name, []), *(example for example, part in zip(pool, parts, strict=True) if part == name)]
        for name in ("train", "validation", "test")
    }
    return {name: examples for name, examples in splits.items() if name != "pool"} | assigned


def check(job: FineTuneJob, context: StageContext) -> DataReport:
    """Read every local source, then run the checks that need no model. Every source's first problem is told."""
    report = DataReport()
    splits = _read(context, report)
    if report.problems or "pool" not in splits:
        return report
    try:
        splits, findings, _ = run_checks("rows", Given(splits, job.spec))
        report.findings += findings
        splits = _split(job.spec, splits)
        splits, findings, _ = run_checks("splits", Given(splits, job.spec))
        report.findings += findings
    except StageError as error:
        report.problems.append(DataProblem("data", error.message, error.hint, int(error.exit_code)))
    report.rows = {name: len(examples) for name, examples in splits.items()}
    return report


def _context(job: FineTuneJob, scratch: Path) -> StageContext:
    now = datetime.now(UTC)
    metadata = job.metadata
    task = StageTask(
        stage="prepare",
        job=JobIdentity(namespace=metadata.namespace or "default", name=metadata.name, uid="check", run=1),
        adapter=job.spec.output.adapter_ref.name,
        attempt=1,
        storage=Storage(uri=f"{FILE_SCHEME}{scratch}"),
        spec=job.spec,
        created_at=now,
    )
    return open_context(
        task,
        Environment.of({**os.environ, "FINETUNE_SCRATCH": str(scratch)}, str(scratch)),
        clock=lambda: now,
        progress=lambda _progress: None,
        stop=threading.Event(),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the job's data and print the report."""
    parser = argparse.ArgumentParser(prog="finetune_runner.check_data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--job", type=Path, required=True, metavar="FILE", help="FineTuneJob as JSON")
    args = parser.parse_args(arguments)
    job = FineTuneJob.from_wire(json.loads(args.job.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory(prefix="finetune-check-") as scratch:
        report = check(job, _context(job, Path(scratch)))
    print(json.dumps(report.to_wire(), ensure_ascii=False))
    return report.problems[0].exit_code if report.problems else int(ExitCode.SUCCEEDED)


if __name__ == "__main__":
    sys.exit(main())
