"""One training in one process (of one or many): set up, loop, prove the best, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import TrainResult
from finetune_runner.data.row_file import RowFile, write_row_file
from finetune_runner.errors import StageError
from finetune_runner.training.device import peak_memory_bytes
from finetune_runner.training.distributed import World
from finetune_runner.training.encoded_rows import await_paths
from finetune_runner.training.loop import Loop
from finetune_runner.training.proof import prove_kept
from finetune_runner.training.result import train_result, write_history
from finetune_runner.training.session import Session
from finetune_runner.training.setup import Learner, set_up

if TYPE_CHECKING:
    from finetune_runner.context import StageContext
    from finetune_runner.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Rows:
    """Rows of the training mix and of validation, in files that the ranks of a node share."""

    train: RowFile
    validation: RowFile
    folder: Path


def load_rows(context: StageContext, world: World) -> Rows:
    """Train with replay, and validation; the first rank of a node writes them to its scratch disk."""
    from finetune_runner.data.prepared import iter_split

    folder = context.scratch / f"train-rows-{world.rank - world.local_rank}"
    if world.local_rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    world.barrier()  # nobody reads what an earlier attempt left
    if world.local_rank == 0:
        write_row_file(folder / "train", chain(iter_split(context, "train"), iter_split(context, "replay")))
        write_row_file(folder / "validation", iter_split(context, "validation"))
    await_paths([folder / "train", folder / "validation"], lambda: None)
    return Rows(RowFile(folder / "train"), RowFile(folder / "validation"), folder)


def run(context: StageContext, world: World, on_hang: Callable[[StageError], None]) -> TrainResult:
    """Train to the end, or to where the budget, early stopping or a signal ends it.

    Args:
        context: of the stage.
        world: this process's place among the ranks.
        on_hang: ends the process when no step ends any more.

    Raises:
        StageError: INTERRUPTED after a checkpoint was saved, TRAINING_DIVERGED naming the step, and what loading the
            model and storage raise.
    """
    session = Session(context, world, on_hang)
    began = time.monotonic()
    try:
        learner, kept = _train(session)
    except BaseException as error:
        interrupted = isinstance(error, StageError) and error.exit_code == ExitCode.INTERRUPTED
        session.tracking.close("Continues" if interrupted else "Failed")
        raise
    duration_s = time.monotonic() - began
    lost_trackers = world.from_main(session.tracking.close("Continues"))
    peak_bytes = max(world.gather(peak_memory_bytes(session.device)))
    result = None
    if world.main:
        write_history(session)
        result = train_result(
            session, learner, kept, duration_s=duration_s, peak_bytes=peak_bytes, lost_trackers=lost_trackers
        )
    # Only once the main process has written everything is there a result: if it fails, the others lose a peer.
    everywhere: TrainResult = world.from_main(result)
    return everywhere


def _train(session: Session) -> tuple[Learner, Checkpoint]:
    """What has learned, and the checkpoint of it that is kept."""
    learner = set_up(session, load_rows(session.context, session.world))
    if not session.state.ended_by:
        with session.watchdog, learner.compilation.in_force():
            Loop(session, learner).run()
    return learner, prove_kept(session, learner)
