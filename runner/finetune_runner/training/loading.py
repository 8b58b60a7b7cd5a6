"""Base model and tokenizer in the precision of a method; adapters on and off it. Safetensors only, no remote code."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune_api.exit_codes import ExitCode
from finetune_api.job.method import Method
from finetune_api.stages import StageTask, TrainPlan
from finetune_runner.errors import StageError
from finetune_runner.text import load_tokenizer as load_tokenizer
from finetune_runner.training.eager_imports import import_bitsandbytes, import_unseen
from finetune_runner.training.mixtures import feed_forward_names, is_mixture, refuse_unquantised_experts
from finetune_runner.training.targets import linear_modules, resolve_targets

if TYPE_CHECKING:
    import torch

MethodType = Literal["lora", "qlora", "qlora-8bit"]
"""How the base is held: in 32 or 16 bit, in NF4 with double quantisation, or as LLM.int8."""
ADAPTER_FILE = "adapter_model.safetensors"


def method_of(task: StageTask) -> MethodType:
    """The method in force: the plan's, else the spec's, where `auto` without a plan means lora."""
    method = task.plan.method if task.plan is not None else task.spec.method.type
    if method != "qlora":
        return "lora"
    return "qlora-8bit" if task.spec.method.bits == 8 else "qlora"


def base_weights(task: StageTask) -> str:
    """The form of the base in the words of a version's manifest."""
    quantised = {"qlora": "nf4-double-quant", "qlora-8bit": "int8"}
    return quantised.get(method_of(task)) or (task.plan.precision if task.plan is not None else "fp32")


def method_of_weights(weights: str) -> MethodType:
    """The inverse of `base_weights`, for a version that is loaded again."""
    known: dict[str, MethodType] = {"nf4-double-quant": "qlora", "int8": "qlora-8bit"}
    return known.get(weights, "lora")


def base_dtype(method: MethodType, device: torch.device, plan: TrainPlan | None) -> torch.dtype:
    """What the unquantised weights are kept in: bf16 on GPUs and for QLoRA, fp32 for LoRA on the CPU."""
    import torch

    wants_bf16 = plan.precision == "bf16" if plan is not None else device.type == "cuda"
    return torch.bfloat16 if method != "lora" or wants_bf16 else torch.float32


def shards_weights(plan: TrainPlan | None) -> bool:
    """Whether each process keeps only a part of the base's weights."""
    return plan is not None and (plan.strategy == "fsdp" or (plan.strategy == "deepspeed" and plan.zero_stage == 3))


def load_base(
    model_path: Path,
    method: MethodType,
    device: torch.device,
    plan: TrainPlan | None,
    spread: Sequence[torch.device] = (),
    *,
    reads: bool = True,
) -> Any:
    """The base model, frozen, in eval mode, on `device`, or block by block over the devices of `spread`.

    Without `reads` it has no weights and lies on the meta device: they come from another process (one_copy.py).

    Raises StageError when transformers cannot load it.
    """
    import_bitsandbytes()
    import_unseen("transformers.models.auto.modeling_auto", "peft")
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from finetune_runner.training.attention import implementation, refuse
    from finetune_runner.training.placement import device_map

    options: dict[str, Any] = {
        "dtype": base_dtype(method, device, plan),
        "trust_remote_code": False,
        "use_safetensors": True,
        "attn_implementation": implementation(plan.attention if plan is not None else "sdpa"),
    }
    mixture = is_mixture(model_path)
    if mixture:
        from finetune_runner.training import experts

        options["experts_implementation"] = experts.NAME
    if method != "lora":
        options["quantization_config"] = _quantisation(method, plan, mixture=mixture)
    if method != "lora" or device.type == "cuda":
        # Straight onto the device, weight by weight: a base need not fit the host. "auto" would spread it over all
        # GPUs of the pod (transformers#31557).
        options["device_map"] = {"": device}
    try:
        if not reads:
            options["device_map"] = {"": "meta"}
        elif len(spread) > 1:
            options["device_map"] = device_map(model_path, spread)
        causal: Any = AutoModelForCausalLM
        model, loaded = causal.from_pretrained(str(model_path), output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            "the base model cannot be loaded as a causal language model",
            hint="set model.attention: eager"
            if "scaled_dot_product_attention" in str(error)
            else "model.source must be a transformers causal language model with safetensors weights",
            evidence=str(error)[:500],
        ) from error
    missing = sorted(loaded["missing_keys"]) if reads else []
    if missing:  # transformers only logs it, and goes on with random ones
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            f"the base model lacks {len(missing)} of the weights that its config.json asks for: {missing[0][:200]}"
            + (" and others" if len(missing) > 1 else ""),
            "copy the model again: config.json and weights are not of one model",
        )
    # transformers asks this of its own `sdpa` only.
    if plan is not None and plan.attention == "flash" and not model._supports_sdpa:
        raise refuse(f"{type(model).__name__} has an attention that SDPA does not compute")
    if method == "lora":
        if reads and len(spread) < 2:
            model.to(device)
    else:
        _keep_quantised_weights(model)
        if mixture and method == "qlora":
            refuse_unquantised_experts(model)
    model.requires_grad_(False)
    return model.eval()


def _quantisation(method: MethodType, plan: TrainPlan | None, *, mixture: bool) -> Any:
    """What bitsandbytes is told of a quantised base, and this package of a mixture's experts."""
    import torch
    from transformers import BitsAndBytesConfig

    if method == "qlora-8bit":
        # It says in every layer and step that activations pass through fp16; that is how LLM.int8 works.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    kind: Any = BitsAndBytesConfig
    if mixture:
        from finetune_runner.training.experts import MixtureConfig as kind
    return kind(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        # FSDP and ZeRO-3 cut and send floating-point tensors only; the bytes are the same.
        bnb_4bit_quant_storage=torch.bfloat16 if shards_weights(plan) else torch.uint8,
    )


def _keep_quantised_weights(model: Any) -> None:
    """Forbid bitsandbytes to repack 4-bit weights for inference on CPUs with AVX512-BF16.

    It does so at the first forward pass in eval mode, undoes it when the state is read, and rounds the scales
    both times (bitsandbytes 0.50, functional.py `_convert_weight_packed_for_cpu`): the frozen base would drift with
    every validation, and an adapter would be judged on another base than it was trained on.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def lora_config(base: Any, method: Method) -> Any:
    """PEFT's configuration of the job's method on a base. The head is never a target. Raises as `resolve_targets`."""
    from peft import LoraConfig

    targets = resolve_targets(method, linear_modules(base), base.config.model_type, feed_forward_names(base))
    return LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets.target,
        exclude_modules=targets.exclude,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        bias="none",
        task_type="CAUSAL_LM",
    )


def new_adapter(base: Any, method: Method, seed: int) -> Any:
    """The base with a fresh adapter, its values a function of the seed. Raises StageError on unknown targets."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(seed)
    return get_peft_model(base, lora_config(base, method))


def saved_names(model: Any) -> dict[str, str]:
    """The key in adapter_model.safetensors of every trainable parameter, by its name."""
    from peft import get_peft_model_state_dict

    # By identity: on the meta device all tensors have the same address.
    parameters = dict(model.named_parameters())
    saved = get_peft_model_state_dict(model, state_dict=dict(parameters), save_embedding_layers=False)
    keys = {id(parameter): key for key, parameter in saved.items()}
    return {name: keys[id(p)] for name, p in parameters.items() if p.requires_grad}


def with_adapter(base: Any, folder: Path) -> Any:
    """The base with a saved adapter, frozen, in eval mode."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder), is_trainable=False).eval()


def merged(base: Any, folder: Path, method: MethodType) -> Any:
    """A plain model with the adapter added into the weights.

    A quantised base is de-quantised first: that is what the adapter was trained on. Merging into the original weights
    changes 6 % of the next tokens and merging into 4-bit weights rounds small updates away.
    """
    from peft import PeftModel

    if method != "lora":
        base = base.dequantize()
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=False).merge_and_unload(safe_merge=True)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.eval()
