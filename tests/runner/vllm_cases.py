"""What vLLM does with tiny models, beside transformers: facts as JSON on stdout.

`python -m tests.runner.vllm_cases FOLDER`, with the Python of an environment that has vLLM (`tests.runner.vllm_home`).
All engines are in this one process (VLLM_ENABLE_V1_MULTIPROCESSING=0): each would import torch twice more otherwise.
"""

from __future__ import annotations

import gc
import gzip
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from peft import LoraConfig

from finetune_api.job.evaluation import Generation
from finetune_api.job.method import LARGEST_SERVED_RANK, Method
from finetune_api.stages import Progress, StageResults, TrainPlan
from finetune_runner.errors import StageError, interrupted
from finetune_runner.evaluation.engines import Engine, Request, open_engine
from finetune_runner.stages import baseline, evaluate, publish, train
from finetune_runner.text import encode_example, encode_prompt, load_tokenizer
from finetune_runner.training.loading import load_base, new_adapter
from tests.runner.tiny import World, make_tiny_model, make_world, tickets

CONTEXT = 512
ROWS = tickets(24, 9)
ADAPTERS: dict[str, Method] = {
    "rank 1": Method(rank=1),
    "rank 12, rsLoRA, two targets": Method(rank=12, use_rslora=True, target_modules="q_proj,down_proj"),
    "rank 16, targets of the architecture": Method(rank=16, target_modules="default"),
}
SPEC = {
    "evaluation": {"engine": "vllm"},
    # Not the template beside the base's tokenizer: what is served has to be told of it.
    "model": {"chatTemplate": "plain"},
}


def request(model: Path, plan: TrainPlan, **changes: Any) -> Request:
    """What an engine is asked to load: the base in fp32 unless told otherwise."""
    wanted = Request(model, "lora", None, load_tokenizer(model), plan, max_new_tokens=12, generation=Generation())
    return replace(wanted, **changes)


def examples(tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Rows to score: usual ones, one as long as the context, and three without anything to score."""
    whole = [5 + number % 380 for number in range(CONTEXT)]
    usual = [encode_example(tokenizer, row.messages, 128) for row in ROWS]
    return [*usual, (whole, [-100] * 100 + whole[100:]), ([7], [7]), ([7, 8], [7, -100]), ([7, 8, 9], [-100] * 3)]


def said(engine: Engine, tokenizer: Any) -> dict[str, Any]:
    """Answers and likelihoods of an engine; the last prompt has to be cut."""
    prompts = [encode_prompt(tokenizer, row.prompt) for row in ROWS]
    prompts.append([5 + number % 380 for number in range(2 * CONTEXT)])
    heard: list[int] = []
    answers = engine.answer(prompts, heard.append)
    scores = engine.score(examples(tokenizer))
    return {
        "answers": [[answers[index].text, answers[index].truncated] for index in range(len(prompts))],
        "alone": [engine.answer(prompts[3:4])[0].text, engine.score(examples(tokenizer)[3:4]).tolist()[0]],
        "nothing": [len(engine.answer([])), list(engine.score([]).shape)],
        "scores": scores.tolist(),
        "heard": sorted(set(heard)),
    }


def both(wanted: Request) -> dict[str, Any]:
    """The same request to both engines, one after the other."""
    facts = {}
    for name in ("transformers", "vllm"):
        engine = open_engine(name, wanted)
        facts[name] = said(engine, wanted.tokenizer)
        engine.close()
    return facts


def random_adapter(model: Path, method: Method, folder: Path) -> Path:
    """An adapter that changes the answers, saved as PEFT does."""
    peft = new_adapter(load_base(model, "lora", torch.device("cpu"), None), method, 0)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    peft.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def penalised(model: Path, folder: Path) -> Path:
    """The model with a repetition penalty of its own, as some instruct models have (Qwen2.5)."""
    make_tiny_model(folder, heads=2, kv_heads=1)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "repetition_penalty": 1.3}))
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    return folder


def sampled(wanted: Request) -> dict[str, Any]:
    """Answers of two runs with one seed, where the first and the last prompt are the same; and a stop between them."""
    wanted = replace(wanted, generation=Generation(temperature=1.0, top_p=0.9), seed=1)
    prompts = [encode_prompt(wanted.tokenizer, row.prompt) for row in ROWS[:6]]
    prompts.append(prompts[0])
    engine = open_engine("vllm", wanted)

    def stop(_: int) -> None:
        raise interrupted()

    def texts() -> list[str]:
        answers = engine.answer(prompts)
        return [answers[index].text for index in range(len(prompts))]

    facts = {"first": texts(), "stopped": words(lambda: engine.answer(prompts, stop)), "again": texts()}
    facts["too long"] = words(lambda: engine.score([([5] * (CONTEXT + 1), [5] * (CONTEXT + 1))]))
    engine.close()
    return facts


def words(call: Callable[[], object]) -> list[str]:
    """What a refusal says."""
    try:
        call()
    except StageError as error:
        return [error.exit_code.name, error.message, error.hint]
    return []


def unusable(wanted: Request, folder: Path) -> dict[str, Any]:
    """What is heard of models that vLLM starts with and cannot compute, or does not start with."""
    engine = open_engine("vllm", replace(wanted, model_path=make_tiny_model(folder / "heads of 16")))
    facts = {"computes": words(lambda: engine.answer([[5, 6, 7]]))}
    engine.close()
    unknown = make_tiny_model(folder / "unknown", heads=2, kv_heads=1)
    config = json.loads((unknown / "config.json").read_bytes())
    (unknown / "config.json").write_text(json.dumps({**config, "architectures": ["NobodyForCausalLM"]}))
    facts["starts"] = words(lambda: open_engine("vllm", replace(wanted, model_path=unknown)))
    return facts


def legal(folder: Path) -> dict[str, Any]:
    """Ranks that vLLM takes, and what it says of adapters by their PEFT configuration, before it reads a weight."""
    from vllm.config.lora import LoRAConfig, MaxLoRARanks
    from vllm.lora.peft_helper import PEFTHelper

    configurations: dict[str, dict[str, Any]] = {
        "rank 512": {"r": LARGEST_SERVED_RANK},
        "rank 513": {"r": LARGEST_SERVED_RANK + 1},
        "rsLoRA": {"r": 8, "use_rslora": True},
        "DoRA": {"r": 8, "use_dora": True},
        "saved head": {"r": 8, "modules_to_save": ["lm_head"]},
    }
    facts: dict[str, Any] = {"ranks": get_args(MaxLoRARanks)}
    for name, configuration in configurations.items():
        where = folder / name
        LoraConfig(target_modules=["q_proj"], **configuration).save_pretrained(str(where))
        helper = PEFTHelper.from_local_dir(str(where), CONTEXT)
        try:
            helper.validate_legal(LoRAConfig(max_lora_rank=LARGEST_SERVED_RANK))
            facts[name] = ""
        except ValueError as error:
            facts[name] = str(error)
    return facts


def chain(folder: Path, model: Path, served: str, method: str = "lora") -> tuple[World, dict[str, Any]]:
    """All stages after prepare, judged by vLLM, and the version that they publish."""
    base = make_world(folder, model)
    evaluation = {**base.spec["evaluation"], **SPEC["evaluation"]}
    output = {"adapterRef": {"name": "triage"}, "servedAs": served}
    spec = {**base.spec, "evaluation": evaluation, "output": output}
    spec["model"] = {**spec["model"], **SPEC["model"]}
    plan = base.plan.model_copy(update={"total_steps": 40, "eval_steps": 20, "method": method})
    world = replace(base, spec=spec, plan=plan)
    results = StageResults(prepare=world.prepare)
    told: list[Progress] = []
    for stage, module in (("baseline", baseline), ("train", train), ("evaluate", evaluate), ("publish", publish)):
        outcome = module.run(world.open(world.task(stage, results=results), told))
        found = outcome[0] if isinstance(outcome, tuple) else outcome
        results = results.model_copy(update={stage: getattr(found, stage)})
    version = folder / "store/team/triage/versions/v1"
    assert results.baseline is not None
    assert results.evaluate is not None
    by_transformers = {**spec, "evaluation": {**evaluation, "engine": "transformers"}}
    context = replace(world, spec=by_transformers).context("evaluate", results=results)
    again = evaluate.run(context)[0].evaluate
    assert again is not None
    return world, {
        "by transformers": {"metrics": again.metrics, "other": again.other_form},
        "base": results.baseline.base,
        "metrics": results.evaluate.metrics,
        "other": results.evaluate.other_form,
        "phases": sorted({said.phase for said in told if 0 < said.total_steps == said.step}),
        "engine": json.loads((version / "manifest.json").read_bytes())["generation"]["engine"],
    }


def outputs(world: World) -> dict[str, str]:
    """The candidate's recorded answers by row."""
    path = world.folder / f"store/team/triage/runs/{world.uid}/1/evaluate/outputs.jsonl.gz"
    records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return {record["id"]: record["text"] for record in records if record["system"] == "candidate"}


def served(world: World, model: Path) -> dict[str, Any]:
    """The published folder as a server is given it: vLLM's own chat, with the published template and adapter."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    version = world.folder / "store/team/triage/versions/v1"
    template = (version / "chat_template.jinja").read_text()
    # Rank 8 is what the job trained; everything else is vLLM's default, and the tokenizer is the base's.
    llm = LLM(str(model), dtype="float32", enable_lora=True, max_lora_rank=8, enforce_eager=True,
              kv_cache_memory_bytes=2**28)  # fmt: skip
    path = world.folder / f"store/team/triage/runs/{world.uid}/1/test/test.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    found = llm.chat(
        [row["messages"][:-1] for row in rows],
        SamplingParams(temperature=0.0, max_tokens=world.spec["evaluation"]["maxNewTokens"]),
        lora_request=LoRARequest("triage", 1, str(version)),
        chat_template=template,
        use_tqdm=False,
    )
    tokenizer = load_tokenizer(model, world.spec["model"]["chatTemplate"])
    encoded = [encode_example(tokenizer, row["messages"], CONTEXT) for row in rows]
    prompts = [ids[: next(at for at, label in enumerate(labels) if label != -100)] for ids, labels in encoded]
    recorded = outputs(world)
    llm.llm_engine.engine_core.shutdown()
    return {
        "rows": len(rows),
        "other template": template != load_tokenizer(model).chat_template,
        "same tokens": sum(list(item.prompt_token_ids) == prompt for item, prompt in zip(found, prompts, strict=True)),
        "same answers": sum(item.outputs[0].text == recorded[row["id"]] for item, row in zip(found, rows, strict=True)),
    }


def main() -> None:
    """Print the facts of every case."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    model = make_tiny_model(folder / "model", heads=2, kv_heads=1)
    plan = make_world(folder / "world", model).plan
    in_bf16 = plan.model_copy(update={"precision": "bf16"})
    wanted = request(model, plan)
    # Each start of vLLM collects garbage seven times: what is imported needs no looking at.
    importlib.import_module("vllm.entrypoints.llm")
    gc.collect()
    gc.freeze()
    facts: dict[str, Any] = {
        "base": both(wanted),
        "bf16": both(replace(wanted, plan=in_bf16)),
        "saved as it is, penalty": both(
            replace(wanted, method=None, model_path=penalised(model, folder / "penalised"))
        ),
    }
    for name, method in ADAPTERS.items():
        adapter = random_adapter(model, method, folder / name)
        facts[name] = both(replace(wanted, adapter=adapter))
    facts["sampled"] = sampled(wanted)
    facts["legal"] = legal(folder / "legal")
    facts["unusable"] = unusable(wanted, folder)
    world, facts["adapter chain"] = chain(folder / "adapter", model, "adapter")
    facts["served"] = served(world, model)
    _, facts["merged chain"] = chain(folder / "merged", model, "merged", "qlora")
    print("FACTS " + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
