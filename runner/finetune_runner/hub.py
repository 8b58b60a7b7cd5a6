"""The Hugging Face hub, with its failures typed. Imported only where a source is hf://."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import httpx2
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import FULL_DISK_ERRNOS, StageError, disk_full

RepoType = Literal["model", "dataset"]
_TIMEOUT_S = 20


def resolve_revision(repo: str, revision: str, repo_type: RepoType, token: str | None) -> str:
    """The commit that a branch or tag names now. Raises StageError."""
    with _typed(repo, revision):
        commit = HfApi(token=token).repo_info(repo, revision=revision, repo_type=repo_type, timeout=_TIMEOUT_S).sha
    if not commit:
        raise StageError(
            ExitCode.STORAGE_UNAVAILABLE, f"hf://{repo}: the hub named no commit for {revision}", "try again"
        )
    return str(commit)


def dataset_licence(repo: str, token: str | None) -> str:
    """The licence that a data set's card states, several joined by commas; empty = none. Raises StageError."""
    with _typed(repo, "main"):
        card = HfApi(token=token).dataset_info(repo, timeout=_TIMEOUT_S).card_data
    stated = card.get("license") if card is not None else None
    return ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated or "")


def list_files(repo: str, commit: str, repo_type: RepoType, token: str | None) -> list[str]:
    """Names of the files of a commit. Raises StageError."""
    with _typed(repo, commit):
        return sorted(HfApi(token=token).list_repo_files(repo, revision=commit, repo_type=repo_type))


def download_snapshot(repo: str, commit: str, patterns: Sequence[str], cache: Path, token: str | None) -> Path:
    """The files of a model's commit that match, in the cache. What is there already is not fetched again."""
    with _typed(repo, commit):
        return Path(
            snapshot_download(
                repo, revision=commit, allow_patterns=list(patterns), cache_dir=cache, token=token or None
            )
        )


def download_file(repo: str, path: str, commit: str, cache: Path, token: str | None) -> Path:
    """One file of a data set's commit, in the cache."""
    with _typed(f"{repo}/{path}", commit):
        return Path(
            hf_hub_download(repo, path, revision=commit, repo_type="dataset", cache_dir=cache, token=token or None)
        )


@contextmanager
def _typed(what: str, revision: str) -> Iterator[None]:
    try:
        yield
    except (HfHubHTTPError, HFValidationError, httpx2.HTTPError, OSError) as error:
        raise stage_error(error, what, revision) from error


def stage_error(error: Exception, what: str, revision: str) -> StageError:
    """The StageError of a hub's failure."""
    evidence = f"{type(error).__name__}: {error}"[:500]
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    if isinstance(error, GatedRepoError) or (status in (401, 403) and not isinstance(error, RepositoryNotFoundError)):
        return StageError(
            ExitCode.ACCESS_DENIED,
            f"hf://{what} is gated or private",
            "accept its terms on the hub and set secretRef to a Secret with the key HF_TOKEN",
            evidence,
        )
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return _unreachable(what, evidence)
    if isinstance(error, RevisionNotFoundError):
        return StageError(
            ExitCode.SOURCE_NOT_FOUND, f"hf://{what} has no revision {revision}", "check model.revision", evidence
        )
    if isinstance(error, RepositoryNotFoundError | EntryNotFoundError) or status == 404:
        return StageError(
            ExitCode.SOURCE_NOT_FOUND,
            f"hf://{what} does not exist, or is private",
            "check the name; for a private one set secretRef to a Secret with the key HF_TOKEN",
            evidence,
        )
    if isinstance(error, HFValidationError):
        return StageError(
            ExitCode.INVALID_SPEC, f"hf://{what} is not a name on the hub", "write hf://owner/name", evidence
        )
    if isinstance(error, OSError) and error.errno in FULL_DISK_ERRNOS:
        return disk_full(error.filename or "the model cache", evidence)
    return _unreachable(what, evidence)


def _unreachable(what: str, evidence: str) -> StageError:
    return StageError(
        ExitCode.STORAGE_UNAVAILABLE,
        f"hf://{what}: the hub does not answer",
        "check the network and HF_ENDPOINT, or copy the files to s3:// or pvc://",
        evidence,
    )
