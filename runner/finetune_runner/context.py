"""What a stage is given: its task, storage, folders, credentials, clock, and the ways to say how it goes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from finetune_api.common import SecretRef
from finetune_api.stages import PHASE_LIMIT, Progress, StageTask
from finetune_runner.errors import interrupted
from finetune_runner.fence import Fence
from finetune_runner.secret_files import Secrets
from finetune_runner.storage import Storage, open_storage


@dataclass(frozen=True)
class Environment:
    """The runner's environment variables, read once."""

    termination_log: Path
    """Receives the stage's report (at most 4,000 bytes)."""
    progress_file: Path | None
    """Receives the newest Progress."""
    progress_url: str
    """Where the operator hears progress over HTTPS; empty = nowhere."""
    progress_credentials: Path
    """Folder with the projected token and the certificate authority for that."""
    scratch: Path
    scratch_limit_bytes: int
    """Most that the scratch folder may hold; 0 = what its disk has."""
    model_cache: Path
    model_cache_read_only: bool
    """Whether prepare fills the cache and this stage only reads there."""
    secrets: Path
    epoch: int
    """Epoch that the launcher of this process has claimed; 0 = claim one."""
    node_rank: int
    """Of this pod in its gang: only rank 0 claims and reports to storage."""

    @classmethod
    def of(cls, environ: Mapping[str, str], temporary: str) -> Environment:
        """Read the variables; `temporary` is the system's folder for temporary files."""
        scratch = Path(environ.get("FINETUNE_SCRATCH") or temporary)
        progress_file = environ.get("FINETUNE_PROGRESS_FILE")
        return cls(
            termination_log=Path(environ.get("FINETUNE_TERMINATION_LOG") or "/dev/termination-log"),
            progress_file=Path(progress_file) if progress_file else None,
            progress_url=environ.get("FINETUNE_PROGRESS_URL") or "",
            progress_credentials=Path(environ.get("FINETUNE_PROGRESS_CREDENTIALS") or "/etc/finetune/progress"),
            scratch=scratch,
            scratch_limit_bytes=int(environ.get("FINETUNE_SCRATCH_LIMIT_BYTES") or 0),
            model_cache=Path(environ.get("FINETUNE_MODEL_CACHE") or scratch / "models"),
            model_cache_read_only=environ.get("FINETUNE_MODEL_CACHE_READ_ONLY") == "1",
            secrets=Path(environ.get("FINETUNE_SECRETS") or "/etc/finetune/secrets"),
            epoch=int(environ.get("FINETUNE_EPOCH") or 0),
            node_rank=int(environ.get("PET_NODE_RANK") or 0),
        )


@dataclass(frozen=True)
class StageContext:
    """Everything a stage needs. `stop` is set on SIGTERM: save, then raise `errors.interrupted()`."""

    task: StageTask
    storage: Storage
    scratch: Path
    scratch_limit_bytes: int
    model_cache: Path
    model_cache_read_only: bool
    secrets: Secrets
    clock: Callable[[], datetime]
    progress: Callable[[Progress], None]
    fence: Fence
    stop: threading.Event
    commits: dict[tuple[str, str], str] = field(default_factory=dict)
    """Commits that this stage has resolved, by repository and revision: each is asked for once."""
    told: dict[Literal["percent"], float] = field(default_factory=dict)
    """How far the stage was when it last said so: what counts nothing does not take it back."""

    def check_stop(self) -> None:
        """Raise StageError (INTERRUPTED) when the process was asked to stop."""
        if self.stop.is_set():
            raise interrupted()

    def report_progress(
        self,
        phase: str,
        done: int = 0,
        total: int = 0,
        *,
        percent: float | None = None,
        eta_seconds: float | None = None,
    ) -> None:
        """Say how far the stage is, for stages that count something other than optimiser steps."""
        if percent is None:
            percent = min(100.0, round(100 * done / total, 1)) if total else self.told.get("percent", 0.0)
        self.told["percent"] = percent
        self.progress(
            Progress(
                stage=self.task.stage,
                attempt=self.task.attempt,
                phase=printable(phase)[:PHASE_LIMIT],
                step=done,
                total_steps=total,
                percent=percent,
                eta_seconds=eta_seconds,
                updated_at=self.clock(),
            )
        )

    def open_source(self, uri: str, secret_ref: SecretRef | None) -> Storage:
        """Storage to read a source with: the run's service and credentials unless the source names its own Secret."""
        storage = self.task.storage
        return open_storage(
            uri,
            self.secrets,
            secret_ref=secret_ref or storage.secret_ref,
            endpoint=None if secret_ref and "AWS_ENDPOINT_URL" in self.secrets.read(secret_ref) else storage.endpoint,
            region=storage.region,
        )


def printable(text: str) -> str:
    """The text without control characters: names of sources and files may hold them."""
    return "".join(character if character.isprintable() else " " for character in text)


def open_context(
    task: StageTask,
    environment: Environment,
    *,
    clock: Callable[[], datetime],
    progress: Callable[[Progress], None],
    stop: threading.Event,
) -> StageContext:
    """The context of a task. Makes no request; an epoch claimed by the launcher of this process is taken over."""
    secrets = Secrets(environment.secrets)
    storage = open_storage(task.storage, secrets)
    return StageContext(
        task=task,
        storage=storage,
        scratch=environment.scratch,
        scratch_limit_bytes=environment.scratch_limit_bytes,
        model_cache=environment.model_cache,
        model_cache_read_only=environment.model_cache_read_only,
        secrets=secrets,
        clock=clock,
        progress=progress,
        fence=Fence(storage, task.run_uri, task.stage, environment.epoch),
        stop=stop,
    )
