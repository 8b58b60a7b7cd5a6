"""`finetune estimate --trainer` against published figures, as someone would compare them who has only the command.

More rows, with sources and use, are in tests/decide/forecast/published.toml; these go through the YAML and the planner.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from finetune_cli.main import main

ATTENTION = "q_proj,k_proj,v_proj,o_proj"
OUTPUT = "q_proj,v_proj,o_proj"
QUERY_VALUE = "q_proj,v_proj"
MIB, GIB, GB = 2**20 / 2**30, 1.0, 1e9 / 2**30


class Published(NamedTuple):
    """A published figure and the job it belongs to."""

    trainer: str
    model: str
    method: str
    tokens: int
    micro_batch: int
    gib: float
    quantity: str
    targets: str = "all-linear"
    rank: int = 16
    dropout: float = 0.1
    gpus: int = 1
    strategy: str = "auto"
    recomputes: bool = True


TENSORS, RESERVED, DEVICE = "tensorsGib", "reservedGpuMemoryGib", "gpuMemoryGib"
LLAMA_2_70B, LLAMA_3_8B, MISTRAL = "Llama-2-70b-hf", "Meta-Llama-3-8B", "Mistral-7B-v0.1"


def _qwen() -> Iterator[Published]:
    lengths = (256, 512, 1024, 2048, 4096, 8192)
    lora = {"Qwen-7B": (20.1, 20.4, 21.5, 23.8, 29.7, 36.6), "Qwen-14B": (34.6, 35.1, 35.3, 37.4, 42.5, 55.2)}
    for model, sizes in lora.items():
        for tokens, gb in zip(lengths, sizes, strict=True):
            yield Published("qwen", model, "lora", tokens, 1, gb * GB, DEVICE, rank=64, dropout=0.05)


ROWS = [
    # fms-acceleration, a100_80gb.csv: 4096 tokens
    Published("hf-trainer", LLAMA_2_70B, "qlora", 4096, 4, 68.13 * GB, TENSORS, ATTENTION),
    Published("hf-trainer", LLAMA_2_70B, "qlora", 4096, 4, 72_950 * MIB, RESERVED, ATTENTION),
    Published("hf-trainer", LLAMA_2_70B, "qlora", 4096, 2, 46.7 * GB, TENSORS, ATTENTION, gpus=2, strategy="fsdp"),
    Published("hf-trainer", LLAMA_2_70B, "qlora", 4096, 2, 51_988 * MIB, RESERVED, ATTENTION, gpus=2, strategy="fsdp"),
    Published("hf-trainer", MISTRAL, "lora", 4096, 4, 26.7 * GB, TENSORS, ATTENTION),
    Published("hf-trainer", MISTRAL, "lora", 4096, 4, 29_600 * MIB, RESERVED, ATTENTION),
    Published("hf-trainer", MISTRAL, "lora", 4096, 8, 38.74 * GB, TENSORS, ATTENTION),
    Published("hf-trainer-kbit", MISTRAL, "qlora", 4096, 4, 20.67 * GB, TENSORS, ATTENTION),
    Published("hf-trainer-kbit", MISTRAL, "qlora", 4096, 8, 37.0 * GB, TENSORS, ATTENTION),
    Published("hf-trainer", MISTRAL, "qlora", 4096, 4, 16.37 * GB, TENSORS, ATTENTION),
    Published("hf-trainer", MISTRAL, "qlora", 4096, 8, 28.41 * GB, TENSORS, ATTENTION),
    Published("fms-fused", LLAMA_3_8B, "qlora", 4096, 4, 27.26 * GB, TENSORS, ATTENTION),
    Published("liger", LLAMA_3_8B, "qlora", 4096, 4, 14.41 * GB, TENSORS, ATTENTION),
    Published("liger", LLAMA_3_8B, "qlora", 4096, 4, 15.5 * GB, RESERVED, ATTENTION),
    Published("liger", LLAMA_3_8B, "qlora", 4096, 16, 39.99 * GB, TENSORS, ATTENTION),
    # PEFT's documentation
    Published("hf-trainer", LLAMA_2_70B, "qlora", 2048, 2, 35.6 * GB, DEVICE, rank=8, gpus=2, strategy="fsdp"),
    Published("hf-trainer", LLAMA_2_70B, "qlora", 2048, 2, 36.6 * GB, DEVICE, rank=8, gpus=2, strategy="deepspeed"),
    Published("hf-trainer", LLAMA_2_70B, "lora", 2048, 8, 64.0 * GB, DEVICE, rank=8, gpus=8, strategy="deepspeed"),
    # torchtune's README: packed to 2048, two rows
    Published("torchtune", "Llama-3.1-8B", "lora", 2048, 2, 16.2, RESERVED, OUTPUT, 8, 0.0),
    Published("torchtune", "Llama-3.1-8B", "lora", 2048, 2, 30.3, RESERVED, OUTPUT, 8, 0.0, recomputes=False),
    Published("torchtune", "Llama-3.1-8B", "qlora", 2048, 2, 7.4, RESERVED, OUTPUT, 8, 0.0),
    Published("torchtune", "Llama-3.1-70B", "lora", 2048, 2, 27.6, RESERVED, OUTPUT, 16, 0.0, 8, "fsdp"),
    Published("torchtune", "Llama-3.1-405B", "qlora", 2048, 1, 44.8 * GB, RESERVED, OUTPUT, 16, 0.0, 8, "fsdp"),
    # litgpt: Alpaca's longest row
    Published("litgpt", "Llama-2-7b", "lora", 1304, 1, 21.3 * GB, TENSORS, QUERY_VALUE, 8, 0.05, recomputes=False),
    Published("litgpt", "Llama-2-7b", "qlora", 1304, 1, 13.84 * GB, TENSORS, QUERY_VALUE, 8, 0.05, recomputes=False),
    Published("litgpt", "Llama-2-13b", "lora", 1304, 1, 38.12 * GB, TENSORS, QUERY_VALUE, 8, 0.05, recomputes=False),
    Published("litgpt", "Llama-2-13b", "qlora", 1304, 1, 22.55 * GB, TENSORS, QUERY_VALUE, 8, 0.05, recomputes=False),
    # fsdp_qlora, two GPUs of 24 GB
    *(
        Published("fsdp-qlora", "Llama-2-7b", "qlora", 2048, batch, gib, RESERVED, rank=64, gpus=2, strategy="fsdp")
        for batch, gib in ((1, 5.21), (4, 11.22), (10, 20.97))
    ),
    *_qwen(),
]


def forecast_gib(row: Published, folder: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """What the command says of the row."""
    training: dict[str, Any] = {
        "maxLength": row.tokens,
        "microBatchSize": row.micro_batch,
        "globalBatchSize": row.micro_batch * row.gpus,
        "gradientCheckpointing": "enabled" if row.recomputes else "disabled",
    }
    method = {"type": row.method, "rank": row.rank, "dropout": row.dropout, "targetModules": row.targets}
    spec = {
        "model": {"source": f"hf://a/{row.model}"},
        "data": {"train": [{"source": "s3://team/a.jsonl"}]},
        "method": method,
        "training": training,
        "compute": {"gpusPerNode": row.gpus, "strategy": row.strategy},
        "output": {"adapterRef": {"name": "j"}},
    }
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "j"}, "spec": spec}
    (folder / "job.yaml").write_text(json.dumps(job))
    asked = ["--rows", "10000", "--tokens-per-row", str(row.tokens), "--gpu", "A100-80", "--trainer", row.trainer]
    assert main(["estimate", str(folder / "job.yaml"), *asked, "-o", "json"]) in (0, 1)
    told = json.loads(capsys.readouterr().out)["pools"][0]["otherStep"]
    return float(told[row.quantity])


def test_published_figures_are_met_through_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    errors = {row: forecast_gib(row, tmp_path, capsys) / row.gib - 1 for row in ROWS}
    assert statistics.median(abs(error) for error in errors.values()) <= 0.05
    assert {row: error for row, error in errors.items() if error < -0.05} == {}
