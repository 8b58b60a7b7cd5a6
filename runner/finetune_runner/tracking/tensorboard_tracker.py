"""TensorBoard event files, by tensorboardX, kept in the run's storage: `tensorboard --logdir` reads a copy of them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tensorboardX import SummaryWriter

from finetune_api.job.tracking import Tensorboard
from finetune_runner.context import StageContext
from finetune_runner.storage import Storage, join
from finetune_runner.tracking.base import End, Entry, RunFacts

UPLOAD_EVERY_S = 60.0
"""Object storage knows no appending: the whole file, some hundred bytes per step, is written anew."""


def open_tracker(
    _settings: Tensorboard, facts: RunFacts, context: StageContext, _secret: Mapping[str, str]
) -> TensorboardTracker:
    """Start a file of this attempt's own; TensorBoard shows all files of a folder as one run."""
    stage, attempt = context.task.stage, context.task.attempt
    local = context.scratch / "tensorboard" / f"{stage}-{attempt}"
    shutil.rmtree(local, ignore_errors=True)
    uri = join(context.task.run_uri, stage, "tensorboard")
    return TensorboardTracker(local, context.storage, uri, f".{stage}-{attempt}", facts, hides_later=stage == "train")


class TensorboardTracker:
    """Event files of one attempt of a stage."""

    def __init__(
        self,
        folder: Path,
        storage: Storage,
        uri: str,
        suffix: str,
        facts: RunFacts,
        *,
        hides_later: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._storage, self._uri = folder, storage, uri
        self._clock = clock
        self._uploaded_at = -UPLOAD_EVERY_S
        self._hides_later = hides_later
        self._writer: SummaryWriter | None = None
        self._suffix = suffix
        self._texts = {"run": _table(facts.tags), "parameters": _table(facts.params)}

    def _open(self, step: int) -> SummaryWriter:
        if self._writer is None:
            # An earlier attempt may have gone further than the checkpoint of this one: those points are hidden.
            purge = step if self._hides_later else None
            self._writer = SummaryWriter(str(self._folder), purge_step=purge, filename_suffix=self._suffix)
            for name, text in self._texts.items():
                self._writer.add_text(name, text, step)
        return self._writer

    def log(self, entries: Sequence[Entry]) -> None:
        """Scalars by step."""
        for entry in entries:
            writer = self._open(entry.step)
            for name, value in entry.values.items():
                writer.add_scalar(name, value, entry.step, walltime=entry.at_s)
        self._open(0).flush()
        if self._clock() - self._uploaded_at >= UPLOAD_EVERY_S:
            self._upload()

    def tag(self, tags: Mapping[str, str]) -> None:
        """Tags as text."""
        self._open(0).add_text("tags", _table(tags), 0)

    def close(self, end: End) -> None:
        """Finish the file and upload it."""
        if self._writer is not None:
            self._writer.close()
            self._upload()

    def _upload(self) -> None:
        for path in sorted(self._folder.iterdir()):
            self._storage.upload_file(path, join(self._uri, path.name))
        self._uploaded_at = self._clock()


def _table(values: Mapping[str, str]) -> str:
    """Markdown."""
    return "\n".join(["| name | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())])
