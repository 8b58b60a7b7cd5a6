"""Checkpoints in storage: files first, checkpoint.json with their sha256 last, newest verified one wins.

A checkpoint without checkpoint.json does not exist. Everything that is a pure function of the step (order of examples,
learning rate, random numbers of dropout) is not saved. Every rank uploads a share of the files, but each holds whole
tensors by name: a checkpoint of any strategy and number of processes resumes under any other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.exit_codes import ExitCode
from finetune_api.job.training import HOW_NOT_WHAT
from finetune_api.stages import StageTask
from finetune_runner.errors import StageError

if TYPE_CHECKING:
    from finetune_runner.context import StageContext
    from finetune_runner.training.distributed import World

log = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
FORMAT = 1


@dataclass
class Point:
    """One evaluation on the loss curve."""

    step: int
    validation_loss: float
    train_loss: float | None = None
    measures: dict[str, float] = field(default_factory=dict)
    """What the objective measured besides its loss, by name: rewardAccuracy, rewardMargin."""


@dataclass
class TrainingState:
    """What a run remembers between attempts, besides tensors."""

    step: int = 0
    initial_validation_loss: float | None = None
    best_step: int = 0
    best_validation_loss: float | None = None
    best_measures: dict[str, float] = field(default_factory=dict)
    end: int | None = None
    """The last step, once training.extendTo has been decided (horizon.py)."""
    early_best: float | None = None
    early_loss: float | None = None
    without_improvement: int = 0
    lowest_train_loss: float | None = None
    steps_above: int = 0
    """Steps in a row with an exploded loss (divergence.py)."""
    elapsed_s: float = 0.0
    validation_s: float | None = None
    """How long the last evaluation took: an attempt that resumes knows it before its first one."""
    pending_evaluation: bool = False
    """The step is due for an evaluation that has not ended: an attempt that resumes begins with it."""
    ended_by: str = ""
    skipped_checkpoints: list[str] = field(default_factory=list)
    """Newer ones that an attempt found and did not resume from, with the reason."""
    recent_losses: list[float] = field(default_factory=list)
    history: list[Point] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    step: int
    uri: str
    files: dict[str, dict[str, Any]]
    state: TrainingState


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def training_digest(task: StageTask) -> str:
    """Identity of what is trained: a checkpoint of anything else must not be resumed from.

    Micro-batch, accumulation, packing, strategy and the number of processes are left out on purpose: they do not change
    the examples of a step, and a retry after running out of memory changes them. A warm start counts by its digest.
    """
    if task.plan is None or task.results.prepare is None:
        raise StageError(ExitCode.INVALID_SPEC, "the train stage needs a plan and the result of prepare")
    training = {name: value for name, value in task.training.to_wire().items() if name not in HOW_NOT_WHAT}
    identity = {
        "data": task.results.prepare.data_digest,
        "model": task.results.prepare.model_digest,
        "method": task.plan.method,
        "adapter": task.spec.method.to_wire(),
        "training": training,
        "extendTo": task.plan.extend_to,
        "warmStart": task.warm_start.digest if task.warm_start is not None else "",
        "totalSteps": task.plan.total_steps,
        "evalSteps": task.plan.eval_steps,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._root = f"{context.task.run_uri}/train/checkpoints"
        self._digest = training_digest(context.task)
        self.skipped: list[str] = []
        """What `newest_verified` passed over, and why."""

    def uri(self, step: int) -> str:
        """Folder of the checkpoint of a step."""
        return f"{self._root}/step-{step}"

    def begin(self, step: int, world: World) -> None:
        """Unmake what an earlier attempt may have left of this step, half-written or corrupt, before files change.

        Raises StageError (FENCED) when a newer attempt exists: then nothing is touched.
        """
        if world.main:
            self._context.fence.check()  # else it could be a newer attempt's checkpoint that is unmade
            self._context.storage.delete(f"{self.uri(step)}/{MANIFEST}")
        world.barrier()

    def upload(self, folder: Path, step: int) -> dict[str, dict[str, Any]]:
        """Upload this rank's files of the checkpoint; what the manifest has to say about them."""
        files = {}
        for path in sorted(folder.iterdir()):
            files[path.name] = {"sha256": sha256_of(path), "size": path.stat().st_size}
            self._context.storage.upload_file(path, f"{self.uri(step)}/{path.name}")
        return files

    def commit(self, state: TrainingState, files: dict[str, dict[str, Any]]) -> None:
        """Write the manifest over the files of all ranks: only now the checkpoint exists."""
        manifest = {
            "format": FORMAT,
            "training": self._digest,
            "step": state.step,
            "files": files,
            "state": asdict(state),
        }
        self._context.fence.check()
        self._context.storage.write_bytes(f"{self.uri(state.step)}/{MANIFEST}", json.dumps(manifest).encode())

    def steps(self) -> list[int]:
        """Steps that have a manifest, ascending; not yet verified."""
        found = []
        for item in self._context.storage.list(f"{self._root}/"):
            folder, _, name = item.uri.rpartition("/")
            step = folder.rpartition("/step-")[2]
            if name == MANIFEST and step.isdecimal():
                found.append(int(step))
        return sorted(found)

    def fetch(self, step: int, folder: Path) -> Checkpoint:
        """Download and verify the checkpoint of a step. Raises ValueError saying what is wrong with it."""
        uri = self.uri(step)
        storage = self._context.storage
        try:
            manifest = json.loads(storage.read_bytes(f"{uri}/{MANIFEST}"))
            if manifest["training"] != self._digest:
                raise ValueError("it belongs to a training with other data or settings")
            state = TrainingState(**_known(TrainingState, manifest["state"]))
            state.history = [Point(**_known(Point, point)) for point in manifest["state"]["history"]]
            files: dict[str, dict[str, Any]] = dict(manifest["files"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{MANIFEST} is not a manifest: {error!r}") from error
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, facts in files.items():
            if "/" in name or name in ("", ".", ".."):
                raise ValueError(f"{name!r} is not a file name")
            try:
                storage.download_file(f"{uri}/{name}", folder / name)
            except StageError as error:
                if error.exit_code != ExitCode.SOURCE_NOT_FOUND:
                    raise
                raise ValueError(f"{name} is missing") from error
            if sha256_of(folder / name) != facts["sha256"]:
                raise ValueError(f"{name} does not have the recorded sha256")
        return Checkpoint(step, uri, files, state)

    def newest_verified(self, folder: Path) -> Checkpoint | None:
        """The newest checkpoint whose files are all as recorded; others are skipped, which is logged and kept."""
        for step in reversed(self.steps()):
            try:
                return self.fetch(step, folder)
            except ValueError as error:
                log.warning("checkpoint step-%d is skipped: %s", step, error)
                self.skipped.append(f"step-{step}: {error}")
        return None

    def prune(self, newest_step: int, best_step: int) -> None:
        """Keep the best and the newest few; delete the others, manifest first.

        What lies beyond the newest own one was not resumed from: it is left alone, and does not count.
        """
        steps = [step for step in self.steps() if step <= newest_step]
        keep = {best_step, *steps[-self._context.task.spec.training.checkpoints.keep :]}
        for step in steps:
            if step in keep:
                continue
            storage = self._context.storage
            storage.delete(f"{self.uri(step)}/{MANIFEST}")
            for item in storage.list(f"{self.uri(step)}/"):
                storage.delete(item.uri)


def _known(kind: type[TrainingState] | type[Point], read: dict[str, Any]) -> dict[str, Any]:
    """Without what a newer runner adds: after a rollback its checkpoints are resumed from."""
    return {each.name: read[each.name] for each in fields(kind) if each.name in read}
