"""The base model's files on this machine: fetched, checked, and known by a digest."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from finetune_api.exit_codes import ExitCode
from finetune_runner import mounts
from finetune_runner.context import StageContext
from finetune_runner.errors import StageError
from finetune_runner.model_cache.cache import ModelCache, not_whole
from finetune_runner.model_cache.files import DigestMemory, ModelFile, digest_of, hash_files, used_names
from finetune_runner.model_cache.meter import Hooks
from finetune_runner.model_files import check_architecture, check_files, check_names, model_facts
from finetune_runner.storage.files import path_of

__all__ = ["FetchedModel", "check_files", "fetch_model", "is_cached", "model_digest", "model_facts", "model_files"]

log = logging.getLogger(__name__)

_COMMIT = re.compile("[0-9a-f]{40}")


class FetchedModel(NamedTuple):
    """A model on this machine."""

    path: Path
    revision: str
    """Commit of an hf:// model, else the digest."""
    digest: str
    """sha256 over the names and sha256s of its files."""


def fetch_model(context: StageContext) -> FetchedModel:
    """Bring the base model here, at the revision that prepare pinned (prepare itself: the one asked for).

    Models of hf:// and s3:// go through the model cache; stages after prepare find them there by their digest, without
    a request to anybody. The others are read where they are mounted.

    Raises:
        StageError: SOURCE_NOT_FOUND, ACCESS_DENIED, STORAGE_UNAVAILABLE, DISK_FULL; MODEL_UNUSABLE without
            safetensors, or when the files are no longer those that prepare saw.
    """
    source = context.task.spec.model.source
    pinned = context.task.results.prepare
    scheme = source.partition("://")[0]
    if scheme in ("hf", "s3"):
        cached = _cache(context).find_digest(pinned.model_digest) if pinned else None
        if pinned and cached:
            return FetchedModel(cached.path, pinned.revision, cached.digest)
        if pinned and context.model_cache_read_only:
            raise not_whole(source)  # no GPU waits for a download
        fetched = _from_hub(context, source) if scheme == "hf" else _from_storage(context, source)
    else:
        fetched = _in_place(context, source)
    if pinned and pinned.model_digest != fetched.digest:
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            f"model.source {source}: its files are no longer those that stage prepare saw",
            "keep a model's files unchanged while a job runs; start a new run",
            f"sha256 {fetched.digest}, prepare saw {pinned.model_digest}",
        )
    check_files(fetched.path, source)
    if pinned is None:
        check_architecture(fetched.path, source)
    return fetched


def model_files(path: Path) -> list[Path]:
    """The files that make up a model, sorted by name."""
    return [path / name for name in used_names(item.name for item in path.iterdir() if item.is_file())]


def model_digest(path: Path) -> str:
    """sha256 over the names and contents of a model's files."""
    names = [item.name for item in model_files(path)]
    return digest_of({name: found.sha256 for name, found in hash_files(path, names).items() if found is not None})


def is_cached(context: StageContext, digest: str) -> bool:
    """Whether the model cache has a model with this digest, whole."""
    return _cache(context).find_digest(digest) is not None


def _in_place(context: StageContext, source: str) -> FetchedModel:
    path = path_of(source) if source.startswith("file://") else mounts.path_of(source)
    if not path.is_dir():
        raise StageError(ExitCode.SOURCE_NOT_FOUND, f"model.source {source}: no such folder", "check the path")
    names = [item.name for item in model_files(path)]
    check_names([item.name for item in path.iterdir()], source)
    context.report_progress("hashing the model's files")
    digest = _memory(context).digest(path, names, lambda _count: context.check_stop())
    return FetchedModel(path, digest, digest)


def _memory(context: StageContext) -> DigestMemory:
    return DigestMemory(context.scratch / "model-digests")


def _cache(context: StageContext) -> ModelCache:
    def report(phase: str, *, percent: float, eta_seconds: float | None) -> None:
        # Where the model is asked afterwards, its download is no measure of the stage; the phase says how far it is.
        of_stage = percent if context.task.stage == "prepare" else None
        context.report_progress(phase, percent=of_stage, eta_seconds=eta_seconds)

    def wait(seconds: float) -> None:
        context.stop.wait(seconds)
        context.check_stop()

    private = context.model_cache.is_relative_to(context.scratch)
    return ModelCache(
        context.model_cache,
        _memory(context),
        Hooks(context.clock, report, context.check_stop, wait),
        read_only=context.model_cache_read_only,
        room_bytes=max(context.scratch_limit_bytes - _bytes_below(context.scratch), 1)
        if private and context.scratch_limit_bytes
        else 0,
    )


def _bytes_below(folder: Path) -> int:
    return sum(item.lstat().st_size for item in folder.rglob("*") if item.is_file())


def _from_hub(context: StageContext, source: str) -> FetchedModel:
    from finetune_runner import hub  # takes a while to import

    repo = source.removeprefix("hf://").strip("/")
    account = hub.Account.of(context.secrets.read(context.task.spec.model.secret_ref))
    pinned = context.task.results.prepare
    wanted_revision = pinned.revision if pinned else context.task.spec.model.revision
    cache = _cache(context)
    if _COMMIT.fullmatch(wanted_revision):
        commit = wanted_revision
    else:
        commit = hub.resolve_revision(repo, wanted_revision, "model", account)
    key = _hub_key(repo, commit, account.endpoint)
    known = cache.known_files(key)
    try:
        every = hub.list_files(repo, commit, "model", account)
        names = used_names(file.name for file in every)
        check_names([file.name for file in every if "/" not in file.name], source)
        listed = [file for file in every if file.name in names]
        # Before gigabytes are fetched for nothing. Also where the cache has the model: anybody may list the files of a
        # gated model, and only asking for one tells whether this job has access.
        hub.download_files(repo, commit, ["config.json"], "model", context.scratch / "model-config", account)
        check_architecture(context.scratch / "model-config", source)
    except StageError as error:
        if known is None or error.exit_code != ExitCode.STORAGE_UNAVAILABLE:
            raise
        # A commit never changes: what the cache has of it will do while the hub does not answer.
        log.warning("%s; the model cache has commit %s", error, commit)
        listed = known

    def fetch(files: Sequence[ModelFile], folder: Path, got: Callable[[int], None]) -> None:
        hub.download_files(repo, commit, [file.name for file in files], "model", folder, account, got)

    made = cache.ensure(key, source, listed, fetch)
    return FetchedModel(made.path, commit, made.digest)


def _hub_key(repo: str, commit: str, endpoint: str | None) -> str:
    """Where the cache keeps a commit. A hub that a Secret names is apart: its commits say nothing about another's."""
    hub = f"--at-{hashlib.sha256(endpoint.rstrip('/').encode()).hexdigest()[:12]}" if endpoint else ""
    return f"hub/models--{repo.replace('/', '--')}{hub}/snapshots/{commit}"


def _from_storage(context: StageContext, source: str) -> FetchedModel:
    """The model's objects, under a name made of what the store lists: names, sizes and ETags."""
    store = context.open_source(source, context.task.spec.model.secret_ref)
    prefix = source.rstrip("/") + "/"
    below = {item.uri.removeprefix(prefix): item for item in store.list(prefix)}
    names = used_names(below)
    if not names:
        raise StageError(
            ExitCode.SOURCE_NOT_FOUND,
            f"model.source {source}: no model files there",
            "name the folder with config.json and *.safetensors",
        )
    check_names([name for name in below if "/" not in name], source)
    listing = json.dumps([source, *((name, below[name].size, below[name].etag) for name in names)]).encode()

    def fetch(files: Sequence[ModelFile], folder: Path, got: Callable[[int], None]) -> None:
        for file in files:
            store.download_file(below[file.name].uri, folder / file.name, got)

    wanted = [ModelFile(name, below[name].size) for name in names]
    made = _cache(context).ensure(f"s3/{hashlib.sha256(listing).hexdigest()[:32]}", source, wanted, fetch)
    return FetchedModel(made.path, made.digest, made.digest)
