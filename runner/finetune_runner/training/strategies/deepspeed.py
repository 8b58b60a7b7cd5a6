"""deepspeed: ZeRO-2 (gradients and optimiser in parts) or ZeRO-3 (weights too), with offload to host memory.

`deepspeed.initialize` itself, without accelerate's plugin: the loop stays the same for every strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import TrainPlan, TrainResult
from finetune_runner.errors import StageError
from finetune_runner.training.launch import launch

if TYPE_CHECKING:
    import torch

    from finetune_runner.context import StageContext
    from finetune_runner.training.strategies.base import Engine, Setup


def train(context: StageContext) -> TrainResult:
    """Train in one process per GPU."""
    return launch(context)


def deepspeed_config(plan: TrainPlan, max_gradient_norm: float) -> dict[str, Any]:
    """DeepSpeed's configuration of a plan."""
    zero: dict[str, Any] = {"stage": plan.zero_stage, "contiguous_gradients": True}
    if plan.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": plan.gpus_per_node > 0}
    if plan.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": plan.gpus_per_node > 0}
    return {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation,
        "gradient_clipping": max_gradient_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own CPU Adam is compiled at first use, and the image has no compiler.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 60,
    }


def refuse_replaced_weights(plan: TrainPlan, device: torch.device, *, dora: bool) -> None:
    """PEFT's DoRA puts a new parameter in the place of a 4-bit weight when it is on a CPU, and ZeRO-3 loses it.

    In peft 0.21 `dequantize_module_weight`, at every forward pass. Raises StageError (INVALID_SPEC).
    """
    if not (dora and plan.method == "qlora" and plan.zero_stage == 3 and device.type == "cpu"):
        return
    raise StageError(
        ExitCode.INVALID_SPEC,
        "method.useDora: DoRA on a 4-bit base does not run under ZeRO-3 on a CPU",
        hint="set compute.deepspeed.stage: 2, compute.strategy: fsdp, or method.useDora: false",
    )


def engine(setup: Setup) -> Engine:
    """The model in the parts of a ZeRO stage. Raises as `refuse_replaced_weights`."""
    import deepspeed
    import deepspeed.ops
    import torch
    from deepspeed.runtime.zero import GatheredParameters, Init
    from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID
    from deepspeed.utils import (
        safe_get_full_optimizer_state,
        safe_set_full_optimizer_state,
        safe_set_local_optimizer_state,
    )

    from finetune_runner.training.eager_imports import nothing_compiles
    from finetune_runner.training.objectives.base import Batch
    from finetune_runner.training.one_copy import NodeCopy
    from finetune_runner.training.optimizer import new_optimizer, trainable
    from finetune_runner.training.strategies.base import Engine, InForward
    from finetune_runner.training.strategies.fsdp import blocks, outside

    dora = any(getattr(config, "use_dora", False) for config in setup.model.peft_config.values())
    refuse_replaced_weights(setup.plan, setup.device, dora=dora)
    # A shared-memory all-reduce for CPUs, compiled at first use: gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    whole_weights = setup.plan.zero_stage < 3

    class Zero(Engine):
        """Gradients and optimiser states in parts, with stage 3 the weights too."""

        lockstep = shards_weights = not whole_weights
        backward_exchanges = True

        def wrap(self, module: InForward) -> Any:
            setup = self.setup
            config = deepspeed_config(setup.plan, setup.training.max_grad_norm)
            if not whole_weights:
                self._cut(module, config)
            self._inner, self._inner_schedule = new_optimizer(
                self.model, setup.training, setup.horizon, setup.first_step
            )
            # It imports its Muon to know that this is another optimiser, and Muon's functions are compiled.
            with nothing_compiles():
                made, self._zero, _, _ = deepspeed.initialize(
                    model=module,
                    optimizer=self._inner,
                    config=config,
                    dist_init_required=False,
                )
            return made

        def _cut(self, module: InForward, config: dict[str, Any]) -> None:
            """Cut the weights into parts, one block after the other: the whole may not fit."""
            copy, rest = NodeCopy(self.setup.world, self.setup.device), outside(module.model)
            for _, _, block in blocks(module.model):
                copy.hand_out(list(block.modules()))
                Init(module=block, config_dict_or_path=config, dtype=torch.float32)
            copy.hand_out(rest)
            Init(module=module, config_dict_or_path=config, dtype=torch.float32)

        def make_optimizer(self) -> tuple[Any, Any]:
            return self._inner, self._inner_schedule

        def backward(self, batch: Batch, scale: float, *, last: bool) -> torch.Tensor:
            # Said, not counted by DeepSpeed: a backward pass of the probe must not count as one of a step.
            self.module.set_gradient_accumulation_boundary(last)
            loss = self.loss(batch) * (scale * self.setup.world.size)  # ZeRO averages; a sum is wanted
            self.module.backward(loss, scale_wrt_gas=False)
            return loss.detach() / self.setup.world.size

        def step(self) -> None:
            self.module.step()
            self.schedule.step()

        def zero_gradients(self) -> None:
            """What DeepSpeed itself does with the gradient of a step that it skips for an overflow."""
            zero = self._zero
            zero.zero_grad(set_to_none=True)
            zero.averaged_gradients = {}
            if whole_weights:
                zero.micro_step_id = INITIAL_MICRO_STEP_ID
                zero.all_grad_tensors = {}

        def missing_state_bytes(self, bytes_per_parameter: int) -> int:
            if self._inner.state or self.setup.plan.offload != "none":
                return 0
            return bytes_per_parameter * sum(flat.numel() for flat in self._flat())

        def adapter(self) -> dict[str, torch.Tensor]:
            parameters = trainable(self.model)
            with GatheredParameters(list(parameters.values()), enabled=not whole_weights):
                return {name: p.detach().cpu().clone() for name, p in parameters.items()}

        def load_adapter(self, tensors: Mapping[str, torch.Tensor]) -> None:
            parameters = trainable(self.model)
            with GatheredParameters(list(parameters.values()), modifier_rank=0, enabled=not whole_weights):
                for name, parameter in parameters.items():
                    parameter.data.copy_(tensors[name])

        def _flat(self) -> list[torch.Tensor]:
            """This rank's flat parts of the parameters in fp32, which the optimiser's state belongs to."""
            zero = self._zero
            flat: list[torch.Tensor] = (
                zero.single_partition_of_fp32_groups if whole_weights else zero.fp32_partitioned_groups_flat
            )
            return flat

        def optimizer_state(self) -> dict[str, dict[str, torch.Tensor]]:
            state = self._inner.state[self._flat()[0]]
            fields = {field: torch.as_tensor(value) for field, value in state.items()}

            def of(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
                # Numbers are the flat part's. Each parameter has a copy: safetensors refuses to write one tensor twice.
                return {
                    field: (safe_get_full_optimizer_state(parameter, field) if value.dim() else value).cpu().clone()
                    for field, value in fields.items()
                }

            return {name: of(parameter) for name, parameter in trainable(self.model).items()}

        def load_optimizer_state(self, states: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
            fields = next(iter(states.values()))
            for flat in self._flat():
                self._inner.state[flat] = {
                    field: torch.zeros_like(flat) if tensor.dim() else tensor.clone()
                    for field, tensor in fields.items()
                }
            if whole_weights:
                self._zero._lazy_init_hp_params_optimizer_state()
            for name, parameter in trainable(self.model).items():
                for field, tensor in states[name].items():
                    if not tensor.dim():
                        continue
                    if whole_weights:
                        safe_set_full_optimizer_state(parameter, tensor, field)
                    else:
                        safe_set_local_optimizer_state(parameter, self._local(parameter, tensor), field)

        def _local(self, parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
            """This rank's piece of a tensor that ZeRO-3 cuts into equal ones, the last padded."""
            size: int = parameter.partition_numel()  # type: ignore[attr-defined]
            flat = whole.reshape(-1)
            padded = torch.nn.functional.pad(flat, (0, size * self.setup.world.size - flat.numel()))
            return padded[self.setup.world.rank * size :][:size].to(self.setup.device)

    return Zero(setup)
