"""Rows shared out between processes: fixed batches, one owner per row, and the digits of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.exit_codes import ExitCode
from finetune_api.job.evaluation import Generation
from finetune_api.job.method import Method
from finetune_api.stages import StageResults
from finetune_runner.errors import StageError
from finetune_runner.evaluation.engines import check_engine, check_served, generation_facts
from finetune_runner.evaluation.engines.vllm_engine import (
    adapted_modules,
    parallel_size,
    served_rank,
    summed_likelihood,
)
from finetune_runner.evaluation.generation import (
    CACHE_BYTES_PER_BATCH,
    batches_of,
    cache_bytes_per_token,
    generate,
    settings_for,
)
from finetune_runner.evaluation.outcomes import Outcome, joined
from finetune_runner.evaluation.parallel import processes
from finetune_runner.evaluation.share import Share
from finetune_runner.stages import baseline, evaluate
from finetune_runner.training.loading import load_base, new_adapter
from tests.runner.refusals import refusal
from tests.runner.tiny import World, make_world, tickets

LENGTHS = st.lists(st.integers(1, 500), max_size=70)


@given(lengths=LENGTHS, size=st.integers(1, 9))
def test_every_row_has_one_owner_and_its_batch_does_not_depend_on_the_number_of_processes(
    lengths: list[int], size: int
) -> None:
    batches = batches_of(lengths)
    shared = [batch for rank in range(size) for batch, counts in Share(rank, size).turns(batches) if counts]
    assert sorted(map(tuple, shared)) == sorted(map(tuple, batches))
    assert sorted(row for batch in shared for row in batch) == list(range(len(lengths)))


@given(lengths=LENGTHS, size=st.integers(1, 9))
def test_in_lockstep_all_make_the_same_number_of_passes_and_a_repeated_one_does_not_count(
    lengths: list[int], size: int
) -> None:
    batches = batches_of(lengths)
    turns = [list(Share(rank, size, lockstep=True).turns(batches)) for rank in range(size)]
    assert len({len(some) for some in turns}) == 1
    assert sum(counts for some in turns for _, counts in some) == len(batches)


def test_outcomes_of_processes_are_joined_by_row() -> None:
    first = [Outcome("a", "x", text="x", nll=0.0), Outcome("b", "y", nll=2.0, tokens=3)]
    second = [Outcome("a", "x", nll=1.0, tokens=2), Outcome("b", "y", text="z", truncated=True)]
    assert joined([first, second]) == [
        Outcome("a", "x", text="x", nll=1.0, tokens=2),
        Outcome("b", "y", text="z", truncated=True, nll=2.0, tokens=3),
    ]


def test_a_row_that_two_processes_did_is_an_error() -> None:
    with pytest.raises(ValueError, match="row a does not have one owner"):
        joined([[Outcome("a", "x", text="x")], [Outcome("a", "x", text="x")]])


def test_two_processes_measure_what_one_measures_to_the_digit(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 40 rows: three batches of answers, for two processes.
    alone = make_world(tmp_path / "a", tiny_model, test=40)
    one = baseline.run(alone.context("baseline")).baseline
    pair = make_world(tmp_path / "b", tiny_model, test=40)
    monkeypatch.setenv("FINETUNE_CPU_PROCESSES", "2")
    assert processes(pair.context("baseline"), 40) == 2
    two = baseline.run(pair.context("baseline")).baseline
    assert one is not None
    assert two is not None
    assert two.base == one.base
    assert two.baselines == one.baselines
    path = "store/team/triage/runs/uid-1/1/baseline/outputs.jsonl.gz"
    assert (tmp_path / "b" / path).read_bytes() == (tmp_path / "a" / path).read_bytes()
    assert two.peak_memory_bytes > 10_000_000


def test_a_stop_reaches_the_processes_and_their_cause_comes_back(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, tiny_model, test=40)
    monkeypatch.setenv("FINETUNE_CPU_PROCESSES", "2")
    context = world.context("baseline")
    context.stop.set()
    with pytest.raises(StageError, match="was asked to stop") as stopped:
        baseline.run(context)
    assert stopped.value.exit_code == ExitCode.INTERRUPTED


@pytest.mark.parametrize(
    ("gpus", "rows", "wanted"), [(1, 400, 1), (8, 400, 8), (8, 33, 3), (8, 16, 1), (0, 400, 1), (4, 0, 1)]
)
def test_no_process_without_a_batch(gpus: int, rows: int, wanted: int, tmp_path: Path, tiny_model: Path) -> None:
    world = make_world(tmp_path, tiny_model, gpus_per_node=gpus)
    assert processes(world.context("evaluate"), rows) == wanted


def load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    from finetune_runner.text import load_tokenizer

    return AutoModelForCausalLM.from_pretrained(str(folder)).eval(), load_tokenizer(folder)


def test_a_batch_is_cut_by_the_keys_and_values_that_a_model_really_keeps(tiny_model: Path) -> None:
    import torch

    model, _ = load(tiny_model)
    with torch.no_grad():
        cache = model(input_ids=torch.ones((2, 5), dtype=torch.long), use_cache=True).past_key_values
    elements = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert cache_bytes_per_token(model) * 10 == 2 * elements


@pytest.mark.parametrize(("prompt", "rows"), [(100, 16), (992, 8), (993, 7), (7992, 1), (50_000, 1)])
def test_keys_and_values_of_a_batch_stay_within_their_bound(prompt: int, rows: int) -> None:
    eight_rows_of_a_thousand = CACHE_BYTES_PER_BATCH // 8000
    assert len(batches_of([prompt] * 64, 8, eight_rows_of_a_thousand)[0]) == rows


def test_answers_are_greedy_unless_asked_and_sampled_ones_are_repeatable(tiny_model: Path) -> None:
    import torch

    from finetune_runner.text import encode_prompt

    model, tokenizer = load(tiny_model)
    prompts = [encode_prompt(tokenizer, row.prompt) for row in tickets(40, 3)]
    greedy = settings_for(model, tokenizer, 8)
    hot = settings_for(model, tokenizer, 8, Generation(temperature=1.5, top_p=0.9), seed=1)
    other = settings_for(model, tokenizer, 8, Generation(temperature=1.5, top_p=0.9), seed=2)
    before = torch.random.get_rng_state()
    answers = {name: generate(model, prompts, tokenizer, s) for name, s in {"g": greedy, "h": hot, "o": other}.items()}
    assert answers["g"] == generate(model, prompts, tokenizer, greedy)
    assert answers["h"] == generate(model, prompts, tokenizer, hot)
    assert answers["g"] != answers["h"] != answers["o"]
    assert torch.equal(before, torch.random.get_rng_state()), "a training's dropout does not notice"
    halves = [generate(model, prompts, tokenizer, hot, share=Share(rank, 2)) for rank in range(2)]
    assert halves[0] | halves[1] == answers["h"]
    assert not set(halves[0]) & set(halves[1])


def test_another_engine_or_temperature_is_another_measurement(tmp_path: Path, tiny_model: Path) -> None:
    def facts(**evaluation: Any) -> dict[str, Any]:
        base = make_world(tmp_path, tiny_model)
        spec = {**base.spec, "evaluation": {**base.spec["evaluation"], **evaluation}}
        world = World(tmp_path, tiny_model, spec, base.plan, base.prepare)
        return generation_facts(world.task("evaluate").spec.evaluation)

    greedy = facts()
    assert greedy["greedy"]
    assert greedy["engine"].startswith("transformers 5")
    assert facts(generation={"temperature": 0.5}) != greedy


def test_the_baseline_is_asked_again_when_answers_are_made_otherwise(tmp_path: Path, tiny_model: Path) -> None:
    world = make_world(tmp_path, tiny_model)
    first = baseline.run(world.context("baseline")).baseline
    again = baseline.run(world.context("baseline")).baseline
    evaluation = {**world.spec["evaluation"], "generation": {"temperature": 1.0}}
    sampled = World(tmp_path, tiny_model, {**world.spec, "evaluation": evaluation}, world.plan, world.prepare)
    third = baseline.run(sampled.context("baseline")).baseline
    assert first is not None
    assert again is not None
    assert third is not None
    assert (first.cached, again.cached, third.cached) == (False, True, False)
    assert again.peak_memory_bytes == 0, "nothing was asked"


def test_a_base_without_numbers_has_no_baseline(tmp_path: Path, tiny_model: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    world = make_world(tmp_path, broken, test=4, out_of_domain=0)
    with pytest.raises(StageError, match=r"the loss of the answer of row \S+ is nan") as refused:
        baseline.run(world.context("baseline"))
    assert refused.value.exit_code == ExitCode.MODEL_UNUSABLE
    assert "model.dtype: fp32" in refused.value.hint


def test_vllm_is_refused_with_the_fix_where_it_is_not_installed(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(StageError, match=r"evaluation\.engine: vllm is not in this runner image") as refused:
        check_engine("vllm", "lora")
    assert "engine: transformers" in refused.value.hint
    check_engine("transformers", "qlora")
    base = make_world(tmp_path, tiny_model)
    spec = {**base.spec, "evaluation": {**base.spec["evaluation"], "engine": "vllm"}}
    world = World(tmp_path, tiny_model, spec, base.plan, base.prepare)
    with pytest.raises(StageError, match="not in this runner image"):
        evaluate.run(world.context("evaluate", results=StageResults(prepare=world.prepare)))


@pytest.mark.parametrize(
    ("rank", "served"),
    [(1, 1), (2, 8), (8, 8), (9, 16), (16, 16), (48, 64), (100, 128), (129, 256), (257, 320), (321, 512), (512, 512)],
)
def test_vllm_is_told_the_smallest_rank_it_takes(rank: int, served: int) -> None:
    assert served_rank(rank) == served


@pytest.mark.parametrize(
    ("heads", "kv_heads", "gpus", "size"),
    [(32, 8, 0, 1), (32, 8, 1, 1), (32, 8, 8, 8), (64, 8, 16, 16), (14, 2, 4, 2), (28, 4, 8, 4), (28, 4, 7, 4),
     (9, 3, 8, 3), (32, 8, 6, 4), (71, 1, 8, 1)],
)  # fmt: skip
def test_vllm_splits_a_model_over_as_many_gpus_as_its_heads_allow(
    heads: int, kv_heads: int, gpus: int, size: int
) -> None:
    assert parallel_size(heads, kv_heads, gpus) == size


def test_a_4_bit_base_needs_vllms_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"vllm"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed else None)
    assert refusal(lambda: check_engine("vllm", "lora")) == ""
    with pytest.raises(StageError, match="vllm needs vllm-bnb-plugin for a 4-bit base") as refused:
        check_engine("vllm", "qlora")
    assert "evaluation.engine: transformers" in refused.value.hint
    installed.add("vllm_bnb_plugin")
    assert refusal(lambda: check_engine("vllm", "qlora")) == ""


def test_vllm_prepares_the_modules_that_the_adapter_changes(tmp_path: Path, tiny_model: Path) -> None:
    method = Method(rank=1, target_modules="down_proj,q_proj")
    new_adapter(load_base(tiny_model, "lora", torch.device("cpu"), None), method, 0).save_pretrained(str(tmp_path))
    assert adapted_modules(tmp_path) == ["down_proj", "q_proj"]


@pytest.mark.parametrize(
    ("method", "rank", "words"),
    [
        ("qlora-8bit", None, "vllm does not load 8-bit bases"),
        ("qlora-8bit", 16, "vllm does not load 8-bit bases"),
        ("lora", 513, r"vllm serves adapters up to rank 512, this one has 513"),
    ],
)
def test_vllm_is_not_given_what_it_would_answer_otherwise(method: Any, rank: int | None, words: str) -> None:
    with pytest.raises(StageError, match=words) as refused:
        check_served("vllm", method, rank)
    assert "evaluation.engine: transformers" in refused.value.hint
    assert refusal(lambda: check_served("transformers", method, rank)) == ""


@pytest.mark.parametrize(("method", "rank"), [("lora", 512), ("qlora", 1), ("qlora", None), (None, None)])
def test_vllm_is_given_what_it_serves(method: Any, rank: int | None) -> None:
    assert refusal(lambda: check_served("vllm", method, rank)) == ""


def test_likelihoods_of_vllm_leave_out_what_has_no_label() -> None:
    class Logprob:
        def __init__(self, logprob: float) -> None:
            self.logprob = logprob

    entries = [None, {7: Logprob(-0.5), 1: Logprob(-0.1)}, {8: Logprob(-2.0)}, {9: Logprob(-1.0)}]
    assert summed_likelihood([5, -100, 8, 9], entries) == (3.0, 2)
