"""Training throughput against the usual recipes: same data, model, seed and hardware, interleaved in one run.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/training_throughput.py

Candidates: this project's loop, TRL's SFTTrainer with its defaults, with its best settings, and the recipe of most
tutorials (transformers' Trainer, padded batches). A candidate is admitted when its first step has the reference's
gradient (cosine > 0.999). Each round runs every candidate once, in turn; the figure is the median of the rounds.
Throughput counts tokens that are not padding. Model loading, tokenising and warm-up steps are outside the window;
compilation has a figure of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

VOCABULARY, HIDDEN, LAYERS, MAXIMUM_LENGTH = 32_000, 256, 4, 512
WARMUP_STEPS, LEARNING_RATE, RANK = 2, 1e-3, 8
CANDIDATES = (
    "ours",
    "ours packed",
    "ours compiled",
    "ours packed compiled",
    "trl defaults",
    "trl best",
    "trainer padded",
)
RESULT = Path(__file__).parent / "results" / "training-throughput.json"
Encoded = tuple[list[int], list[int]]


def make_rows(count: int, seed: int = 0) -> list[Encoded]:
    """Rows with log-normal lengths of at most 512 tokens, the last 40 % of each labelled."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        length = min(MAXIMUM_LENGTH, max(12, round(chance.lognormvariate(4.7, 0.8))))
        ids = [chance.randrange(10, VOCABULARY) for _ in range(length)]
        prompt = round(0.6 * length)
        rows.append((ids, [-100] * prompt + ids[prompt:]))
    return rows


def make_model() -> Any:
    """The same random Llama with the same LoRA adapter, every time."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=3 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=1024,
            initializer_range=0.05,
            pad_token_id=0,
        )
    )
    base.requires_grad_(False)
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def first_gradient(model: Any) -> list[float]:
    """The adapter's gradient as one list."""
    import torch

    parts = [p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
    values: list[float] = torch.cat(parts).double().tolist()
    return values


@contextlib.contextmanager
def measured(into: dict[str, float]) -> Iterator[None]:
    """CPU and wall seconds of the block."""
    cpu, wall = time.process_time(), time.monotonic()
    yield
    into["cpu_s"], into["wall_s"] = time.process_time() - cpu, time.monotonic() - wall


def run_ours(rows: Sequence[Encoded], batch: int, *, packed: bool, compiled: bool = False) -> dict[str, Any]:
    """This project's engine, loop and objective; compilation is outside the window, and has a figure of its own."""
    import torch

    from finetune_api.job.training import Training
    from finetune_api.stages import TrainPlan
    from finetune_runner.training.compilation import Compilation
    from finetune_runner.training.distributed import World
    from finetune_runner.training.horizon import Horizon
    from finetune_runner.training.objectives.sft import SupervisedFineTuning
    from finetune_runner.training.order import micro_batches
    from finetune_runner.training.strategies import new_engine
    from finetune_runner.training.strategies.base import Setup
    from finetune_runner.training.timing import Stopwatch
    from finetune_runner.training.trainer import AdapterTrainer

    objective = SupervisedFineTuning(rows, [], 0)
    steps = len(rows) // batch
    accumulation = batch // 2
    plan = TrainPlan(
        method="lora",
        strategy="single",
        nodes=1,
        gpus_per_node=0,
        total_steps=steps,
        micro_batch_size=2,
        gradient_accumulation=accumulation,
        eval_steps=steps,
        packing=packed,
    )
    device = torch.device("cpu")
    # A constant rate: the schedule's factor at every step is that of the others.
    training = Training(learning_rate=LEARNING_RATE, warmup_ratio=0.0, global_batch_size=batch)
    setup = Setup(
        model=make_model(),
        objective=objective,
        plan=plan,
        training=training,
        device=device,
        world=World(),
        first_step=0,
        horizon=Horizon(planned=steps),
    )
    engine = new_engine(setup, "single")
    engine.schedule = torch.optim.lr_scheduler.ConstantLR(engine.optimizer, factor=1.0)

    def parts(step: int) -> tuple[list[list[int]], int]:
        examples = list(range((step - 1) * batch, step * batch))
        return micro_batches(examples, objective.lengths, accumulation, 1, 0), sum(
            objective.counts[i] for i in examples
        )

    found: dict[str, Any] = {"losses": []}
    proven = Compilation(compiled, "")
    if compiled:
        by_length = sorted(range(len(rows)), key=objective.lengths.__getitem__)
        ends = (by_length[:2], by_length[-2:])
        found["compile_cpu_s"] = compile_seconds(engine, [objective.collate(pair, packed=packed) for pair in ends])
    examples, count = parts(1)
    for number, indices in enumerate(examples, start=1):
        engine.model.train()
        engine.backward(objective.collate(indices, packed=packed), 1 / count, last=number == accumulation)
    found["gradient"] = first_gradient(engine.model)
    engine.zero_gradients()
    trainer = AdapterTrainer(engine, objective, parts, packed=packed, device=device, stopwatch=Stopwatch())

    def after(_: int) -> bool:
        found["losses"].append(float(trainer.take_step_loss()))
        return False

    with proven.in_force():
        trainer.train(range(1, WARMUP_STEPS + 1), lambda _: None, after)
        with measured(found):
            trainer.train(range(WARMUP_STEPS + 1, steps + 1), lambda _: None, after)
    return found


def compile_seconds(engine: Any, batches: Sequence[Any]) -> float:
    """Compile the engine's blocks. Returns CPU seconds, those of the C++ compiler included."""
    from finetune_runner.training.compilation import Blocks, compiled_passes

    def spent() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    began = spent()
    engine.model.train()
    compiled_passes(engine, Blocks(engine.model), batches)
    return spent() - began


def run_rival(rows: Sequence[Encoded], batch: int, candidate: str) -> dict[str, Any]:
    """TRL's SFTTrainer or transformers' Trainer, on the same rows in the same order."""
    import torch
    from datasets import Dataset
    from torch.utils.data import DataLoader, SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    found: dict[str, Any] = {"losses": []}
    steps = len(rows) // batch
    options: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "use_cpu": True,
        "seed": 0,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }

    class Watch(TrainerCallback):
        """Opens the window after the warm-up, and keeps the first gradient."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                # Clipping has scaled it: the direction is compared.
                found["gradient"] = first_gradient(kwargs["model"])

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARMUP_STEPS:
                self.began = time.process_time(), time.monotonic()
            if state.global_step == steps:
                found["cpu_s"] = time.process_time() - self.began[0]
                found["wall_s"] = time.monotonic() - self.began[1]

    def keep_losses(kind: type) -> type:
        class Kept(kind):  # type: ignore[misc]
            def training_step(self, *arguments: Any, **keywords: Any) -> Any:
                loss = super().training_step(*arguments, **keywords)
                found["losses"].append(float(loss))
                return loss

            def _get_train_sampler(self, *_: Any) -> Any:
                return SequentialSampler(self.train_dataset)

        return Kept

    data = Dataset.from_dict({"input_ids": [i for i, _ in rows], "labels": [labels for _, labels in rows]})
    if candidate.startswith("trl"):
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast
        from trl import SFTConfig, SFTTrainer

        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>")),  # noqa: S106 - no password
            pad_token="<pad>",  # noqa: S106 - no password
            eos_token="<end>",  # noqa: S106 - no password
        )
        # Defaults but for precision: bf16 arithmetic on this CPU would measure the emulation. Best settings, by its own
        # documentation for a run that fits: no gradient checkpointing, padding-free.
        best: dict[str, Any] = {"gradient_checkpointing": False, "padding_free": True, "max_length": None}
        config = SFTConfig(
            **options,
            bf16=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            **(best if candidate == "trl best" else {}),
        )
        trainer: Any = keep_losses(SFTTrainer)(
            model=make_model(), args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Watch()]
        )
    else:

        def collate(batch_rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
            width = max(len(row["input_ids"]) for row in batch_rows)
            filled = {
                "input_ids": [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in batch_rows],
                "labels": [row["labels"] + [-100] * (width - len(row["labels"])) for row in batch_rows],
                "attention_mask": [[1] * len(row["labels"]) + [0] * (width - len(row["labels"])) for row in batch_rows],
            }
            return {name: torch.tensor(values) for name, values in filled.items()}

        trainer = keep_losses(Trainer)(
            model=make_model(),
            args=TrainingArguments(**options),
            train_dataset=data,
            data_collator=collate,
            callbacks=[Watch()],
        )
    del DataLoader
    trainer.train()
    return found


def run_one(candidate: str, count: int, batch: int) -> dict[str, Any]:
    """One candidate in this process."""
    import torch

    torch.set_num_threads(1)
    from finetune_runner.training.device import pick_device

    pick_device(None)  # the same allocator settings for all
    rows = make_rows(count)
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: run_ours(rows, batch, packed=False),
        "ours packed": lambda: run_ours(rows, batch, packed=True),
        "ours compiled": lambda: run_ours(rows, batch, packed=False, compiled=True),
        "ours packed compiled": lambda: run_ours(rows, batch, packed=True, compiled=True),
    }
    found = runs.get(candidate, lambda: run_rival(rows, batch, candidate))()
    window = rows[WARMUP_STEPS * batch : len(rows) // batch * batch]
    found["tokens"] = sum(len(ids) for ids, _ in window)
    found["labelled_tokens"] = sum(label != -100 for _, labels in window for label in labels[1:])
    found["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """Of the angle between two gradients."""
    import numpy as np

    a, b = np.asarray(left), np.asarray(right)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Medians per candidate, ratios to the tutorials' recipe, and whether it is admitted."""
    reference = runs["trainer padded"][0]
    table: dict[str, dict[str, Any]] = {}
    for name, found in runs.items():
        similarity = cosine(found[0]["gradient"], reference["gradient"])
        table[name] = {
            "tokens_per_cpu_second": round(statistics.median(run["tokens"] / run["cpu_s"] for run in found), 1),
            "compile_cpu_s": round(statistics.median(run.get("compile_cpu_s", 0.0) for run in found), 1),
            "tokens_per_second": round(statistics.median(run["tokens"] / run["wall_s"] for run in found), 1),
            "labelled_tokens_per_cpu_second": round(
                statistics.median(run["labelled_tokens"] / run["cpu_s"] for run in found), 1
            ),
            "peak_memory_mib": round(statistics.median(run["peak_memory_bytes"] for run in found) / 2**20),
            "last_loss": round(found[0]["losses"][-1], 5),
            "gradient_cosine": round(similarity, 6),
            "admitted": similarity > 0.999,
        }
    slowest = table["trainer padded"]["tokens_per_cpu_second"]
    for row in table.values():
        row["ratio"] = round(row["tokens_per_cpu_second"] / slowest, 2)
    return table


def main() -> None:
    """Run all candidates, each in a process of its own, round after round; print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=CANDIDATES)
    parser.add_argument("--one", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.one:
        print("RESULT " + json.dumps(run_one(arguments.one, arguments.rows, arguments.batch)))
        return
    chosen = dict.fromkeys([*arguments.candidates, "trainer padded"])  # what all are compared with
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for number in range(arguments.rounds):
        for name in chosen:
            command = [sys.executable, __file__, "--one", name, "--rows", str(arguments.rows)]
            done = subprocess.run(
                [*command, "--batch", str(arguments.batch)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
            runs[name].append(json.loads(lines[0].removeprefix("RESULT ")))
            print(f"round {number + 1}: {name}", file=sys.stderr)
    table = summary(runs)
    packages = ("torch", "transformers", "peft", "trl", "accelerate")
    result = {
        "setting": {
            "model": f"Llama, hidden {HIDDEN}, {LAYERS} layers, vocabulary {VOCABULARY}, fp32, LoRA r{RANK} all-linear",
            "rows": arguments.rows,
            "batch": arguments.batch,
            "rounds": arguments.rounds,
            "labelled_share": 0.4,
            "device": f"CPU, 1 thread, {platform.machine()}",
            "versions": {name: version(name) for name in packages},
        },
        "candidates": table,
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    columns = (
        *("tokens_per_cpu_second", "ratio", "compile_cpu_s", "tokens_per_second"),
        *("labelled_tokens_per_cpu_second", "peak_memory_mib", "last_loss", "gradient_cosine"),
    )
    print("| candidate | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(str(row[column]) for column in columns) + " |")


if __name__ == "__main__":
    main()
