"""`finetune estimate`: what it knows without a cluster, and what it says when it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    for component in ("weights", "activations", "recomputation", "fragmentation", "context"):
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


def test_another_trainers_step_is_shown_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["estimate", job(tmp_path), *GIVEN, "--gpu", "A100-80"]
    assert main([*arguments, "--trainer", "hf-trainer"]) == 0
    shown = capsys.readouterr().out
    assert "train, moment by moment: loading " in shown
    assert "a step with hf-trainer: " in shown
    assert main([*arguments, "--trainer", "axolotl"]) == 2
    assert "--trainer: 'axolotl' is not a known one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"architectures": ["BertForMaskedLM"]}, 0, "BertForMaskedLM is not a decoder"),
        ({"architectures": ["T5ForConditionalGeneration"]}, 0, "T5ForConditionalGeneration is not a decoder"),
        ({"architectures": ["FalconForCausalLM"]}, 0, "0.85 billion parameters"),  # no gate: 1.10 with it
        ({"num_hidden_layers": float("inf")}, 2, "num_hidden_layers is 'inf', not a whole number"),
        ({"hidden_size": -1}, 2, "hidden_size is '-1', not a whole number"),
        ({"vocab_size": 10**12}, 2, "vocab_size is '1000000000000', not a whole number"),
        ({"num_key_value_heads": [4, 4]}, 2, "num_key_value_heads is '[4, 4]', not a whole number"),
        ({"text_config": [1]}, 2, "text_config is not an object"),
    ],
)
def test_odd_configurations_have_a_clear_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], code: int, words: str
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG | changes))
    assert main(["estimate", job(tmp_path), *GIVEN, "--gpu", "L4", "--model-config", str(config)]) == code
    captured = capsys.readouterr()
    assert words in captured.out + captured.err


def test_a_mixture_of_experts_is_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG | {"num_local_experts": 8}))
    assert main(["estimate", job(tmp_path), *GIVEN, "--model-config", str(config), "--gpu", "L4"]) == 0
    shown = capsys.readouterr().out
    assert "- no forecast of memory and time: LlamaForCausalLM is a mixture of 8 experts" in shown
    assert "- its weights alone take " in shown
    assert "memory is not forecast, so nothing is refused beforehand" in shown
    assert "GPUS PER NODE" not in shown, "counts that nothing is known of are no table"


def test_a_mixture_in_8_bit_is_refused_in_the_words_of_prepare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(job(tmp_path, model="hf://Qwen/Qwen3-30B-A3B"))
    path.write_text(path.read_text().replace("type: qlora", "type: qlora, bits: 8"))
    assert "bits: 8" in path.read_text()
    main(["estimate", str(path), *GIVEN, "--gpu", "A100-80"])
    captured = capsys.readouterr()
    words = " ".join((captured.out + captured.err).split())
    assert "method.bits: LLM.int8 quantises linear layers only" in words
    assert "set method.bits: 4, which quantises the experts too" in words


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


LLAMA_8B, LLAMA_70B = "hf://meta-llama/Llama-3.1-8B", "hf://meta-llama/Llama-3.1-70B"
TIED = CONFIG | {"vocab_size": 128256, "tie_word_embeddings": True, "max_position_embeddings": 4096}
A100 = {"gpuMemoryGib": 80, "gpuModel": "A100-80", "gpusPerNode": 8, "price": {"gpuPerHour": 4.0, "currency": "EUR"}}
L4 = {"gpuMemoryGib": 24, "gpuModel": "L4", "gpusPerNode": 8, "price": {"gpuPerHour": 0.8, "currency": "EUR"}}
SMALL = A100 | {"gpusPerNode": 1, "limits": {"maxNodes": 1, "maxGpus": 1}}
FREE = {"gpuMemoryGib": 141, "gpuModel": "H200", "gpusPerNode": 8}
CPU = {"gpuMemoryGib": 0, "gpusPerNode": 0}
LONG = ["--rows", "500", "--tokens-per-row", "100000"]


@pytest.mark.parametrize(
    ("spec", "pools", "options", "code", "words"),
    [
        # 70B on one GPU of 24 GiB, in 4 bit and in 16
        ({"source": LLAMA_70B}, {"l4": L4}, GIVEN, 1, ["no setting is enough", "a pool whose GPUs have"]),
        (
            {"source": LLAMA_70B, "method": {"type": "lora"}, "compute": {"gpusPerNode": 1}},
            {"a100": A100},
            GIVEN,
            1,
            ["method.type: qlora", "4 GPUs with compute.strategy: fsdp"],
        ),
        (
            {"source": LLAMA_70B, "method": {"type": "lora"}, "compute": {"gpusPerNode": 8}},
            {"a100": A100},
            GIVEN,
            0,
            ["spread the base over 2 GPUs of a pod", "a100 with lora on 8 GPUs (fsdp)"],
        ),
        # Sequences of 128k, rank 512, DoRA, 8 bit, a fixed micro-batch
        ({"training": {"maxLength": 131072}}, {"a100": A100}, LONG, 1, ["training.maxLength: "]),
        ({"method": {"rank": 512, "alpha": 512}}, {"a100": A100}, GIVEN, 0, ["cheapest that fits: a100"]),
        ({"method": {"useDora": True}, "output": {"servedAs": "merged"}}, {"a100": A100}, GIVEN, 0, ["merge"]),
        (
            {"source": LLAMA_70B, "method": {"type": "qlora", "bits": 8}, "compute": {"gpusPerNode": 4}},
            {"l4": L4},
            GIVEN,
            1,
            ["8-bit weights are not cut into parts"],
        ),
        (
            {"training": {"microBatchSize": 64, "globalBatchSize": 64}},
            {"l4": L4},
            GIVEN,
            1,
            ["training.microBatchSize 64 needs", "set training.microBatchSize: 16, or leave it out"],
        ),
        # A micro-batch that is asked for recomputes rather than being refused.
        ({"training": {"microBatchSize": 16}}, {"l4": L4}, GIVEN, 0, ["16 x 1", "recomputation"]),
        # Tight: the smallest edit that gives room
        (
            {"method": {"type": "qlora"}, "compute": {"gpusPerNode": 1}},
            {"l4": L4 | {"gpuMemoryGib": 15.5}},
            ["--rows", "5000", "--tokens-per-row", "800"],
            0,
            ["fewShot: 0 gives room"],
        ),
        # Pools: none of their own GPUs, prices for some, more than they have
        ({}, {"cpu": CPU}, GIVEN, 0, ["- a pool without GPUs", "cpu: memory is not forecast"]),
        ({}, {"a100": A100, "free": FREE}, GIVEN, 0, ["cheapest that fits: a100", "free"]),
        ({"compute": {"maxCost": 5}}, {"free": FREE}, GIVEN, 0, ["smallest GPU that fits: free"]),
        # Budgets below the forecast are told and refuse nothing
        ({"compute": {"maxCost": 0.01}}, {"a100": A100}, GIVEN, 0, ["compute.maxCost: 0.01 EUR is below the forecast"]),
        ({"compute": {"maxDuration": "1m"}}, {"a100": A100}, GIVEN, 0, ["compute.maxDuration: 1m is below the"]),
        # A version to start from is in a cluster; its memory is the adapter's
        ({"method": {"warmStartFrom": {"version": "triage-v1"}}}, {"a100": A100}, GIVEN, 0, ["a100 with lora"]),
        # No GPU is that large
        (
            {
                "source": LLAMA_70B,
                "method": {"type": "lora"},
                "compute": {"gpusPerNode": 1},
                "training": {"maxLength": 65536},
            },
            {"a100": A100},
            ["--rows", "500", "--tokens-per-row", "65536"],
            1,
            ["no GPU is large enough, it needs"],
        ),
        ({"compute": {"gpusPerNode": 16}}, {"a100": A100}, GIVEN, 1, ["Set compute.gpusPerNode to at most 8"]),
        ({"compute": {"nodes": 4}}, {"small": SMALL}, GIVEN, 1, ["Set compute.nodes to at most 1"]),
        ({"compute": {"pool": "other"}}, {"small": SMALL}, GIVEN, 0, ["cheapest that fits: small"]),
        (
            {"training": {"globalBatchSize": 6}, "compute": {"gpusPerNode": 4}},
            {"a100": A100},
            GIVEN,
            1,
            ["cannot be shared evenly by 4 GPUs; use 4 or 8"],
        ),
        # Strategies
        ({"compute": {"strategy": "fsdp"}}, {"a100": A100}, GIVEN, 1, ["set compute.gpusPerNode or compute.nodes"]),
        ({"compute": {"strategy": "deepspeed"}}, {"a100": A100}, GIVEN, 1, ["or use strategy: auto"]),
        ({"compute": {"strategy": "ddp", "gpusPerNode": 4}}, {"a100": A100}, GIVEN, 0, ["on 4 GPUs (ddp)"]),
        (
            {
                "method": {"type": "lora"},
                "compute": {"strategy": "deepspeed", "deepspeed": {"stage": 3, "offload": "parameters"}},
            },
            {"a100": A100},
            GIVEN,
            0,
            ["a100 with lora"],
        ),
        # Data and settings that are unusual
        ({}, {"l4": L4}, ["--rows", "3", "--tokens-per-row", "20"], 0, ["warning", "data.checks.minimumRows"]),
        (
            {"method": {"objective": "dpo"}, "training": {"learningRate": 2e-4}},
            {"a100": A100},
            GIVEN,
            0,
            ["warning", "40 times", "set 5e-06 to 5e-05", "(1 epoch)"],
        ),
        ({"method": {"objective": "kto"}}, {"a100": A100}, GIVEN, 0, ["kto at learning rate 5e-06"]),
    ],
)
def test_odd_jobs_have_a_clear_answer(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spec: dict[str, Any],
    pools: dict[str, dict[str, Any]],
    options: list[str],
    code: int,
    words: list[str],
) -> None:
    source = spec.get("source", LLAMA_8B)
    wire = {
        "model": {"source": source},
        "data": {"train": [{"source": "s3://team/a.jsonl"}]},
        "output": {"adapterRef": {"name": "triage"}, **spec.get("output", {})},
        **{section: spec[section] for section in ("method", "training", "compute") if section in spec},
    }
    kinds = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "triage"}}
    (tmp_path / "job.yaml").write_text(json.dumps(kinds | {"spec": wire}))
    arguments = ["estimate", str(tmp_path / "job.yaml"), *options]
    for name, pool_spec in pools.items():
        roomy = {"image": "runner:1", "gpuPod": {"cpu": "16", "memory": "2000Gi"}, "scratchSize": "900Gi"}
        body = kinds | {"kind": "GPUPool", "metadata": {"name": name}, "spec": roomy | pool_spec}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(body))
        arguments += ["--pool", str(tmp_path / f"{name}.yaml")]
    assert main(arguments) == code, capsys.readouterr()
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert all(word in said for word in words), said
    assert "Traceback" not in said


def test_rows_beyond_the_models_context_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TIED))
    arguments = ["estimate", job(tmp_path), "--model-config", str(config), "--gpu", "A100-80"]
    within = [*arguments, "--rows", "500", "--tokens-per-row", "1000"]
    assert main(within) == 0
    assert "warning" not in capsys.readouterr().out
    text = Path(arguments[1]).read_text().replace("method:", "training: {maxLength: 32768}\n  method:")
    Path(arguments[1]).write_text(text)
    assert main([*arguments, "--rows", "500", "--tokens-per-row", "20000"]) == 0
    assert "longer than the model's context of 4096: set training.maxLength: 4096" in capsys.readouterr().out


def test_a_tight_pool_goes_before_one_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tight, none = pool(tmp_path, "tight", 15, "RTX-4090"), pool(tmp_path, "none", 8, "RTX-4090")
    path = Path(job(tmp_path))
    path.write_text(path.read_text().replace("  output:", "  compute: {gpusPerNode: 1}\n  output:"))
    assert (
        main(["estimate", str(path), "--rows", "5000", "--tokens-per-row", "800", "--pool", none, "--pool", tight]) == 0
    )
    assert "nearest, but tight: tight" in capsys.readouterr().out


def test_a_size_that_is_not_known_is_not_called_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"architectures": ["OtherForCausalLM"], "model_type": "other"}')
    assert main(["estimate", job(tmp_path), *GIVEN, "--model-config", str(config), "--gpu", "L4"]) == 0
    shown = capsys.readouterr().out
    assert "size unknown (from" in shown
    assert "0.00 billion" not in shown
