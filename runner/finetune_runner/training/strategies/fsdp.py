"""fsdp: every process holds a part of the weights and gathers one block at a time.

LoRA is sharded by FSDP2 (`fully_shard`), adapter and optimiser states included. QLoRA is sharded by FSDP1: under FSDP2
4-bit weights either stay whole on every GPU (accelerate#3983) or may compute a wrong forward pass (bitsandbytes#1945).
There the frozen base is cut into parts and the small adapter stays whole in every process, its gradients averaged in
one all-reduce; so the optimiser sees plain tensors.

Neither accelerate nor transformers' Trainer is asked: on a CPU they silently train with DDP instead, and a strategy
that cannot be tested is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from finetune_api.stages import TrainResult
from finetune_runner.training.launch import launch

if TYPE_CHECKING:
    import torch

    from finetune_runner.context import StageContext
    from finetune_runner.training.strategies.base import Engine, Setup


def train(context: StageContext) -> TrainResult:
    """Train in one process per GPU."""
    return launch(context)


def engine(setup: Setup) -> Engine:
    """The model in parts: by FSDP1 when its weights are 4-bit, otherwise by FSDP2."""
    return _fsdp1(setup) if setup.plan.method == "qlora" else _fsdp2(setup)


def blocks(model: Any) -> Iterator[tuple[Any, str, Any]]:
    """Parent, name and module of each decoder block of a PEFT model."""
    kinds = set(model.get_base_model()._no_split_modules or ())
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child).__name__ in kinds:
                yield parent, name, child


def outside(model: Any) -> list[Any]:
    """The modules of a PEFT model that no decoder block holds: embedding, last norm, head, and what contains blocks."""
    inside = {id(module) for _, _, block in blocks(model) for module in block.modules()}
    return [module for module in model.modules() if id(module) not in inside]


def _fsdp2(setup: Setup) -> Engine:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor

    from finetune_runner.training.objectives.base import Batch
    from finetune_runner.training.one_copy import NodeCopy
    from finetune_runner.training.strategies.base import Engine, InForward

    class Sharded(Engine):
        """Weights, adapter, gradients and optimiser states in parts."""

        lockstep = shards_weights = backward_exchanges = True

        def wrap(self, module: InForward) -> Any:
            mesh = init_device_mesh(self.setup.device.type, (self.setup.world.size,))
            copy, rest = NodeCopy(self.setup.world, self.setup.device), outside(module.model)
            for _, _, block in blocks(module.model):
                copy.hand_out(list(block.modules()))  # one block after the other: the whole may not fit
                fully_shard(block, mesh=mesh)
            copy.hand_out(rest)
            fully_shard(module, mesh=mesh)
            return module.to(self.setup.device)

        def backward(self, batch: Batch, scale: float, *, last: bool) -> torch.Tensor:
            self.module.set_requires_gradient_sync(last)
            scale *= self.setup.world.size  # FSDP averages; a sum is wanted
            return super().backward(batch, scale, last=last) / self.setup.world.size

        def whole(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

        def part(self, parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
            if not isinstance(parameter, DTensor):
                return super().part(parameter, whole)
            # Every rank has the whole: nothing is sent.
            moved = whole.to(parameter.device)
            return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)

    return Sharded(setup)


def _fsdp1(setup: Setup) -> Engine:
    import torch
    from torch import distributed
    from torch.distributed.fsdp import BackwardPrefetch, FullyShardedDataParallel
    from torch.distributed.fsdp._common_utils import FSDP_WRAPPED_MODULE

    from finetune_runner.training.one_copy import NodeCopy
    from finetune_runner.training.optimizer import trainable
    from finetune_runner.training.strategies.base import Engine, InForward

    class ShardedBase(Engine):
        """The frozen base in parts, the adapter whole."""

        lockstep = shards_weights = backward_exchanges = True

        def wrap(self, module: InForward) -> Any:
            options: dict[str, Any] = {
                "device_id": self.setup.device if self.setup.device.type == "cuda" else torch.device("cpu"),
                "backward_prefetch": BackwardPrefetch.BACKWARD_PRE,
                "limit_all_gathers": True,
            }
            copy, rest = NodeCopy(self.setup.world, self.setup.device), outside(module.model)

            def cut(part: Any) -> Any:
                whole = list(trainable(module.model).values())
                return FullyShardedDataParallel(part, ignored_states=whole, **options)

            for parent, name, block in list(blocks(module.model)):
                # Moved here, not by FSDP, which would leave the scales of 4-bit weights behind; one after the other.
                copy.hand_out(list(block.modules()))
                setattr(parent, name, cut(block))
            copy.hand_out(rest)
            return cut(module.to(self.setup.device))

        def parameters(self) -> dict[str, torch.nn.Parameter]:
            return {name.replace(f"{FSDP_WRAPPED_MODULE}.", ""): p for name, p in trainable(self.model).items()}

        def step(self) -> None:
            gradients = [p.grad for p in self.parameters().values() if p.grad is not None]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            distributed.all_reduce(flat)
            for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(summed.view_as(gradient))
            super().step()

    return ShardedBase(setup)
