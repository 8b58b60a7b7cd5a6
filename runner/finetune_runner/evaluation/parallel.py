"""Rows over the GPUs of the pod: one process per GPU with a replica each, by torchrun; on the CPU as many as asked.

The batches are cut first and then shared out, so the outcomes are the same whatever the number of processes. Each
process leaves its outcomes in a file; the stage's process joins them. Nothing is sent between them while they work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune_runner.context import StageContext
from finetune_runner.data.rows import Row
from finetune_runner.evaluation.generation import ROWS_PER_BATCH
from finetune_runner.evaluation.outcomes import Outcome, joined
from finetune_runner.evaluation.records import pack_systems, unpack_systems
from finetune_runner.evaluation.share import WHOLE, Share
from finetune_runner.training.launch import outcome_of, processes_per_node, run_ranks


@dataclass
class Measured:
    """Outcomes by system, and the peak of a process's memory by what was loaded, in bytes."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)


Measurement = Callable[[StageContext, Share], Measured]
"""Asks and scores a share of the rows. It is a function of a module, so that another process finds it."""


def processes(context: StageContext, rows: int) -> int:
    """Processes of this pod that have something to do: one per copy of the model.

    vLLM spreads one model over all GPUs by itself.
    """
    plan = context.task.plan
    if context.task.spec.evaluation.engine == "vllm":
        return 1
    copies = processes_per_node(plan.gpus_per_node) // plan.judging_gpus if plan is not None else processes_per_node(0)
    return max(1, min(copies, -(-rows // ROWS_PER_BATCH)))


def measure(context: StageContext, measurement: Measurement, rows: Mapping[str, Sequence[Row]]) -> Measured:
    """The measurement over all rows: in this process, or in one per GPU.

    Args:
        context: of the stage.
        measurement: what to do with a share of the rows.
        rows: `test` and `out_of_domain`, in their order.

    Raises:
        StageError: the first cause of a process that failed.
    """
    count = processes(context, max(len(rows["test"]), len(rows["out_of_domain"])))
    if count == 1:
        return measurement(context, WHOLE)
    folder = context.scratch / "measure"
    _run(context, folder, f"{measurement.__module__}:{measurement.__name__}", count)
    parts = [read_part(folder, rank, rows) for rank in range(count)]
    names = parts[0].outcomes
    return Measured(
        {name: joined([part.outcomes[name] for part in parts]) for name in names},
        {name: max(part.peaks.get(name, 0) for part in parts) for name in parts[0].peaks},
    )


def _run(context: StageContext, folder: Path, measurement: str, count: int) -> None:
    command = [sys.executable, "-m", "finetune_runner.training.torchrun", "--standalone", "--nnodes=1"]
    command += [f"--nproc-per-node={count}", "--max-restarts=0"]
    command += ["-m", "finetune_runner.evaluation.worker", measurement]
    environment = {
        "FINETUNE_SCRATCH": str(context.scratch),
        "FINETUNE_MODEL_CACHE": str(context.model_cache),
        "FINETUNE_SECRETS": str(context.secrets.folder),
    }
    exit_code, memory_kills = run_ranks(context, folder, command, environment)
    if exit_code:
        outcome_of(folder, exit_code, memory_kills)


def write_part(folder: Path, rank: int, part: Measured) -> None:
    """Leave a process's share for the stage's process."""
    (folder / f"outcomes-{rank}.jsonl.gz").write_bytes(pack_systems(part.outcomes))
    (folder / f"peaks-{rank}.json").write_text(json.dumps(part.peaks), encoding="utf-8")


def read_part(folder: Path, rank: int, rows: Mapping[str, Sequence[Row]]) -> Measured:
    """The inverse of `write_part`. Raises ValueError when it belongs to other rows."""
    outcomes = unpack_systems((folder / f"outcomes-{rank}.jsonl.gz").read_bytes(), rows)
    return Measured(outcomes, json.loads((folder / f"peaks-{rank}.json").read_bytes()))
