"""Merging file by file: the same model as PEFT's merge in memory, holding the weights of one file at a time."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoModelForCausalLM

from finetune_runner.evaluation import serving
from finetune_runner.evaluation.merging import NotByShardsError, merge_by_shards
from finetune_runner.training.loading import load_base, merged
from tests.runner.tiny import make_world

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sharded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, saved in several files."""
    folder = tmp_path_factory.mktemp("sharded")
    AutoModelForCausalLM.from_pretrained(str(tiny_model)).save_pretrained(str(folder), max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 4
    return folder


def make_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter whose every matrix moves its weight by about a tenth."""
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(base)), LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
        if "magnitude" in name:
            parameter.data *= 1.1
    model.save_pretrained(str(folder))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(str(file))
    return found


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {}),
        ("lora", {"use_rslora": True}),
        ("lora", {"use_dora": True}),
        ("lora", {"target_modules": ["q_proj", "down_proj"]}),
        ("qlora", {}),
        ("qlora", {"target_modules": ["q_proj"]}),
    ],
    ids=["lora", "rslora", "dora", "two targets", "qlora", "qlora one target"],
)
def test_it_is_the_model_that_peft_merges_in_memory(
    method: Any, options: dict[str, Any], sharded: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(sharded, tmp_path / "adapter", **options)
    dtype = torch.bfloat16 if method == "qlora" else torch.float32
    target = tmp_path / "merged"
    merge_by_shards(sharded, adapter, target, quantise=method == "qlora", dtype=dtype, device=CPU)
    expected = merged(load_base(sharded, method, CPU, None), adapter, method)
    found = weights(target)
    own = {name: tensor for name, tensor in expected.state_dict().items() if name != "lm_head.weight"}
    assert set(found) == set(own), "every weight, tied ones once"
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6
    for name, tensor in own.items():
        assert found[name].dtype == dtype
        torch.testing.assert_close(found[name], tensor.to(dtype), rtol=2 * rounding, atol=2 * rounding * 0.1)
    loaded: Any = AutoModelForCausalLM.from_pretrained(str(target), dtype="auto")
    ids = torch.arange(5, 25)[None]
    torch.testing.assert_close(loaded(ids).logits.float(), expected(ids).logits.float(), rtol=0.05, atol=0.05)
    changed = weights(sharded)["model.layers.0.self_attn.q_proj.weight"].to(dtype)
    assert not torch.equal(found["model.layers.0.self_attn.q_proj.weight"], changed)


def test_the_index_names_the_files_of_the_base(sharded: Path, tmp_path: Path) -> None:
    adapter = make_adapter(sharded, tmp_path / "adapter")
    merge_by_shards(sharded, adapter, tmp_path / "m", quantise=False, dtype=torch.float32, device=CPU)
    index, original = (
        json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (tmp_path / "m", sharded)
    )
    assert index["weight_map"] == original["weight_map"]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights(tmp_path / "m").values())
    assert "quantization_config" not in json.loads((tmp_path / "m" / "config.json").read_text())


def live_bytes(minimum: int = 1024) -> int:
    """Bytes of all weights that Python still holds."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        # What torch.compile traced with in an earlier test has no bytes.
        if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)
    }
    return sum(size for size in storages.values() if size >= minimum)


def test_no_more_than_one_file_is_held(sharded: Path, tmp_path: Path) -> None:
    adapter = make_adapter(sharded, tmp_path / "adapter", r=1)
    sizes = [file.stat().st_size for file in sharded.glob("*.safetensors")]
    adapter_size = (adapter / "adapter_model.safetensors").stat().st_size
    gc.collect()
    before, seen = live_bytes(), []
    merge_by_shards(
        sharded,
        adapter,
        tmp_path / "m",
        quantise=False,
        dtype=torch.float32,
        device=CPU,
        on_tensor=lambda done, total: seen.append(live_bytes() - before),
    )
    largest = max(tensor.nbytes for tensor in weights(sharded).values())
    # One file as it is written, one weight as it was read, and the adapter.
    assert max(seen) <= max(sizes) + largest + 2 * adapter_size
    assert sum(sizes) > 1.5 * (max(sizes) + largest + 2 * adapter_size), "the model is much larger than what is held"


def test_a_stop_is_heard_between_weights(sharded: Path, tmp_path: Path) -> None:
    adapter = make_adapter(sharded, tmp_path / "adapter")

    def stop(done: int, total: int) -> None:
        assert total > 10
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        merge_by_shards(
            sharded, adapter, tmp_path / "m", quantise=False, dtype=torch.float32, device=CPU, on_tensor=stop
        )


def renamed(base: Path, folder: Path) -> None:
    file = next(iter(sorted(base.glob("*.safetensors"))))
    folder.mkdir()
    (folder / "config.json").write_text((base / "config.json").read_text())
    tensors = {f"transformer.{name}": tensor for name, tensor in load_file(str(file)).items()}
    save_file(tensors, str(folder / "model.safetensors"))


def test_a_model_whose_files_use_other_names_is_refused_with_the_name(sharded: Path, tmp_path: Path) -> None:
    renamed(sharded, tmp_path / "other")
    adapter = make_adapter(sharded, tmp_path / "adapter")
    with pytest.raises(NotByShardsError, match=r"for example transformer\.model"):
        merge_by_shards(tmp_path / "other", adapter, tmp_path / "m", quantise=False, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"bias": "all"}, "bias"), ({"rank_pattern": {"q_proj": 2}}, "rank_pattern")],
)
def test_an_adapter_that_holds_more_than_low_rank_updates_is_refused(
    options: dict[str, Any], words: str, sharded: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(sharded, tmp_path / "adapter", **options)
    with pytest.raises(NotByShardsError, match=words):
        merge_by_shards(sharded, adapter, tmp_path / "m", quantise=False, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(("method", "device"), [("qlora-8bit", "cuda"), ("qlora-8bit", "cpu"), ("lora", "cuda")])
def test_the_gpu_is_free_again_before_other_processes_load_models(
    method: Any, device: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch has cached after the merge is lost to every process but this one."""
    alive: list[weakref.ref[Any]] = []
    emptied: list[list[bool]] = []

    class Model:
        def save_pretrained(self, folder: str, *, safe_serialization: bool) -> None:
            assert safe_serialization

    def merge_in_memory(*_: Any) -> Model:
        model = Model()
        model.itself = model  # type: ignore[attr-defined] # as modules and hooks do: only the collector frees it
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(serving, "load_base", lambda *_: None)
    monkeypatch.setattr(serving, "merged", merge_in_memory)
    monkeypatch.setattr(serving, "merge_by_shards", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append([ref() is not None for ref in alive]))
    context = make_world(tmp_path, tiny_model).context("evaluate")
    serving.make_merged(context, tiny_model, tmp_path, tmp_path / "merged", method, torch.device(device))
    in_memory = method == "qlora-8bit"
    assert emptied == ([[False] * in_memory] if device == "cuda" else [])
