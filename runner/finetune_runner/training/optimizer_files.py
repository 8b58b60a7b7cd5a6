"""The optimiser's state as safetensors (never a pickle of writable content): whole tensors, one file per rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_runner.training.distributed import World

if TYPE_CHECKING:
    import torch

PREFIX = "optimizer-"
SEPARATOR = "::"
"""Between a parameter's name and the field of its state; names hold dots."""
States = dict[str, dict[str, "torch.Tensor"]]
"""State by parameter name and field, for example `exp_avg`."""


def write_optimizer(states: Mapping[str, Mapping[str, torch.Tensor]], folder: Path, world: World) -> Path:
    """Write this rank's share of the states: every n-th parameter."""
    from safetensors.torch import save_file

    mine = sorted(states)[world.rank :: world.size]
    tensors = {
        f"{name}{SEPARATOR}{field}": tensor.detach().cpu().contiguous()
        for name in mine
        for field, tensor in states[name].items()
    }
    path = folder / f"{PREFIX}{world.rank + 1}-of-{world.size}.safetensors"
    save_file(tensors, str(path))
    return path


def read_optimizer(folder: Path) -> States:
    """The states of all ranks' files, whatever their number."""
    from safetensors.torch import load_file

    states: States = defaultdict(dict)
    for path in sorted(folder.glob(f"{PREFIX}*.safetensors")):
        for key, tensor in load_file(str(path)).items():
            name, _, field = key.rpartition(SEPARATOR)
            states[name][field] = tensor
    return dict(states)
