"""Stage publish: claim a number, upload, manifest last. A version without a manifest does not exist."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import EvaluateResult, PrepareResult, PublishResult, StageResults, StageTask, TrainResult
from finetune_runner.context import StageContext
from finetune_runner.data.prepared import ROW_HASHES_PATH, load_manifest
from finetune_runner.data.row_hashes import ROW_HASHES
from finetune_runner.errors import StageError
from finetune_runner.evaluation.serving import ADAPTER_FILES, fetch_adapter
from finetune_runner.evaluation.version import MANIFEST
from finetune_runner.model_source import fetch_model
from finetune_runner.report.card import model_card
from finetune_runner.report.manifest import version_manifest
from finetune_runner.storage import Storage, join
from finetune_runner.templates import use_template
from finetune_runner.text import load_plain_tokenizer
from finetune_runner.training.checkpoint import sha256_of

log = logging.getLogger(__name__)

CLAIM = "claim.json"
REPORTS = ("evaluation.json", "report.html")


def run(context: StageContext) -> StageResults:
    """Publish the evaluated form as the adapter's next version.

    Raises:
        StageError: INVALID_SPEC without the results of earlier stages, INVALID_DATA when their files were changed.
    """
    task = context.task
    prepared, trained, evaluated = task.results.prepare, task.results.train, task.results.evaluate
    if prepared is None or trained is None or evaluated is None:
        raise StageError(ExitCode.INVALID_SPEC, "the publish stage needs the results of prepare, train and evaluate")
    number = claim(context)
    uri = join(_versions(task), f"v{number}")
    if not context.storage.exists(join(uri, MANIFEST)):
        _publish(context, number, uri, prepared, trained, evaluated)
    # Read back, whoever of our attempts wrote it: that is the version.
    manifest = context.storage.read_bytes(join(uri, MANIFEST))
    files = json.loads(manifest)["files"]
    return StageResults(
        publish=PublishResult(
            version=number,
            uri=uri,
            digest=hashlib.sha256(manifest).hexdigest(),
            size_bytes=len(manifest) + sum(facts["size"] for facts in files.values()),
        )
    )


def claim(context: StageContext) -> int:
    """The version number of this run: the one an earlier attempt claimed, else the next free one.

    A claim is create-only and never given back, so two publishers get different numbers and none is used twice.
    """
    task, storage = context.task, context.storage
    claims = _claims(storage, task)
    for number, who in claims.items():
        if (who["uid"], who["run"]) == (task.job.uid, task.job.run):
            return number
    mine = {
        "uid": task.job.uid,
        "run": task.job.run,
        "job": f"{task.job.namespace}/{task.job.name}",
        "createdAt": context.clock().strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    number = max(claims, default=0) + 1
    context.fence.check()
    while not storage.create(join(_versions(task), f"v{number}", CLAIM), json.dumps(mine).encode()):
        number += 1
    return number


def _versions(task: StageTask) -> str:
    return join(task.adapter_uri, "versions")


def _claims(storage: Storage, task: StageTask) -> dict[int, dict[str, Any]]:
    """Who claimed which number."""
    root = _versions(task)
    found = {}
    for item in storage.list(f"{root}/"):
        match = re.fullmatch(rf"v([1-9][0-9]*)/{CLAIM}", item.uri.removeprefix(f"{root}/"))
        if match:
            found[int(match[1])] = json.loads(storage.read_bytes(item.uri))
    return found


def _publish(
    context: StageContext,
    number: int,
    uri: str,
    prepared: PrepareResult,
    trained: TrainResult,
    evaluated: EvaluateResult,
) -> None:
    folder = _collect(context, evaluated)
    evaluation = json.loads((folder / "evaluation.json").read_bytes())
    lineage = json.loads(context.storage.read_bytes(join(context.task.run_uri, "prepare/lineage.json")))
    (folder / "README.md").write_text(model_card(context.task, number, evaluation, trained), encoding="utf-8")
    files = {p.name: {"sha256": sha256_of(p), "size": p.stat().st_size} for p in sorted(folder.iterdir())}
    manifest = version_manifest(
        context.task, number, context.clock(), files, _template(folder), lineage, prepared, trained, evaluated
    )
    for done, name in enumerate(files):
        context.check_stop()
        context.report_progress("uploading", done, len(files))
        context.storage.upload_file(folder / name, join(uri, name))
    context.fence.check()
    if not context.storage.create(join(uri, MANIFEST), json.dumps(manifest, indent=1, ensure_ascii=False).encode()):
        log.info("an earlier attempt of this run has already published v%d", number)


def _collect(context: StageContext, evaluated: EvaluateResult) -> Path:
    """All files of the version but README and manifest, in one local folder."""
    folder = context.scratch / "publish"
    model = fetch_model(context)
    if evaluated.served_as == "merged":
        _fetch_merged(context, folder)
    else:
        fetch_adapter(context, folder)
        _point_to_base(folder / ADAPTER_FILES[1], context.task, model.revision)
        tokenizer = load_plain_tokenizer(model.path)
        use_template(tokenizer, context.task.spec.model.chat_template)  # what was trained with is what is handed on
        tokenizer.save_pretrained(str(folder))
    for name in REPORTS:
        context.storage.download_file(join(context.task.run_uri, "evaluate", name), folder / name)
    _fetch_row_hashes(context, folder / ROW_HASHES)
    return folder


def _fetch_row_hashes(context: StageContext, path: Path) -> None:
    """What tells which rows the version was trained on. A run prepared by an older runner has none."""
    facts = load_manifest(context)["files"].get(ROW_HASHES_PATH)
    if facts is None:
        return
    context.storage.download_file(join(context.task.run_uri, ROW_HASHES_PATH), path)
    if sha256_of(path) != facts["sha256"]:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{ROW_HASHES_PATH} of run {context.task.job.run} was changed after stage prepare",
            hint="nobody may write below runs/; start a new run",
        )


def _point_to_base(config: Path, task: StageTask, revision: str) -> None:
    """Make PEFT's own configuration say which base the adapter is for, in the words its users type."""
    source = task.spec.model.source
    scheme, _, path = source.partition("://")
    values = json.loads(config.read_bytes())
    values["base_model_name_or_path"] = path if scheme in ("hf", "file") else source
    values["revision"] = revision if scheme == "hf" else None
    config.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


def _fetch_merged(context: StageContext, folder: Path) -> None:
    """The merged model that evaluate judged. Raises StageError when a file is not the one it wrote."""
    run_uri = context.task.run_uri
    files = json.loads(context.storage.read_bytes(join(run_uri, "evaluate/merged.json")))
    shutil.rmtree(folder, ignore_errors=True)
    for name, facts in files.items():
        context.check_stop()
        context.storage.download_file(join(run_uri, "evaluate/merged", name), folder / name)
        if sha256_of(folder / name) != facts["sha256"]:
            raise StageError(
                ExitCode.INVALID_DATA,
                f"{run_uri}/evaluate/merged/{name} is not the file that was judged",
                hint="nobody may write below runs/; start a new run",
            )


def _template(folder: Path) -> str:
    """The chat template among the files."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return str(json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template", ""))
