"""GPUs and their published training speeds (data/gpus.toml)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from finetune_api.gpupool import GPUPoolSpec
from finetune_operator.planner.families import known_shapes
from finetune_operator.planner.flops import training_flops_per_token

MethodType = Literal["lora", "qlora"]
Range = tuple[float, float]
"""Low and high."""
MEMORY_TOLERANCE = 0.12
"""A pool's memory is often given as what the driver shows: up to 8 % below the name (ECC, reserved)."""


@dataclass(frozen=True)
class GPU:
    """A model of GPU."""

    name: str
    tflops: float
    """Dense bf16, 1e12 operations per second."""
    bandwidth_gb_s: float
    memory_gib: float
    aliases: tuple[str, ...]


@cache
def _data() -> dict[str, Any]:
    text = files("finetune_operator.planner").joinpath("data/gpus.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def known_gpus() -> tuple[GPU, ...]:
    """All of them."""
    return tuple(GPU(**{**gpu, "aliases": tuple(gpu["aliases"])}) for gpu in _data()["gpu"])


def gpu_of(pool: GPUPoolSpec, name: str = "") -> GPU | None:
    """The pool's GPU by `gpuModel`, the values of its node selector, or the pool's name; None when none is known."""
    said = [pool.gpu_model] if pool.gpu_model else [*pool.node_selector.values(), name]
    for text in said:
        lower = text.lower().replace("_", "-").replace(" ", "-")
        matches = [(len(alias), gpu) for gpu in known_gpus() for alias in gpu.aliases if alias in lower]
        if matches:
            gpu = max(matches, key=lambda match: match[0])[1]
            return _by_memory(gpu, pool.gpu_memory_gib)
    return None


def _by_memory(gpu: GPU, memory_gib: float) -> GPU:
    """Models that differ in memory only (A100) are told apart by what the pool says."""
    family = [other for other in known_gpus() if other.name.split("-")[0] == gpu.name.split("-")[0]]
    fitting = (
        [other for other in family if abs(other.memory_gib / memory_gib - 1) <= MEMORY_TOLERANCE] if memory_gib else []
    )
    return fitting[0] if fitting and gpu not in fitting else gpu


@cache
def observed_shares(gpu: str | None, method: MethodType) -> Range:
    """Lowest and highest share of the peak that was published for a GPU and method.

    A GPU without a figure of its own gets the range of all.
    """
    peaks = {known.name: known.tflops * 1e12 for known in known_gpus()}
    shares: dict[str, list[float]] = {}
    for seen in _data()["observation"]:
        if seen["method"] == method:
            operations = training_flops_per_token(
                known_shapes()[seen["model"]], seen["sequence"], checkpointing=seen["checkpointing"]
            )
            shares.setdefault(seen["gpu"], []).append(seen["tokens_per_second"] * operations / peaks[seen["gpu"]])
    found = shares.get(gpu or "") or [share for some in shares.values() for share in some]
    return min(found), max(found)


def saturation_tokens(method: MethodType) -> int:
    """Tokens of a forward pass from which on more of them are not faster per token."""
    return int(_data()["saturation_tokens"][method])


def launch_seconds_per_block() -> float:
    """Time that the kernels of a block take to be started, forward and backward, however few tokens there are."""
    return float(_data()["launch_seconds_per_block"])


def dequantisation_seconds_per_parameter(quantisation: str = "nf4") -> Range:
    """Time of a forward and backward pass to restore a 4-bit weight, as often as it is needed."""
    low, high = _data()["dequantisation_seconds_per_parameter"][quantisation]
    return float(low), float(high)


def lowest_bandwidth_share() -> float:
    """Share of its bandwidth that a GPU reaches at worst where it only moves bytes."""
    return float(_data()["lowest_bandwidth_share"])


def decode_seconds_per_block(method: MethodType) -> Range:
    """Time of a decoding step per block."""
    low, high = _data()["decode_seconds_per_block"][method]
    return float(low), float(high)


def scaling(nodes: int, gpus: int) -> Range:
    """Share of ideal speed that several GPUs reach."""
    if gpus <= 1:
        return 1.0, 1.0
    low, high = _data()["scaling"]["across_nodes" if nodes > 1 else "within_node"]
    return float(low), float(high)


def loading_bytes_per_second() -> Range:
    """Speed at which weights reach the GPU."""
    low, high = _data()["loading"]["bytes_per_second"]
    return float(low), float(high)
