"""Stage evaluate: what will be served, on test and out of domain, beside baseline, base and incumbent."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Comparison, EvaluateResult, Finding, StageResults, StageTask
from finetune_runner.context import StageContext
from finetune_runner.data.prepared import load_split
from finetune_runner.data.rows import Row
from finetune_runner.errors import StageError
from finetune_runner.evaluation.compare import (
    OUT_OF_DOMAIN_LOSS,
    Field,
    System,
    compare,
    intervals_of,
    measured_names,
    values_of,
)
from finetune_runner.evaluation.engines import check_engine
from finetune_runner.evaluation.incumbent import incumbent_system
from finetune_runner.evaluation.metrics import Settings
from finetune_runner.evaluation.outcomes import Outcome
from finetune_runner.evaluation.parallel import Measured, measure
from finetune_runner.evaluation.phases import ANSWERS, COMPARED_AT, LIKELIHOODS, Phases, spans_of_evaluate
from finetune_runner.evaluation.records import OUT_OF_DOMAIN_SUFFIX, pack_systems, to_jsonl, unpack_systems
from finetune_runner.evaluation.serving import Form, fetch_adapter, make_merged
from finetune_runner.evaluation.share import Share
from finetune_runner.evaluation.systems import open_examinee, own_prompts
from finetune_runner.evaluation.test_use import count_test_use
from finetune_runner.model_source import fetch_model
from finetune_runner.report.document import Document, evaluation_document, review_rows
from finetune_runner.report.page import render
from finetune_runner.stages import baseline
from finetune_runner.storage import join
from finetune_runner.tracking import open_tracking
from finetune_runner.tracking.facts import gate_tags, judged_values
from finetune_runner.training.device import deterministic, pick_device
from finetune_runner.training.loading import load_tokenizer, method_of

log = logging.getLogger(__name__)

CANDIDATE = "candidate"
OUTPUTS = "evaluate/outputs.jsonl.gz"
MERGED = "evaluate/merged"
MERGED_LIST = "evaluate/merged.json"


@dataclass(frozen=True)
class Splits:
    """The rows this stage needs."""

    test: list[Row]
    out_of_domain: list[Row]


def run(context: StageContext) -> tuple[StageResults, list[Finding]]:
    """Measure the served form and write the report.

    Raises:
        StageError: INVALID_SPEC without the results of baseline and train, INVALID_DATA when stored files were changed.
    """
    task = context.task
    check_engine(task.spec.evaluation.engine, method_of(task))
    if task.results.baseline is None or task.results.train is None:
        raise StageError(ExitCode.INVALID_SPEC, "the evaluate stage needs the results of baseline and train")
    splits = Splits(load_split(context, "test"), load_split(context, "out_of_domain"))
    settings = baseline.settings_for_rows(context, splits.test)
    base, baselines = baseline.systems_of(context, _baseline_outputs(context, splits), splits.test)

    began = time.monotonic()
    examined = _examine_forms(context, splits)
    forms = examined.outcomes
    took_s = time.monotonic() - began
    served = task.spec.output.served_as
    candidate = System("tuned", forms[served], forms.get(served + OUT_OF_DOMAIN_SUFFIX, []))
    incumbent = incumbent_system(context, splits.test, splits.out_of_domain)

    context.report_progress("comparing", percent=COMPARED_AT)
    names = [*measured_names(task.spec.evaluation, task.gates), OUT_OF_DOMAIN_LOSS]
    systems = Field(candidate, baselines, task.results.baseline.best, base, incumbent)
    comparisons = [_comparison(gate_index, systems, settings, context) for gate_index in range(len(task.gates))]
    other = next((name for name in forms if "/" not in name and name != served), "")
    other_values: dict[str, float] = {}
    if other:
        other_system = System(other, forms[other], forms.get(other + OUT_OF_DOMAIN_SUFFIX, []))
        other_values = values_of(other_system, names, settings)
    intervals = intervals_of(candidate, names, settings)

    context.fence.check()
    uses = count_test_use(context)
    result = EvaluateResult(
        rows=len(splits.test),
        served_as=served,
        metrics={name: found.value for name, found in intervals.items()},
        other_form=other_values,
        comparisons=comparisons,
        incumbent=task.incumbent.version if task.incumbent is not None else "",
        test_uses=uses,
        report_uri=join(task.run_uri, "evaluate/report.html"),
        peak_memory_bytes=examined.peaks.get("adapter", 0),
        merged_peak_memory_bytes=examined.peaks.get("merged", 0),
        duration_seconds=round(took_s, 1),
    )
    result = result.model_copy(update={"lost_trackers": _track(context, result)})
    document = evaluation_document(task, result, systems, intervals, names, settings, _history(context))
    _write(context, forms, served, document, systems, splits.test)
    lost = [
        Finding(check="tracking", severity="warning", message=f"{problem}; the numbers are in the report all the same")
        for problem in result.lost_trackers
    ]
    return StageResults(evaluate=result), lost


def _track(context: StageContext, result: EvaluateResult) -> list[str]:
    """Tell the trackers the final numbers; returns those that were lost."""
    tracking = open_tracking(context)
    tracking.tag(gate_tags(context.task))
    trained = context.task.results.train
    tracking.log(trained.steps if trained is not None else 0, judged_values(result))
    return tracking.close("Finished")


def _comparison(index: int, systems: Field, settings: Settings, context: StageContext) -> Comparison:
    gate = context.task.gates[index]
    try:
        return compare(gate, systems, settings)
    except KeyError as error:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"gate {index + 1}: metric {gate.metric} cannot be measured on this test split",
            hint="outOfDomainLoss needs evaluation.outOfDomain; f1 needs labels at evaluation.task.labelPath",
        ) from error


def _baseline_outputs(context: StageContext, splits: Splits) -> dict[str, list[Outcome]]:
    uri = join(context.task.run_uri, baseline.OUTPUTS)
    try:
        return unpack_systems(
            context.storage.read_bytes(uri), {"test": splits.test, "out_of_domain": splits.out_of_domain}
        )
    except ValueError as error:
        raise StageError(
            ExitCode.INVALID_DATA, f"{uri}: {error}", hint="nobody may write below runs/; start a new run"
        ) from error


def _forms(task: StageTask) -> list[Form]:
    """The served form, and for QLoRA the other one too, where the plan says that it fits the GPU."""
    served = task.spec.output.served_as
    if method_of(task) != "lora" and (task.plan is None or task.plan.judge_both_forms):
        return [served, "merged" if served == "adapter" else "adapter"]
    return [served]


def _examine_forms(context: StageContext, splits: Splits) -> Measured:
    """Outcomes of the forms, over all GPUs of the pod."""
    model_path = fetch_model(context).path
    adapter = fetch_adapter(context, _adapter_folder(context))
    task = context.task
    if "merged" in _forms(task):
        make_merged(context, model_path, adapter, _merged_folder(context), method_of(task), pick_device(task.plan))
    found = measure(context, examine_forms, {"test": splits.test, "out_of_domain": splits.out_of_domain})
    if task.spec.output.served_as == "merged":
        load_tokenizer(model_path, task.spec.model.chat_template).save_pretrained(str(_merged_folder(context)))
    return found


def examine_forms(context: StageContext, share: Share) -> Measured:
    """A share of the rows under each form; the merged model and the adapter lie ready in scratch."""
    task, spec = context.task, context.task.spec
    test, out_of_domain = load_split(context, "test"), load_split(context, "out_of_domain")
    deterministic(spec.training.seed)
    forms = _forms(task)
    span, _ = spans_of_evaluate(task, merges="merged" in forms)
    each = (ANSWERS, LIKELIHOODS, LIKELIHOODS) if out_of_domain else (ANSWERS, LIKELIHOODS)
    phases = Phases(context, [*each] * len(forms), span)
    phases.loading("loading the model")
    model_path = fetch_model(context).path
    tokenizer = load_tokenizer(model_path, spec.model.chat_template)
    found = Measured()
    for form in forms:
        as_adapter = form == "adapter"
        examinee = open_examinee(
            context,
            tokenizer,
            share,
            phases,
            model_path=model_path if as_adapter else _merged_folder(context),
            method=method_of(task) if as_adapter else None,
            adapter=_adapter_folder(context) if as_adapter else None,
        )
        found.outcomes[form] = examinee.examine(test, own_prompts(tokenizer, test), form)
        if out_of_domain:
            found.outcomes[form + OUT_OF_DOMAIN_SUFFIX] = examinee.score(
                out_of_domain, own_prompts(tokenizer, out_of_domain), f"{form}: out of domain"
            )
        found.peaks[form] = examinee.engine.close()
    return found


def _adapter_folder(context: StageContext) -> Path:
    return context.scratch / "evaluate" / "adapter"


def _merged_folder(context: StageContext) -> Path:
    return context.scratch / "evaluate" / "merged"


def _history(context: StageContext) -> list[dict[str, Any]]:
    """The loss curve, empty when training left none."""
    uri = join(context.task.run_uri, "train/history.json")
    if not context.storage.exists(uri):
        return []
    points: list[dict[str, Any]] = json.loads(context.storage.read_bytes(uri))
    return points


def _write(
    context: StageContext,
    forms: Mapping[str, Sequence[Outcome]],
    served: str,
    document: Document,
    systems: Field,
    test: Sequence[Row],
) -> None:
    """Everything of this stage into storage; report.json, written by the process around, comes after it."""
    run_uri, storage = context.task.run_uri, context.storage
    named = {CANDIDATE + name.removeprefix(served) if name.startswith(served) else name: o for name, o in forms.items()}
    samples = review_rows(
        test, systems, context.task.spec.evaluation.human_review.samples, context.task.spec.training.seed
    )
    if served == "merged":
        _upload_merged(context)
    context.fence.check()
    storage.write_bytes(join(run_uri, OUTPUTS), pack_systems(named))
    storage.write_bytes(join(run_uri, "evaluate/review.jsonl"), to_jsonl(samples))
    storage.write_bytes(
        join(run_uri, "evaluate/evaluation.json"), json.dumps(document, indent=1, ensure_ascii=False).encode()
    )
    storage.write_bytes(join(run_uri, "evaluate/report.html"), render(document, samples).encode())


def _upload_merged(context: StageContext) -> None:
    """The merged model that was judged, so that publish hands on these very files."""
    from finetune_runner.training.checkpoint import sha256_of

    files = {}
    for path in sorted(_merged_folder(context).iterdir()):
        context.check_stop()
        context.storage.upload_file(path, join(context.task.run_uri, MERGED, path.name))
        files[path.name] = {"sha256": sha256_of(path), "size": path.stat().st_size}
    context.fence.check()
    context.storage.write_bytes(join(context.task.run_uri, MERGED_LIST), json.dumps(files).encode())
