"""What the start of a runner process costs: processor seconds and modules of a fresh process that has got so far.

`OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.start_time --output benchmarks/results/start-time.json`
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.runner.tiny import make_tiny_model

ROUNDS = 3
BEGIN = "import os, sys\nfrom pathlib import Path\n"
END = "\nspent = os.times()\nprint(spent.user + spent.system, len(sys.modules))"
COMMAND = "import finetune_runner.main"
TORCH = "import torch"
MODEL = """
import torch
from finetune_api.job.method import Method
from finetune_runner.training.loading import load_base, new_adapter
new_adapter(load_base(Path(sys.argv[1]), {method!r}, torch.device("cpu"), None), Method(), 0)
"""
METRICS = """
from finetune_runner.evaluation.metrics import Settings, metric
from finetune_runner.evaluation.outcomes import Outcome
metric("rougeL").rows([Outcome("1", "a b", text="a c")], Settings())
"""
STARTS = {
    "the command": COMMAND,
    "torch": TORCH,
    "a base with an adapter, lora": MODEL.format(method="lora"),
    "a base with an adapter, qlora": MODEL.format(method="qlora"),
    "rougeL": METRICS,
}


def measure(code: str, model: Path) -> dict[str, float]:
    """Median processor seconds of fresh processes that run the code, and how many modules they have then."""
    found = []
    for _ in range(ROUNDS):
        command = [sys.executable, "-c", BEGIN + code + END, str(model)]
        last = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        found.append(tuple(map(float, last.split())))
    return {"cpuSeconds": round(statistics.median(s for s, _ in found), 2), "modules": int(found[-1][1])}


def main() -> None:
    """Measure all of them, print a line each, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write the result here, as JSON")
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder))
        for name, code in STARTS.items():
            results[name] = measure(code, model)
            print(f"{name:32} {results[name]['cpuSeconds']:6.2f} s  {results[name]['modules']} modules", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
