"""The published files load with plain peft and transformers and say exactly what the evaluation recorded."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune_api.stages import EvaluateResult, Progress, PublishResult, StageResults
from finetune_runner.errors import StageError
from finetune_runner.evaluation.incumbent import check_incumbent
from finetune_runner.stages import baseline, evaluate, publish, train
from finetune_runner.training.checkpoint import sha256_of
from tests.runner.tiny import World, make_world


@dataclass(frozen=True)
class Published:
    """A world whose run went through all stages after prepare."""

    world: World
    results: StageResults
    said: dict[str, list[Progress]] = field(default_factory=dict)
    """Live progress by stage."""

    @property
    def folder(self) -> Path:
        return self.world.folder / f"store/team/triage/versions/v{self.version.version}"

    @property
    def version(self) -> PublishResult:
        assert self.results.publish is not None
        return self.results.publish

    @property
    def evaluated(self) -> EvaluateResult:
        assert self.results.evaluate is not None
        return self.results.evaluate

    @property
    def outputs(self) -> list[dict[str, Any]]:
        path = self.world.folder / f"store/team/triage/runs/{self.world.uid}/1/evaluate/outputs.jsonl.gz"
        records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        return [record for record in records if record["system"] == "candidate"]


def publish_all(world: World, **changes: Any) -> Published:
    results = StageResults(prepare=world.prepare)
    said: dict[str, list[Progress]] = {}
    for stage, module in (("baseline", baseline), ("train", train), ("evaluate", evaluate), ("publish", publish)):
        task = world.task(stage, results=results, **changes)
        outcome = module.run(world.open(task, said.setdefault(stage, [])))
        found = outcome[0] if isinstance(outcome, tuple) else outcome
        results = results.model_copy(update={stage: getattr(found, stage)})
    return Published(world, results, said)


def make_published(folder: Path, model: Path, method: str, form: str) -> Published:
    spec = {"output": {"adapterRef": {"name": "triage"}, "servedAs": form}}
    return publish_all(make_world(folder, model, method=method, total_steps=40, eval_steps=20, spec=spec))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Published:
    return make_published(tmp_path_factory.mktemp("lora"), tiny_model, "lora", "adapter")


def _percent_grows(said: list[Progress]) -> bool:
    percent = [progress.percent for progress in said]
    return percent == sorted(percent)


@pytest.mark.parametrize("published", ["lora", "merged"])
def test_percent_of_a_stage_grows_over_its_phases(published: str, request: pytest.FixtureRequest) -> None:
    found: Published = request.getfixturevalue(published)
    for stage in ("baseline", "train", "evaluate"):
        said = found.said[stage]
        assert len({progress.phase for progress in said}) > 2
        assert _percent_grows(said), [(progress.phase, progress.percent) for progress in said]
    assert found.said["baseline"][-1].percent == 100
    assert found.said["evaluate"][-1].percent == 95, "what is left writes the report"
    training = [progress for progress in found.said["train"] if progress.step]
    assert all(progress.seconds_per_step and progress.tokens_per_second for progress in training)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Published:
    return make_published(tmp_path_factory.mktemp("merged"), tiny_model, "qlora", "merged")


def say(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """What anybody would write: template, generate, decode."""
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def prompts(published: Published) -> dict[str, list[dict[str, str]]]:
    path = published.world.folder / "store/team/triage/runs/uid-1/1/test/test.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return {row["id"]: row["messages"][:-1] for row in rows}


def test_the_adapter_loads_with_plain_peft_and_reproduces_every_evaluated_answer(lora: Published) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    model = AutoPeftModelForCausalLM.from_pretrained(str(lora.folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(lora.folder))
    asked = prompts(lora)
    assert len(lora.outputs) == 24
    for record in lora.outputs:
        assert say(model, tokenizer, asked[record["id"]]) == record["text"]
    assert lora.evaluated.metrics["schemaValid"] == 1.0


def test_the_merged_model_loads_with_plain_transformers_and_reproduces_the_answers(merged: Published) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(merged.folder), dtype="auto").eval()
    assert not hasattr(model.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(str(merged.folder))
    asked = prompts(merged)
    same = [say(model, tokenizer, asked[record["id"]]) == record["text"] for record in merged.outputs]
    # QLoRA computes in bf16, where a batch of one may round otherwise than a batch of sixteen.
    assert sum(same) >= 0.8 * len(same)
    assert "adapter_model.safetensors" not in {path.name for path in merged.folder.iterdir()}


def test_qlora_reports_both_forms(merged: Published) -> None:
    assert merged.evaluated.served_as == "merged"
    assert set(merged.evaluated.other_form) == set(merged.evaluated.metrics)


def test_qlora_judges_one_form_where_the_plan_says_that_the_other_does_not_fit(merged: Published) -> None:
    world = merged.world.with_plan(judge_both_forms=False)
    found = evaluate.run(world.context("evaluate", results=merged.results))[0].evaluate
    assert found is not None
    assert (found.served_as, found.other_form) == ("merged", {})
    assert found.metrics == merged.evaluated.metrics


def test_the_manifest_names_every_file_with_its_digest(lora: Published) -> None:
    manifest = json.loads((lora.folder / "manifest.json").read_bytes())
    names = {path.name for path in lora.folder.iterdir()} - {"manifest.json", "claim.json"}
    assert set(manifest["files"]) == names
    assert all(sha256_of(lora.folder / name) == facts["sha256"] for name, facts in manifest["files"].items())
    assert sha256_of(lora.folder / "manifest.json") == lora.version.digest
    assert manifest["promptTemplate"] == (lora.folder / "chat_template.jinja").read_text()
    assert manifest["evaluation"]["metrics"] == lora.evaluated.to_wire()["metrics"]
    assert manifest["base"]["digest"] == lora.world.prepare.model_digest
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "report.html", "evaluation.json"} <= names


def test_the_adapter_says_which_base_it_is_for(lora: Published) -> None:
    config = json.loads((lora.folder / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == str(lora.world.model)


def test_publishing_again_gives_the_same_version(lora: Published) -> None:
    again = publish.run(lora.world.context("publish", results=lora.results))
    assert again.publish == lora.version


def test_every_gate_has_its_evidence(lora: Published) -> None:
    names = [comparison.reference_name for comparison in lora.evaluated.comparisons]
    assert names == ["", lora.results.baseline.best if lora.results.baseline else "", "", "base"]


def test_the_report_escapes_what_the_data_say(lora: Published) -> None:
    page = (lora.folder / "report.html").read_text()
    assert "<script" not in page
    assert "Confusion" in page
    assert "<svg" in page
    from finetune_runner.report.page import render

    document = json.loads((lora.folder / "evaluation.json").read_bytes())
    sample = {
        "id": "1",
        "prompt": [{"role": "user", "content": "<b>"}],
        "expected": "<i>",
        "baseline": None,
        "tuned": "&",
    }
    nasty = render({**document, "adapter": "<script>alert(1)</script>"}, [sample])
    assert "<script" not in nasty
    assert "&lt;b&gt;" in nasty
    assert "&lt;i&gt;" in nasty


def test_a_second_job_is_compared_with_the_released_version(lora: Published) -> None:
    world = lora.world
    incumbent = {"version": "v1", "uri": lora.version.uri}
    task = world.task("evaluate", results=lora.results)
    task = type(task).from_wire({**task.to_wire(), "incumbent": incumbent})
    stored = evaluate.run(world.open(task))[0].evaluate
    assert stored is not None
    assert stored.incumbent == "v1"
    against = stored.comparisons[2]
    assert (against.reference_name, against.reference) == ("v1", against.candidate)
    assert (against.low, against.high) == (0.0, 0.0), "the same version compared with itself"
    assert stored.test_uses == 1, "one run uses the test split once"


def test_an_incumbent_without_stored_outputs_is_asked(lora: Published) -> None:
    outputs = lora.world.folder / "store/team/triage/runs/uid-1/1/evaluate/outputs.jsonl.gz"
    kept = outputs.read_bytes()
    outputs.unlink()
    task = lora.world.task("evaluate", results=lora.results)
    task = type(task).from_wire({**task.to_wire(), "incumbent": {"version": "v1", "uri": lora.version.uri}})
    said: list[Progress] = []
    found = evaluate.run(lora.world.open(task, said))[0].evaluate
    assert found is not None
    assert _percent_grows(said)
    assert {progress.percent for progress in said if progress.phase.startswith("v1")} > {95.0}
    assert found.comparisons[2].reference == found.comparisons[2].candidate
    assert outputs.read_bytes() == kept, "the same adapter gives the same answers"


@pytest.mark.parametrize(
    ("weights", "rank", "served", "words"),
    [
        ("int8", 16, "adapter", "v1 would be asked too: .* 8-bit bases"),
        ("fp32", 513, "adapter", "v1 would be asked too: .* rank 512, this one has 513"),
        ("fp32", 512, "adapter", ""),
        ("int8", 1024, "merged", ""),
    ],
)
def test_an_incumbent_that_the_engine_cannot_load_is_refused_before_training(
    weights: str, rank: int, served: str, words: str, lora: Published, tmp_path: Path
) -> None:
    manifest = json.loads((lora.folder / "manifest.json").read_bytes())
    manifest["base"]["weights"], manifest["hyperparameters"]["rank"], manifest["servedAs"] = weights, rank, served
    manifest["run"]["uri"] = f"file://{tmp_path}/none"
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1/manifest.json").write_text(json.dumps(manifest))
    task = lora.world.task("baseline", results=lora.results)
    wire = {**task.to_wire(), "incumbent": {"version": "v1", "uri": f"file://{tmp_path}/v1"}}
    wire["spec"] = {**wire["spec"], "evaluation": {**wire["spec"]["evaluation"], "engine": "vllm"}}
    context = lora.world.open(type(task).from_wire(wire))
    if words:
        with pytest.raises(StageError, match=words):
            check_incumbent(context, [], [])
    else:
        check_incumbent(context, [], [])


def test_an_adapter_changed_after_training_is_refused(lora: Published) -> None:
    trained = lora.results.train
    assert trained is not None
    other = lora.results.model_copy(update={"train": trained.model_copy(update={"checkpoint_digest": "0" * 64})})
    with pytest.raises(StageError, match="is not the file that train saved"):
        evaluate.run(lora.world.context("evaluate", results=other))


def test_two_publishers_get_different_numbers_and_a_crashed_claim_is_never_reused(lora: Published) -> None:
    versions = lora.world.folder / "store/team/triage/versions"
    crashed = World(
        lora.world.folder, lora.world.model, lora.world.spec, lora.world.plan, lora.world.prepare, uid="uid-2"
    )
    number = publish.claim(crashed.context("publish"))
    assert number == publish.claim(crashed.context("publish")), "a retry finds its own claim"
    other = World(
        lora.world.folder, lora.world.model, lora.world.spec, lora.world.plan, lora.world.prepare, uid="uid-3"
    )
    assert publish.claim(other.context("publish")) == number + 1
    assert not (versions / f"v{number}" / "manifest.json").exists()


def test_generate_shows_baseline_and_tuned(
    lora: Published, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from finetune_runner import generate

    monkeypatch.setenv("FINETUNE_SCRATCH", str(lora.world.folder / "scratch"))
    record = lora.outputs[0]
    text = prompts(lora)[record["id"]][-1]["content"]
    arguments = ["--version-uri", lora.version.uri, "--model", str(lora.world.model), "--text", text]
    assert generate.main(arguments) == 0
    answers = json.loads(capsys.readouterr().out)
    assert answers["tuned"] == record["text"]
    assert answers["baseline"] != answers["tuned"]
    assert generate.main(["--version-uri", f"{lora.version.uri}0", *arguments[2:]]) == 92
