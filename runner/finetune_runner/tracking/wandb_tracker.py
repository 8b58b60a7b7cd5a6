"""Weights & Biases, by its own package: online, or offline into the run's storage for `wandb sync`."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_api.job.tracking import Wandb
from finetune_runner.context import StageContext
from finetune_runner.storage import Storage, join
from finetune_runner.tracking.base import End, Entry, RunFacts

INIT_TIMEOUT_S = 30.0
STEP = "step"
FOLDER = "train/wandb"


class WandbError(Exception):
    """It cannot be used as asked; the message says what to do."""


def open_tracker(settings: Wandb, facts: RunFacts, context: StageContext, secret: Mapping[str, str]) -> WandbTracker:
    """Start or go on with the run. Raises when there is no key, or the service does not answer in time."""
    try:
        import wandb
    except ImportError as error:
        raise WandbError("wandb is not in this runner image; build it with the extra runner") from error
    key = secret.get("WANDB_API_KEY")
    offline = settings.mode == "offline" or secret.get("WANDB_MODE") == "offline"
    if not key and not offline:
        raise WandbError("there is no WANDB_API_KEY; give tracking.wandb.secretRef, or set mode: offline")
    folder = context.scratch / "wandb" / f"{context.task.stage}-{context.task.attempt}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options: dict[str, Any] = {"api_key": key} if key else {}
    if settings.base_url:
        options["base_url"] = settings.base_url
    run = wandb.init(
        project=settings.project,
        entity=settings.entity,
        # The same over all attempts and stages: they are one run.
        id=hashlib.sha256(facts.key.encode()).hexdigest()[:16],
        name=facts.name,
        group=facts.experiment,
        config=dict(facts.params),
        notes="\n".join(f"{name}: {value}" for name, value in facts.tags.items()),
        dir=str(folder),
        mode="offline" if offline else "online",
        resume=None if offline else "allow",
        settings=wandb.Settings(
            init_timeout=INIT_TIMEOUT_S,
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,
            disable_job_creation=True,
            x_disable_stats=True,
            **options,
        ),
    )
    # A resumed training repeats steps; wandb's own step may only grow.
    run.define_metric("*", step_metric=STEP)
    uri = join(context.task.run_uri, FOLDER) if offline else None
    return WandbTracker(run, folder, context.storage, uri)


class WandbTracker:
    """One run of wandb."""

    def __init__(self, run: Any, folder: Path, storage: Storage, uri: str | None) -> None:
        self._run, self._folder, self._storage, self._uri = run, folder, storage, uri

    def log(self, entries: Sequence[Entry]) -> None:
        """Numbers by our step."""
        for entry in entries:
            self._run.log({STEP: entry.step, **entry.values})

    def tag(self, tags: Mapping[str, str]) -> None:
        """Into the configuration: wandb's tags are words without values."""
        self._run.config.update(dict(tags), allow_val_change=True)

    def close(self, end: End) -> None:
        """Finish; offline files go to the run's storage."""
        self._run.finish(exit_code=1 if end == "Failed" else 0)
        if self._uri is None:
            return
        for path in sorted(self._folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                self._storage.upload_file(path, join(self._uri, path.relative_to(self._folder).as_posix()))
