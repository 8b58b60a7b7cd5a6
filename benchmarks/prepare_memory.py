"""Stage prepare on a large file: peak memory, rows per second of each phase, planted duplicates found.

Writes JSON lines of templated and random texts with planted exact and near-duplicates, then runs the stage on them in
a process of its own and reads that process's peak resident memory. Run it from the repository's root:

    .venv/bin/python -m benchmarks.prepare_memory --megabytes 1000 --output benchmarks/results/prepare-memory.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune_api.stages import Progress, StageTask
from finetune_runner.context import Environment, open_context
from finetune_runner.stages import prepare

EXACT_SHARE = NEAR_SHARE = 0.02
TEMPLATED_SHARE = 0.5
WORDS = 20_000
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WITHOUT_ROWS = ("starting", "fetching the model")
"""Phases that do not pass over the rows."""
LOOKED_BACK = 2000
"""A planted duplicate copies one of so many rows before it, or one of as many rows from the beginning."""
SYLLABLES = ("ta", "mo", "ki", "re", "lu", "so", "ne", "la", "vi", "po", "du", "an", "er", "is", "ul")


@dataclass
class Written:
    """What the file holds."""

    rows: int = 0
    bytes: int = 0
    exact: int = 0
    near: int = 0


def rows_with_duplicates(seed: int, written: Written) -> Iterator[dict[str, str]]:
    """Endless rows of about a kilobyte; `written` counts the planted ones."""
    chance = random.Random(seed)
    words = sorted({"".join(chance.choices(SYLLABLES, k=chance.randint(2, 5))) for _ in range(WORDS)})
    templates = [chance.choices(words, k=48) for _ in range(20)]
    begun: list[dict[str, str]] = []
    recent: list[dict[str, str]] = []
    while True:
        kind = chance.random()
        if recent and kind < EXACT_SHARE + NEAR_SHARE:
            row = dict(chance.choice(chance.choice([begun, recent])))
            if kind < EXACT_SHARE:
                written.exact += 1
            else:  # a word that no other row has: two copies of one row are no exact duplicates of each other
                row["prompt"] = f"{row['prompt']} zz{written.near}"
                written.near += 1
            yield row
            continue
        if kind < EXACT_SHARE + NEAR_SHARE + TEMPLATED_SHARE:
            asked = list(chance.choice(templates))
            asked[10:10] = chance.choices(words, k=10)
            asked[40:40] = chance.choices(words, k=10)
        else:
            asked = chance.choices(words, k=chance.randint(40, 100))
        row = {"prompt": " ".join(asked), "completion": " ".join(chance.choices(words, k=chance.randint(20, 90)))}
        if len(begun) < LOOKED_BACK:
            begun.append(row)
        if len(recent) < LOOKED_BACK:
            recent.append(row)
        else:
            recent[chance.randrange(LOOKED_BACK)] = row
        yield row


def write_data(path: Path, megabytes: float, seed: int = 1) -> Written:
    """JSON lines of this size."""
    written = Written()
    with path.open("w", encoding="utf-8") as target:
        for row in rows_with_duplicates(seed, written):
            written.bytes += target.write(json.dumps(row) + "\n")
            written.rows += 1
            if written.bytes >= megabytes * 1e6:
                return written
    raise AssertionError("rows are endless")


def make_model(folder: Path) -> None:
    """A tiny model with a tokenizer of usual size, trained on rows like those of the file."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(vocab_size=16_000, special_tokens=special, show_progress=False)
    texts = (text for row in islice(rows_with_duplicates(2, Written()), 3000) for text in row.values())
    inner.train_from_iterator(texts, trainer)
    names = {"pad_token": special[0], "eos_token": special[1]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def peak_memory_kib() -> int:
    """Highest resident memory of this process in KiB.

    The kernel's VmHWM: ru_maxrss of a child starts with the peak of the process that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def run_stage(folder: Path, model: Path) -> dict[str, Any]:
    """Run prepare in this process: seconds by phase, and what it found."""
    task = StageTask.from_wire(
        {
            "stage": "prepare",
            "job": {"namespace": "benchmark", "name": "prepare", "uid": "uid", "run": 1},
            "adapter": "prepare",
            "attempt": 1,
            "storage": {"uri": f"file://{folder}/store"},
            "spec": {
                "model": {"source": f"file://{model}"},
                "data": {"train": [{"source": f"file://{folder}/train.jsonl"}]},
                "training": {"maxLength": 512},
                "output": {"adapterRef": {"name": "prepare"}},
            },
            "createdAt": "2026-01-01T00:00:00Z",
        }
    )
    phases: dict[str, float] = {}
    phase, since = "starting", time.perf_counter()

    def note(progress: Progress | None) -> None:
        nonlocal phase, since
        now = time.perf_counter()
        phases[phase] = phases.get(phase, 0.0) + now - since
        phase, since = progress.phase if progress is not None else "", now

    scratch = folder / "scratch"
    context = open_context(
        task,
        Environment.of({"FINETUNE_SCRATCH": str(scratch)}, str(scratch)),
        clock=lambda: datetime.now(UTC),
        progress=note,
        stop=threading.Event(),
    )
    results, findings = prepare.run(context)
    note(None)
    assert results.prepare is not None
    lineage = json.loads(context.storage.read_bytes(f"{task.run_uri}/prepare/lineage.json"))
    return {
        "peakMemoryKib": peak_memory_kib(),
        "phases": phases,
        "result": results.prepare.to_wire(),
        "findings": [finding.to_wire() for finding in findings],
        "transformations": lineage["transformations"],
    }


def measure(folder: Path, megabytes: float, model: Path) -> dict[str, Any]:
    """Write the data, run the stage in a process of its own, and say what it took."""
    written = write_data(folder / "train.jsonl", megabytes)
    command = [sys.executable, "-m", "benchmarks.prepare_memory", "--stage", str(folder), "--model", str(model)]
    with (folder / "stage.json").open("wb") as target:
        process = subprocess.Popen(command, stdout=target, cwd=Path(__file__).parents[1])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the stage ended with {process.returncode}")
    found = json.loads((folder / "stage.json").read_text())
    seconds = sum(found["phases"].values())
    split = next(item["split"] for item in found["transformations"] if "split" in item)
    dropped: dict[str, int] = next(
        (item["dropped"] for item in found["transformations"] if item.get("check") == "duplicates"), {}
    )
    return {
        "megabytes": round(written.bytes / 1e6, 1),
        "rows": written.rows,
        "peakMemoryMib": round(found["peakMemoryKib"] / 1024, 1),
        "seconds": round(seconds, 1),
        "processorSeconds": round(usage.ru_utime + usage.ru_stime, 1),
        "rowsPerSecond": round(written.rows / seconds),
        "rowsPerProcessorSecond": round(written.rows / (usage.ru_utime + usage.ru_stime)),
        "phases": {
            name: {"seconds": round(took, 1), "rowsPerSecond": round(written.rows / took)}
            for name, took in found["phases"].items()
            if name not in WITHOUT_ROWS
        },
        "exactDuplicates": {"planted": written.exact, "found": sum(dropped.values())},
        "nearDuplicates": {"planted": written.near, "found": sum(split["rows"].values()) - split["clusters"]},
        "splits": found["result"]["rows"],
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=1000, help="size of the JSON lines")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("--folder", type=Path, help="where data and scratch go (about four times the size)")
    parser.add_argument("--stage", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--make-model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help="folder of a model with its tokenizer; default: a tiny one")
    args = parser.parse_args()
    if args.stage is not None:
        print(json.dumps(run_stage(args.stage, args.model)))
        return
    if args.make_model is not None:
        make_model(args.make_model)
        return
    with TemporaryDirectory(prefix="prepare-memory-", dir=args.folder) as name:
        model = args.model or Path(name) / "model"
        if args.model is None:  # in a process of its own: torch is large
            subprocess.run([sys.executable, "-m", "benchmarks.prepare_memory", "--make-model", str(model)], check=True)
        result = measure(Path(name), args.megabytes, model)
    result["machine"] = {"processors": os.cpu_count(), "python": platform.python_version()}
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if args.output is not None:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
