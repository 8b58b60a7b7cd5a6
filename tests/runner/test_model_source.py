"""The base model's files: where they come from, what is refused, and how they are known again."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import PrepareResult, Progress, StageResults
from finetune_runner import mounts
from finetune_runner.errors import StageError
from finetune_runner.model_files import FREQUENT_TYPES, check_architecture, check_files
from finetune_runner.model_source import fetch_model, model_digest, model_facts
from finetune_runner.training.loading import load_base
from tests.cluster.harness.s3 import S3Server
from tests.runner.stores import PrepareWorld, s3_storage

MOUNTED = hashlib.sha256(b"registry.example.com:5000/team/base:v1").hexdigest()[:16]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def context_of(world: PrepareWorld, results: StageResults | None = None) -> Any:
    task = world.task({"train": [{"source": "file:///a.jsonl"}]})
    return world.open(task.model_copy(update={"results": results or StageResults()}))


def pinned(digest: str) -> StageResults:
    return StageResults(
        prepare=PrepareResult.from_wire(
            {
                "revision": digest,
                "modelDigest": digest,
                "model": {"architecture": "A", "parameters": 1},
                "rows": {},
                "trainTokens": 1,
                "lengths": {},
                "dataDigest": "d",
                "testDigest": "t",
            }
        )
    )


def test_a_model_on_disk_is_used_in_place(world: PrepareWorld, model: Path) -> None:
    world.model = f"file://{model}"
    path, revision, digest = fetch_model(context_of(world))
    assert path == model
    assert revision == digest == model_digest(model)


def test_code_and_notes_do_not_count_as_the_model(world: PrepareWorld, model: Path) -> None:
    before = model_digest(model)
    (model / "modeling_custom.py").write_text("raise SystemExit")
    (model / "README.md").write_text("read me")
    assert model_digest(model) == before
    (model / "tokenizer_config.json").write_text("{}")
    assert model_digest(model) != before


def test_a_model_that_changed_after_prepare_is_refused(world: PrepareWorld, model: Path) -> None:
    world.model = f"file://{model}"
    with pytest.raises(StageError, match="no longer those that stage prepare saw") as caught:
        fetch_model(context_of(world, pinned("0" * 64)))
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE
    assert fetch_model(context_of(world, pinned(model_digest(model)))).path == model


def test_a_model_on_s3_is_fetched_once(world: PrepareWorld, model: Path, s3: S3Server, tmp_path: Path) -> None:
    world.storage = s3_storage(s3, tmp_path)
    bucket = s3.make_bucket()
    (model / "pytorch_model.bin").write_bytes(b"a pickle nobody fetches")
    for item in model.iterdir():
        s3.client().upload_file(str(item), bucket, f"tiny/{item.name}")
    world.model = f"s3://{bucket}/tiny/"
    fetched = fetch_model(context_of(world))
    assert fetched.digest == model_digest(model)
    assert not (fetched.path / "pytorch_model.bin").exists()
    s3.client().put_object(Bucket=bucket, Key="tiny/model.safetensors", Body=(model / "model.safetensors").read_bytes())
    again = fetch_model(context_of(world, pinned(fetched.digest)))
    assert again == fetched
    assert [path.name for path in fetched.path.parent.iterdir()] == [fetched.path.name]


def test_a_model_that_vanishes_from_a_bucket_in_the_middle_is_named(
    world: PrepareWorld, model: Path, s3: S3Server, tmp_path: Path
) -> None:
    world.storage = s3_storage(s3, tmp_path)
    bucket = s3.make_bucket()
    for item in model.iterdir():
        s3.client().upload_file(str(item), bucket, f"tiny/{item.name}")
    world.model = f"s3://{bucket}/tiny"
    context = context_of(world)

    def vanish(progress: Progress) -> None:
        if progress.phase.startswith("fetching"):
            s3.client().delete_object(Bucket=bucket, Key="tiny/tokenizer.json")

    with pytest.raises(StageError, match=r"tiny/tokenizer\.json does not exist") as caught:
        fetch_model(replace(context, progress=vanish))
    assert caught.value.exit_code == ExitCode.SOURCE_NOT_FOUND
    assert not list(context.model_cache.glob("s3/*"))
    s3.client().upload_file(str(model / "tokenizer.json"), bucket, "tiny/tokenizer.json")
    assert fetch_model(context).digest == model_digest(model)


@pytest.mark.parametrize(
    ("remove", "add", "code", "says"),
    [
        ("model.safetensors", "", ExitCode.MODEL_UNUSABLE, "has no *.safetensors"),
        ("model.safetensors", "pytorch_model.bin", ExitCode.MODEL_UNUSABLE, "(only pytorch_model.bin)"),
        ("config.json", "", ExitCode.MODEL_UNUSABLE, "has no config.json"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(
    world: PrepareWorld, model: Path, remove: str, add: str, code: ExitCode, says: str
) -> None:
    (model / remove).unlink()
    if add:
        (model / add).write_bytes(b"")
    world.model = f"file://{model}"
    with pytest.raises(StageError) as caught:
        fetch_model(context_of(world))
    assert caught.value.exit_code == code
    assert says in caught.value.message
    assert caught.value.hint


def test_a_missing_folder_is_source_not_found(world: PrepareWorld) -> None:
    world.model = "file:///no/such/model"
    with pytest.raises(StageError) as caught:
        fetch_model(context_of(world))
    assert caught.value.exit_code == ExitCode.SOURCE_NOT_FOUND


def test_facts_come_from_config_and_weights(model: Path) -> None:
    facts = model_facts(model, "file:///model")
    assert (facts.architecture, facts.hidden_size, facts.layers, facts.context_length) == (
        "LlamaForCausalLM",
        64,
        2,
        512,
    )
    attention = 64 * 64 + 2 * 64 * 32 + 64 * 64
    layer = attention + 3 * 64 * 128 + 2 * 64
    assert facts.parameters == facts.vocabulary * 64 + 2 * layer + 64  # embeddings and head are tied
    assert facts.tied_embeddings
    shape = (facts.feed_forward_size, facts.attention_heads, facts.key_value_heads, facts.head_size, facts.experts)
    assert shape == (128, 4, 2, 16, 0)
    assert facts.file_bytes == sum(item.stat().st_size for item in model.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", b"{"), ("model.safetensors", b"\xff" * 20), ("model.safetensors", b"abc"), ("config.json", b"[]")],
)
def test_damaged_files_are_refused(model: Path, name: str, content: bytes) -> None:
    (model / name).write_bytes(content)
    with pytest.raises(StageError, match="damaged") as caught:
        model_facts(model, "file:///model")
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE


def shards(model: Path, count: int = 2) -> list[str]:
    """Split the model's weights into files with an index, as save_pretrained does with large models."""
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    for number, name in enumerate(names):
        save_file({key: tensors[key] for key in sorted(tensors)[number::count]}, model / name)
    place = {key: names[number % count] for number, key in enumerate(sorted(tensors))}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    return names


def test_a_missing_shard_is_named(world: PrepareWorld, model: Path) -> None:
    names = shards(model)
    world.model = f"file://{model}"
    assert fetch_model(context_of(world)).path == model
    (model / names[1]).unlink()
    with pytest.raises(StageError, match=f"lacks {names[1]}: 1 of the 2 weight files") as caught:
        fetch_model(context_of(world))
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE


@pytest.mark.parametrize(("cut", "what"), [(-1, "truncated"), (-200_000, "truncated"), (1, "damaged")])
def test_a_weight_file_that_its_own_head_contradicts_is_named(
    world: PrepareWorld, model: Path, cut: int, what: str
) -> None:
    weights = model / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:cut] if cut < 0 else data + b"\0" * cut)
    world.model = f"file://{model}"
    with pytest.raises(
        StageError, match=rf"model\.safetensors is {what}: .* \({len(data) + cut} and {len(data)} bytes"
    ):
        fetch_model(context_of(world))


def test_shards_without_their_index_are_refused(world: PrepareWorld, model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    with pytest.raises(StageError, match=r"neither model\.safetensors nor .*index\.json, .*model-00001-of") as caught:
        check_files(model, "hf://a/b")
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_hidden_layers": 4}, "config.json says 4 layers, the weights have 2"),
        ({"num_hidden_layers": 2}, ""),
        ({"num_hidden_layers": 1}, ""),  # some keep a layer for what is not computed here (DeepSeek's prediction)
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "already quantised (quantization_config: gptq)"),
        ({"quantization_config": None}, ""),
    ],
)
def test_weights_that_are_not_those_of_the_configuration_are_refused(
    model: Path, changed: dict[str, Any], says: str
) -> None:
    config = json.loads((model / "config.json").read_bytes())
    (model / "config.json").write_text(json.dumps(config | changed))

    def look() -> int:
        check_architecture(model, "hf://a/b")
        return model_facts(model, "hf://a/b").layers

    if not says:
        assert look() == changed.get("num_hidden_layers", 2)
        return
    with pytest.raises(StageError, match=re.escape(says)) as caught:
        look()
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE
    assert caught.value.hint


def test_a_base_that_lacks_weights_is_refused_when_it_is_loaded(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, model / "model.safetensors")
    check_files(model, "hf://a/b")
    with pytest.raises(StageError, match=f"lacks 1 of the weights that its config.json asks for: {lost}") as caught:
        load_base(model, "lora", torch.device("cpu"), None)
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE


def test_what_is_known_without_transformers_is_known_to_it() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) >= FREQUENT_TYPES


def test_a_second_copy_of_the_weights_does_not_count(model: Path) -> None:
    facts, digest = model_facts(model, "file:///model"), model_digest(model)
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    assert (model_facts(model, "file:///model"), model_digest(model)) == (facts, digest)


@pytest.mark.parametrize(
    ("source", "mounted"),
    [
        ("pvc://claim/models/base", "/mnt/pvc/claim/models/base"),
        ("oci://registry.example.com:5000/team/base:v1/model", f"/mnt/oci/{MOUNTED}/model"),
        ("oci://registry.example.com:5000/team/base:v1", f"/mnt/oci/{MOUNTED}"),
    ],
)
def test_mounted_sources_are_folders_of_the_pod(source: str, mounted: str) -> None:
    assert str(mounts.path_of(source)) == mounted


def test_a_model_in_an_image_is_read_where_it_is_mounted(
    world: PrepareWorld, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "OCI_ROOT", model.parent / "images")
    (model.parent / "images").mkdir()
    model.rename(model.parent / "images" / MOUNTED)
    world.model = "oci://registry.example.com:5000/team/base:v1"
    fetched = fetch_model(context_of(world))
    assert fetched.path == model.parent / "images" / MOUNTED
    assert fetched.digest == model_digest(fetched.path)
