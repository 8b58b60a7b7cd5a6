"""`flash` where it hands over to SDPA, and models whose attention it cannot compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GptOssConfig, GptOssForCausalLM, MistralConfig
from transformers import MistralForCausalLM as Mistral

from finetune_api.exit_codes import ExitCode
from finetune_api.job.evaluation import Generation
from finetune_api.stages import TrainPlan
from finetune_runner.errors import StageError
from finetune_runner.evaluation.engines import Request, open_engine
from finetune_runner.training.attention import attend, implementation
from finetune_runner.training.loading import load_base, load_tokenizer

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}


def plan(attention: str) -> TrainPlan:
    return TrainPlan(
        method="lora",
        strategy="single",
        nodes=1,
        gpus_per_node=0,
        total_steps=1,
        micro_batch_size=1,
        gradient_accumulation=1,
        eval_steps=1,
        attention=attention,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma-2")
    Gemma2ForCausalLM(Gemma2Config(**TINY)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tokens", [4, 24], ids=["within the window", "beyond the window"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_sliding_window_slides_in_rows_that_are_not_packed(tokens: int, rows: int) -> None:
    torch.manual_seed(0)
    model = Mistral(MistralConfig(**TINY, sliding_window=4)).eval()
    ids = torch.randint(5, 97, (rows, tokens))
    found = {}
    for name in ("eager", "flash"):
        model.set_attn_implementation(implementation(name))
        with torch.no_grad():
            found[name] = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found["flash"], found["eager"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["flash", "sdpa"])
def test_a_model_without_sdpa_is_refused_before_it_is_trained(attention: str, gemma: Path, tmp_path: Path) -> None:
    sinks = GptOssForCausalLM(GptOssConfig(**TINY, **EXPERTS))
    sinks.save_pretrained(tmp_path)
    for folder in (gemma, tmp_path):
        with pytest.raises(StageError) as refused:
            load_base(folder, "lora", CPU, plan(attention))
        assert refused.value.exit_code == ExitCode.MODEL_UNUSABLE
        assert refused.value.hint == "set model.attention: eager"


def test_with_eager_it_loads(gemma: Path) -> None:
    assert load_base(gemma, "lora", CPU, plan("eager")).config._attn_implementation == "eager"


@pytest.mark.parametrize("option", ["s_aux", "softcap"])
def test_what_the_kernel_cannot_do_is_not_swallowed(option: str) -> None:
    tensor = torch.zeros(1, 1, 4, 8)
    with pytest.raises(StageError, match="the model's attention has"):
        attend(torch.nn.Module(), tensor, tensor, tensor, None, **{option: 1.0})
    attend(torch.nn.Module(), tensor, tensor, tensor, None, **{option: None})


def test_a_merged_model_is_judged_with_the_plans_attention(gemma: Path, tiny_model: Path) -> None:
    request = Request(gemma, None, None, load_tokenizer(tiny_model), plan("eager"), 4, Generation())
    engine: Any = open_engine("transformers", request)
    assert engine.model.config._attn_implementation == "eager"
