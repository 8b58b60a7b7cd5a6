"""What the released version does on this test split: from its own evaluation of the same rows, else by asking it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_runner.context import StageContext
from finetune_runner.data.prepared import load_split
from finetune_runner.data.rows import Row
from finetune_runner.errors import StageError
from finetune_runner.evaluation.compare import System
from finetune_runner.evaluation.engines import check_served, generation_facts
from finetune_runner.evaluation.outcomes import Outcome
from finetune_runner.evaluation.parallel import Measured, measure
from finetune_runner.evaluation.phases import ANSWERS, LIKELIHOODS, Phases, spans_of_evaluate
from finetune_runner.evaluation.records import OUT_OF_DOMAIN_SUFFIX, unpack_systems
from finetune_runner.evaluation.share import Share
from finetune_runner.evaluation.systems import open_examinee, own_prompts
from finetune_runner.evaluation.version import download_version, read_manifest
from finetune_runner.model_source import FetchedModel, fetch_model, is_cached
from finetune_runner.storage import join
from finetune_runner.text import load_tokenizer
from finetune_runner.training.loading import method_of_weights

log = logging.getLogger(__name__)


def incumbent_system(context: StageContext, test: Sequence[Row], out_of_domain: Sequence[Row]) -> System | None:
    """Outcomes of the incumbent on these rows, or None when no version is released."""
    incumbent = context.task.incumbent
    if incumbent is None:
        return None
    manifest = read_manifest(context.storage, incumbent.uri)
    stored = _stored(context, manifest, test, out_of_domain)
    if stored is None:
        download_version(context.storage, incumbent.uri, manifest, _folder(context))
        base_of(context, manifest)  # once here, not once per process at the same time
        stored = measure(context, ask_incumbent, {"test": test, "out_of_domain": out_of_domain}).outcomes
    return System(incumbent.version, stored["candidate"], stored.get("candidate" + OUT_OF_DOMAIN_SUFFIX, []))


def check_incumbent(context: StageContext, test: Sequence[Row], out_of_domain: Sequence[Row]) -> None:
    """Refuse, before anything is trained, an incumbent that this job's engine could not ask.

    Raises:
        StageError: INVALID_SPEC with the fix; none where its stored answers do, or no version is released.
    """
    incumbent = context.task.incumbent
    if incumbent is None:
        return
    manifest = read_manifest(context.storage, incumbent.uri)
    if manifest["servedAs"] == "merged" or _stored(context, manifest, test, out_of_domain) is not None:
        return
    method, rank = method_of_weights(manifest["base"]["weights"]), manifest["hyperparameters"]["rank"]
    try:
        check_served(context.task.spec.evaluation.engine, method, rank)
    except StageError as error:
        raise StageError(
            error.exit_code, f"{incumbent.version} would be asked too: {error.message}", hint=error.hint
        ) from error


def _stored(
    context: StageContext, manifest: dict[str, Any], test: Sequence[Row], out_of_domain: Sequence[Row]
) -> dict[str, list[Outcome]] | None:
    """The outputs of the incumbent's own evaluation, when they answer exactly these rows under the same limits."""
    uri = join(manifest["run"]["uri"], "evaluate/outputs.jsonl.gz")
    if not context.storage.exists(uri):
        return None
    spec = context.task.spec
    same_limits = (
        manifest["generation"] == generation_facts(spec.evaluation)
        and manifest["hyperparameters"]["maxLength"] == spec.training.max_length
    )
    if not same_limits:
        return None
    try:
        outcomes = unpack_systems(context.storage.read_bytes(uri), {"test": test, "out_of_domain": out_of_domain})
    except ValueError as error:
        log.info("the incumbent is asked again: %s", error)
        return None
    if out_of_domain and "candidate" + OUT_OF_DOMAIN_SUFFIX not in outcomes:
        return None
    return outcomes


def ask_incumbent(context: StageContext, share: Share) -> Measured:
    """A share of the rows under the incumbent, in the form in which it is served."""
    incumbent = context.task.incumbent
    assert incumbent is not None  # noqa: S101 - the caller has looked
    test, out_of_domain = load_split(context, "test"), load_split(context, "out_of_domain")
    manifest = read_manifest(context.storage, incumbent.uri)
    _, span = spans_of_evaluate(context.task, merges=False)
    each = (ANSWERS, LIKELIHOODS, LIKELIHOODS) if out_of_domain else (ANSWERS, LIKELIHOODS)
    phases = Phases(context, each, span)
    phases.loading(f"loading {incumbent.version}")
    folder = _folder(context)
    tokenizer = load_tokenizer(folder)
    as_adapter = manifest["servedAs"] != "merged"
    examinee = open_examinee(
        context,
        tokenizer,
        share,
        phases,
        model_path=base_of(context, manifest).path if as_adapter else folder,
        method=method_of_weights(manifest["base"]["weights"]) if as_adapter else None,
        adapter=folder if as_adapter else None,
    )
    found = Measured({"candidate": examinee.examine(test, own_prompts(tokenizer, test), incumbent.version)})
    if out_of_domain:
        found.outcomes["candidate" + OUT_OF_DOMAIN_SUFFIX] = examinee.score(
            out_of_domain, own_prompts(tokenizer, out_of_domain), f"{incumbent.version}: out of domain"
        )
    examinee.engine.close()
    return found


def _folder(context: StageContext) -> Path:
    return context.scratch / "evaluate" / "incumbent"


def base_of(context: StageContext, manifest: dict[str, Any]) -> FetchedModel:
    """The base the incumbent was made for, which need not be this job's."""
    task, base = context.task, manifest["base"]
    if task.results.prepare is None or base["digest"] == task.results.prepare.model_digest:
        return fetch_model(context)
    prepared = task.results.prepare.model_copy(update={"revision": base["revision"], "model_digest": base["digest"]})
    model = task.spec.model.model_copy(update={"source": base["source"]})
    other = task.model_copy(
        update={
            "spec": task.spec.model_copy(update={"model": model}),
            "results": task.results.model_copy(update={"prepare": prepared}),
        }
    )
    if context.model_cache_read_only and not is_cached(context, base["digest"]):
        # Nobody has filled the cache with the base of another job's version: it is fetched for this stage alone.
        context = replace(context, model_cache=context.scratch / "models", model_cache_read_only=False)
    return fetch_model(replace(context, task=other))
