"""Pools to compare: from YAML files, or one per GPU of the catalogue. Where they come from is not known further on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_api.common import ObjectMeta
from finetune_api.gpupool import GPUPool, GPUPoolSpec, PodResources
from finetune_api.validation import accepted_values, validate_document
from finetune_cli.errors import CliError
from finetune_cli.jobfile import InvalidDocumentError, read_text
from finetune_operator.planner.gpus import GPU, known_gpus

GPUS_PER_NODE = 8
ROOMY_POD = PodResources(cpu="16", memory="512Gi")
ROOMY_SCRATCH = "1Ti"


def pools_of_files(files: Sequence[Path]) -> list[GPUPool]:
    """The GPUPools of YAML files. Raises CliError when a file has problems or holds none."""
    pools = []
    for file in files:
        text = read_text(file)
        problems = validate_document(text)
        if problems:
            raise InvalidDocumentError(file, problems)
        found = [GPUPool.from_wire(item) for item in accepted_values(text) if item["kind"] == "GPUPool"]
        if not found:
            raise CliError(f"{file} holds no GPUPool", "Name a YAML of kind GPUPool with --pool.")
        pools += found
    return pools


def pools_of_gpus(names: Sequence[str]) -> list[GPUPool]:
    """A pool without a price for each GPU of the catalogue. Raises CliError for an unknown name."""
    known = {gpu.name.lower(): gpu for gpu in known_gpus()}
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        raise CliError(
            f"--gpu: {unknown[0]!r} is not a known GPU", f"Use one of {', '.join(g.name for g in known_gpus())}."
        )
    return [_pool(known[name.lower()]) for name in names]


def _pool(gpu: GPU) -> GPUPool:
    return GPUPool(
        metadata=ObjectMeta(name=gpu.name.lower()),
        spec=GPUPoolSpec(
            gpus_per_node=GPUS_PER_NODE,
            gpu_memory_gib=gpu.memory_gib,
            gpu_model=gpu.name,
            gpu_pod=ROOMY_POD,
            scratch_size=ROOMY_SCRATCH,
            # Nothing is pulled; the field must not be empty.
            image="estimate",
        ),
    )
