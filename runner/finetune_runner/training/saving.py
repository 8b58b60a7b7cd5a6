"""Checkpoints of a running training: which one to resume from, and a new one of every rank's share."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.training.adapter_file import ADAPTER_FILE
from finetune_runner.training.divergence import refuse_no_numbers
from finetune_runner.training.optimizer_files import write_optimizer
from finetune_runner.training.session import Saved

if TYPE_CHECKING:
    from finetune_runner.training.checkpoint import Checkpoint
    from finetune_runner.training.session import Session
    from finetune_runner.training.setup import Learner

LONGEST_UNSAVED_S = 15 * 60.0
"""What a node that dies may cost, where the spec does not say how often to save. Our choice."""


def newest_checkpoint(session: Session, folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, downloaded into `folder`.

    The main process chooses, so that all resume from one step even while storage is written by nobody else.
    """
    found = session.store.newest_verified(folder) if session.world.main else None
    step = session.world.from_main(found.step if found else None)
    if step is None or session.world.main:
        return found
    return session.store.fetch(step, folder)


def save(session: Session, learner: Learner) -> None:
    """A checkpoint: every rank uploads its share of the files, the main process commits the manifest last.

    Raises as `refuse_no_numbers`, in all ranks.
    """
    state = session.state
    with session.stopwatch.measure("checkpoint"):
        if session.saved is None or session.saved.step != state.step:
            session.saved = Saved(state.step, _upload(session, learner))
        if session.world.main:
            session.store.commit(state, session.saved.files)
            if not state.pending_evaluation:
                session.store.prune(state.step, state.best_step)
        session.world.barrier()
    session.saved_at_s = time.monotonic()


def overdue(session: Session) -> bool:
    """Whether so much would be lost by now that a checkpoint is due without an evaluation; the main process decides."""
    waited_s = time.monotonic() - session.saved_at_s
    return session.training.checkpoints.every_steps is None and session.world.main and waited_s >= LONGEST_UNSAVED_S


def _upload(session: Session, learner: Learner) -> dict[str, dict[str, Any]]:
    """The files of the step's checkpoint, to storage; what its manifest has to say about them."""
    from safetensors.torch import save_file

    folder = session.folder / "save"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    adapter = learner.engine.adapter()
    refuse_no_numbers(session, adapter)
    states = learner.engine.optimizer_state()
    if session.world.main:
        learner.model.save_pretrained(
            str(folder), safe_serialization=True, save_embedding_layers=False, state_dict=adapter
        )
        (folder / "README.md").unlink(missing_ok=True)
        # PEFT looks for the parameters under the names that they have now, and finds none below FSDP1's wrappers.
        named = {learner.adapter_keys[name]: tensor.contiguous() for name, tensor in adapter.items()}
        save_file(named, str(folder / ADAPTER_FILE), metadata={"format": "pt"})
    write_optimizer(states, folder, session.world)
    session.store.begin(session.state.step, session.world)
    files = session.world.gather(session.store.upload(folder, session.state.step))
    return {name: facts for part in files for name, facts in part.items()}


def saved_adapter(keys: dict[str, str], folder: Path) -> dict[str, Any]:
    """Weights of a saved adapter by parameter name. Raises StageError when it does not hold all of them.

    Args:
        keys: the key in the file of every parameter (`saved_names`).
        folder: with adapter_model.safetensors.
    """
    from safetensors.torch import load_file

    saved = load_file(str(folder / ADAPTER_FILE))
    missing = [key for key in keys.values() if key not in saved]
    if missing:
        raise StageError(
            ExitCode.INTERNAL, "a saved adapter does not hold every weight", evidence=", ".join(missing)[:500]
        )
    return {name: saved[key] for name, key in keys.items()}
