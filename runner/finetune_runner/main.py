"""The runner's command: one stage per process, from a task file to a report and an exit code."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pydantic import ValidationError

from finetune_api.exit_codes import CAUSE_OF_EXIT_CODE, ExitCode
from finetune_api.stages import STAGES, StageReport, StageTask
from finetune_runner.context import Environment, StageContext, open_context
from finetune_runner.errors import StageError, classify, interrupted
from finetune_runner.progress_push import ProgressPush, progress_push
from finetune_runner.reporting import (
    Outcome,
    failure,
    load_report,
    progress_writer,
    set_up_logging,
    store_report,
    success,
    write_termination_message,
)

log = logging.getLogger("finetune_runner")

_EPILOG = "exit codes: 0 succeeded, " + ", ".join(f"{int(code)} {cause}" for code, cause in CAUSE_OF_EXIT_CODE.items())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage()
        self.exit(int(ExitCode.INVALID_SPEC), f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage and return the exit code."""
    parser = _Parser(prog="finetune-runner", description="Run one stage of a FineTuneJob.", epilog=_EPILOG)
    parser.add_argument("stage", choices=STAGES, help="what to do")
    parser.add_argument("--task", required=True, type=Path, metavar="FILE", help="the StageTask as JSON")
    arguments = parser.parse_args(argv)

    set_up_logging()
    stop = threading.Event()
    _stop_on_signals(stop)
    environment = Environment.of(os.environ, tempfile.gettempdir())
    task: StageTask | None = None
    context: StageContext | None = None
    push: ProgressPush | None = None
    try:
        # Rank 0 speaks for the gang.
        push = progress_push(environment) if environment.node_rank == 0 else None
        task = read_task(arguments.task, arguments.stage)
        context = open_context(
            task,
            environment,
            clock=lambda: datetime.now(UTC),
            progress=progress_writer(environment.progress_file, push),
            stop=stop,
        )
        log.info("stage %s of %s/%s run %d attempt %d: %s", task.stage, task.job.namespace, task.job.name, task.job.run,
                 task.attempt, task.mode)  # fmt: skip
        if task.mode == "recover":
            report = load_report(context.storage, task)
        else:
            report = success(task, _run(context, environment))
            _commit(context, environment, report)
    except BaseException as error:
        # What a stop breaks on its way out (a killed child, a closed connection) is a consequence of the stop.
        cause = interrupted() if stop.is_set() and not isinstance(error, StageError) else classify(error)
        log.error("%s: %s", cause.cause, cause.message, exc_info=cause.exit_code == ExitCode.INTERNAL)
        report = failure(arguments.stage, task, cause)
        _commit_failure(context, environment, report, cause)
    write_termination_message(environment.termination_log, report)
    if push is not None:
        push.close()
    log.info("stage %s ends with %d (%s)", arguments.stage, report.exit_code, report.cause or "Succeeded")
    return report.exit_code


def read_task(path: Path, stage: str) -> StageTask:
    """Parse the task file. Raises StageError (INVALID_SPEC) naming the field."""
    try:
        task = StageTask.from_wire(json.loads(path.read_bytes()))
    except OSError as error:
        raise StageError(
            ExitCode.INVALID_SPEC, f"task file {path}: {error.strerror}", "give --task a StageTask as JSON"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"task file {path}: {field}: {first['msg']}",
            "runner and operator must be of the same version",
            f"{error.error_count()} errors",
        ) from error
    except ValueError as error:
        raise StageError(
            ExitCode.INVALID_SPEC, f"task file {path} is not JSON: {error}", "give a StageTask as JSON"
        ) from error
    if task.stage != stage:
        raise StageError(
            ExitCode.INVALID_SPEC, f"task file {path} is for stage {task.stage}, not {stage}", f"run {task.stage}"
        )
    return task


def _run(context: StageContext, environment: Environment) -> Outcome:
    """Claim the fence and run the stage's module, imported only now: most stages need no torch."""
    if environment.node_rank == 0 and not context.fence.epoch:
        context.fence.claim()
        log.info("claimed epoch %d", context.fence.epoch)
    context.check_stop()
    outcome: Outcome = importlib.import_module(f"finetune_runner.stages.{context.task.stage}").run(context)
    # A container that ends with 0 after SIGTERM looks finished to Kubernetes; stages can be done again.
    context.check_stop()
    return outcome


def _commit(context: StageContext, environment: Environment, report: StageReport) -> None:
    if environment.node_rank == 0:
        context.fence.check()
        store_report(context.storage, context.task, report)


def _commit_failure(
    context: StageContext | None, environment: Environment, report: StageReport, cause: StageError
) -> None:
    """Keep the report of a failure; whatever hinders that is logged and must not hide the first cause."""
    if context is None or not context.fence.epoch or cause.exit_code == ExitCode.FENCED:
        return
    try:
        _commit(context, environment, report)
    except StageError as error:
        log.error("report not stored: %s: %s", error.cause, error.message)


def _stop_on_signals(stop: threading.Event) -> None:
    """SIGTERM and SIGINT ask the stage to stop; a second one ends it at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        log.warning("received %s: stopping", signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
