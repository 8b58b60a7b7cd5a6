"""Stage prepare: from sources to verified splits, before a GPU is held."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from finetune_api.stages import Finding, PrepareResult, RowCounts, StageResults, TokenLengths
from finetune_runner.context import StageContext
from finetune_runner.data.checking import Given, Length, Phase, Splits, run_checks
from finetune_runner.data.loading import Example, Loaded, Wanted, load
from finetune_runner.data.prepared import SPLITS, Split, split_path
from finetune_runner.data.records import BadRow, BadRows
from finetune_runner.data.rows import Row, write_rows
from finetune_runner.data.splitting import assign, cluster_keys, repetitions, sample, test_share
from finetune_runner.data.wanted import POOL, split_sources
from finetune_runner.evaluation.engines import check_engine
from finetune_runner.model_source import FetchedModel, fetch_model, model_facts
from finetune_runner.storage import join, probe_conditional_writes
from finetune_runner.text import IGNORED, RenderError, check_chat_template, encode_example, load_tokenizer

log = logging.getLogger("finetune_runner.prepare")

MANIFEST_VERSION = 1
_UNCUT = 1 << 40
_PROGRESS_EVERY = 500
_LIBRARIES = ("finetune-operator", "transformers", "tokenizers", "datasketch")
_SEVERITIES = ("error", "warning", "info")


@dataclass
class _Work:
    """What prepare gathers on its way."""

    findings: list[Finding] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    transformations: list[dict[str, Any]] = field(default_factory=list)
    formats: dict[str, None] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each row of data.train, by content id; the first dataset that has the row decides."""
    dropped: int = 0

    def note(self, loaded: Loaded, wanted: Wanted) -> None:
        """Remember a source."""
        self.findings.append(loaded.finding)
        self.formats[loaded.format] = None
        self.sources.append(
            {
                "field": wanted.place,
                "source": wanted.source,
                "format": loaded.format,
                "rows": len(loaded.examples),
                "files": loaded.files,
            }
        )

    def run(self, phase: Phase, given: Given) -> Splits:
        """Run a phase's checks and remember what they said and dropped."""
        splits, findings, dropped = run_checks(phase, given)
        self.findings.extend(findings)
        self.transformations.extend({"check": check, "dropped": rows} for check, rows in dropped.items())
        self.dropped += sum(sum(rows.values()) for rows in dropped.values())
        return splits


def run(context: StageContext) -> tuple[StageResults, list[Finding]]:
    """Resolve the model, read, check, split and count the data, and write the splits; the manifest comes last."""
    task, spec = context.task, context.task.spec
    check_engine(spec.evaluation.engine)
    probe_conditional_writes(context.storage, join(task.run_uri, "prepare"))
    work = _Work()
    context.report_progress("reading the data")
    splits = _read_sources(context, work)
    context.report_progress("checking and splitting the data")
    splits = work.run("rows", Given(splits, spec))
    splits = _split_pool(context, work, splits)
    splits = work.run("splits", Given(splits, spec))
    splits = _weigh(context, work, splits)
    splits = _mix_replay(context, work, splits)
    # The model comes second: it is the larger download, and bad rows are found without it.
    context.report_progress("fetching the model")
    model = fetch_model(context)
    facts = model_facts(model.path, spec.model.source)
    tokenizer = load_tokenizer(model.path)
    check_chat_template(tokenizer, spec.model.source)
    lengths = _measure(context, tokenizer, splits)
    splits = work.run("tokens", Given(splits, spec, lengths, facts.context_length))

    context.report_progress("writing the splits")
    ordered: dict[Split, list[Row]] = {
        name: sorted((example.row for example in splits[name]), key=lambda row: row.id)
        for name in SPLITS
        if name in splits
    }
    digests = {name: _digest(rows) for name, rows in ordered.items()}
    data_digest = hashlib.sha256(
        json.dumps({"splits": digests, "maxLength": spec.training.max_length}, sort_keys=True).encode()
    ).hexdigest()
    _write(context, ordered, digests, data_digest, work, model)
    mix = sorted(
        min(length.total, spec.training.max_length) for name in ("train", "replay") for length in lengths.get(name, [])
    )
    totals = sorted(length.total for name in ("train", "replay") for length in lengths.get(name, []))
    result = PrepareResult(
        revision=model.revision,
        model_digest=model.digest,
        model=facts,
        rows=RowCounts(dropped=work.dropped, **{name: len(rows) for name, rows in ordered.items()}),
        train_tokens=sum(mix),
        lengths=TokenLengths(
            p50=_quantile(totals, 0.5),
            p95=_quantile(totals, 0.95),
            maximum=totals[-1],
            over_maximum=sum(total > spec.training.max_length for total in totals),
        ),
        data_digest=data_digest,
        test_digest=digests["test"],
        detected_format=", ".join(work.formats),
    )
    findings = sorted(work.findings, key=lambda finding: _SEVERITIES.index(finding.severity))
    return StageResults(prepare=result), findings


def _read_sources(context: StageContext, work: _Work) -> Splits:
    """All sources of the job by split; data.train is the `pool` that validation and test may be split off."""
    splits: Splits = {POOL: []}
    for named in split_sources(context.task.spec):
        examples = _load(context, work, named.wanted).examples
        splits[named.split] = [*splits.get(named.split, []), *examples]
        if named.split == POOL:
            for example in examples:
                work.weights.setdefault(example.row.id, named.weight)
    return splits


def _load(context: StageContext, work: _Work, wanted: Wanted) -> Loaded:
    context.check_stop()
    loaded = load(context, wanted, context.scratch / "sources" / wanted.place.replace("[", "-").rstrip("]"))
    log.info("%s: %d rows from %s", wanted.place, len(loaded.examples), wanted.source)
    work.note(loaded, wanted)
    return loaded


def _split_pool(context: StageContext, work: _Work, splits: Splits) -> Splits:
    """Give each cluster of the pool to train, validation or test."""
    spec = context.task.spec
    pool = splits["pool"]
    validation = 0.0 if "validation" in splits else spec.data.validation.fraction
    test = 0.0 if "test" in splits else test_share(spec.data.test.fraction, len(pool))
    keys = cluster_keys([example.row for example in pool])
    parts = assign(keys, spec.training.seed, validation, test)
    assigned: Splits = {
        name: [example for example, part in zip(pool, parts, strict=True) if part == name]
        for name in ("train", "validation", "test")
    }
    sizes = Counter(keys)
    work.transformations.append(
        {
            "split": {
                "seed": spec.training.seed,
                "by": spec.data.group_by or "near-duplicate clusters",
                "clusters": len(sizes),
                "validationShare": validation,
                "testShare": test,
            }
        }
    )
    largest = max(sizes.values())
    if largest > max(0.2 * len(keys), 1):
        message = (
            f"{largest} of {len(keys)} rows are near-duplicates of each other (or one group) and stay in one split; "
            "the splits may miss their shares: vary the rows, or set data.groupBy"
        )
        work.findings.append(Finding(check="clusters", severity="warning", message=message, rows=largest))
    rest = {name: examples for name, examples in splits.items() if name != "pool"}
    return {**rest, **{name: [*rest.get(name, []), *examples] for name, examples in assigned.items()}}


def _weigh(context: StageContext, work: _Work, splits: Splits) -> Splits:
    """Repeat or thin out the rows of train as the weights of their datasets say."""
    seed = context.task.spec.training.seed
    if all(weight == 1 for weight in work.weights.values()):
        return splits
    weighed = [
        example
        for example in splits["train"]
        for _ in range(repetitions(example.row, work.weights.get(example.row.id, 1.0), seed))
    ]
    work.transformations.append({"weights": {"before": len(splits["train"]), "after": len(weighed)}})
    return {**splits, "train": weighed}


def _mix_replay(context: StageContext, work: _Work, splits: Splits) -> Splits:
    """Take as many replay rows as make up their fraction of the mix; fewer, when the source has no more."""
    replay = context.task.spec.data.replay
    if replay is None:
        return splits
    wanted = round(len(splits["train"]) * replay.fraction / (1 - replay.fraction))
    by_id = {example.row.id: example for example in splits["replay"]}
    chosen = sample([example.row for example in by_id.values()], wanted, context.task.spec.training.seed)
    work.transformations.append({"replay": {"wanted": wanted, "available": len(by_id), "taken": len(chosen)}})
    if len(chosen) < wanted:
        share = len(chosen) / max(len(chosen) + len(splits["train"]), 1)
        message = (
            f"data.replay has {len(chosen)} usable rows, fraction {replay.fraction:g} needs {wanted}: replay is "
            f"{100 * share:.0f} % of the mix; add rows to it or lower the fraction"
        )
        work.findings.append(Finding(check="replay", severity="warning", message=message, rows=len(chosen)))
    return {**splits, "replay": [by_id[row.id] for row in chosen]}


def _measure(context: StageContext, tokenizer: Any, splits: Splits) -> dict[str, list[Length]]:
    """Tokens of every example. Raises StageError (INVALID_DATA) for rows that the chat template refuses."""
    total = sum(map(len, splits.values()))
    done = 0
    bad = BadRows()
    known: dict[str, Length] = {}
    lengths: dict[str, list[Length]] = {}
    for name, examples in splits.items():
        lengths[name] = []
        for example in examples:
            if done % _PROGRESS_EVERY == 0:
                context.check_stop()
                context.report_progress("counting tokens", done, total)
            done += 1
            if example.row.id not in known:
                known[example.row.id] = _length(tokenizer, example, bad)
            lengths[name].append(known[example.row.id])
    bad.raise_if_any("rows against the model's chat template")
    return lengths


def _length(tokenizer: Any, example: Example, bad: BadRows) -> Length:
    try:
        ids, labels = encode_example(tokenizer, example.row.messages, _UNCUT)
    except RenderError as error:
        bad.add(BadRow(example.origin, "", str(error), "use only roles that the model's template knows"))
        return Length(0, 0)
    return Length(len(ids), sum(label != IGNORED for label in labels))


def _write(
    context: StageContext,
    ordered: dict[Split, list[Row]],
    digests: dict[Split, str],
    data_digest: str,
    work: _Work,
    model: FetchedModel,
) -> None:
    """Splits, lineage, and last the manifest that makes them count."""
    task = context.task
    files: dict[str, dict[str, Any]] = {}
    for name, rows in ordered.items():
        context.check_stop()
        data = write_rows(rows)
        context.storage.write_bytes(join(task.run_uri, split_path(name)), data)
        files[split_path(name)] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "rows": len(rows)}
    lineage = {
        "model": {"source": task.spec.model.source, "revision": model.revision, "digest": model.digest},
        "sources": work.sources,
        "transformations": work.transformations,
        "rows": {name: len(rows) for name, rows in ordered.items()},
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
        "maxLength": task.spec.training.max_length,
    }
    context.fence.check()
    context.storage.write_bytes(join(task.run_uri, "prepare/manifest.json"), _json(manifest))


def _digest(rows: Sequence[Row]) -> str:
    """sha256 over the rows' content, whatever their compression."""
    return hashlib.sha256("\n".join(json.dumps(row.to_wire(), sort_keys=True) for row in rows).encode()).hexdigest()


def _quantile(ordered: Sequence[int], share: float) -> int:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()
