"""One copy of the base per node: where it is cut into parts, one process of a node reads it and hands it out.

The others make the model without weights (on torch's meta device) and take one block at a time, so that host memory
holds the base once, whatever the number of GPUs: a 70B model in 16 bit is 131 GiB, in each of eight processes 1,050.
transformers and accelerate do this for FSDP too (`cpu_ram_efficient_loading`), but not with 4-bit weights: there every
process reads and quantises all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from finetune_runner.training.experts import remember_quantisation
from finetune_runner.training.loading import shards_weights

if TYPE_CHECKING:
    from finetune_api.job.method import Method
    from finetune_api.stages import TrainPlan
    from finetune_runner.training.distributed import World

Place = tuple[torch.nn.Module, str]
"""A module, and the name of one of its own parameters or buffers."""
Form = tuple[tuple[int, ...], torch.dtype]
"""Shape and type of a tensor."""


def reads_base(plan: TrainPlan | None, method: Method, world: World) -> bool:
    """Whether this process reads the base from its files.

    PEFT asks 4-bit weights for their norms when it makes a DoRA adapter, so there every process needs them.
    """
    asks_weights = plan is not None and plan.method == "qlora" and method.use_dora
    return world.local_rank == 0 or not shards_weights(plan) or asks_weights


@dataclass(frozen=True)
class _Announced:
    """What a process must know of a tensor to take it."""

    form: Form
    quantisation: dict[str, Form] | None
    """Of the tensors of bitsandbytes' state beside 4-bit weights, by its names for them; None: no such weights."""


class NodeCopy:
    """Hands out what one process of each node has read to the others. All processes make it together."""

    def __init__(self, world: World, device: torch.device) -> None:
        self._device = device
        self._reader = world.rank - world.local_rank
        self._reads = world.local_rank == 0
        self._shared = world.local_size > 1
        self._group: Any = None
        if not self._shared or world.local_size == world.size:
            return
        for first in range(0, world.size, world.local_size):
            # Every process takes part in making every group.
            group = distributed.new_group(list(range(first, first + world.local_size)))
            if first == self._reader:
                self._group = group

    def hand_out(self, modules: Sequence[torch.nn.Module]) -> None:
        """Put the own parameters and buffers of these modules on the device, with the values that were read.

        All processes of a node call it with the same modules. Parameters that had no values are replaced by new ones,
        so whatever holds on to parameters (an optimiser) is made afterwards.
        """
        places = _places(modules)
        if self._reads or not self._shared:
            for module in modules:
                module._apply(lambda tensor: tensor.to(self._device), recurse=False)
        if self._shared and self._reads:
            self._give([getattr(*same[0]) for same in places])
        elif self._shared:
            self._take(places)
        for module in modules:
            remember_quantisation(module)

    def _give(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tell([_announced(tensor) for tensor in tensors])
        for tensor in tensors:
            self._broadcast(tensor.detach().as_subclass(torch.Tensor))
            for part in (_quantisation(tensor) or {}).values():
                self._broadcast(part)

    def _take(self, places: Sequence[Sequence[Place]]) -> None:
        for same, announced in zip(places, self._tell(None), strict=True):
            module, name = same[0]
            old, made = getattr(module, name), self._receive(announced.form)
            if announced.quantisation is not None:
                made = _four_bit(module, made, {key: self._receive(f) for key, f in announced.quantisation.items()})
            elif isinstance(old, torch.nn.Parameter):
                made = torch.nn.Parameter(made, requires_grad=old.requires_grad)
            for holder, attribute in same:
                setattr(holder, attribute, made)

    def _tell(self, announced: list[_Announced] | None) -> list[_Announced]:
        box = [announced]
        distributed.broadcast_object_list(box, src=self._reader, group=self._group)
        return box[0] or []

    def _receive(self, form: Form) -> torch.Tensor:
        shape, dtype = form
        return self._broadcast(torch.empty(shape, dtype=dtype, device=self._device))

    def _broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.contiguous()
        distributed.broadcast(tensor, src=self._reader, group=self._group)
        return tensor


def _places(modules: Iterable[torch.nn.Module]) -> list[list[Place]]:
    """Where each tensor of the modules is held: tied weights have several places."""
    found: dict[int, list[Place]] = {}
    for module in modules:
        for name, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None:
                found.setdefault(id(tensor), []).append((module, name))
    return list(found.values())


def _quantisation(tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """Tensors of bitsandbytes' state of a 4-bit weight, in their order; None for any other tensor."""
    state = getattr(tensor, "quant_state", None)
    return None if state is None else dict(state.as_dict(packed=True))


def _announced(tensor: torch.Tensor) -> _Announced:
    parts = _quantisation(tensor)
    forms = None if parts is None else {key: _form(part) for key, part in parts.items()}
    return _Announced(_form(tensor), forms)


def _form(tensor: torch.Tensor) -> Form:
    return tuple(tensor.shape), tensor.dtype


def _four_bit(module: Any, data: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """The 4-bit weight of a module from its bytes and bitsandbytes' state."""
    from bitsandbytes.nn.modules import Params4bit

    return Params4bit.from_prequantized(data, state, device=data.device, module=module)
