"""What a strategy does to a model: where its parameters live, and who adds up the gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from finetune_api.job.training import Training
from finetune_api.stages import TrainPlan
from finetune_runner.training.distributed import World
from finetune_runner.training.horizon import Horizon
from finetune_runner.training.objectives.base import Batch, Objective
from finetune_runner.training.optimizer import new_optimizer, parameter_state, restore_parameter_state, trainable


@dataclass(frozen=True)
class Setup:
    """What an engine is made from. The model is whole, on its device, its adapter in fp32 and already loaded."""

    model: Any
    objective: Objective
    plan: TrainPlan
    training: Training
    device: torch.device
    world: World
    first_step: int
    horizon: Horizon


class InForward(torch.nn.Module):
    """Runs a function of the model as a forward pass: what DDP, FSDP and DeepSpeed hook into."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[Any], Any]) -> Any:
        """`function(model)`, with the root's parameters whole."""
        return function(self.model)


class Engine:
    """One process with the whole model; the other strategies change what differs.

    `lockstep`: whether every forward pass needs all ranks, each of which must then make the same number of them.
    """

    lockstep = False
    shards_weights = False
    """Whether each process holds a part of the weights: then its forward pass is proved before step 1."""
    backward_exchanges = False
    """Whether ranks exchange something in every backward pass: one that runs out of memory in it leaves the others
    waiting, and what is half-done cannot be taken back."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.model = setup.model
        # fp32 adapters under autocast: the products run in bf16, what is learned is kept in fp32.
        self.autocasts = setup.device.type == "cuda" and setup.plan.precision == "bf16"
        self.module = self.wrap(InForward(setup.model))
        self.optimizer, self.schedule = self.make_optimizer()

    # -- what a strategy may change --------------------------------------------------------------------------------

    def wrap(self, module: InForward) -> Any:
        """The module that is called in place of the given one."""
        return module

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's parameters on this rank, by their name in the model before it was spread out."""
        return trainable(self.model)

    def make_optimizer(self) -> tuple[Any, Any]:
        """Optimiser and schedule over the parameters as they are after `wrap`."""
        setup = self.setup
        return new_optimizer(self.model, setup.training, setup.horizon, setup.first_step)

    def backward(self, batch: Batch, scale: float, *, last: bool) -> torch.Tensor:
        """Add a micro-batch to the gradient and return its part of the step's loss.

        Args:
            batch: on the device.
            scale: what its summed loss is multiplied with, so that all ranks and micro-batches add up to a mean.
            last: whether the optimiser step follows.
        """
        del last
        loss = self.loss(batch) * scale
        loss.backward()
        return loss.detach()

    def step(self) -> None:
        """Clip the gradient's norm, update, forget the gradient, go on in the schedule."""
        if self.setup.training.max_grad_norm:
            parameters = list(self.parameters().values())
            torch.nn.utils.clip_grad_norm_(parameters, self.setup.training.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.zero_gradients()

    def zero_gradients(self) -> None:
        """Forget the gradient."""
        self.optimizer.zero_grad(set_to_none=True)

    def missing_state_bytes(self, bytes_per_parameter: int) -> int:
        """What the optimiser's state will take on this rank once the first step has made it."""
        if self.optimizer.state:
            return 0
        local = (p.to_local() if hasattr(p, "to_local") else p for p in self.parameters().values())
        return bytes_per_parameter * sum(p.numel() for p in local)

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """The whole of a parameter or of its optimiser state. All ranks call it."""
        return tensor

    def adapter(self) -> dict[str, torch.Tensor]:
        """The adapter's weights by parameter name, whole, on the CPU. All ranks call it."""
        return {name: self.whole(p.detach()).cpu().clone() for name, p in self.parameters().items()}

    def load_adapter(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite every weight of the adapter with the named tensor. All ranks call it with the same."""
        for name, parameter in self.parameters().items():
            parameter.data.copy_(self.part(parameter, tensors[name]))

    def part(self, parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of a whole tensor that belongs to `parameter`."""
        return whole.to(parameter.device)

    def optimizer_state(self) -> dict[str, dict[str, torch.Tensor]]:
        """State of the optimiser by parameter name and field, whole, on the CPU. All ranks call it."""
        return {n: parameter_state(self.optimizer, p, self.whole) for n, p in self.parameters().items()}

    def load_optimizer_state(self, states: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """The inverse of `optimizer_state`. Raises KeyError when the state is of another model."""
        for name, parameter in self.parameters().items():
            restore_parameter_state(self.optimizer, parameter, states[name], self.part)

    # -- the same for all ------------------------------------------------------------------------------------------

    def call(self, function: Callable[[Any], Any]) -> Any:
        """`function(model)` as a forward pass, for example a validation."""
        return self.module(function)

    def loss(self, batch: Batch) -> torch.Tensor:
        """The summed loss of a micro-batch."""

        def of(model: Any) -> torch.Tensor:
            # Inside: DeepSpeed switches off an autocast that is on outside.
            with torch.autocast("cuda", torch.bfloat16) if self.autocasts else contextlib.nullcontext():
                return self.setup.objective.loss(model, batch)

        loss: torch.Tensor = self.module(of)
        return loss
