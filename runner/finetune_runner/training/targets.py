"""Which modules get an adapter: what the job names, against what the model has."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.job.method import Method
from finetune_runner.errors import StageError
from finetune_runner.training.mixtures import feed_forward_names

ALL_LINEAR, DEFAULT = "all-linear", "default"
SHOWN_NAMES = 12


@dataclass(frozen=True)
class Targets:
    """`target_modules` and `exclude_modules` as PEFT takes them."""

    target: str | list[str]
    exclude: list[str] | None


def linear_modules(model: Any) -> list[str]:
    """Names of the modules that can be a target: linear layers, the head left out, as PEFT's `all-linear` does.

    Of a mixture of experts, those of its attention.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    head, kept_out = model.get_output_embeddings(), feed_forward_names(model)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head and not kept_out & set(name.split("."))
    ]


def resolve_targets(
    method: Method, modules: Sequence[str], model_type: str, feed_forward: Collection[str] = ()
) -> Targets:
    """What PEFT is told.

    Args:
        method: the job's method.
        modules: full names of the model's linear layers (`linear_modules`).
        model_type: name of the architecture in config.json, for `default`.
        feed_forward: of a mixture of experts, names that only its feed-forward layers have (`feed_forward_names`).

    Raises:
        StageError: INVALID_SPEC naming the field, what is not there, and the nearest names that are.
    """
    exclude = method.exclude_modules.split(",") if method.exclude_modules else []
    for name in exclude:
        _must_exist("excludeModules", name, modules, feed_forward)
    if method.target_modules == ALL_LINEAR:
        covered: Sequence[str] = modules
        # PEFT's own all-linear adapts the router and every expert of a mixture (transformers_weight_conversion.py).
        target: str | list[str] = sorted({_last(module) for module in modules}) if feed_forward else ALL_LINEAR
    elif method.target_modules == DEFAULT:
        target = _of_architecture(model_type, modules)
        covered = [module for module in modules if _matches(module, target)]
    else:
        target = method.target_modules.split(",")
        for name in target:
            _must_exist("targetModules", name, modules, feed_forward)
        covered = [module for module in modules if _matches_any(module, target)]
    if all(_matches_any(module, exclude) for module in covered):
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"method.excludeModules: {method.exclude_modules!r} leaves none of the {len(covered)} targets",
            hint="exclude fewer modules, or name more in method.targetModules",
        )
    return Targets(target, exclude or None)


def check_targets(method: Method, model_path: Path) -> None:
    """Refuse names that the model does not have, without its weights. Raises StageError as `resolve_targets` does.

    A job with the defaults is not looked at: nothing can be wrong with it, and torch takes seconds to import.
    """
    if method.target_modules == ALL_LINEAR and not method.exclude_modules:
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(model_path), trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            "transformers does not know the base model's architecture as a causal language model",
            hint="model.source must be a transformers causal language model",
            evidence=str(error)[:500],
        ) from error
    resolve_targets(method, linear_modules(model), config.model_type, feed_forward_names(model))


def _matches_any(module: str, names: Iterable[str]) -> bool:
    """As PEFT matches: the whole name, or its last parts."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def _matches(module: str, target: str | list[str]) -> bool:
    """As PEFT matches: a text is a pattern of the whole name."""
    return re.fullmatch(target, module) is not None if isinstance(target, str) else _matches_any(module, target)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _must_exist(field: str, name: str, modules: Sequence[str], feed_forward: Collection[str]) -> None:
    if any(_matches_any(module, [name]) for module in modules):
        return
    last = list(dict.fromkeys(module.rpartition(".")[2] for module in modules))
    if not set(name.split(".")).isdisjoint(feed_forward):
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"method.{field}: {name!r} belongs to the experts or the router of a mixture, which get no adapter: it "
            "would be as large as a model, and a router that is trained may send all tokens to few experts",
            hint=f"leave it out; all-linear covers {', '.join(last[:SHOWN_NAMES])}",
        )
    near = difflib.get_close_matches(name.rpartition(".")[2], last, n=3, cutoff=0.5)
    meant = f"; the nearest are {', '.join(near)}" if near else ""
    raise StageError(
        ExitCode.INVALID_SPEC,
        f"method.{field}: the model has no linear layer {name!r}{meant}",
        hint=f"its linear layers are called {', '.join(last[:SHOWN_NAMES])}" + (" ..." * (len(last) > SHOWN_NAMES)),
    )


def _of_architecture(model_type: str, modules: Sequence[str]) -> str | list[str]:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    found: Any = KNOWN.get(model_type)
    target: str | list[str] | None = found if found is None or isinstance(found, str) else list(found)
    if target is not None and any(_matches(module, target) for module in modules):
        return target
    last = list(dict.fromkeys(module.rpartition(".")[2] for module in modules))
    names = target if target is None or isinstance(target, str) else ", ".join(target)
    raise StageError(
        ExitCode.INVALID_SPEC,
        f"method.targetModules: PEFT has no default for the architecture {model_type!r}"
        if names is None
        else f"method.targetModules: PEFT's default for {model_type!r}, {names}, is no linear layer of this model",
        hint=f"use all-linear, or name some of {', '.join(last[:SHOWN_NAMES])}",
    )
