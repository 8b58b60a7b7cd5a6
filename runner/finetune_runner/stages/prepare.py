"""Stage prepare: from sources to verified splits, before a GPU is held. The rows are on disk all along."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from finetune_api.stages import Finding, ModelFacts, PrepareResult, RowCounts, StageResults, TokenLengths
from finetune_runner.context import StageContext
from finetune_runner.data.checking import CheckRun, Phase, Remark, run_checks
from finetune_runner.data.earlier_versions import with_earlier_versions
from finetune_runner.data.lineage import described_source, lineage_document
from finetune_runner.data.loading import Fetched, fetch, load
from finetune_runner.data.measuring import Measured
from finetune_runner.data.near_duplicates import NearDuplicates
from finetune_runner.data.outcome import Prepared, check_to_wire, length_buckets, remark_to_wire, token_lengths
from finetune_runner.data.pool import Step, mix_replay, split_pool, weigh
from finetune_runner.data.prepared import ROW_HASHES_PATH, SPLITS, split_path
from finetune_runner.data.prepared_cache import PreparedCache, data_key, model_key
from finetune_runner.data.row_hashes import adapter_salt, write_row_hashes
from finetune_runner.data.row_store import RowStore
from finetune_runner.data.rows import Row, write_rows_to
from finetune_runner.data.source_shares import emptied, rows_kept
from finetune_runner.data.wanted import SplitSource, split_sources
from finetune_runner.evaluation.engines import check_engine
from finetune_runner.json_schema import schema_validator
from finetune_runner.model_source import FetchedModel, fetch_model, model_facts
from finetune_runner.report.data_document import data_document
from finetune_runner.report.data_page import render_data_report
from finetune_runner.storage import join, probe_conditional_writes
from finetune_runner.template_check import check_chat_template
from finetune_runner.text import load_tokenizer
from finetune_runner.training.compilers import refuse_lack
from finetune_runner.training.loading import method_of
from finetune_runner.training.mixtures import check_mixture
from finetune_runner.training.targets import check_targets
from finetune_runner.training.warm_start import check_warm_start

log = logging.getLogger("finetune_runner.prepare")

MANIFEST_VERSION = 1
_AT_ONCE = 500
_TRAINED_ON = ("train", "replay")

Sources = list[tuple[SplitSource, Fetched]]


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

    def check(self, runs: Iterable[CheckRun]) -> None:
        """Remember what checks said, dropped and replaced."""
        for run in runs:
            self.checks.append(run)
            self.findings.extend(remark.finding for remark in run.remarks)
            self.dropped += sum(run.dropped.values())
            if run.dropped:
                weighed = {"copies": dict(run.dropped_copies)} if run.dropped_copies != run.dropped else {}
                self.transformations.append({"check": run.check, "dropped": dict(run.dropped), **weighed})
            if run.replaced:
                self.transformations.append({"check": run.check, "replaced": dict(run.replaced)})


@dataclass(frozen=True)
class _Model:
    """The base model, as far as prepare needs it."""

    fetched: FetchedModel
    facts: ModelFacts
    tokenizer: Any
    template_remarks: list[Remark]


def run(context: StageContext) -> tuple[StageResults, list[Finding]]:
    """Resolve the model, read, check, split and count the data, and write the splits; the manifest comes last.

    Data that an earlier run of the adapter prepared in the same way are taken over instead.
    """
    task = context.task
    check_engine(task.spec.evaluation.engine, method_of(task))
    check_warm_start(context)
    if task.spec.training.torch_compile == "enabled":
        refuse_lack(task.spec.compute.gpus_per_node)
    if task.spec.evaluation.task.schema_ is not None:  # also where data.checks.answers is ignore: evaluation needs it
        schema_validator(task.spec.evaluation.task.schema_)
    probe_conditional_writes(context.storage, join(task.run_uri, "prepare"))
    context.report_progress("reading the data")
    sources = _fetch_sources(context)
    cache = PreparedCache(context, data_key(context, sources))
    model: _Model | None = None
    if cache.may_have():
        model = _fetch_model(context)
        context.report_progress("taking over prepared data")
        restored = cache.restore(model_key(context, model.fetched.path))
        if restored is not None:
            prepared, origin = restored
            log.info("the prepared data are those of %s", origin)
            return _commit(context, with_earlier_versions(context, prepared), model, origin)
    with RowStore(context.scratch / "prepare" / "rows.sqlite", context.check_stop) as store:
        prepared, paths, model = _prepare(context, store, sources, model)
    # Apart from what is cached: which versions there are changes while the data stay.
    results = _commit(context, with_earlier_versions(context, prepared), model, "")
    cache.keep(model_key(context, model.fetched.path), prepared, paths)
    return results


def _prepare(
    context: StageContext, store: RowStore, sources: Sources, model: _Model | None
) -> tuple[Prepared, dict[str, Path], _Model]:
    """Make the splits, and upload them."""
    spec = context.task.spec
    work = _Work()
    read = [(named, *_read(context, store, work, named, fetched)) for named, fetched in sources]

    def check(phase: Phase, context_length: int = 0, near: NearDuplicates | None = None) -> None:
        context.report_progress(f"checking the {phase}")
        work.check(run_checks(phase, store, spec, context_length, near))
        context.check_stop()

    check("rows")
    context.report_progress("looking for near-duplicates")
    with NearDuplicates(store) as near:
        work.step(split_pool(store, near, spec))
        check("splits", near=near)
    work.step(weigh(store, spec.training.seed))
    work.step(mix_replay(store, spec))
    # The model comes second: it is the larger download, and bad rows are found without it.
    model = model or _fetch_model(context)
    work.say(model.template_remarks)
    _measure(context, model, store, work)
    check("tokens", model.facts.context_length)
    for description, (named, after, until) in zip(work.sources, read, strict=True):
        description["kept"] = rows_kept(store, after, until)
        work.say(emptied(named, description["rows"], description["kept"]))

    context.report_progress("writing the splits")
    files, splits, paths = _write(context, store)
    histogram = store.histogram(*_TRAINED_ON)
    most = spec.training.max_length
    prepared = Prepared(
        files=files,
        splits=splits,
        rows=store.copies(),
        dropped=work.dropped,
        train_tokens=sum(min(total, most) * rows for total, rows in histogram),
        lengths=token_lengths(histogram, most).to_wire(),
        buckets=length_buckets(histogram),
        formats=list(work.formats),
        sources=work.sources,
        transformations=work.transformations,
        checks=[check_to_wire(run) for run in work.checks],
        remarks=[remark_to_wire(remark) for remark in work.remarks],
        findings=[finding.to_wire() for finding in work.findings],
    )
    return prepared, paths, model


def _fetch_sources(context: StageContext) -> Sources:
    sources = []
    for named in split_sources(context.task.spec):
        context.check_stop()
        folder = context.scratch / "sources" / named.wanted.place.replace("[", "-").rstrip("]")
        sources.append((named, fetch(context, named.wanted, folder)))
    return sources


def _fetch_model(context: StageContext) -> _Model:
    context.report_progress("fetching the model")
    source = context.task.spec.model.source
    fetched = fetch_model(context)
    facts = model_facts(fetched.path, source)
    check_mixture(context.task.spec.method, facts, fetched.path)
    check_targets(context.task.spec.method, fetched.path)
    tokenizer = load_tokenizer(fetched.path, context.task.spec.model.chat_template)
    said = [Remark("chatTemplate", "warning", words) for words in check_chat_template(tokenizer, source)]
    return _Model(fetched, facts, tokenizer, said)


def _read(context: StageContext, store: RowStore, work: _Work, named: SplitSource, fetched: Fetched) -> tuple[int, int]:
    """Read one source into its split: the number of the row before its first one, and of its last one."""
    before = store.last
    loaded = load(context, fetched, lambda row, origin: store.add(named.split, row, origin, named.weight))
    log.info("%s: %d rows from %s", named.wanted.place, loaded.rows, named.wanted.source)
    work.say([Remark(said.check, said.severity, said.message, said.rows) for said in loaded.findings])
    if loaded.empty_answers:
        work.dropped += loaded.empty_answers
        work.transformations.append({"check": "empty_answers", "dropped": {named.split: loaded.empty_answers}})
    work.formats[loaded.format] = None
    work.sources.append(described_source(context, named, fetched, loaded))
    return before, store.last


def _measure(context: StageContext, model: _Model, store: RowStore, work: _Work) -> None:
    """Count the tokens of every row. Raises StageError as `Measured.remarks`."""
    counts = store.counts()
    total, done = sum(counts.values()), 0
    spec = context.task.spec
    measured = Measured(model.tokenizer, spec.training.max_length, spec.data.loss, model.facts.vocabulary)
    examples = store.examples(*counts)
    while chunk := list(islice(examples, _AT_ONCE)):
        context.check_stop()
        context.report_progress("counting tokens", done, total)
        store.set_lengths((example.number, measured.length(example)) for example in chunk)
        done += len(chunk)
    work.say(measured.remarks())


def _write(context: StageContext, store: RowStore) -> tuple[dict[str, dict[str, Any]], dict[str, str], dict[str, Path]]:
    """Write and upload the splits and the row hashes: what is said of the files, the splits' digests, the copies."""
    task = context.task
    files: dict[str, dict[str, Any]] = {}
    digests: dict[str, str] = {}
    paths: dict[str, Path] = {}
    for split in SPLITS:
        if split not in store.splits():
            continue
        context.check_stop()
        path = context.scratch / "prepare" / f"{split}.jsonl.gz"
        with path.open("wb") as target:
            written = write_rows_to(target, _epoch(store, split))
        digests[split] = written.digest
        paths[split_path(split)] = path
        files[split_path(split)] = {"rows": written.rows}
    paths[ROW_HASHES_PATH] = context.scratch / "prepare" / "row-hashes"
    write_row_hashes(store, adapter_salt(context.storage, task.adapter_uri), paths[ROW_HASHES_PATH])
    for name, path in paths.items():
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[name] = {"sha256": digest, "bytes": path.stat().st_size, **files.get(name, {})}
        context.storage.upload_file(path, join(task.run_uri, name))
    return files, digests, paths


def _commit(
    context: StageContext, prepared: Prepared, model: _Model, origin: str
) -> tuple[StageResults, list[Finding]]:
    """Write lineage and data report, and last the manifest that makes the splits count.

    Args:
        context: of the stage.
        prepared: the data; their files are in the run already.
        model: the base model.
        origin: the run that prepared them; empty = this one.
    """
    task, spec = context.task, context.task.spec
    # What decides which tokens are trained: a checkpoint or a version of anything else is another one.
    tokens = {
        "maxLength": spec.training.max_length,
        "loss": spec.data.loss,
        "chatTemplate": hashlib.sha256(model.tokenizer.chat_template.encode()).hexdigest(),
    }
    data_digest = hashlib.sha256(json.dumps({"splits": prepared.splits, **tokens}, sort_keys=True).encode()).hexdigest()
    report = data_document(task, prepared, data_digest, origin)
    documents = {
        "prepare/lineage.json": _json(lineage_document(task, prepared, model.fetched, data_digest, origin)),
        "prepare/data-report.json": _json(report),
        "prepare/data-report.html": render_data_report(report).encode(),
    }
    files = dict(prepared.files)
    for name, data in documents.items():
        context.storage.write_bytes(join(task.run_uri, name), data)
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest = {
        "version": MANIFEST_VERSION,
        "files": files,
        "splits": prepared.splits,
        "dataDigest": data_digest,
        "testDigest": prepared.splits["test"],
        **tokens,
    }
    context.fence.check()
    context.storage.write_bytes(join(task.run_uri, "prepare/manifest.json"), _json(manifest))
    result = PrepareResult(
        revision=model.fetched.revision,
        model_digest=model.fetched.digest,
        model=model.facts,
        rows=RowCounts(dropped=prepared.dropped, **prepared.rows),
        train_tokens=prepared.train_tokens,
        lengths=TokenLengths.from_wire(prepared.lengths),
        data_digest=data_digest,
        test_digest=prepared.splits["test"],
        detected_format=", ".join(prepared.formats),
        report_uri=join(task.run_uri, "prepare/data-report.html"),
        cached=bool(origin),
    )
    return StageResults(prepare=result), prepared.sorted_findings


def _epoch(store: RowStore, split: str) -> Iterator[Row]:
    """The rows of one epoch, in the order of their content."""
    for example in store.examples(split, by_content=True):
        for _ in range(example.copies):
            yield example.row


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()
