"""README.md of a version: a model card in the hub's layout. Pure."""

from __future__ import annotations

import json
from typing import Any

from finetune_api.stages import StageTask, TrainResult
from finetune_api.wording import counted
from finetune_runner.report.page import number

ADAPTER_USE = """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```"""
MERGED_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```"""


def model_card(task: StageTask, version: int, evaluation: dict[str, Any], trained: TrainResult) -> str:
    """What the version is, how good, and how to load it."""
    spec = task.spec
    scheme, _, path = spec.model.source.partition("://")
    front: dict[str, Any] = {"library_name": "peft" if evaluation["servedAs"] == "adapter" else "transformers"}
    if scheme == "hf":
        front["base_model"] = path
    front["tags"] = sorted({"lora", evaluation["method"]})
    rows = [f"| metric | tuned | 90 % interval | {evaluation['best'] or 'base'} |", "|---|---|---|---|"]
    reference = evaluation["references"].get(evaluation["best"] or "base", {})
    for name, found in evaluation["metrics"].items():
        rows.append(
            f"| {name} | {number(found['value'])} | {number(found['low'])} to {number(found['high'])} "
            f"| {number(reference.get(name))} |"
        )
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        "---",
        f"# {task.adapter} v{version}",
        "",
        f"LoRA adapter for `{spec.model.source}`, trained with {evaluation['method']} (rank {spec.method.rank}, alpha "
        f"{spec.method.alpha}) for {counted(trained.steps, 'step')}; step {trained.best_step} was kept. "
        f"Judged and served as **{evaluation['servedAs']}**.",
        "",
        f"## Evaluation on {counted(evaluation['rows'], 'held-out row')}",
        "",
        *rows,
        "",
        "All numbers, the confusion matrix and samples: `report.html`. Provenance and sha256 of every file: "
        "`manifest.json`.",
        "",
        "## Use",
        "",
        ADAPTER_USE if evaluation["servedAs"] == "adapter" else MERGED_USE,
        "",
        "Prompts go through the chat template in this folder, which is the one used in training and evaluation.",
        "",
    ]
    return "\n".join(lines)
