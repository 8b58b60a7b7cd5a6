"""The stage's process as the launcher of the ranks: torchrun inside, a stop and the outcome as files.

torchrun answers a signal by killing after 30 s and ends with 1 whatever the reason, so a stop travels as a file that
every rank looks for between steps, and the outcome as another.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import TrainPlan, TrainResult
from finetune_runner.errors import StageError
from finetune_runner.model_source import fetch_model

if TYPE_CHECKING:
    from finetune_runner.context import StageContext

FOLDER_VARIABLE = "FINETUNE_RANKS_FOLDER"
TASK_FILE, STOP_FILE, OUTCOME_FILE, FIRST_FAILURE_FILE = "task.json", "stop", "outcome.json", "first-failure.json"
POLL_S = 0.2
MEMORY_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
"""Files of the container's cgroup with a line `oom_kill N`: of version 2 and 1."""


def launch(context: StageContext) -> TrainResult:
    """Train in as many processes as the plan has GPUs (on the CPU: one per pod), and return what rank 0 reports.

    Raises:
        StageError: the first cause that ended the ranks; what the others died of is its consequence.
    """
    plan = context.task.plan
    if plan is None:
        raise StageError(ExitCode.INVALID_SPEC, "the train stage needs a plan")
    fetch_model(context)  # once here, not once per rank at the same time
    folder = context.scratch / "ranks"
    exit_code, memory_kills = run_ranks(context, folder, _command(plan))
    return outcome_of(folder, exit_code, memory_kills)


def run_ranks(
    context: StageContext, folder: Path, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[int, int]:
    """Run torchrun to its end, passing a stop on.

    Args:
        context: of the stage.
        folder: made anew, with the task in it: where the ranks look for a stop and leave what came of them.
        command: torchrun's.
        environment: what the ranks are told beside this process's own.

    Returns:
        torchrun's exit code, and how many processes of this container the kernel killed meanwhile for want of memory.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / TASK_FILE).write_text(json.dumps(context.task.to_wire()), encoding="utf-8")
    told = {
        **os.environ,
        **(environment or {}),
        FOLDER_VARIABLE: str(folder),
        "FINETUNE_EPOCH": str(context.fence.epoch),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    killed_before = out_of_memory_kills()
    # A session of its own: Ctrl-C at a terminal reaches the launcher only.
    process = subprocess.Popen(command, env=told, start_new_session=True)
    try:
        while process.poll() is None:
            if context.stop.is_set():
                (folder / STOP_FILE).touch()
            time.sleep(POLL_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out_of_memory_kills() - killed_before


def _command(plan: TrainPlan) -> list[str]:
    command = [sys.executable, "-m", "finetune_runner.training.torchrun", f"--nnodes={plan.nodes}"]
    command += [f"--nproc-per-node={processes_per_node(plan.gpus_per_node)}", "--max-restarts=0"]
    if plan.nodes == 1:
        command.append("--standalone")
    else:
        # torchrun reads the other PET_ variables itself; these have no default that would work.
        command += [f"--node-rank={os.environ['PET_NODE_RANK']}", f"--master-addr={os.environ['PET_MASTER_ADDR']}"]
        command.append(f"--master-port={os.environ.get('PET_MASTER_PORT', '29500')}")
    return [*command, "-m", "finetune_runner.training.worker"]


def processes_per_node(gpus_per_node: int) -> int:
    """One process per GPU; on the CPU as many as FINETUNE_CPU_PROCESSES says, by default one."""
    return gpus_per_node or int(os.environ.get("FINETUNE_CPU_PROCESSES", "1"))


def out_of_memory_kills(counters: Sequence[Path] = MEMORY_COUNTERS) -> int:
    """Processes of this container that the kernel has killed for want of memory; 0 where that is not told."""
    lines = [line for path in counters if path.is_file() for line in path.read_text(encoding="ascii").splitlines()]
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def outcome_of(folder: Path, exit_code: int, memory_kills: int) -> TrainResult:
    """What the ranks left behind: the result, or the cause that came first.

    A rank that ends by itself leaves its cause, unless it only lost a peer. A rank that is killed leaves nothing, but
    torchrun has seen it die first.

    Raises:
        StageError: the first cause.
    """
    path = folder / OUTCOME_FILE
    if path.is_file():
        outcome = json.loads(path.read_bytes())
        if "result" in outcome:
            return TrainResult.from_wire(outcome["result"])
        failure = outcome["failure"]
        raise StageError(ExitCode(failure["exitCode"]), failure["message"], failure["hint"], failure["evidence"])
    first = folder / FIRST_FAILURE_FILE
    failed = json.loads(first.read_bytes()) if first.is_file() else {}
    killed_by = -failed.get("exitCode", exit_code)
    if killed_by > 0:
        name = signal.Signals(killed_by).name
        who = f"rank {failed['rank']}" if failed else "torchrun, which starts the ranks,"
        message = f"{who} was killed by {name}; {'the other' if failed else 'all'} ranks were ended with it"
        if memory_kills > 0:
            raise StageError(
                ExitCode.HOST_OUT_OF_MEMORY,
                message,
                "raise the memory of the pool's pods",
                f"the kernel killed {memory_kills} process(es) of this pod for want of memory",
            )
        raise StageError(
            ExitCode.INTERNAL,
            message,
            "the next attempt resumes from the newest checkpoint; the log above tells more",
            f"exit code {-killed_by}",
        )
    who = f"rank {failed['rank']}" if failed else "a training process"
    raise StageError(
        ExitCode.INTERNAL,
        f"{who} ended with {failed.get('exitCode', exit_code)} and left no cause",
        hint="look at the other pods of the gang; the log above has the traceback of the rank that failed first",
    )
