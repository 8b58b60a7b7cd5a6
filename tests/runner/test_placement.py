"""One copy of a model over several GPUs. No GPU is here: their number and the room on them are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from finetune_api.job.evaluation import Generation
from finetune_api.stages import TrainPlan
from finetune_operator.planner.families import known_shapes
from finetune_operator.planner.memory.spreading import blocks_on_a_gpu, spread_weight_bytes
from finetune_operator.planner.shape import ModelShape
from finetune_runner.evaluation.engines import transformers_engine
from finetune_runner.evaluation.engines.base import Request
from finetune_runner.evaluation.parallel import processes
from finetune_runner.text import encode_example, encode_prompt, load_tokenizer
from finetune_runner.training import placement
from finetune_runner.training.loading import load_base, new_adapter
from tests.runner.tiny import make_world, tickets

PLAN = TrainPlan(
    method="lora",
    strategy="single",
    nodes=1,
    gpus_per_node=4,
    judging_gpus=2,
    total_steps=1,
    micro_batch_size=1,
    gradient_accumulation=1,
    eval_steps=1,
)


def skeleton(shape: ModelShape) -> Any:
    """A model of a shape without its weights."""
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied_embeddings,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "gpus"), [("Llama-3.1-70B", 2), ("Llama-3.1-70B", 8), ("Llama-3.1-8B", 4), ("Qwen2.5-0.5B", 2)]
)
def test_no_gpu_gets_more_than_is_forecast(name: str, gpus: int) -> None:
    from accelerate.utils.modeling import compute_module_sizes

    shape = known_shapes()[name]
    model = skeleton(shape)
    found, sizes = placement.balanced(model, gpus), compute_module_sizes(model)
    weights = [sum(sizes[module] for module, number in found.items() if number == gpu) for gpu in range(gpus)]
    blocks = [
        sum(number == gpu for module, number in found.items() if module.startswith("model.layers."))
        for gpu in range(gpus)
    ]

    assert sum(blocks) == shape.layers
    assert all(module.count(".") <= 2 for module in found), "blocks are not cut"
    assert max(weights) <= spread_weight_bytes(shape, "none", gpus) <= 1.6 * max(weights)
    assert max(blocks) <= blocks_on_a_gpu(shape, gpus)


def test_a_process_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "pick_device", lambda plan: torch.device("cuda", 1))
    assert placement.judging_devices(PLAN) == [torch.device("cuda", 2), torch.device("cuda", 3)]
    one = PLAN.model_copy(update={"judging_gpus": 1})
    assert placement.judging_devices(one) == [torch.device("cuda", 1)]


def test_on_a_cpu_nothing_is_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CPU_STANDS_IN", "1")
    assert placement.judging_devices(PLAN) == [torch.device("cpu")]
    assert placement.judging_devices(None) == [torch.device("cpu")]


@pytest.mark.parametrize(("gpus", "spread", "wanted"), [(8, 1, 8), (8, 2, 4), (8, 8, 1), (2, 2, 1)])
def test_a_copy_is_a_process(gpus: int, spread: int, wanted: int, tmp_path: Path, tiny_model: Path) -> None:
    world = make_world(tmp_path, tiny_model, gpus_per_node=gpus, judging_gpus=spread)
    assert processes(world.context("evaluate"), 400) == wanted


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_spread_model_answers_and_scores_as_a_whole_one(
    method: Any, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CPU_STANDS_IN", "1")
    plan = PLAN.model_copy(update={"method": method})
    world = make_world(tmp_path, tiny_model)
    cpu = torch.device("cpu")
    adapted = new_adapter(load_base(tiny_model, method, cpu, plan), world.task("train").spec.method, 1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    tokenizer = load_tokenizer(tiny_model)
    rows = tickets(20, 3)
    prompts = [encode_prompt(tokenizer, row.prompt) for row in rows]
    examples = [encode_example(tokenizer, row.messages, 128) for row in rows]
    request = Request(tiny_model, method, tmp_path / "adapter", tokenizer, plan, 6, Generation())

    def judged() -> tuple[Any, Any, Any]:
        engine = transformers_engine.open_engine(request)
        answers, scores = engine.answer(prompts), engine.score(examples)
        places = getattr(engine.model.get_base_model(), "hf_device_map", {})
        assert engine.close() > 0
        return answers, scores, places

    whole = judged()
    # The CPU by two names stands for two GPUs: every block is moved to "its" one.
    monkeypatch.setattr(placement, "judging_devices", lambda plan: [cpu, torch.device("cpu", 0)])
    # accelerate knows that cuda and cuda:0 are one; of the CPU's two names it does not.
    monkeypatch.setattr("accelerate.utils.modeling.check_device_same", lambda one, other: one.type == other.type)
    spread = judged()

    assert {str(device) for device in spread[2].values()} == {"cpu", "cpu:0"}
    assert spread[0] == whole[0]
    assert np.array_equal(spread[1], whole[1])
