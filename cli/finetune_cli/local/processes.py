"""Stages as local processes that survive the command line: start, look at, stop, kill."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from finetune_api.base import whole_seconds
from finetune_api.stages import Progress
from finetune_cli.errors import CliError, CliExit
from finetune_cli.local.files import read_json, write_atomically
from finetune_cli.local.state import StateDir
from finetune_cli.local.supervisor import process_identity
from finetune_operator.decide.types import PodState, StageRun, StartStage

RUNNER_VARIABLE = "FINETUNE_RUNNER_COMMAND"
"""Another command in place of `python -m finetune_runner`: another environment, or a test's stand-in."""
CLAIM_TIMEOUT_S = 60.0


def runner_command(environment: Mapping[str, str]) -> list[str]:
    """How the runner is started: the same interpreter, or what FINETUNE_RUNNER_COMMAND says."""
    override = environment.get(RUNNER_VARIABLE, "")
    return shlex.split(override) if override else [sys.executable, "-m", "finetune_runner"]


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC) if text else None


def _alive(process: dict[str, Any] | None) -> bool:
    return process is not None and process_identity(int(process["pid"])) == process["identity"]


@dataclass(frozen=True)
class Attempt:
    """The folder of one attempt: everything known of its process is in files."""

    folder: Path

    @property
    def log(self) -> Path:
        """Output of the stage."""
        return self.folder / "log.txt"

    @property
    def progress_file(self) -> Path:
        """Newest progress of the stage."""
        return self.folder / "progress.json"

    @property
    def exit_file(self) -> Path:
        """Written by the supervisor when the stage has ended."""
        return self.folder / "exit.json"

    def facts(self) -> dict[str, Any]:
        """What `start` wrote before anything ran; empty when the folder is not an attempt."""
        return read_json(self.folder / "run.json") or {}

    def running(self) -> bool:
        """Whether the supervisor or, had it been killed, the stage itself is alive."""
        if self.exit_file.exists():
            return False
        return _alive(read_json(self.folder / "supervisor.json")) or _alive(read_json(self.folder / "runner.json"))

    def observe(self) -> StageRun | None:
        """What decide sees of it; None when it never started, or was stopped and is gone (like a deleted Job)."""
        facts = self.facts()
        claim = read_json(self.folder / "supervisor.json")
        if not facts or claim is None:
            return None
        # Alive is looked at before the exit file: a process that ends in between is then seen as ended, not as lost.
        alive = self.running()
        ended = read_json(self.exit_file)
        stopping = (self.folder / "stop.json").exists()
        if stopping and not alive:
            return None
        state: Literal["Running", "Succeeded", "Failed", "Terminating"]
        phase: Literal["Running", "Succeeded", "Failed"]
        exit_code: int | None = None
        reason = ""
        if alive:
            state, phase = ("Terminating" if stopping else "Running"), "Running"
        elif ended is not None:
            exit_code = int(ended["exitCode"])
            state, phase, reason = ("Succeeded", "Succeeded", "") if exit_code == 0 else ("Failed", "Failed", "Error")
        else:
            exit_code = self._reported_exit_code()
            state = phase = "Succeeded" if exit_code == 0 else "Failed"
            # Supervisor and stage are both gone without a word: the machine was switched off.
            reason = "NodeLost" if exit_code is None else ""
        finished = _time(ended["finishedAt"]) if ended else None
        pod = PodState(
            name=facts["jobName"],
            phase=phase,
            exit_code=exit_code,
            reason=reason,
            message=self._termination_message(),
            terminating=stopping,
            created_at=_time(facts["createdAt"]),
            started_at=_time(claim["startedAt"]),
            finished_at=finished,
        )
        return StageRun(
            job_name=facts["jobName"],
            uid=facts["uid"],
            state=state,
            pods=(pod,),
            created_at=pod.created_at,
            finished_at=finished,
        )

    def progress(self) -> Progress | None:
        """The newest progress. A half-understood one is none: losing progress never hurts."""
        try:
            wire = read_json(self.progress_file)
            return Progress.from_wire(wire) if wire is not None else None
        except (ValueError, ValidationError):
            return None

    def _termination_message(self) -> str:
        try:
            return (self.folder / "termination.json").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def _reported_exit_code(self) -> int | None:
        try:
            return int(json.loads(self._termination_message())["exitCode"])
        except (ValueError, KeyError, TypeError):
            return None

    def request_stop(self, grace_s: int) -> None:
        """Ask the stage to save its work and end; the supervisor kills it after the grace."""
        if not (self.folder / "stop.json").exists():
            write_atomically(self.folder / "stop.json", json.dumps({"graceSeconds": grace_s}))
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the stage at once, with everything it started."""
        if not (self.folder / "stop.json").exists():
            write_atomically(self.folder / "stop.json", json.dumps({"graceSeconds": 0}))
        self._signal(signal.SIGUSR1)

    def _signal(self, number: signal.Signals) -> None:
        supervisor = read_json(self.folder / "supervisor.json")
        runner = read_json(self.folder / "runner.json")
        try:
            if supervisor is not None and _alive(supervisor):
                os.kill(int(supervisor["pid"]), number)
            elif runner is not None and _alive(runner):
                # Its supervisor was killed: nobody else passes the signal on.
                os.killpg(int(runner["pid"]), signal.SIGTERM if number == signal.SIGTERM else signal.SIGKILL)
        except ProcessLookupError:
            return


def attempts(state: StateDir, namespace: str, owner_uid: str) -> dict[str, Attempt]:
    """Attempts of one job by their name, oldest first."""
    found: list[tuple[str, str, Attempt]] = []
    folder = state.runs / namespace
    for child in folder.iterdir() if folder.is_dir() else ():
        attempt = Attempt(child)
        facts = attempt.facts()
        if facts.get("ownerUid") == owner_uid:
            found.append((facts["createdAt"], facts["jobName"], attempt))
    return {name: attempt for _, name, attempt in sorted(found, key=lambda item: item[:2])}


def stage_environment(
    base: Mapping[str, str], state: StateDir, attempt: Attempt, start: StartStage, port: int
) -> dict[str, str]:
    """Environment of a stage's process, as PLAN of the runner says; torchrun's own variables only for several GPUs."""
    environment = dict(base) | {
        "FINETUNE_TERMINATION_LOG": str(attempt.folder / "termination.json"),
        "FINETUNE_PROGRESS_FILE": str(attempt.progress_file),
        "FINETUNE_SCRATCH": str(attempt.folder / "scratch"),
        "FINETUNE_MODEL_CACHE": base.get("FINETUNE_MODEL_CACHE", str(state.models)),
        "FINETUNE_SECRETS": base.get("FINETUNE_SECRETS", str(state.secrets)),
        "PYTHONUNBUFFERED": "1",
    }
    if start.nodes * start.gpus_per_node > 1:
        environment |= {
            "PET_NNODES": str(start.nodes),
            "PET_NPROC_PER_NODE": str(start.gpus_per_node),
            "PET_NODE_RANK": "0",
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
        }
    return environment


async def start_attempt(
    state: StateDir,
    namespace: str,
    owner_uid: str,
    start: StartStage,
    environment: Mapping[str, str],
    now: datetime,
    port: int = 29400,
) -> subprocess.Popen[bytes] | None:
    """Start a stage under its supervisor and return that. None when this attempt was started before, by whomever.

    Raises CliError when the process could not be started.
    """
    attempt = Attempt(state.attempt(namespace, start.job_name))
    claim = attempt.folder / "supervisor.json"
    if claim.exists():
        return None
    (attempt.folder / "scratch").mkdir(parents=True, exist_ok=True)
    task_file = attempt.folder / "task.json"
    write_atomically(task_file, json.dumps(start.task.to_wire(), indent=1, ensure_ascii=False))
    if not attempt.facts():
        facts = {
            "jobName": start.job_name,
            "uid": str(uuid.uuid4()),
            "ownerUid": owner_uid,
            "createdAt": whole_seconds(now).isoformat(),
        }
        write_atomically(attempt.folder / "run.json", json.dumps(facts))
    process = subprocess.Popen(  # noqa: ASYNC220 (returns at once)
        [
            sys.executable,
            "-m",
            "finetune_cli.local.supervisor",
            str(attempt.folder),
            *runner_command(environment),
            start.task.stage,
            "--task",
            str(task_file),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=stage_environment(environment, state, attempt, start, port),
        start_new_session=True,
    )
    deadline = asyncio.get_running_loop().time() + CLAIM_TIMEOUT_S
    while not claim.exists():
        if process.poll() is not None or asyncio.get_running_loop().time() > deadline:
            if claim.exists():
                break
            process.kill()
            said = process.communicate()[1].decode(errors="replace").strip().splitlines()
            raise CliError(
                f"the process of stage {start.task.stage} could not be started: {said[-1] if said else 'no answer'}",
                f"Look at {attempt.folder}, then run the same command again.",
                CliExit.FAILED,
            )
        await asyncio.sleep(0.02)
    if process.stderr is not None:
        process.stderr.close()
    return process
