"""Mixtures of experts: what gets an adapter, what is held in 4 bit, and that neither changes the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.exit_codes import ExitCode
from finetune_api.job.method import Method
from finetune_api.model_config import facts_of_config
from finetune_api.stages import TrainPlan
from finetune_runner.errors import StageError
from finetune_runner.evaluation.merging import NotByShardsError, merge_by_shards
from finetune_runner.model_files import model_facts
from finetune_runner.training.experts import expert_weights
from finetune_runner.training.guards import refuse_other_loss, refuse_seen_neighbours
from finetune_runner.training.loading import MethodType, load_base, merged, new_adapter
from finetune_runner.training.mixtures import check_mixture, feed_forward_names
from finetune_runner.training.targets import check_targets, linear_modules, resolve_targets
from tests.runner.mixtures import COMMON, KINDS, dealt_out, make_mixture

CPU = torch.device("cpu")
IDS = torch.arange(5, 45).reshape(2, 20)
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
LATENT = {"q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}


@pytest.fixture(scope="module")
def mixtures(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make_mixture(tmp_path_factory.mktemp(kind), kind, tiny_model) for kind in KINDS}


def plan_of(kind: str, method: str = "lora") -> TrainPlan:
    wire: dict[str, Any] = {"strategy": "single", "nodes": 1, "gpus_per_node": 0, "total_steps": 1, "eval_steps": 1}
    sizes = {"micro_batch_size": 1, "gradient_accumulation": 1}
    return TrainPlan(method=method, attention="eager" if kind == "gpt_oss" else "sdpa", **wire, **sizes)


def base_of(folder: Path, kind: str, method: MethodType = "lora") -> Any:
    return load_base(folder, method, CPU, plan_of(kind, method))


def adapted(base: Any) -> Any:
    """With an adapter that changes the model, of the same values whatever the base's form."""
    model = new_adapter(base, Method(rank=4), 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            chance = torch.Generator().manual_seed(sum(map(ord, name)))
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=chance)
    return model


def gradient(model: Any) -> tuple[float, torch.Tensor]:
    model.train()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    found = [p.grad.flatten() for n, p in model.named_parameters() if p.requires_grad]
    return float(loss), torch.cat(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_attention_gets_the_adapter_and_neither_router_nor_experts(kind: str, mixtures: dict[str, Path]) -> None:
    model = new_adapter(base_of(mixtures[kind], kind), Method(rank=4), 0)
    trained = [name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad]
    assert {name.rpartition(".")[2] for name in trained} == (LATENT if kind == "deepseek_v2" else ATTENTION)
    assert all(".self_attn." in name for name in trained)
    assert not model.peft_config["default"].target_parameters


@pytest.mark.parametrize("name", ["gate", "gate_proj", "experts.gate_up_proj", "mlp.down_proj", "w1"])
@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v2"])
def test_a_part_of_the_mixture_is_refused_by_its_name(kind: str, name: str, mixtures: dict[str, Path]) -> None:
    with pytest.raises(StageError, match="experts or the router of a mixture") as refused:
        check_targets(Method.from_wire({"targetModules": f"q_proj,{name}"}), mixtures[kind])
    assert refused.value.exit_code == ExitCode.INVALID_SPEC
    assert f"method.targetModules: '{name}'" in refused.value.message
    assert "o_proj" in refused.value.hint


def test_a_name_of_the_attention_is_taken(mixtures: dict[str, Path]) -> None:
    base = base_of(mixtures["qwen3_moe"], "qwen3_moe")
    found = resolve_targets(
        Method.from_wire({"targetModules": "q_proj,self_attn.v_proj", "excludeModules": "layers.0.self_attn.q_proj"}),
        linear_modules(base),
        "qwen3_moe",
        feed_forward_names(base),
    )
    assert found.target == ["q_proj", "self_attn.v_proj"]
    assert found.exclude == ["layers.0.self_attn.q_proj"]


@pytest.mark.parametrize(
    ("fields", "words", "fix"),
    [
        ({"type": "qlora", "bits": 8}, "method.bits: LLM.int8 quantises linear layers only", "method.bits: 4"),
        ({"bits": 8}, "Qwen3MoeForCausalLM has its weights in 8 experts", "method.type: lora"),
        ({"type": "qlora", "bits": 4}, "", ""),
        ({"type": "lora"}, "", ""),
    ],
)
def test_what_cannot_quantise_experts_is_refused(
    fields: dict[str, Any], words: str, fix: str, mixtures: dict[str, Path], tiny_model: Path
) -> None:
    path, method = mixtures["qwen3_moe"], Method.from_wire(fields)
    check_mixture(method, model_facts(tiny_model, "dense"), tiny_model)
    if not words:
        check_mixture(method, model_facts(path, "mixture"), path)
        return
    with pytest.raises(StageError, match=words) as refused:
        check_mixture(method, model_facts(path, "mixture"), path)
    assert refused.value.exit_code == ExitCode.INVALID_SPEC
    assert fix in refused.value.hint


def test_experts_in_an_unknown_layout_are_named(tmp_path: Path) -> None:
    """Llama 4 computes all of its experts for every token, in code of its own."""
    config = AutoConfig.for_model("llama4_text", **COMMON, intermediate_size=64, num_local_experts=2, vocab_size=64)
    config.architectures = ["Llama4ForCausalLM"]
    config.save_pretrained(tmp_path)
    facts = facts_of_config(config.to_dict(), parameters=0)
    check_mixture(Method(type="lora"), facts, tmp_path)
    with pytest.raises(StageError, match="the experts of Llama4ForCausalLM cannot be quantised") as refused:
        check_mixture(Method(type="qlora"), facts, tmp_path)
    assert "method.type: lora" in refused.value.hint


def test_a_dense_model_has_no_such_names(tiny_model: Path) -> None:
    base = load_base(tiny_model, "lora", CPU, None)
    assert feed_forward_names(base) == frozenset()
    assert any(name.endswith("mlp.down_proj") for name in linear_modules(base))


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_experts_compute_what_transformers_own_do(kind: str, mixtures: dict[str, Path]) -> None:
    model = adapted(base_of(mixtures[kind], kind))
    loss, found = gradient(model)
    model.zero_grad()
    model.get_base_model().set_experts_implementation("eager")
    other, expected = gradient(model)
    assert loss == pytest.approx(other, rel=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_mixture_holds_its_experts_in_4_bit(kind: str, mixtures: dict[str, Path]) -> None:
    """And computes what it would with the restored weights in 16 bit."""
    base = base_of(mixtures[kind], kind, "qlora")
    sizes = [(getattr(module, name), module, name) for _, module, name in expert_weights(base)]
    assert sizes
    for weight, _, _ in sizes:
        whole = weight.quant_state.shape.numel()
        stored = weight.nbytes + weight.quant_state.absmax.nbytes
        assert stored == 0.5625 * whole, "half a byte, and 4 bytes per 64 weights"
    routers = [p for name, p in base.named_parameters() if name.endswith(("mlp.gate.weight", "router.weight"))]
    assert routers
    assert all(p.dtype == torch.bfloat16 for p in routers)
    loss, found = gradient(adapted(base))
    restored = base_of(mixtures[kind], kind, "qlora").dequantize().requires_grad_(False)
    restored.set_experts_implementation("grouped_mm")
    other, expected = gradient(adapted(restored))
    assert loss == pytest.approx(other, rel=5e-3)
    assert torch.cosine_similarity(found, expected, dim=0) > 0.99


def test_a_recomputed_block_takes_the_same_route(mixtures: dict[str, Path]) -> None:
    kept, recomputed = (adapted(base_of(mixtures["qwen3_moe"], "qwen3_moe", "qlora")) for _ in range(2))
    recomputed.gradient_checkpointing_enable({"use_reentrant": False})
    (loss, found), (other, again) = gradient(kept), gradient(recomputed)
    assert loss == other
    torch.testing.assert_close(found, again)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_examples_have_the_losses_that_they_have_alone(kind: str, mixtures: dict[str, Path]) -> None:
    """Whatever else a row holds, a token takes the route that it takes alone."""
    model = adapted(base_of(mixtures[kind], kind))
    examples = [
        (list(range(first, first + size)), list(range(first, first + size))) for first, size in ((5, 9), (40, 6))
    ]
    refuse_other_loss(model, examples, 0, "fp32")
    if kind == "gpt_oss":
        # transformers 5.23 makes its mask without the positions; the planner packs no model that is eager by default.
        with pytest.raises(StageError, match="lets packed examples see each other"):
            refuse_seen_neighbours(model, examples, 0, "fp32")
        return
    refuse_seen_neighbours(model, examples, 0, "fp32")


def saved_bytes(model: Any) -> int:
    """Of the distinct tensors that a forward pass keeps for the backward pass, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=IDS, labels=IDS).loss
    del loss
    return sum(kept.values())


def test_restored_weights_are_not_kept_for_the_gradient(mixtures: dict[str, Path]) -> None:
    """They would be the model in 16 bit again."""
    kind = "qwen3_moe"
    quantised = adapted(base_of(mixtures[kind], kind, "qlora")).train()
    restored = base_of(mixtures[kind], kind, "qlora").dequantize().requires_grad_(False)
    plain = adapted(restored).train()
    experts = sum(2 * getattr(module, name).numel() for _, module, name in expert_weights(restored))
    assert saved_bytes(quantised) < saved_bytes(plain) + 0.1 * experts


def weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        yield from load_file(str(file)).items()


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v2"])
def test_it_is_merged_file_by_file(kind: str, method: MethodType, mixtures: dict[str, Path], tmp_path: Path) -> None:
    """Experts of one block lie in different files, under names of their own."""
    base = dealt_out(mixtures[kind], tmp_path / "base", 3)
    adapted(base_of(base, kind, method)).save_pretrained(str(tmp_path / "adapter"))
    dtype = torch.bfloat16 if method == "qlora" else torch.float32
    target = tmp_path / "merged"
    merge_by_shards(base, tmp_path / "adapter", target, quantise=method == "qlora", dtype=dtype, device=CPU)
    expected = merged(base_of(base, kind, method), tmp_path / "adapter", method).state_dict()
    assert {name for name, _ in weights(target)} == {name for name, _ in weights(base)}
    attention = "eager" if kind == "gpt_oss" else "sdpa"
    loaded = AutoModelForCausalLM.from_pretrained(str(target), dtype="auto", attn_implementation=attention)
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor.to(found[name].dtype), rtol=2**-7, atol=2**-10)
        if "experts" in name:
            assert torch.equal(found[name], tensor.to(found[name].dtype)), "the experts of training, to the bit"
    assert "experts_implementation" not in (target / "config.json").read_text()


def test_experts_of_no_whole_blocks_are_merged_in_memory(tiny_model: Path, tmp_path: Path) -> None:
    base = make_mixture(
        tmp_path / "odd",
        "mixtral",
        tiny_model,
        hidden_size=40,
        num_attention_heads=5,
        intermediate_size=36,
        num_key_value_heads=5,
    )
    adapted(base_of(base, "mixtral", "qlora")).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(NotByShardsError, match="no whole blocks of 64"):
        merge_by_shards(base, tmp_path / "adapter", tmp_path / "m", quantise=True, dtype=torch.bfloat16, device=CPU)
