"""ddp: a full replica per process, started by torchrun in this pod; gradients are averaged, rank 0 commits.

The stage's process stays outside as the launcher. torchrun answers a signal by killing after 30 s and ends with 1
whatever the reason, so a stop travels as a file that every rank looks for between steps, and the outcome as another.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import TrainResult
from finetune_runner.errors import StageError
from finetune_runner.model_source import fetch_model

if TYPE_CHECKING:
    from finetune_runner.context import StageContext

FOLDER_VARIABLE = "FINETUNE_DDP_FOLDER"
TASK_FILE, STOP_FILE, OUTCOME_FILE = "task.json", "stop", "outcome.json"
POLL_S = 0.2


def train(context: StageContext) -> TrainResult:
    """Train in as many processes as the plan has GPUs (on the CPU: one per pod), and return what rank 0 reports."""
    plan = context.task.plan
    if plan is None:
        raise StageError(ExitCode.INVALID_SPEC, "the train stage needs a plan")
    fetch_model(context)  # once here, not once per rank at the same time
    folder = context.scratch / "ddp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / TASK_FILE).write_text(json.dumps(context.task.to_wire()), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={plan.nodes}"]
    command += [f"--nproc-per-node={processes_per_node(plan.gpus_per_node)}", "--max-restarts=0"]
    if plan.nodes == 1:
        command.append("--standalone")
    else:
        # torchrun reads the other PET_ variables itself; these have no default that would work.
        command += [f"--node-rank={os.environ['PET_NODE_RANK']}", f"--master-addr={os.environ['PET_MASTER_ADDR']}"]
        command.append(f"--master-port={os.environ.get('PET_MASTER_PORT', '29500')}")
    command += ["-m", "finetune_runner.training.worker"]
    environment = {
        **os.environ,
        FOLDER_VARIABLE: str(folder),
        "FINETUNE_EPOCH": str(context.fence.epoch),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    # A session of its own: Ctrl-C at a terminal reaches the launcher only.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        while process.poll() is None:
            if context.stop.is_set():
                (folder / STOP_FILE).touch()
            time.sleep(POLL_S)
    finally:
        if process.poll() is None:
            process.kill()
    return _outcome(context, process.returncode)


def processes_per_node(gpus_per_node: int) -> int:
    """One process per GPU; on the CPU as many as FINETUNE_CPU_PROCESSES says, by default one."""
    return gpus_per_node or int(os.environ.get("FINETUNE_CPU_PROCESSES", "1"))


def _outcome(context: StageContext, exit_code: int) -> TrainResult:
    """What the ranks left behind. Raises the StageError that ended them."""
    path = context.scratch / "ddp" / OUTCOME_FILE
    if not path.is_file():
        raise StageError(
            ExitCode.INTERNAL,
            f"the training processes ended with {exit_code} and left no outcome",
            hint="the log above has the traceback of the rank that failed first",
        )
    outcome = json.loads(path.read_bytes())
    if "result" in outcome:
        return TrainResult.from_wire(outcome["result"])
    failure = outcome["failure"]
    raise StageError(ExitCode(failure["exitCode"]), failure["message"], failure["hint"], failure["evidence"])
