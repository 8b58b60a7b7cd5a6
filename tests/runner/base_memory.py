"""Peak host memory of two ranks while a model is loaded and cut into parts, and who is handed what on two nodes.

`python -m tests.runner.base_memory MODEL` prints both as JSON. Each case has processes of its own, forked from one that
has imported the libraries: what an earlier case left with the allocator would hide what a later one needs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401 - imported once, before the forks
import deepspeed  # noqa: F401
import torch
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_api.job.method import Method
from finetune_api.job.training import Training
from finetune_api.stages import TrainPlan
from finetune_runner.training.distributed import World
from finetune_runner.training.horizon import Horizon
from finetune_runner.training.loading import load_base, new_adapter
from finetune_runner.training.objectives.sft import SupervisedFineTuning
from finetune_runner.training.one_copy import NodeCopy, reads_base
from finetune_runner.training.optimizer import trainable
from finetune_runner.training.strategies import new_engine
from finetune_runner.training.strategies.base import Setup

CASES: dict[str, dict[str, Any]] = {
    "fsdp": {"strategy": "fsdp"},
    "qlora fsdp": {"strategy": "fsdp", "method": "qlora"},
    "zero3": {"strategy": "deepspeed"},
    "qlora zero3": {"strategy": "deepspeed", "method": "qlora"},
}


def make_model(folder: Path) -> int:
    """Write a random Llama whose blocks are most of it; returns its parameters."""
    config = LlamaConfig(
        vocab_size=4000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _load(model: Path, world: World, changes: dict[str, Any]) -> tuple[int, float]:
    """Load and cut; returns the peak until then in bytes, and the loss of an example."""
    wire: dict[str, Any] = {"method": "lora", "nodes": 1, "gpus_per_node": 0, "total_steps": 1, "eval_steps": 1}
    plan = TrainPlan(**(wire | {"micro_batch_size": 1, "gradient_accumulation": 1} | changes))
    cpu, method = torch.device("cpu"), Method(rank=4)
    base = load_base(model, plan.method, cpu, plan, reads=reads_base(plan, method, world))
    peft = new_adapter(base, method, 0)
    del base
    for parameter in trainable(peft).values():
        parameter.data = parameter.data.float()
    rows = [(list(range(5, 25)), list(range(5, 25)))]
    objective = SupervisedFineTuning(rows, rows, 0)
    setup = Setup(peft, objective, plan, Training(learning_rate=1e-2), cpu, world, 0, Horizon(1))
    engine = new_engine(setup, plan.strategy)
    batch = objective.collate([0], packed=False)
    peak = _status("VmHWM")
    with torch.no_grad():
        return peak, float(engine.loss(batch))


def _rank(rank: int, folder: Path, model: Path, changes: dict[str, Any]) -> None:
    """One process of a case: leaves its peak growth in bytes, and the loss, in a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here on
    before = _status("VmRSS")
    peak, loss = _load(model, World.from_environment(), changes)
    (folder / f"rank-{rank}").write_text(json.dumps({"bytes": peak - before, "loss": loss}), encoding="ascii")
    distributed.barrier()


def _on_two_nodes(rank: int, folder: Path) -> None:
    """One process of two nodes with two each: leaves what it was handed, in a file."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4)
    world = World(rank, 4, rank % 2, 2)
    with torch.device("cpu" if world.local_rank == 0 else "meta"):
        module = torch.nn.Linear(1, 1, bias=False)
        module.tied = torch.nn.Linear(1, 1, bias=False)
        module.tied.weight = module.weight
        module.register_buffer("counted", torch.zeros(2, dtype=torch.int64))
    if world.local_rank == 0:
        torch.nn.init.constant_(module.weight, 10.0 + rank)
        module.counted += rank
    module.weight.requires_grad = False
    NodeCopy(world, torch.device("cpu")).hand_out(list(module.modules()))
    facts = {
        "weight": float(module.weight),
        "counted": module.counted.tolist(),
        "tied": module.tied.weight is module.weight,
        "frozen": not module.weight.requires_grad,
    }
    (folder / f"rank-{rank}").write_text(json.dumps(facts), encoding="ascii")
    distributed.barrier()


def _forked(target: Callable[..., None], ranks: int, *arguments: Any) -> list[Any]:
    """What `target(rank, folder, ...)` leaves in its file, by rank."""
    with tempfile.TemporaryDirectory() as name:
        forked = multiprocessing.get_context("fork")
        processes = [forked.Process(target=target, args=(rank, Path(name), *arguments)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [json.loads((Path(name) / f"rank-{rank}").read_bytes()) for rank in range(ranks)]


def main() -> None:
    """Print the facts of every case, by rank."""
    torch.set_num_threads(1)
    model = Path(sys.argv[1])
    found = {name: _forked(_rank, 2, model, changes) for name, changes in CASES.items()}
    print("FACTS " + json.dumps(found | {"two nodes": _forked(_on_two_nodes, 4)}))


if __name__ == "__main__":
    main()
