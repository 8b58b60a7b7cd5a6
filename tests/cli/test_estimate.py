"""`finetune estimate`: what it knows without a cluster, and what it says when it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_cli.main import main

JOB = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: triage}
spec:
  model: {source: MODEL}
  data: {train: [{source: DATA}]}
  method: {type: METHOD}
  output: {adapterRef: {name: triage}}
"""
POOL = """
apiVersion: finetune.dev/v1alpha1
kind: GPUPool
metadata: {name: NAME}
spec: {gpuMemoryGib: GIB, gpusPerNode: 8, gpuModel: MODEL, price: {gpuPerHour: 2.0, currency: EUR}, image: runner:1}
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}
GIVEN = ["--rows", "5000", "--tokens-per-row", "600"]


def job(
    folder: Path, model: str = "hf://meta-llama/Llama-3.1-8B", data: str = "s3://team/a.jsonl", method: str = "qlora"
) -> str:
    path = folder / "job.yaml"
    path.write_text(JOB.replace("MODEL", model).replace("DATA", data).replace("METHOD", method))
    return str(path)


def pool(folder: Path, name: str, gib: int, model: str) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(POOL.replace("NAME", name).replace("GIB", str(gib)).replace("MODEL", model))
    return str(path)


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    monkeypatch.setenv("FINETUNE_STATE", str(tmp_path / "state"))


def test_the_cheapest_pool_that_fits_is_taken_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pools = [pool(tmp_path, "small", 24, "RTX-4090"), pool(tmp_path, "large", 80, "A100-80")]
    arguments = ["estimate", job(tmp_path, "hf://meta-llama/Llama-3.3-70B-Instruct"), *GIVEN]
    assert main([*arguments, "--pool", pools[0], "--pool", pools[1]]) == 0
    shown = capsys.readouterr().out
    assert "cheapest that fits: large with qlora" in shown
    assert "small: does not fit: " in shown
    assert "what would fit: " in shown
    for component in ("weights", "activations", "recomputation", "keyValueCache", "fragmentation", "context"):
        assert component in shown
    assert "5,000 rows of about 600 tokens (as given)" in shown
    assert "EUR" in shown


def test_nothing_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = pool(tmp_path, "small", 24, "RTX-4090")
    code = main(["estimate", job(tmp_path, "hf://meta-llama/Llama-3.1-70B", method="lora"), *GIVEN, "--pool", small])
    shown = capsys.readouterr().out
    assert code == 1
    assert "no pool fits" in shown
    assert "a pool whose GPUs have" in shown


def test_machines_get_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", job(tmp_path), *GIVEN, "--gpu", "A100-80", "--gpu", "RTX-4090", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["best"] == told["pools"][0]["name"]
    assert {item["name"] for item in told["pools"]} == {"a100-80", "rtx-4090"}
    assert told["pools"][0]["forecast"]["stages"][0]["components"]
    assert told["model"]["facts"]["feedForwardSize"] == 14336
    assert told["data"]["rows"] == 5000


def test_rows_and_tokens_come_from_local_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "x" * 400, "completion": "y" * 40} for _ in range(300)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["estimate", job(tmp_path, data="file://train.jsonl"), "--gpu", "L4", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["data"]["rows"], told["data"]["tokensPerRow"]) == (300, 122)
    assert "train.jsonl" in told["data"]["origin"]


def test_a_model_is_known_by_its_config_its_size_or_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    cached = tmp_path / "hub-home" / "hub" / "models--acme--small" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text(json.dumps(CONFIG))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    cases = {
        "s3://models/own": ["--model-config", str(config)],
        "hf://acme/small": [],
        "file://model": [],
    }
    for source, options in cases.items():
        assert main(["estimate", job(tmp_path, source), *GIVEN, "--gpu", "L4", "-o", "json", *options]) == 0, source
        told = json.loads(capsys.readouterr().out)
        assert told["model"]["facts"]["parameters"] == pytest.approx(1.1e9, rel=0.01)
    file = job(tmp_path, "s3://models/own")
    assert main(["estimate", file, *GIVEN, "--parameters", "70B", "--gpu", "H200", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["facts"]["layers"] == 80


def test_without_pools_the_known_gpus_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", job(tmp_path), *GIVEN]) == 0
    shown = capsys.readouterr().out
    assert "smallest GPU that fits: " in shown
    assert "h200" in shown


def test_a_mixture_of_experts_is_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG | {"num_local_experts": 8}))
    assert main(["estimate", job(tmp_path), *GIVEN, "--model-config", str(config), "--gpu", "L4"]) == 0
    assert "memory cannot be forecast" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error", "fix"),
    [
        ([], "data.train is not on this machine", "--rows 10000 --tokens-per-row 400"),
        (["--rows", "0", "--tokens-per-row", "10"], "--rows: 0 is not a number of at least 1", ""),
        ([*GIVEN, "--gpu", "A1000"], "--gpu: 'A1000' is not a known GPU", "A100-80"),
        ([*GIVEN, "--parameters", "big"], "--parameters: 'big' is not a size", "8B"),
        ([*GIVEN, "--parameters", "9000B"], "no known model is near 9000B", "--model-config"),
        ([*GIVEN, "--model-config", "nowhere.json"], "cannot read nowhere.json", "config.json"),
        ([*GIVEN, "--pool", "nowhere.yaml"], "there is no file nowhere.yaml", ""),
    ],
)
def test_bad_input_is_named_with_its_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], error: str, fix: str
) -> None:
    assert main(["estimate", job(tmp_path), *options]) == 2
    said = capsys.readouterr().err
    assert error in said
    assert fix in said
    assert "Traceback" not in said


def test_files_that_are_not_what_they_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[1]")
    assert main(["estimate", job(tmp_path), *GIVEN, "--model-config", str(wrong)]) == 2
    assert "is not a model's config.json" in capsys.readouterr().err
    assert main(["estimate", job(tmp_path), *GIVEN, "--pool", job(tmp_path)]) == 2
    assert "holds no GPUPool" in capsys.readouterr().err
    assert main(["estimate", job(tmp_path, "hf://acme/unknown"), *GIVEN]) == 2
    assert "its name is not a known one" in capsys.readouterr().err
