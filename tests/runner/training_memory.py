"""Peak memory of what the train stage holds of its rows, in a process of its own: `measure(worlds)`.

Run as a module it takes the tasks of several runs, one after the other, and prints the peak of each in KiB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.prepare_memory import peak_memory_kib
from finetune_api.stages import StageTask
from finetune_runner.context import Environment, open_context
from tests.runner.tiny import World


def hold_rows(task: StageTask, scratch: Path) -> int:
    """Read and encode the rows of a run, draw its examples and make batches of some; returns how many there are."""
    import torch

    from finetune_runner.text import load_tokenizer
    from finetune_runner.training.distributed import World as Ranks
    from finetune_runner.training.judge import Judge
    from finetune_runner.training.objectives.making import make_objective
    from finetune_runner.training.order import example_stream
    from finetune_runner.training.run import load_rows

    context = open_context(
        task,
        Environment.of({"FINETUNE_SCRATCH": str(scratch)}, str(scratch)),
        clock=lambda: datetime.now(UTC),
        progress=lambda _: None,
        stop=threading.Event(),
    )
    tokenizer = load_tokenizer(Path(task.spec.model.source.removeprefix("file://")))
    rows = load_rows(context, Ranks())
    judge = Judge(context, tokenizer, rows.validation, Ranks())
    objective = make_objective(context, tokenizer, rows, torch.device("cpu"), Ranks())
    stream = example_stream(rows.train.ids, rows.train.weights, 1, len(rows.train))
    for start in range(0, len(stream), 8):
        objective.collate(stream[start : start + 8].tolist(), packed=False)
    del judge
    return len(rows.train)


def measure(worlds: list[World]) -> list[int]:
    """Peaks in KiB after each of the runs, held one after the other by one process."""
    folder = worlds[0].folder
    (folder / "tasks.json").write_text(json.dumps([world.task("train").to_wire() for world in worlds]))
    command = [sys.executable, "-m", "tests.runner.training_memory", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    peaks: list[int] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def main() -> None:
    """Hold the rows of each task, one after the other."""
    folder = Path(sys.argv[1])
    peaks = []
    for number, wire in enumerate(json.loads((folder / "tasks.json").read_bytes())):
        hold_rows(StageTask.from_wire(wire), folder / f"scratch-{number}")
        peaks.append(peak_memory_kib())
    print(json.dumps(peaks))


if __name__ == "__main__":
    main()
