"""Stage baseline: what the untuned model can do on test, so that tuning is judged against the honest alternative."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import BaselineResult, StageResults
from finetune_runner.context import StageContext
from finetune_runner.data.prepared import iter_split, load_split, spooled
from finetune_runner.data.rows import Message, Row
from finetune_runner.errors import StageError
from finetune_runner.evaluation.bootstrap import minimum_detectable_gain
from finetune_runner.evaluation.compare import (
    OUT_OF_DOMAIN_LOSS,
    System,
    best_baseline,
    measured_names,
    terms_of,
    values_of,
)
from finetune_runner.evaluation.engines import check_engine, engine_version
from finetune_runner.evaluation.generation import CACHE_BYTES_PER_BATCH, ROWS_PER_BATCH, TOKENS_PER_BATCH
from finetune_runner.evaluation.incumbent import check_incumbent
from finetune_runner.evaluation.metrics import Settings
from finetune_runner.evaluation.metrics.f1 import classes_of
from finetune_runner.evaluation.outcomes import Outcome
from finetune_runner.evaluation.parallel import Measured, measure
from finetune_runner.evaluation.phases import ANSWERS, LIKELIHOODS, Phases
from finetune_runner.evaluation.prompts import choose_examples, majority_answer, with_examples, with_system
from finetune_runner.evaluation.records import OUT_OF_DOMAIN_SUFFIX, pack_systems, unpack_systems
from finetune_runner.evaluation.share import Share
from finetune_runner.evaluation.systems import open_examinee, own_prompts, renderable
from finetune_runner.model_source import fetch_model
from finetune_runner.storage import join
from finetune_runner.text import encode_prompt, load_tokenizer
from finetune_runner.training.device import deterministic
from finetune_runner.training.loading import method_of

log = logging.getLogger(__name__)

BASE = "base"
PROMPTED = "prompted"
FEW_SHOT = "fewShot"
MAJORITY = "majority"
OUTPUTS = "baseline/outputs.jsonl.gz"
CACHE_FORMAT = 3
UNLIMITED = 1 << 30

Prompts = dict[str, list[list[Message]]]


def run(context: StageContext) -> StageResults:
    """Measure the untuned model, or take the numbers of an earlier run that asked it the very same.

    Raises:
        StageError: INVALID_DATA when test is empty or no answer of it holds a label at labelPath.
    """
    task, spec = context.task, context.task.spec
    check_engine(spec.evaluation.engine, method_of(task))
    test, out_of_domain = load_split(context, "test"), load_split(context, "out_of_domain")
    settings = settings_for_rows(context, test)
    check_incumbent(context, test, out_of_domain)
    tokenizer = load_tokenizer(fetch_model(context).path, spec.model.chat_template)
    prompts = _prompts(context, tokenizer, test)
    cache = _cache_uri(context, tokenizer, prompts, test, out_of_domain)
    rows = {"test": test, "out_of_domain": out_of_domain}
    began, peak = time.monotonic(), 0
    systems = _from_cache(context, cache, rows)
    cached = systems is not None
    if systems is None:
        measured = measure(context, ask_base, rows)
        systems, peak = measured.outcomes, measured.peaks[BASE]
    data = pack_systems(systems)
    context.fence.check()
    context.storage.write_bytes(join(task.run_uri, OUTPUTS), data)
    if not cached:
        context.storage.write_bytes(cache, data)

    names = measured_names(spec.evaluation, task.gates)
    base, baselines = systems_of(context, systems, test)
    values = {name: values_of(system, names, settings) for name, system in baselines.items()}
    primary = names[0]
    best = best_baseline(values, primary)
    known = terms_of(primary, baselines[best], settings) if best else None
    return StageResults(
        baseline=BaselineResult(
            rows=len(test),
            baselines=values,
            base=values_of(base, [*names, OUT_OF_DOMAIN_LOSS], settings),
            best=best,
            minimum_detectable_gain=minimum_detectable_gain(*known, settings) if known else None,
            cached=cached,
            peak_memory_bytes=peak,
            duration_seconds=round(time.monotonic() - began, 1),
        )
    )


def settings_for_rows(context: StageContext, test: Sequence[Row]) -> Settings:
    """Metric settings with the classes of the test split.

    Raises:
        StageError: INVALID_DATA when test is empty, or is a classification without labels.
    """
    evaluation = context.task.spec.evaluation
    if not test:
        raise StageError(
            ExitCode.INVALID_DATA, "the test split is empty", hint="raise data.test.fraction or give data.test.source"
        )
    classes = classes_of([row.said for row in test], evaluation.task.label_path)
    if evaluation.task.type == "classification" and not classes:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"no answer of the test split has a label at {evaluation.task.label_path or 'its whole text'}",
            hint="evaluation.task.labelPath must name a field of the answers, for example $.category",
            evidence=f"row {test[0].id}: {test[0].said[:200]}",
        )
    return Settings.of(evaluation, classes)


def systems_of(
    context: StageContext, outcomes: Mapping[str, list[Outcome]], test: Sequence[Row]
) -> tuple[System, dict[str, System]]:
    """The base and the baselines by name, from stored outcomes; the majority class needs only train's answers."""
    evaluation = context.task.spec.evaluation
    base = System(BASE, outcomes[BASE], outcomes.get(BASE + OUT_OF_DOMAIN_SUFFIX, []))
    baselines = {name: System(name, outcomes[name]) for name in (PROMPTED, FEW_SHOT) if name in outcomes}
    if evaluation.baseline_prompt is None:
        baselines = {PROMPTED: System(PROMPTED, base.test), **baselines}
    measures_match = any(m.name == "exactMatch" for m in evaluation.metrics)
    if evaluation.task.type == "classification" or measures_match:
        with spooled(context, "train") as train:
            answer = majority_answer(train, evaluation.task.label_path)
        baselines[MAJORITY] = System(MAJORITY, [Outcome(row.id, row.said, text=answer) for row in test])
    return base, baselines


def _prompts(context: StageContext, tokenizer: Any, test: Sequence[Row]) -> Prompts:
    """The rendered conversations of each generated system."""
    evaluation = context.task.spec.evaluation
    prompt = evaluation.baseline_prompt
    prompts: Prompts = {BASE: own_prompts(tokenizer, test)}
    if prompt is not None:
        prompts[PROMPTED] = [renderable(tokenizer, with_system(row.prompt, prompt)) for row in test]
    examples = (
        choose_examples(
            iter_split(context, "train"),
            evaluation.few_shot,
            context.task.spec.training.seed,
            evaluation.task.label_path,
            classes=evaluation.task.type == "classification",
        )
        if evaluation.few_shot
        else []
    )
    if examples:
        room = _context_length(context) - evaluation.max_new_tokens
        prompts[FEW_SHOT] = [_fitting(tokenizer, row, examples, prompt, room) for row in test]
    return prompts


def _fitting(tokenizer: Any, row: Row, examples: Sequence[Row], system: str | None, room: int) -> list[Message]:
    """The prompt with as many of the examples as fit `room` tokens."""
    for count in range(len(examples), 0, -1):
        prompt = renderable(tokenizer, with_examples(row.prompt, examples[:count], system))
        if len(encode_prompt(tokenizer, prompt)) <= room:
            return prompt
    return renderable(tokenizer, with_system(row.prompt, system))


def _context_length(context: StageContext) -> int:
    prepared = context.task.results.prepare
    return prepared.model.context_length if prepared is not None and prepared.model.context_length else UNLIMITED


def _asks_base(context: StageContext) -> bool:
    """Whether the base must answer under its own prompt: it is the prompted baseline, or a gate compares with it."""
    return context.task.spec.evaluation.baseline_prompt is None or any(
        gate.over == "base" and gate.metric not in ("loss", OUT_OF_DOMAIN_LOSS) for gate in context.task.gates
    )


def _cache_uri(
    context: StageContext, tokenizer: Any, prompts: Prompts, test: Sequence[Row], out_of_domain: Sequence[Row]
) -> str:
    """Where outputs of exactly these questions to exactly this model are kept.

    Outputs are cached, not numbers: a metric may change without asking the model again.
    """
    task = context.task
    identity = {
        "format": CACHE_FORMAT,
        "model": task.results.prepare.model_digest if task.results.prepare else "",
        "method": method_of(task),
        "precision": task.plan.precision if task.plan else "",
        "onGpu": bool(task.plan and task.plan.gpus_per_node),
        "template": tokenizer.chat_template,
        "maxNewTokens": task.spec.evaluation.max_new_tokens,
        "maxLength": task.spec.training.max_length,
        "batch": ROWS_PER_BATCH,
        "batchTokens": TOKENS_PER_BATCH,
        "batchCacheBytes": CACHE_BYTES_PER_BATCH,
        "engine": engine_version(task.spec.evaluation.engine),
        "generation": task.spec.evaluation.generation.to_wire(),
        "asksBase": _asks_base(context),
        "prompts": prompts,
        "answers": [row.said for row in test],
        "outOfDomain": [row.id for row in out_of_domain],
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return join(task.adapter_uri, "cache", "baseline", f"{digest}.jsonl.gz")


def _from_cache(context: StageContext, uri: str, rows: Mapping[str, Sequence[Row]]) -> dict[str, list[Outcome]] | None:
    """Outputs of an earlier run, or None when there are none that can be read."""
    if not context.storage.exists(uri):
        return None
    try:
        found = unpack_systems(context.storage.read_bytes(uri), rows)
    except ValueError as error:
        log.warning("%s is not used: %s", uri, error)
        return None
    log.info("baseline outputs are taken from %s", uri)
    return found


def ask_base(context: StageContext, share: Share) -> Measured:
    """Ask and score the untuned model, in the precision in which the adapter will be trained and served."""
    task, spec = context.task, context.task.spec
    test, out_of_domain = load_split(context, "test"), load_split(context, "out_of_domain")
    deterministic(spec.training.seed)
    context.report_progress("loading the model")
    model_path = fetch_model(context).path
    tokenizer = load_tokenizer(model_path, spec.model.chat_template)
    prompts, asks_base = _prompts(context, tokenizer, test), _asks_base(context)
    weights = [w for name in prompts for w in ((ANSWERS, LIKELIHOODS) if name != BASE or asks_base else (LIKELIHOODS,))]
    phases = Phases(context, [*weights, LIKELIHOODS] if out_of_domain else weights)
    examinee = open_examinee(
        context, tokenizer, share, phases, model_path=model_path, method=method_of(task), adapter=None
    )
    whole = replace(examinee, max_length=_context_length(context))
    found = Measured()
    for name, conversations in prompts.items():
        if name == BASE and not asks_base:
            found.outcomes[name] = examinee.score(test, conversations, "base: likelihoods")
        else:
            found.outcomes[name] = (examinee if name == BASE else whole).examine(test, conversations, name)
    if out_of_domain:
        found.outcomes[BASE + OUT_OF_DOMAIN_SUFFIX] = examinee.score(
            out_of_domain, own_prompts(tokenizer, out_of_domain), "base: out of domain"
        )
    found.peaks[BASE] = examinee.engine.close()
    return found
