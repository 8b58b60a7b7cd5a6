"""Stage prepare: from sources to verified splits, before a GPU is held. The rows are on disk all along."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from typing import Any

from finetune_api.stages import Finding, PrepareResult, RowCounts, StageResults, TokenLengths
from finetune_runner.context import StageContext
from finetune_runner.data.checking import CheckRun, Phase, Remark, run_checks
from finetune_runner.data.earlier_versions import keep_seen_inputs
from finetune_runner.data.loading import fetch, load
from finetune_runner.data.measuring import Measured
from finetune_runner.data.near_duplicates import NearDuplicates
from finetune_runner.data.pool import Step, mix_replay, split_pool, weigh
from finetune_runner.data.prepared import SPLITS, Split, split_path
from finetune_runner.data.row_store import RowStore
from finetune_runner.data.rows import Row, write_rows_to
from finetune_runner.data.wanted import SplitSource, split_sources
from finetune_runner.model_source import FetchedModel, fetch_model, model_facts
from finetune_runner.storage import join, probe_conditional_writes
from finetune_runner.template_check import check_chat_template
from finetune_runner.text import load_tokenizer

log = logging.getLogger("finetune_runner.prepare")

MANIFEST_VERSION = 1
_AT_ONCE = 500
_LIBRARIES = ("finetune-operator", "transformers", "tokenizers", "datasketch")
_SEVERITIES = ("error", "warning", "info")
_TRAINED_ON = ("train", "replay")


@dataclass
class _Work:
    """What prepare gathers on its way."""

    findings: list[Finding] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    transformations: list[dict[str, Any]] = field(default_factory=list)
    checks: list[CheckRun] = field(default_factory=list)
    formats: dict[str, None] = field(default_factory=dict)
    dropped: int = 0

    def say(self, remarks: list[Remark]) -> None:
        """Remember what was seen."""
        self.remarks.extend(remarks)
        self.findings.extend(remark.finding for remark in remarks)

    def step(self, step: Step | None) -> None:
        """Remember a transformation."""
        if step is not None:
            self.transformations.append(step.lineage)
            self.say(step.remarks)

    def check(self, runs: Iterator[CheckRun]) -> None:
        """Remember what checks said, dropped and replaced."""
        for run in runs:
            self.checks.append(run)
            self.say(run.remarks)
            self.dropped += sum(run.dropped.values())
            for what, rows in (("dropped", run.dropped), ("replaced", run.replaced)):
                if rows:
                    self.transformations.append({"check": run.check, what: dict(rows)})


def run(context: StageContext) -> tuple[StageResults, list[Finding]]:
    """Resolve the model, read, check, split and count the data, and write the splits; the manifest comes last."""
    task = context.task
    probe_conditional_writes(context.storage, join(task.run_uri, "prepare"))
    with RowStore(context.scratch / "prepare" / "rows.sqlite") as store:
        return _prepare(context, store)


def _prepare(context: StageContext, store: RowStore) -> tuple[StageResults, list[Finding]]:
    spec = context.task.spec
    work = _Work()
    context.report_progress("reading the data")
    for named in split_sources(spec):
        _read(context, store, work, named)

    def check(phase: Phase, context_length: int = 0, near: NearDuplicates | None = None) -> None:
        context.report_progress(f"checking the {phase}")
        work.check(run_checks(phase, store, spec, context_length, near))
        context.check_stop()

    check("rows")
    if spec.data.checks.seen_before != "ignore":
        work.say(keep_seen_inputs(context, store))
    context.report_progress("looking for near-duplicates")
    with NearDuplicates(store, context.check_stop) as near:
        work.step(split_pool(store, near, spec))
        check("splits", near=near)
    work.step(weigh(store, spec.training.seed))
    work.step(mix_replay(store, spec))
    # The model comes second: it is the larger download, and bad rows are found without it.
    context.report_progress("fetching the model")
    model = fetch_model(context)
    facts = model_facts(model.path, spec.model.source)
    tokenizer = load_tokenizer(model.path, spec.model.chat_template)
    work.say([Remark("chatTemplate", "warning", said) for said in check_chat_template(tokenizer, spec.model.source)])
    _measure(context, tokenizer, store, work)
    check("tokens", facts.context_length)

    context.report_progress("writing the splits")
    digests, data_digest = _write(context, store, work, model, tokenizer.chat_template)
    lengths = store.histogram(*_TRAINED_ON)
    result = PrepareResult(
        revision=model.revision,
        model_digest=model.digest,
        model=facts,
        rows=RowCounts(dropped=work.dropped, **store.copies()),
        train_tokens=sum(min(total, spec.training.max_length) * rows for total, rows in lengths),
        lengths=token_lengths(lengths, spec.training.max_length),
        data_digest=data_digest,
        test_digest=digests["test"],
        detected_format=", ".join(work.formats),
    )
    findings = sorted(work.findings, key=lambda finding: _SEVERITIES.index(finding.severity))
    return StageResults(prepare=result), findings


def token_lengths(histogram: list[tuple[int, int]], maximum: int) -> TokenLengths:
    """Quantiles of a histogram of lengths: (tokens, rows), shortest first."""
    rows = sum(count for _, count in histogram)

    def quantile(share: float) -> int:
        before, position = 0, min(int(share * rows), rows - 1)
        for total, count in histogram:
            before += count
            if position < before:
                return total
        return 0

    return TokenLengths(
        p50=quantile(0.5),
        p95=quantile(0.95),
        maximum=histogram[-1][0] if histogram else 0,
        over_maximum=sum(count for total, count in histogram if total > maximum),
    )


def _read(context: StageContext, store: RowStore, work: _Work, named: SplitSource) -> None:
    """Read one source into its split."""
    context.check_stop()
    wanted = named.wanted
    fetched = fetch(context, wanted, context.scratch / "sources" / wanted.place.replace("[", "-").rstrip("]"))
    loaded = load(context, fetched, lambda row, origin: store.add(named.split, row, origin, named.weight))
    log.info("%s: %d rows from %s", wanted.place, loaded.rows, wanted.source)
    work.findings.append(loaded.finding)
    work.formats[loaded.format] = None
    work.sources.append(
        {
            "field": wanted.place,
            "source": wanted.source,
            "format": loaded.format,
            "rows": loaded.rows,
            "files": fetched.files,
            **({"revision": fetched.revision} if fetched.revision else {}),
            **({"systemPromptAdded": loaded.system_prompts_added} if loaded.system_prompts_added else {}),
            **({"provenance": wanted.provenance} if wanted.provenance else {}),
        }
    )


def _measure(context: StageContext, tokenizer: Any, store: RowStore, work: _Work) -> None:
    """Count the tokens of every row. Raises StageError (INVALID_DATA) for rows that the chat template refuses."""
    counts = store.counts()
    total, done = sum(counts.values()), 0
    measured = Measured(tokenizer, context.task.spec.training.max_length, context.task.spec.data.loss)
    examples = store.examples(*counts)
    while chunk := list(islice(examples, _AT_ONCE)):
        context.check_stop()
        context.report_progress("counting tokens", done, total)
        store.set_lengths((example.number, measured.length(example)) for example in chunk)
        done += len(chunk)
    work.say(measured.remarks())


def _write(
    context: StageContext, store: RowStore, work: _Work, model: FetchedModel, chat_template: str
) -> tuple[dict[Split, str], str]:
    """Splits, lineage, and last the manifest that makes them count. Returns the digests of the splits and of all."""
    task = context.task
    files: dict[str, dict[str, Any]] = {}
    digests: dict[Split, str] = {}
    for name in SPLITS:
        if name not in store.splits():
            continue
        context.check_stop()
        path = context.scratch / "prepare" / f"{name}.jsonl.gz"
        with path.open("wb") as target:
            written = write_rows_to(target, _epoch(store, name))
        context.storage.upload_file(path, join(task.run_uri, split_path(name)))
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[split_path(name)] = {"sha256": digest, "bytes": path.stat().st_size, "rows": written.rows}
        digests[name] = written.digest
        path.unlink()
    # What decides which tokens are trained: a checkpoint or a version of anything else is another one.
    identity = {
        "splits": digests,
        "maxLength": task.spec.training.max_length,
        "loss": task.spec.data.loss,
        "chatTemplate": hashlib.sha256(chat_template.encode()).hexdigest(),
    }
    data_digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    lineage = {
        "model": {"source": task.spec.model.source, "revision": model.revision, "digest": model.digest},
        "sources": work.sources,
        "transformations": work.transformations,
        "rows": store.copies(),
        "dropped": work.dropped,
        "seed": task.spec.training.seed,
        "image": task.image,
        "versions": {name: version(name) for name in _LIBRARIES},
    }
    data = _json(lineage)
    context.storage.write_bytes(join(task.run_uri, "prepare/lineage.json"), data)
    files["prepare/lineage.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest = {
        "version": MANIFEST_VERSION,
        "files": files,
        "splits": digests,
        "dataDigest": data_digest,
        "testDigest": digests["test"],
        **{name: identity[name] for name in ("maxLength", "loss", "chatTemplate")},
    }
    context.fence.check()
    context.storage.write_bytes(join(task.run_uri, "prepare/manifest.json"), _json(manifest))
    return digests, data_digest


def _epoch(store: RowStore, split: str) -> Iterator[Row]:
    """The rows of one epoch, in the order of their content."""
    for example in store.examples(split, by_content=True):
        for _ in range(example.copies):
            yield example.row


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()
