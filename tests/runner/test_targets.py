"""Which modules get an adapter, and what is said of names that the model does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.job.method import Method
from finetune_runner.errors import StageError
from finetune_runner.training.targets import Targets, check_targets, linear_modules, resolve_targets

LLAMA = [
    f"model.layers.{layer}.{part}"
    for layer in range(2)
    for part in (
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    )
]


def method(**fields: Any) -> Method:
    return Method.from_wire(fields)


@pytest.mark.parametrize(
    ("fields", "model_type", "expected"),
    [
        ({}, "llama", Targets("all-linear", None)),
        ({"targetModules": "default"}, "llama", Targets(["q_proj", "v_proj"], None)),
        ({"targetModules": "q_proj,mlp.up_proj"}, "llama", Targets(["q_proj", "mlp.up_proj"], None)),
        ({"excludeModules": "mlp.down_proj"}, "llama", Targets("all-linear", ["mlp.down_proj"])),
        (
            {"targetModules": "default", "excludeModules": "q_proj,down_proj"},  # nearly all of the default
            "llama",
            Targets(["q_proj", "v_proj"], ["q_proj", "down_proj"]),
        ),
        (
            {"targetModules": "q_proj,v_proj", "excludeModules": "model.layers.0.self_attn.q_proj"},
            "llama",
            Targets(["q_proj", "v_proj"], ["model.layers.0.self_attn.q_proj"]),
        ),
    ],
)
def test_names_the_model_has(fields: dict[str, Any], model_type: str, expected: Targets) -> None:
    assert resolve_targets(method(**fields), LLAMA, model_type) == expected


@pytest.mark.parametrize(
    ("fields", "model_type", "words"),
    [
        ({"targetModules": "q_prj"}, "llama", "method.targetModules: the model has no linear layer 'q_prj'; the near"),
        ({"targetModules": "q_prj"}, "llama", "q_proj"),
        ({"targetModules": "proj"}, "llama", "no linear layer 'proj'"),  # PEFT matches whole parts of a name
        ({"targetModules": "attn.q_proj"}, "llama", "no linear layer 'attn.q_proj'; the nearest are q_proj"),
        ({"targetModules": "norm"}, "llama", "no linear layer 'norm'"),
        ({"excludeModules": "down_prj"}, "llama", "method.excludeModules: the model has no linear layer 'down_prj'"),
        ({"targetModules": "q_proj", "excludeModules": "self_attn.q_proj"}, "llama", "leaves none of the 2 targets"),
        ({"targetModules": "default", "excludeModules": "q_proj,v_proj"}, "llama", "leaves none of the 4 targets"),
        ({"targetModules": "default"}, "gpt2", "PEFT's default for 'gpt2', c_attn, is no linear layer of this model"),
        ({"targetModules": "default"}, "brand_new", "PEFT has no default for the architecture 'brand_new'"),
    ],
)
def test_names_the_model_does_not_have(fields: dict[str, Any], model_type: str, words: str) -> None:
    with pytest.raises(StageError) as refused:
        resolve_targets(method(**fields), LLAMA, model_type)
    assert words in refused.value.message
    assert refused.value.exit_code == ExitCode.INVALID_SPEC
    assert "q_proj" in refused.value.hint or "targetModules" in refused.value.hint


def test_prepare_checks_names_without_weights(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    check_targets(method(targetModules="q_proj,v_proj"), tmp_path)
    with pytest.raises(StageError, match="no linear layer 'c_attn'"):
        check_targets(method(targetModules="c_attn"), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "never_heard_of"}))
    check_targets(method(), tmp_path)  # nothing named, nothing looked at
    with pytest.raises(StageError, match="does not know the base model's architecture"):
        check_targets(method(excludeModules="down_proj"), tmp_path)


def test_the_head_is_no_target(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    found = linear_modules(AutoModelForCausalLM.from_pretrained(str(tiny_model)))
    assert sorted(found) == sorted(LLAMA)
