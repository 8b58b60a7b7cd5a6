"""One process of a shared measurement, started by torchrun; its argument is `MODULE:FUNCTION`."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.stages import Progress, StageTask
from finetune_runner.context import Environment, open_context
from finetune_runner.errors import StageError, classify
from finetune_runner.evaluation.parallel import write_part
from finetune_runner.evaluation.share import Share
from finetune_runner.progress_push import progress_push
from finetune_runner.reporting import progress_writer, set_up_logging
from finetune_runner.training.launch import FOLDER_VARIABLE, OUTCOME_FILE, STOP_FILE, TASK_FILE
from finetune_runner.training.lifeline import end_with_parent
from finetune_runner.training.worker import StopFile, as_failure, write_outcome

log = logging.getLogger(__name__)


def _say_nothing(_: Progress) -> None:
    """The first process speaks for all."""


def main() -> int:
    """Do this process's share, and leave it or the failure."""
    end_with_parent()
    set_up_logging()
    module, _, name = sys.argv[1].partition(":")
    folder = Path(os.environ[FOLDER_VARIABLE])
    share = Share(rank=int(os.environ["RANK"]), size=int(os.environ["WORLD_SIZE"]))
    environment = Environment.of(os.environ, tempfile.gettempdir())
    push = progress_push(environment) if share.rank == 0 else None
    try:
        context = open_context(
            StageTask.from_wire(json.loads((folder / TASK_FILE).read_bytes())),
            environment,
            clock=lambda: datetime.now(UTC),
            progress=progress_writer(environment.progress_file, push) if share.rank == 0 else _say_nothing,
            stop=StopFile(folder / STOP_FILE),
        )
        context.check_stop()
        write_part(folder, share.rank, getattr(importlib.import_module(module), name)(context, share))
        if push is not None:
            push.close()
    except Exception as error:
        cause: StageError = classify(error)
        log.exception("process %d: %s", share.rank, cause.message)
        write_outcome(folder / OUTCOME_FILE, as_failure(cause))
        return int(cause.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
