"""method.warmStartFrom: a published version's adapter, proven to be the one that was accepted and to fit this job."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.exit_codes import ExitCode
from finetune_api.job.method import Method
from finetune_api.stages import WarmStartVersion
from finetune_runner.errors import StageError
from finetune_runner.evaluation.version import MANIFEST, download_version
from finetune_runner.storage import join
from finetune_runner.training.adapter_file import load_adapter, misfits, wanted_shapes

if TYPE_CHECKING:
    from finetune_runner.context import StageContext

CONFIG = "adapter_config.json"


def start_warm(context: StageContext, model: Any, folder: Path) -> bool:
    """Put the weights of the task's warm start into a fresh adapter; False when the task has none.

    Raises:
        StageError: INVALID_SPEC naming the field in which the job differs from the version; INVALID_DATA when a file is
            not the one that was published.
    """
    start = context.task.warm_start
    if start is None:
        return False
    manifest = _manifest(context, start)
    prepared = context.task.results.prepare
    if prepared is not None and manifest["base"]["digest"] != prepared.model_digest:
        raise _differs(start, "model.source", manifest["base"]["source"], "is another base model")
    download_version(context.storage, start.uri, manifest, folder)
    check_settings(start, json.loads((folder / CONFIG).read_bytes()), context.task.spec.method)
    problem = misfits(wanted_shapes(model), folder)
    if problem:
        raise _differs(start, "method.targetModules", str(manifest["hyperparameters"]["targetModules"]), problem)
    load_adapter(model, folder)
    return True


def check_warm_start(context: StageContext) -> None:
    """Compare the job's method with the version's before a GPU is held; training proves the files themselves.

    Raises StageError as `check_settings`.
    """
    start = context.task.warm_start
    if start is None:
        return
    config = join(start.uri, CONFIG)
    if context.storage.exists(config):  # else training says what is missing
        check_settings(start, json.loads(context.storage.read_bytes(config)), context.task.spec.method)


def check_settings(start: WarmStartVersion, config: dict[str, Any], method: Method) -> None:
    """Compare PEFT's configuration of the version with the job's method.

    Another alpha or rank would make the same weights another model.

    Raises:
        StageError: INVALID_SPEC naming the field and the version's value.
    """
    if config.get("modules_to_save"):
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"method.warmStartFrom: {start.version} saves whole modules ({', '.join(config['modules_to_save'])})",
            hint="start from a version that is an adapter only, or leave warmStartFrom out",
        )
    wanted = {
        "rank": (config.get("r"), method.rank),
        "alpha": (config.get("lora_alpha"), method.alpha),
        "useRslora": (bool(config.get("use_rslora")), method.use_rslora),
        "useDora": (bool(config.get("use_dora")), method.use_dora),
    }
    for field, (theirs, ours) in wanted.items():
        if not isinstance(theirs, int | float) or not math.isclose(theirs, ours):
            said = str(theirs).lower() if isinstance(theirs, bool) else str(theirs)
            raise _differs(start, f"method.{field}", said, f"is {str(ours).lower()} in this job")


def _differs(start: WarmStartVersion, field: str, theirs: str, problem: str) -> StageError:
    return StageError(
        ExitCode.INVALID_SPEC,
        f"method.warmStartFrom: {start.version} does not fit this job: {field} {problem}",
        hint=f"set {field}: {theirs}, or leave warmStartFrom out",
    )


def _manifest(context: StageContext, start: WarmStartVersion) -> dict[str, Any]:
    """The version's manifest, whose sha256 is the version's digest."""
    content = context.storage.read_bytes(join(start.uri, MANIFEST))
    digest = hashlib.sha256(content).hexdigest()
    if digest != start.digest:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{start.uri}/{MANIFEST} is not the one of {start.version}",
            hint="restore the version's files from a backup; versions are never changed",
            evidence=f"sha256 {digest}, the AdapterVersion says {start.digest}",
        )
    manifest: dict[str, Any] = json.loads(content)
    return manifest
