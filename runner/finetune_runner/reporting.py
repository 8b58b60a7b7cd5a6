"""How a stage's process speaks: progress file, report in storage, termination message, log lines."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Finding, Progress, StageReport, StageResults, StageTask, decode_report, encode_report
from finetune_runner.errors import StageError
from finetune_runner.progress_push import ProgressPush
from finetune_runner.storage import Storage, join

log = logging.getLogger("finetune_runner")

Outcome = StageResults | tuple[StageResults, list[Finding]]


class _OneLine(logging.Formatter):
    """One event, one line; what spans several (a traceback) is escaped by indentation after the event's line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\n", "\\n")


def set_up_logging() -> None:
    """Log to stderr, one line per event; stdout stays free."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("botocore", "boto3", "urllib3", "s3transfer", "httpx", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def progress_writer(path: Path | None, push: ProgressPush | None = None) -> Callable[[Progress], None]:
    """A function that keeps the newest Progress in a file, replaced whole, and hands it on to be pushed.

    Without either it only logs. A progress that cannot be written is logged and lost: losing one never hurts.
    """

    def write(progress: Progress) -> None:
        log.info("progress %s", json.dumps(progress.to_wire(), separators=(",", ":")))
        if push is not None:
            push(progress)
        if path is None:
            return
        temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
        try:
            temporary.write_text(json.dumps(progress.to_wire()), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            log.warning("progress not written to %s: %s", path, error)
            temporary.unlink(missing_ok=True)

    return write


def success(task: StageTask, outcome: Outcome) -> StageReport:
    """The report of a stage that returned."""
    result, findings = outcome if isinstance(outcome, tuple) else (outcome, [])
    return StageReport(
        stage=task.stage,
        uid=task.job.uid,
        run=task.job.run,
        attempt=task.attempt,
        outcome="Succeeded",
        exit_code=int(ExitCode.SUCCEEDED),
        result=result,
        findings=findings,
    )


def failure(stage: str, task: StageTask | None, error: StageError) -> StageReport:
    """The report of a stage that failed; without a task only the stage is known."""
    return StageReport.from_wire(
        {
            "stage": stage,
            "uid": task.job.uid if task else "",
            "run": task.job.run if task else 0,
            "attempt": task.attempt if task else 0,
            "outcome": "Failed",
            "exitCode": int(error.exit_code),
            "cause": error.cause,
            "message": _cut(error.message, 1024),
            "hint": _cut(error.hint, 512),
            "evidence": _cut(error.evidence, 1024),
        }
    )


def report_uri(task: StageTask) -> str:
    """Where a stage's whole report is kept."""
    return join(task.run_uri, task.stage, "report.json")


def store_report(storage: Storage, task: StageTask, report: StageReport) -> None:
    """Keep the whole report in storage. Raises StageError."""
    storage.write_bytes(report_uri(task), json.dumps(report.to_wire(), indent=1, ensure_ascii=False).encode())


def load_report(storage: Storage, task: StageTask) -> StageReport:
    """The report that an earlier attempt stored. Raises StageError (SOURCE_NOT_FOUND) when there is none."""
    try:
        return decode_report(storage.read_bytes(report_uri(task)))
    except ValueError as error:
        raise StageError(
            ExitCode.INTERNAL, f"{report_uri(task)} is not a stage report", "start the run again", str(error)[:500]
        ) from error


def write_termination_message(path: Path, report: StageReport) -> None:
    """Give the report to whoever watches the process; logged when that is impossible (the report is in storage)."""
    try:
        if path.parent != Path("/dev"):
            path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        with os.fdopen(descriptor, "wb") as target:
            target.write(encode_report(report))
    except (OSError, ValueError) as error:
        log.error("termination message not written to %s: %s", path, error)


def _cut(text: str, length: int) -> str:
    clean = text.encode("utf-8", "replace").decode()  # a stray surrogate must not stop the report
    return clean if len(clean) <= length else clean[: length - 1] + "…"
