"""One rank of a distributed training, started by torchrun: `python -m finetune_runner.training.worker`."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import StageTask
from finetune_runner.context import Environment, open_context
from finetune_runner.errors import StageError, classify
from finetune_runner.progress_push import progress_push
from finetune_runner.reporting import progress_writer, set_up_logging
from finetune_runner.training.distributed import World
from finetune_runner.training.eager_imports import import_unseen
from finetune_runner.training.launch import FOLDER_VARIABLE, OUTCOME_FILE, STOP_FILE, TASK_FILE
from finetune_runner.training.lifeline import end_with_parent

log = logging.getLogger(__name__)


COLLECTIVE_TIMEOUT_VARIABLE = "FINETUNE_COLLECTIVE_TIMEOUT_S"
COLLECTIVE_TIMEOUT_S = 600.0
"""How long a rank waits for the others in one collective: torch's own default for gloo is half an hour."""
CONSEQUENCE_WAITS_S = 5.0
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe", "NCCL")
WAITED_TOO_LONG = ("Timed out waiting", "timed out", "Timeout")


def lost_peer(error: BaseException, rank: int) -> StageError | None:
    """What a failed collective tells: a hang when the others never came, a mere consequence when one has died.

    None when the error is of another kind. A consequence has the exit code INTERRUPTED and is not left as the outcome.
    """
    from torch import distributed

    text = str(error)
    collective = isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(words in text for words in (*LOST_PEER, "gloo"))
    )
    if not collective:
        return None
    if any(words in text for words in WAITED_TOO_LONG):
        return StageError(
            ExitCode.HUNG,
            f"rank {rank} waited in vain for the other ranks: one of them hangs or is gone",
            "the next attempt resumes from the newest checkpoint; look at the log of the rank that says nothing",
            text[:500],
        )
    return StageError(ExitCode.INTERRUPTED, f"rank {rank} lost its peers", evidence=text[:500])


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
    end_with_parent()
    import_unseen("torch")
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
        patience = timedelta(seconds=float(os.environ.get(COLLECTIVE_TIMEOUT_VARIABLE) or COLLECTIVE_TIMEOUT_S))
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=patience)
        context = open_context(
            StageTask.from_wire(json.loads((folder / TASK_FILE).read_bytes())),
            environment,
            clock=lambda: datetime.now(UTC),
            progress=progress_writer(environment.progress_file, push),
            stop=StopFile(folder / STOP_FILE),
        )
        import_unseen("finetune_runner.training.run")
        from finetune_runner.training.run import run

        def end(error: StageError) -> None:
            write_outcome(outcome, as_failure(error))
            os._exit(int(error.exit_code))

        result = run(context, world, end)
        write_outcome(outcome, {"result": result.to_wire()})
        distributed.destroy_process_group()
        if push is not None:
            push.close()
    except Exception as error:
        consequence = lost_peer(error, world.rank)
        cause: StageError = consequence or classify(error)
        log.exception("rank %d: %s", world.rank, cause.message)
        if consequence is None or consequence.exit_code == ExitCode.HUNG:
            write_outcome(outcome, as_failure(cause))
        else:
            # The rank that died first leaves its cause, or torchrun sees how it was killed; both need a moment.
            time.sleep(CONSEQUENCE_WAITS_S)
        # Without the interpreter's end: threads of NCCL and gloo may wait for ranks that will never answer.
        logging.shutdown()
        os._exit(int(cause.exit_code))
    return 0


if __name__ == "__main__":
    sys.exit(main())
