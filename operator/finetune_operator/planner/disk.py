"""Scratch disk and host memory of the largest pod."""

from __future__ import annotations

import math
import re

from finetune_operator.planner.memory.adapter import adapter_parameters
from finetune_operator.planner.shape import ModelShape

UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
LIBRARIES_HOST_BYTES = 4 * 2**30
"""Python, torch with CUDA, transformers: resident per process, measured 2.5 to 3.5 GiB."""
SHARD_BYTES = 5_000_000_000
"""transformers writes and reads weights in files of at most 5 GB."""
ROW_BYTES_PER_TOKEN = 12
"""Training's copy of the rows: 5 for a token and its label, the text in JSON, and validation beside train."""
KEPT_CHECKPOINTS = 3
"""Local copies at a time: the one being saved, the kept one, one to resume from."""


def quantity_bytes(text: str) -> int:
    """Bytes of a Kubernetes quantity such as `200Gi`. Raises ValueError for another form."""
    match = re.fullmatch(r"([0-9]+)(Ki|Mi|Gi|Ti)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 32Gi")
    return int(match[1]) * UNITS[match[2]]


def disk_bytes(
    shape: ModelShape,
    file_bytes: int,
    rank: int,
    targets: tuple[str, ...],
    *,
    merges: bool,
    cached: bool = False,
    row_tokens: int = 0,
) -> float:
    """The base model's files (unless the pool's cache has them), adapter with optimiser, merged model, and rows.

    Rows are on disk once per pod (training/encoded_rows.py of the runner). `row_tokens`: of one epoch, all answers of
    a preference counted.
    """
    files = 0.0 if cached else float(file_bytes or 2 * shape.parameters)
    checkpoint = 12.0 * adapter_parameters(shape, rank, targets)
    return (
        files
        + KEPT_CHECKPOINTS * checkpoint
        + (2.0 * shape.parameters if merges else 0.0)
        + ROW_BYTES_PER_TOKEN * row_tokens
    )


def pinned_bytes(shape: ModelShape, bytes_per_parameter: float, parts: int) -> float:
    """Page-locked host memory of one process's part of the base, tensor by tensor.

    PyTorch's allocator rounds each page-locked block up to a power of two (c10/core/CachingHostAllocator.h).
    """

    def rounded(size: float) -> int:
        return 1 << max(0, math.ceil(size) - 1).bit_length()

    block = sum(rounded(size * bytes_per_parameter / parts) for size in shape.matrices)
    tables = 1 if shape.tied_embeddings else 2
    return float(shape.layers * block + tables * rounded(2.0 * shape.vocabulary * shape.hidden / parts))


def host_bytes(
    shape: ModelShape,
    processes: int,
    *,
    whole_bytes: float = 0.0,
    wholes: int = 1,
    from_files: bool = True,
    offloaded_bytes: float = 0.0,
) -> float:
    """Host memory of a GPU pod; the page cache of the model's files is not counted, it can be given back.

    Args:
        shape: the model.
        processes: of the pod, one per GPU.
        whole_bytes: of the base where it is kept whole until it is cut into parts, or of the merged form; 0: each
            process sends what it reads straight to its GPU, file by file.
        wholes: processes of the pod that keep it so (training/one_copy.py of the runner).
        from_files: whether a file that is being read is held beside the whole.
        offloaded_bytes: what a process keeps there while it trains (DeepSpeed's offload); the base as it was loaded is
            gone by then, part by part.
    """
    file_bytes = min(SHARD_BYTES, 2.0 * shape.parameters)
    loading = wholes * (whole_bytes + from_files * file_bytes) if whole_bytes else processes * file_bytes
    return processes * LIBRARIES_HOST_BYTES + max(loading, processes * offloaded_bytes)
