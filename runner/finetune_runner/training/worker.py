"""One rank of a distributed training, started by torchrun: `python -m finetune_runner.training.worker`."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.stages import StageTask
from finetune_runner.context import Environment, open_context
from finetune_runner.errors import StageError, classify
from finetune_runner.progress_push import progress_push
from finetune_runner.reporting import progress_writer, set_up_logging
from finetune_runner.training.distributed import World
from finetune_runner.training.launch import FOLDER_VARIABLE, OUTCOME_FILE, STOP_FILE, TASK_FILE

log = logging.getLogger(__name__)


class StopFile(threading.Event):
    """An event that is also set by the launcher's stop file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def is_set(self) -> bool:
        """Whether the launcher asked to stop."""
        return super().is_set() or self._path.exists()


def write_outcome(path: Path, outcome: dict[str, object]) -> None:
    """Leave the outcome for the launcher, unless another rank of this node has: the first cause wins."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(outcome), encoding="utf-8")
    try:
        os.link(temporary, path)
    except FileExistsError:
        log.info("another rank has already left an outcome")
    temporary.unlink()


def as_failure(error: StageError) -> dict[str, object]:
    """The outcome of a rank that failed."""
    return {
        "failure": {
            "exitCode": int(error.exit_code),
            "message": error.message,
            "hint": error.hint,
            "evidence": error.evidence,
        }
    }


def main() -> int:
    """Train as one rank. Every rank has the same result; the first to finish leaves it for the launcher."""
    import torch
    from torch import distributed

    set_up_logging()
    folder = Path(os.environ[FOLDER_VARIABLE])
    world = World.from_environment()
    environment = Environment.of(os.environ, tempfile.gettempdir())
    outcome = folder / OUTCOME_FILE
    push = progress_push(environment) if world.main else None
    try:
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if on_gpu else "gloo")
        context = open_context(
            StageTask.from_wire(json.loads((folder / TASK_FILE).read_bytes())),
            environment,
            clock=lambda: datetime.now(UTC),
            progress=progress_writer(environment.progress_file, push),
            stop=StopFile(folder / STOP_FILE),
        )
        from finetune_runner.training.run import TrainingRun

        def end(error: StageError) -> None:
            write_outcome(outcome, as_failure(error))
            os._exit(int(error.exit_code))

        result = TrainingRun(context, world, end).run()
        write_outcome(outcome, {"result": result.to_wire()})
        distributed.destroy_process_group()
        if push is not None:
            push.close()
    except Exception as error:
        cause: StageError = classify(error)
        log.exception("rank %d: %s", world.rank, cause.message)
        write_outcome(outcome, as_failure(cause))
        return int(cause.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
