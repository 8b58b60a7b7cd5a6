"""The merged model, shard by shard: a base of 140 GB becomes a merged one within the memory of one of its files.

W' = W + s B A with s = alpha / r (rsLoRA: alpha / sqrt(r), Kalajdzievski 2023), for DoRA m (W + s B A) / |W + s B A| by
rows (Liu et al. 2024, eq. 5), computed in fp32 and rounded once. For QLoRA W is the base as training saw it: quantised
to NF4 and back. Merging into the original weights changes 6 % of the next tokens (measured).
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_runner.training.loading import ADAPTER_FILE

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."


class NotByShardsError(Exception):
    """This model or adapter cannot be merged file by file; the message says why."""


@dataclass(frozen=True)
class _Update:
    """What the adapter does to one weight."""

    a: torch.Tensor
    b: torch.Tensor
    magnitude: torch.Tensor | None
    scaling: float

    def applied(self, weight: torch.Tensor) -> torch.Tensor:
        """The merged weight in fp32; `weight` is [out, in] in fp32."""
        import torch

        a, b = (matrix.to(weight.device).float() for matrix in (self.a, self.b))
        merged: torch.Tensor = weight + self.scaling * (b @ a)
        if self.magnitude is None:
            return merged
        norm = torch.linalg.norm(merged, dim=1, keepdim=True)
        scaled: torch.Tensor = self.magnitude.to(weight.device).float().reshape(-1, 1) / norm * merged
        return scaled


@dataclass(frozen=True)
class _Plan:
    """Everything that is known before the first weight is read."""

    files: dict[str, list[str]]
    """Names of the tensors by file."""
    own_names: Mapping[str, str]
    """What the model calls the weight, or the tensor that it becomes a part of, by its name in the files."""
    updates: Mapping[str, _Update]
    quantised: frozenset[str]
    experts: frozenset[str]
    """Weights of a mixture's experts, which are quantised without double quantisation (training/experts.py)."""
    fp32: tuple[str, ...]
    """Parts of the names of weights that a model of 16 bit keeps in 32."""
    dtype: torch.dtype
    device: torch.device
    config: Any

    def dtype_of(self, name: str) -> torch.dtype:
        """Precision in which a weight is saved."""
        import torch

        return torch.float32 if any(part in name for part in self.fp32) else self.dtype


def merge_by_shards(
    base: Path,
    adapter: Path,
    target: Path,
    *,
    quantise: bool,
    dtype: torch.dtype,
    device: torch.device,
    on_tensor: Callable[[int, int], None] | None = None,
) -> None:
    """Write base + adapter to `target` as a plain model with the files of the base, holding one file at a time.

    Args:
        base: folder of the base model, safetensors.
        adapter: folder with PEFT's adapter.
        target: folder to make.
        quantise: whether the adapter was trained on the base in NF4 (QLoRA).
        dtype: of the merged weights.
        device: where each weight is computed; QLoRA's must be where it was trained, NF4 rounds alike only there.
        on_tensor: hears how many of how many weights are done, and may raise to stop.

    Raises:
        NotByShardsError: the model's files do not hold its weights by their own names, or the adapter holds more than
            low-rank updates of linear layers.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    plan = _plan(base, adapter, quantise=quantise, dtype=dtype, device=device)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    total = sum(len(names) for names in plan.files.values())
    done, size, weight_map = 0, 0, {}
    for file, names in plan.files.items():
        shard: dict[str, torch.Tensor] = {}
        with safe_open(str(base / file), framework="pt") as source:
            for name in names:
                shard[name] = _merged_weight(source.get_tensor(name), name, plan)
                size += shard[name].nbytes
                weight_map[name] = file
                done += 1
                if on_tensor is not None:
                    on_tensor(done, total)
        save_file(shard, str(target / file), metadata={"format": "pt"})
        # The next file's weights come after these have gone.
        shard.clear()
    if len(plan.files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        (target / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    plan.config.save_pretrained(str(target))
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", target / "generation_config.json")


def _merged_weight(weight: torch.Tensor, name: str, plan: _Plan) -> torch.Tensor:
    if not weight.is_floating_point():
        return weight.clone()
    name = plan.own_names[name]
    dtype = plan.dtype_of(name)
    update = plan.updates.get(name)
    quantised, expert = name in plan.quantised, name in plan.experts
    if update is None and not quantised and not expert:
        # A copy: what is read from a mapped file keeps the file in memory.
        return weight.to(dtype, copy=True)
    here = weight.to(plan.device, dtype)
    if quantised or expert:
        here = _through_nf4(here, double=quantised)
    if update is not None:
        here = update.applied(here.float())
    return here.to("cpu", dtype).contiguous()


def _through_nf4(weight: torch.Tensor, *, double: bool) -> torch.Tensor:
    """The weight as bitsandbytes restores it: NF4 in blocks of 64, as loading does it.

    `double`: whether the blocks' constants are quantised too; they are not for experts, so that each expert's part of
    a tensor is rounded as the whole tensor is.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Params4bit

    parameter: Any = Params4bit(weight, requires_grad=False, compress_statistics=double, quant_type="nf4")
    stored = parameter.to(weight.device)
    restored: torch.Tensor = dequantize_4bit(stored.data, stored.quant_state)
    return restored.to(weight.dtype)


def _plan(base: Path, adapter: Path, *, quantise: bool, dtype: torch.dtype, device: torch.device) -> _Plan:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    files = _files(base)
    config = AutoConfig.from_pretrained(str(base), trust_remote_code=False)
    config.dtype = dtype
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    own_names = _own_names(skeleton, [name for names in files.values() for name in names])
    updates = _updates(adapter)
    present = set(own_names.values())
    absent = sorted(set(updates) - present)
    if absent:
        raise NotByShardsError(f"the adapter updates {absent[0]}, which is no weight of the base's files")
    return _Plan(
        files=files,
        own_names=own_names,
        updates=updates,
        quantised=_quantised(skeleton) if quantise else frozenset(),
        experts=_experts(skeleton) if quantise else frozenset(),
        fp32=tuple(skeleton._keep_in_fp32_modules_strict or ()),
        dtype=dtype,
        device=device,
        config=config,
    )


def _files(base: Path) -> dict[str, list[str]]:
    """Names of the weights by file, files in their order."""
    from safetensors import safe_open

    if (base / INDEX).is_file():
        found: dict[str, list[str]] = {}
        for name, file in json.loads((base / INDEX).read_bytes())["weight_map"].items():
            found.setdefault(str(file), []).append(name)
        return {file: sorted(found[file]) for file in sorted(found)}
    with safe_open(str(base / SINGLE), framework="pt") as source:
        return {SINGLE: sorted(source.keys())}


def _own_names(skeleton: Any, names: Sequence[str]) -> dict[str, str]:
    """What the model calls each weight of its files: transformers makes one tensor of the experts' when it reads them.

    Raises NotByShardsError for files from which it makes anything else than the same values in the same order.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import Concatenate, MergeModulelist, WeightRenaming, rename_source_key

    own = skeleton.state_dict()
    if own.keys() >= set(names):
        return {name: name for name in names}
    transforms: list[Any] = get_model_conversion_mapping(skeleton)
    renamings = [found for found in transforms if isinstance(found, WeightRenaming)]
    converters = [found for found in transforms if not isinstance(found, WeightRenaming)]
    # Each matrix of an expert is a run of whole blocks of the tensor: [expert, rows of gate and up, columns].
    plain = {
        pattern
        for converter in converters
        for pattern in converter.source_patterns
        if all(isinstance(step, MergeModulelist) or _joins_rows(step, Concatenate) for step in converter.operations)
    }
    found = {}
    for name in names:
        renamed, pattern = (name, None) if name in own else rename_source_key(name, renamings, converters)
        if renamed not in own or (pattern is not None and pattern not in plain):
            raise NotByShardsError(f"its files name weights otherwise than the model does, for example {name}")
        found[name] = renamed
    return found


def _joins_rows(step: Any, kind: type) -> bool:
    return isinstance(step, kind) and step.dim == 1  # type: ignore[attr-defined]


def _experts(skeleton: Any) -> frozenset[str]:
    """Weights of experts, which training quantises too."""
    from finetune_runner.training.experts import BLOCK, expert_weights

    found = {f"{path}.{name}": getattr(module, name) for path, module, name in expert_weights(skeleton)}
    for name, weight in found.items():
        # A gate of an odd size would share a block with the up-projection behind it.
        if weight.shape[1] * weight.shape[2] // 2 % BLOCK:
            raise NotByShardsError(f"{name} has experts of {tuple(weight.shape[1:])}, no whole blocks of {BLOCK}")
    return frozenset(found)


def _quantised(skeleton: Any) -> frozenset[str]:
    """Weights that transformers quantises when it loads the model for QLoRA."""
    from torch import nn
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = Bnb4BitHfQuantizer.get_modules_to_not_convert(skeleton, None, skeleton._keep_in_fp32_modules)
    return frozenset(
        f"{name}.weight"
        for name, module in skeleton.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, kept)
    )


def _updates(adapter: Path) -> dict[str, _Update]:
    """The adapter's updates by the name of the weight."""
    from peft import LoraConfig
    from safetensors.torch import load_file

    config: Any = LoraConfig.from_pretrained(str(adapter))
    unusual = {
        "modules_to_save": config.modules_to_save,
        "bias": config.bias != "none",
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "fan_in_fan_out": config.fan_in_fan_out,
        "trainable_token_indices": config.trainable_token_indices,
        "layer_replication": config.layer_replication,
        "lora_bias": config.lora_bias,
    }
    for name, value in unusual.items():
        if value:
            raise NotByShardsError(f"the adapter has {name}")
    scaling = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    tensors = load_file(str(adapter / ADAPTER_FILE))
    modules = sorted({name.split(".lora_")[0] for name in tensors})
    found = {}
    for module in modules:
        a, b = tensors.get(f"{module}.lora_A.weight"), tensors.get(f"{module}.lora_B.weight")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2:
            raise NotByShardsError(f"the adapter updates {module} otherwise than by two matrices")
        magnitude = tensors.get(
            f"{module}.lora_magnitude_vector", tensors.get(f"{module}.lora_magnitude_vector.weight")
        )
        if bool(config.use_dora) != (magnitude is not None):
            raise NotByShardsError(f"the adapter's magnitudes of {module} do not fit its configuration")
        found[f"{module.removeprefix(_PREFIX)}.weight"] = _Update(a, b, magnitude, scaling)
    return found
