"""The base model's files on this machine: fetched, checked, and known by a digest."""

from __future__ import annotations

import hashlib
import json
import struct
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from finetune_api.exit_codes import ExitCode
from finetune_api.model_config import facts_of_config
from finetune_api.stages import ModelFacts
from finetune_runner.context import StageContext
from finetune_runner.errors import StageError
from finetune_runner.storage.files import path_of

MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What of a model is used. Code and pickles are not fetched."""
PVC_ROOT = Path("/mnt/pvc")
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
"""What the head is called; a model without any uses its embedding."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class FetchedModel(NamedTuple):
    """A model on this machine."""

    path: Path
    revision: str
    """Commit of an hf:// model, else the digest."""
    digest: str
    """sha256 over the names and sha256s of its files."""


def pvc_path(source: str) -> Path:
    """Where a pvc://claim/path is mounted."""
    return PVC_ROOT / source.removeprefix("pvc://")


def fetch_model(context: StageContext) -> FetchedModel:
    """Bring the base model here, at the revision that prepare pinned (prepare itself: the one asked for).

    Raises:
        StageError: SOURCE_NOT_FOUND, ACCESS_DENIED, STORAGE_UNAVAILABLE, DISK_FULL; MODEL_UNUSABLE without
            safetensors, or when the files are no longer those that prepare saw.
    """
    source = context.task.spec.model.source
    pinned = context.task.results.prepare
    scheme = source.partition("://")[0]
    revision = ""
    if scheme == "hf":
        path, revision = _from_hub(context, source, pinned.revision if pinned else None)
    elif scheme == "s3":
        path = _from_storage(context, source)
    elif scheme in ("file", "pvc"):
        path = path_of(source) if scheme == "file" else pvc_path(source)
        if not path.is_dir():
            raise StageError(ExitCode.SOURCE_NOT_FOUND, f"model.source {source}: no such folder", "check the path")
    else:
        raise StageError(ExitCode.INVALID_SPEC, f"model.source {source}: unknown scheme", "use hf://, s3:// or pvc://")
    check_files(path, source)
    digest = model_digest(path)
    if pinned and pinned.model_digest != digest:
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            f"model.source {source}: its files are no longer those that stage prepare saw",
            "keep a model's files unchanged while a job runs; start a new run",
            f"sha256 {digest}, prepare saw {pinned.model_digest}",
        )
    return FetchedModel(path, revision or digest, digest)


def model_files(path: Path) -> list[Path]:
    """The files that make up a model, sorted by name."""
    return sorted(item for item in path.iterdir() if item.is_file() and any(fnmatch(item.name, p) for p in MODEL_FILES))


def model_digest(path: Path) -> str:
    """sha256 over the names and contents of a model's files."""
    total = hashlib.sha256()
    for item in model_files(path):
        with item.open("rb") as stream:
            total.update(f"{item.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def check_files(path: Path, source: str) -> None:
    """Refuse a folder that is not a model we may load. Raises StageError (MODEL_UNUSABLE)."""
    if not any(path.glob("*.safetensors")):
        pickles = sorted(item.name for pattern in _PICKLES for item in path.glob(pattern))
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            f"model.source {source} has no *.safetensors" + (f" (only {', '.join(pickles[:3])})" if pickles else ""),
            "convert it: load it with transformers where you trust it, then save_pretrained (it writes safetensors)"
            if pickles
            else "name the folder with config.json and *.safetensors",
        )
    if not (path / "config.json").is_file():
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            f"model.source {source} has no config.json",
            "name the folder that holds config.json",
        )


def model_facts(path: Path, source: str) -> ModelFacts:
    """What config.json and the heads of the weight files say. Raises StageError (MODEL_UNUSABLE)."""
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_bytes())
        files = sorted(path.glob("*.safetensors"))
        shapes = {name: shape for item in files for name, shape in _tensor_shapes(item).items()}
        return facts_of_config(
            config,
            parameters=sum(map(prod, shapes.values())),
            file_bytes=sum(item.stat().st_size for item in files),
            tied_embeddings=not any(name.endswith(_HEADS) for name in shapes),
        )
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            f"model.source {source}: config.json or a safetensors file is damaged",
            "copy the model again",
            f"{type(error).__name__}: {error}"[:500],
        ) from error


def _tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Tensors of a safetensors file by its head: 8 bytes length, then JSON (format specification of safetensors)."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > 100_000_000:
            raise ValueError(f"{path.name} is not a safetensors file")
        head = json.loads(stream.read(length))
    return {name: tensor["shape"] for name, tensor in head.items() if name != "__metadata__"}


def _from_hub(context: StageContext, source: str, commit: str | None) -> tuple[Path, str]:
    from finetune_runner import hub  # takes a while to import

    repo = source.removeprefix("hf://").strip("/")
    token = context.secrets.read(context.task.spec.model.secret_ref).get("HF_TOKEN")
    commit = commit or hub.resolve_revision(repo, context.task.spec.model.revision, "model", token)
    context.report_progress(f"fetching hf://{repo}")
    return hub.download_snapshot(repo, commit, MODEL_FILES, context.model_cache / "hub", token), commit


def _from_storage(context: StageContext, source: str) -> Path:
    """Copy the model's objects into the cache, under a name made of what the store lists (names and sizes)."""
    store = context.open_source(source, context.task.spec.model.secret_ref)
    prefix = source.rstrip("/") + "/"
    found = [
        item
        for item in store.list(prefix)
        if "/" not in item.uri.removeprefix(prefix) and any(fnmatch(item.uri, pattern) for pattern in MODEL_FILES)
    ]
    if not found:
        raise StageError(
            ExitCode.SOURCE_NOT_FOUND,
            f"model.source {source}: no model files there",
            "name the folder with config.json and *.safetensors",
        )
    listing = json.dumps([source, *((item.uri, item.size) for item in found)]).encode()
    target = context.model_cache / f"s3-{hashlib.sha256(listing).hexdigest()[:16]}"
    pinned = context.task.results.prepare
    if pinned and target.is_dir() and model_digest(target) == pinned.model_digest:
        return target
    # Fetched beside and renamed: a cache shared by pods never shows half a model.
    fetching = target.with_name(f"{target.name}.{uuid4().hex}.part")
    for done, item in enumerate(found):
        context.check_stop()
        context.report_progress(f"fetching {source}", done, len(found))
        store.download_file(item.uri, fetching / item.uri.removeprefix(prefix))
    if target.is_dir():
        target.rename(target.with_name(f"{target.name}.{uuid4().hex}.old"))
    fetching.rename(target)
    return target
