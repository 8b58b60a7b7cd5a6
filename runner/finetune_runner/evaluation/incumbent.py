"""What the released version does on this test split: from its own evaluation of the same rows, else by asking it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finetune_runner.context import StageContext
from finetune_runner.data.rows import Row
from finetune_runner.evaluation.compare import System
from finetune_runner.evaluation.outcomes import Outcome
from finetune_runner.evaluation.records import OUT_OF_DOMAIN_SUFFIX, unpack_systems
from finetune_runner.evaluation.version import download_version, read_manifest
from finetune_runner.model_source import FetchedModel, fetch_model, is_cached
from finetune_runner.storage import join

log = logging.getLogger(__name__)


def incumbent_system(context: StageContext, test: Sequence[Row], out_of_domain: Sequence[Row]) -> System | None:
    """Outcomes of the incumbent on these rows, or None when no version is released."""
    incumbent = context.task.incumbent
    if incumbent is None:
        return None
    manifest = read_manifest(context.storage, incumbent.uri)
    stored = _stored(context, manifest, test, out_of_domain)
    if stored is None:
        stored = _asked(context, manifest, test, out_of_domain)
    return System(incumbent.version, stored["candidate"], stored.get("candidate" + OUT_OF_DOMAIN_SUFFIX, []))


def _stored(
    context: StageContext, manifest: dict[str, Any], test: Sequence[Row], out_of_domain: Sequence[Row]
) -> dict[str, list[Outcome]] | None:
    """The outputs of the incumbent's own evaluation, when they answer exactly these rows under the same limits."""
    uri = join(manifest["run"]["uri"], "evaluate/outputs.jsonl.gz")
    spec = context.task.spec
    same_limits = (
        manifest["generation"]["maxNewTokens"] == spec.evaluation.max_new_tokens
        and manifest["hyperparameters"]["maxLength"] == spec.training.max_length
    )
    if not same_limits or not context.storage.exists(uri):
        return None
    try:
        outcomes = unpack_systems(context.storage.read_bytes(uri), {"test": test, "out_of_domain": out_of_domain})
    except ValueError as error:
        log.info("the incumbent is asked again: %s", error)
        return None
    if out_of_domain and "candidate" + OUT_OF_DOMAIN_SUFFIX not in outcomes:
        return None
    return outcomes


def _asked(
    context: StageContext, manifest: dict[str, Any], test: Sequence[Row], out_of_domain: Sequence[Row]
) -> dict[str, list[Outcome]]:
    """Load the incumbent in the form in which it is served, and ask it."""
    from finetune_runner.evaluation.serving import load_plain
    from finetune_runner.evaluation.systems import Examinee, own_prompts
    from finetune_runner.training.device import pick_device
    from finetune_runner.training.loading import load_base, load_tokenizer, with_adapter

    incumbent, plan = context.task.incumbent, context.task.plan
    assert incumbent is not None  # noqa: S101 - the caller has looked
    context.report_progress(f"loading {incumbent.version}")
    folder = download_version(context.storage, incumbent.uri, manifest, context.scratch / "evaluate" / "incumbent")
    device = pick_device(plan)
    if manifest["servedAs"] == "merged":
        model = load_plain(folder, device)
    else:
        model = with_adapter(load_base(_base(context, manifest).path, manifest["method"], device, plan), folder)
    tokenizer = load_tokenizer(folder)
    examinee = Examinee(context, model, tokenizer, context.task.spec.training.max_length)
    outcomes = {"candidate": examinee.examine(test, own_prompts(tokenizer, test), incumbent.version)}
    if out_of_domain:
        outcomes["candidate" + OUT_OF_DOMAIN_SUFFIX] = examinee.score(
            out_of_domain, own_prompts(tokenizer, out_of_domain), f"{incumbent.version}: out of domain"
        )
    return outcomes


def _base(context: StageContext, manifest: dict[str, Any]) -> FetchedModel:
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
