"""This machine as a GPUPool."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.common import ObjectMeta, Storage
from finetune_api.gpupool import GPUPool, GPUPoolSpec, PoolLimits

LOCAL_POOL = "local"
QUERY_TIMEOUT_S = 20


@dataclass(frozen=True)
class LocalGPUs:
    """GPUs of this machine; memory is that of the smallest."""

    count: int = 0
    memory_gib: float = 0.0


def parse_nvidia_smi(output: str, visible: str | None) -> LocalGPUs:
    """GPUs from `nvidia-smi --query-gpu=memory.total` (MiB per line), limited by CUDA_VISIBLE_DEVICES."""
    memories_mib = [float(line) for line in output.splitlines() if line.strip().replace(".", "", 1).isdigit()]
    if visible is not None:
        chosen = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
        if all(name.strip().isdigit() for name in chosen):
            memories_mib = [memories_mib[int(name)] for name in chosen if int(name) < len(memories_mib)]
        else:
            memories_mib = memories_mib[: len(chosen)]
    if not memories_mib:
        return LocalGPUs()
    return LocalGPUs(count=min(16, len(memories_mib)), memory_gib=round(min(memories_mib) / 1024, 1))


def find_gpus(environment: Mapping[str, str]) -> LocalGPUs:
    """Ask nvidia-smi; no GPU where there is none, or where it does not answer."""
    program = shutil.which("nvidia-smi", path=environment.get("PATH", os.defpath))
    if program is None:
        return LocalGPUs()
    try:
        answer = subprocess.run(
            [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=QUERY_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return LocalGPUs()
    return parse_nvidia_smi(answer.stdout if answer.returncode == 0 else "", environment.get("CUDA_VISIBLE_DEVICES"))


def local_pool(gpus: LocalGPUs, storage: Path) -> GPUPool:
    """The pool of a run without a cluster."""
    return GPUPool(
        metadata=ObjectMeta(name=LOCAL_POOL),
        spec=GPUPoolSpec(
            gpus_per_node=gpus.count,
            gpu_memory_gib=gpus.memory_gib,
            # Nothing is pulled; the field must not be empty.
            image="local-process",
            default_storage=Storage(uri=f"file://{storage}"),
            limits=PoolLimits(max_nodes=1),
            default=True,
        ),
    )
