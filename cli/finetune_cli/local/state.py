"""The folder that a local run keeps everything in, and the lock that keeps two runs apart."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_cli.errors import CliError


class RunLockedError(CliError):
    """Another process runs a job of this state."""


@dataclass(frozen=True)
class StateDir:
    """Names of the places inside the state folder."""

    root: Path

    @property
    def objects(self) -> Path:
        """One JSON file per object."""
        return self.root / "objects"

    @property
    def runs(self) -> Path:
        """One folder per attempt of a stage: task, log, report, process."""
        return self.root / "runs"

    @property
    def storage(self) -> Path:
        """Versions and checkpoints, unless the YAML names another storage."""
        return self.root / "storage"

    @property
    def models(self) -> Path:
        """Base models that were fetched, shared by all runs."""
        return self.root / "models"

    @property
    def secrets(self) -> Path:
        """One folder per secretRef with one file per key; without it the environment's credentials are used."""
        return self.root / "secrets"

    def events(self, namespace: str) -> Path:
        """What happened, one JSON object per line, oldest first."""
        return self.root / "events" / f"{namespace}.jsonl"

    def attempt(self, namespace: str, job_name: str) -> Path:
        """Folder of one attempt of one stage."""
        return self.runs / namespace / job_name


def open_state(folder: Path, *, create: bool) -> StateDir:
    """The state folder, made when asked for. Raises CliError when it is missing or cannot be written."""
    state = StateDir(folder.expanduser().resolve())
    if not create:
        if not state.objects.is_dir():
            raise CliError(
                f"there is no local registry in {state.root}",
                "Start one with `finetune run FILE`, name its folder with --state DIR, or say --cluster.",
            )
        return state
    try:
        state.objects.mkdir(parents=True, exist_ok=True)
        ignore = state.root / ".gitignore"
        if not ignore.exists():
            # Models, data and logs do not belong into anybody's repository.
            ignore.write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise CliError(
            f"--state: cannot write {state.root}: {error.strerror}", "Name another folder with --state DIR."
        ) from error
    return state


@contextmanager
def run_lock(state: StateDir) -> Iterator[None]:
    """Held while jobs of this state are driven. Raises RunLockedError at once when another process holds it."""
    path = state.root / "run.lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip()
            who = f"process {holder}" if holder else "another process"
            raise RunLockedError(
                f"{state.root} is in use: {who} is running a job there",
                "Wait until it ends, stop it with Ctrl-C, or use another folder with --state DIR.",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def write_lock(state: StateDir) -> Iterator[None]:
    """Held for the moment of one write; waits for others."""
    with (state.root / "objects.lock").open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
