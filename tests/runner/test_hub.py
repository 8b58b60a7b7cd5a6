"""hf:// against a server that speaks the hub's API, asked by the hub's own client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_runner import hub
from finetune_runner.errors import StageError
from finetune_runner.evaluation.incumbent import base_of as incumbent_base
from finetune_runner.hub import Account
from finetune_runner.model_source import fetch_model, model_digest
from tests.runner.hub_jobs import OFFICIAL, account, context_of, prepared, secret
from tests.runner.hub_server import HubServer, sha256
from tests.runner.stores import PrepareWorld, varied


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


def test_a_model_is_fetched_at_the_commit_its_revision_names(
    world: PrepareWorld, server: HubServer, tiny_model: Path
) -> None:
    repo = server.model(OFFICIAL, tiny_model)
    first = repo.refs["main"]
    fetched = fetch_model(context_of(world, server))
    assert fetched.revision == first
    assert fetched.digest == model_digest(tiny_model)
    # The branch moves on; stages after prepare stay with what was pinned, and ask nobody.
    repo.commit({"config.json": b"{}"})
    asked = len(server.requests)
    assert fetch_model(context_of(world, server, prepared(fetched))) == fetched
    assert len(server.requests) == asked


def test_pickles_code_and_subfolders_are_not_fetched(world: PrepareWorld, server: HubServer, tiny_model: Path) -> None:
    files = {item.name: item.read_bytes() for item in tiny_model.iterdir()}
    extra = dict.fromkeys(("pytorch_model.bin", "modeling.py", "onnx/model.safetensors"), b"x" * 2000)
    server.model(OFFICIAL, files | extra | {"consolidated.safetensors": files["model.safetensors"]})
    fetched = fetch_model(context_of(world, server))
    assert not any(server.gets(name) for name in (*extra, "consolidated"))
    assert fetched.digest == model_digest(tiny_model)


def test_a_token_goes_to_the_hub_and_not_to_its_cdn(world: PrepareWorld, server: HubServer, tiny_model: Path) -> None:
    server.model(OFFICIAL, tiny_model, private=True)
    fetch_model(context_of(world, server, secretRef=secret(world, server, HubServer.TOKEN)))
    assert {r.authorization for r in server.requests if "/cdn/" not in r.path} == {f"Bearer {HubServer.TOKEN}"}
    assert {r.authorization for r in server.gets("/cdn/")} == {""}


REFUSALS = {
    "no such model": ({}, {"source": "hf://acme/none"}, ExitCode.SOURCE_NOT_FOUND, "hf://acme/none does not exist"),
    "private, no token": ({"private": True}, {}, ExitCode.SOURCE_NOT_FOUND, "or is private"),
    "private, another's token": ({"private": True}, {"token": "x"}, ExitCode.SOURCE_NOT_FOUND, "or is private"),
    "gated, no token": ({"gated": True}, {}, ExitCode.ACCESS_DENIED, "is gated or private"),
    "gated, terms not accepted": ({"gated": True}, {"token": "x"}, ExitCode.ACCESS_DENIED, "is gated or private"),
    "no such revision": ({}, {"revision": "v7"}, ExitCode.SOURCE_NOT_FOUND, "has no revision v7"),
    "no such commit": ({}, {"revision": "0" * 40}, ExitCode.SOURCE_NOT_FOUND, f"has no revision {'0' * 40}"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_the_model_and_the_fix(
    world: PrepareWorld, server: HubServer, tiny_model: Path, case: str
) -> None:
    kind, wanted, code, says = REFUSALS[case]
    server.model(OFFICIAL, tiny_model, **kind)
    spec = {key: value for key, value in wanted.items() if key != "token"}
    token = HubServer.STRANGER if "token" in wanted else ""
    with pytest.raises(StageError) as caught:
        fetch_model(context_of(world, server, secretRef=secret(world, server, token), **spec))
    assert caught.value.exit_code == code
    assert says in caught.value.message
    assert "HF_TOKEN" in caught.value.hint or "revision" in caught.value.hint
    assert not server.gets("/cdn/")


def test_gated_terms_that_were_accepted_open_the_model(
    world: PrepareWorld, server: HubServer, tiny_model: Path
) -> None:
    server.model(OFFICIAL, tiny_model, gated=True)
    fetched = fetch_model(context_of(world, server, secretRef=secret(world, server, HubServer.TOKEN)))
    assert fetched.digest == model_digest(tiny_model)


def test_a_model_of_pickles_is_refused_before_it_is_fetched(world: PrepareWorld, server: HubServer) -> None:
    server.model(OFFICIAL, {"config.json": b'{"model_type": "llama"}', "pytorch_model.bin": b"x" * 5000})
    with pytest.raises(StageError, match=r"has no \*.safetensors \(only pytorch_model.bin\)") as caught:
        fetch_model(context_of(world, server))
    assert "save_pretrained" in caught.value.hint
    assert not server.gets("/resolve/")


@pytest.mark.parametrize(
    ("config", "says", "hint"),
    [
        ({"model_type": "lama"}, 'model_type "lama"', "nearest names: llama"),
        ({"model_type": "qwen33"}, 'model_type "qwen33"', "qwen3"),
        ({"model_type": "own", "auto_map": {"AutoModel": "x.Y"}}, "its own code, which is never run", "known arch"),
        ({}, "model_type null", "known architecture"),
        ({"model_type": "vit"}, "no causal language model", "known architecture"),
        (
            {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}},
            "already quantised (quantization_config: mxfp4)",
            "published in bf16",
        ),
        ({"model_type": "llama", "quantization_config": {"quant_method": "awq"}}, "already quantised", "unquantised"),
    ],
)
def test_an_unknown_architecture_is_refused_before_its_weights_are_fetched(
    world: PrepareWorld, server: HubServer, tiny_model: Path, config: dict[str, Any], says: str, hint: str
) -> None:
    files = {item.name: item.read_bytes() for item in tiny_model.iterdir()}
    server.model(OFFICIAL, files | {"config.json": json.dumps(config).encode()})
    with pytest.raises(StageError) as caught:
        fetch_model(context_of(world, server))
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert not server.gets("/cdn/")


def test_a_broken_connection_is_taken_up_where_it_broke(
    world: PrepareWorld, server: HubServer, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (tiny_model / "model.safetensors").read_bytes()
    server.model(OFFICIAL, tiny_model)
    server.cut[sha256(weights)] = 1
    # A broken connection loses at most one chunk; the client's own is larger than this model.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    assert fetch_model(context_of(world, server)).digest == model_digest(tiny_model)
    assert [r.range for r in server.gets(sha256(weights))] == ["", f"bytes={len(weights) // 2000 * 1000}-"]


def test_a_hub_that_goes_away_in_the_middle_is_unavailable_and_the_next_attempt_goes_on(
    world: PrepareWorld, server: HubServer, tiny_model: Path
) -> None:
    server.model(OFFICIAL, tiny_model)
    weights = sha256((tiny_model / "model.safetensors").read_bytes())
    server.missing = {"tokenizer.json"}
    with pytest.raises(StageError) as caught:
        fetch_model(context_of(world, server))
    assert caught.value.exit_code == ExitCode.SOURCE_NOT_FOUND
    assert f"hf://{OFFICIAL}/tokenizer.json" in caught.value.message
    assert len(server.gets(weights)) == 1
    server.missing = set()
    assert fetch_model(context_of(world, server)).digest == model_digest(tiny_model)
    assert len(server.gets(weights)) == 1, "what was whole is not fetched again"


def test_what_differs_from_the_hubs_hash_is_refused_and_never_shown(
    world: PrepareWorld, server: HubServer, tiny_model: Path
) -> None:
    weights = (tiny_model / "model.safetensors").read_bytes()
    server.model(OFFICIAL, tiny_model)
    server.lies[sha256(weights)] = weights[:-1] + b"\0"
    context = context_of(world, server)
    with pytest.raises(StageError, match=r"model\.safetensors is not what the source lists") as caught:
        fetch_model(context)
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE
    assert not list(context.model_cache.glob("hub/*/snapshots/*"))
    server.lies.clear()
    assert fetch_model(context_of(world, server)).digest == model_digest(tiny_model)


def test_a_small_file_is_held_against_gits_hash(world: PrepareWorld, server: HubServer, tiny_model: Path) -> None:
    server.model(OFFICIAL, tiny_model)
    fetched = fetch_model(context_of(world, server))
    config = fetched.path / "generation_config.json"
    good = config.read_bytes()
    config.write_bytes(good.replace(b"{", b"[", 1))
    assert fetch_model(context_of(world, server)).digest == fetched.digest
    assert config.read_bytes() == good


def test_a_disk_too_small_is_told_before_the_first_byte(
    world: PrepareWorld, server: HubServer, tiny_model: Path
) -> None:
    server.model(OFFICIAL, tiny_model)
    server.sizes["model.safetensors"] = 10**17
    with pytest.raises(StageError, match=r"needs 100000\.0 TB more, .* has room for [0-9.]+ [GT]B") as caught:
        fetch_model(context_of(world, server))
    assert caught.value.exit_code == ExitCode.DISK_FULL
    assert "scratchSize" in caught.value.hint
    assert not server.gets("/cdn/")


def test_a_model_larger_than_the_pods_scratch_is_told_before_the_first_byte(
    world: PrepareWorld, server: HubServer, tiny_model: Path
) -> None:
    """What the kubelet would answer with an eviction after hours of downloading."""
    server.model(OFFICIAL, tiny_model)
    context = replace(context_of(world, server), scratch_limit_bytes=64 << 20)
    with pytest.raises(StageError, match=r"has room for 0 bytes") as caught:
        fetch_model(context)
    assert caught.value.exit_code == ExitCode.DISK_FULL
    assert not server.gets("/cdn/")
    assert fetch_model(replace(context, scratch_limit_bytes=80 << 20)).digest == model_digest(tiny_model)


def test_the_download_is_told_with_amounts_and_percent(
    world: PrepareWorld, server: HubServer, tiny_model: Path
) -> None:
    server.model(OFFICIAL, tiny_model)
    fetch_model(context_of(world, server))
    fetching = [p for p in world.said if p.phase.startswith(f"fetching hf://{OFFICIAL} ")]
    assert fetching[0].phase.startswith(f"fetching hf://{OFFICIAL} 0.0 of ")
    assert fetching[0].percent == 0
    assert fetching[-1].percent == 100
    assert [p.percent for p in fetching] == sorted(p.percent for p in fetching)


def test_a_pinned_commit_in_the_cache_needs_no_hub_that_answers(
    world: PrepareWorld, server: HubServer, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = server.model(OFFICIAL, tiny_model).refs["main"]
    fetched = fetch_model(context_of(world, server, revision=commit))
    other = server.model("acme/other", tiny_model).refs["main"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch_model(context_of(world, server, revision=commit)) == fetched
    with pytest.raises(StageError) as caught:
        fetch_model(context_of(world, server, source="hf://acme/other", revision=other))
    assert caught.value.exit_code == ExitCode.STORAGE_UNAVAILABLE


@pytest.mark.parametrize("pinned", [True, False])
def test_a_gated_model_in_the_cache_is_for_jobs_with_access(
    world: PrepareWorld, server: HubServer, tiny_model: Path, pinned: bool
) -> None:
    commit = server.model(OFFICIAL, tiny_model, gated=True).refs["main"]
    asked = {"revision": commit} if pinned else {}
    allowed = context_of(world, server, secretRef=secret(world, server, HubServer.TOKEN), **asked)
    fetched = fetch_model(allowed)
    own_scratch = {"scratch": world.folder / "scratch of another pod", "model_cache": allowed.model_cache}
    stranger = context_of(world, server, secretRef=secret(world, server, HubServer.STRANGER), **asked)
    with pytest.raises(StageError, match="is gated or private") as caught:
        fetch_model(replace(stranger, **own_scratch))
    assert caught.value.exit_code == ExitCode.ACCESS_DENIED
    also_allowed = context_of(world, server, secretRef=secret(world, server, HubServer.TOKEN), **asked)
    downloads = len(server.gets("/cdn/"))
    assert fetch_model(replace(also_allowed, **own_scratch)) == fetched
    assert len(server.gets("/cdn/")) == downloads


def test_one_hubs_files_do_not_answer_for_anothers(world: PrepareWorld, server: HubServer, tiny_model: Path) -> None:
    """Another hub may call anything by this commit."""
    repo = server.model(OFFICIAL, tiny_model)
    commit = repo.refs["main"]
    first = fetch_model(context_of(world, server, revision=commit))
    with HubServer() as another:
        files = {item.name: item.read_bytes() for item in tiny_model.iterdir()}
        theirs = another.model(OFFICIAL, files | {"generation_config.json": b"{}"})
        theirs.commits[commit] = theirs.commits[theirs.refs["main"]]
        second = fetch_model(context_of(world, another, revision=commit))
        assert second.digest != first.digest
        assert second.path != first.path
        assert fetch_model(context_of(world, server, revision=commit)) == first


def test_the_runner_reads_hf_endpoint_from_its_environment(
    world: PrepareWorld, server: HubServer, tiny_model: Path, tmp_path: Path
) -> None:
    server.model(OFFICIAL, tiny_model)
    server.dataset("acme/rows", {"train.jsonl": b"".join(json.dumps(r).encode() + b"\n" for r in varied(120))})
    task = world.task({"train": [{"source": "hf://datasets/acme/rows"}]}, model={"source": f"hf://{OFFICIAL}"})
    (tmp_path / "task.json").write_text(json.dumps(task.to_wire()))
    ran = subprocess.run(
        [sys.executable, "-m", "finetune_runner", "prepare", "--task", str(tmp_path / "task.json")],
        env={
            "PATH": "/usr/bin:/bin",
            "HF_ENDPOINT": server.endpoint,
            "HOME": str(tmp_path),
            "FINETUNE_SCRATCH": str(tmp_path / "scratch"),
            "FINETUNE_TERMINATION_LOG": str(tmp_path / "termination.json"),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path / "termination.json").read_text())
    assert report["result"]["prepare"]["modelDigest"] == model_digest(tiny_model)
    assert report["result"]["prepare"]["revision"] == server.repos["models", OFFICIAL].refs["main"]


@pytest.mark.parametrize("name", ["not a/name", "a/b/c", "owner/na--me"])
def test_what_is_no_name_on_the_hub_is_refused(server: HubServer, name: str) -> None:
    with pytest.raises(StageError, match="is not a name on the hub") as caught:
        hub.resolve_revision(name, "main", "model", account(server))
    assert caught.value.exit_code == ExitCode.INVALID_SPEC


def test_a_hub_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(StageError, match="does not answer") as caught:
        hub.resolve_revision("owner/name", "main", "model", Account(None, "http://127.0.0.1:9"))
    assert caught.value.exit_code == ExitCode.STORAGE_UNAVAILABLE


def test_a_mirror_that_loses_the_hubs_headers_is_told_from_one_that_is_silent(
    world: PrepareWorld, server: HubServer, tiny_model: Path
) -> None:
    server.model(OFFICIAL, tiny_model)
    server.cdn = server.endpoint  # a redirect to the same host is followed before the headers are looked at
    with pytest.raises(StageError, match="does not answer as the hub does") as caught:
        fetch_model(context_of(world, server))
    assert caught.value.exit_code == ExitCode.STORAGE_UNAVAILABLE
    assert "X-Repo-Commit" in caught.value.evidence


def test_stages_after_prepare_read_the_pools_cache_and_write_nothing(
    world: PrepareWorld, server: HubServer, tiny_model: Path
) -> None:
    """What the pod templates give: prepare mounts the cache writable, the others read-only and know no hub."""
    server.model(OFFICIAL, tiny_model)
    cache = world.folder / "claim"
    prepare_pod = replace(context_of(world, server), model_cache=cache, scratch=world.folder / "prepare-pod")
    fetched = fetch_model(prepare_pod)
    assert fetched.path.is_relative_to(cache)
    server.gone_after = 0
    before = sorted(str(path) for path in cache.rglob("*"))
    train_pod = replace(
        context_of(world, server, prepared(fetched)),
        model_cache=cache,
        model_cache_read_only=True,
        scratch=world.folder / "train-pod",
    )
    assert fetch_model(train_pod) == fetched
    assert sorted(str(path) for path in cache.rglob("*")) == before
    (fetched.path / "config.json").write_text("{}")
    asked = len(server.requests)
    with pytest.raises(StageError, match="is not whole in the model cache") as caught:
        fetch_model(train_pod)
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE
    assert len(server.requests) == asked


@pytest.mark.parametrize("cached", [True, False])
def test_a_released_version_on_another_base_is_asked_whether_that_is_cached_or_not(
    world: PrepareWorld, server: HubServer, tiny_model: Path, tmp_path: Path, cached: bool
) -> None:
    server.model(OFFICIAL, tiny_model)
    old_files = {item.name: item.read_bytes() for item in tiny_model.iterdir()} | {"notes.txt": b"another base"}
    old_commit = server.model("acme/old", old_files).refs["main"]
    cache = world.folder / "claim"
    fetched = fetch_model(replace(context_of(world, server), model_cache=cache))
    old = fetch_model(replace(context_of(world, server, source="hf://acme/old"), model_cache=tmp_path / "elsewhere"))
    if cached:
        fetch_model(replace(context_of(world, server, source="hf://acme/old"), model_cache=cache))
    reading = replace(
        context_of(world, server, prepared(fetched)),
        model_cache=cache,
        model_cache_read_only=True,
        scratch=world.folder / "evaluate-pod",
    )
    base = {"source": "hf://acme/old", "revision": old_commit, "digest": old.digest}
    found = incumbent_base(reading, {"base": base})
    assert found.digest == old.digest
    assert found.path.is_relative_to(cache if cached else reading.scratch)
