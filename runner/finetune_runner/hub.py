"""The Hugging Face hub, with its failures typed. Imported only where a source is hf://."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars, tqdm

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import FULL_DISK_ERRNOS, StageError, disk_full
from finetune_runner.model_cache.files import ModelFile

disable_progress_bars()  # what they count is told by the stage itself
RepoType = Literal["model", "dataset"]
_TIMEOUT_S = 20
_DOWNLOADS = 4
"""Files at once. One connection seldom fills a line; the hub's own client takes 8, on machines of its own."""


@dataclass(frozen=True)
class Account:
    """Who asks, and which hub."""

    token: str | None = None
    """None: what the environment or the login of this machine gives, if anything."""
    endpoint: str | None = None
    """URL of a mirror; None: HF_ENDPOINT of the environment, else the public hub."""

    @classmethod
    def of(cls, secret: Mapping[str, str]) -> Account:
        """From the keys of a Secret: HF_TOKEN, HF_ENDPOINT."""
        return cls(secret.get("HF_TOKEN") or None, secret.get("HF_ENDPOINT") or None)

    def api(self) -> HfApi:
        """The hub's client."""
        return HfApi(token=self.token, endpoint=self.endpoint)


def resolve_revision(repo: str, revision: str, repo_type: RepoType, account: Account) -> str:
    """The commit that a branch or tag names now. Raises StageError."""
    with _typed(repo, revision, repo_type):
        commit = account.api().repo_info(repo, revision=revision, repo_type=repo_type, timeout=_TIMEOUT_S).sha
    if not commit:
        raise StageError(
            ExitCode.STORAGE_UNAVAILABLE, f"hf://{repo}: the hub named no commit for {revision}", "try again"
        )
    return str(commit)


def list_files(repo: str, commit: str, repo_type: RepoType, account: Account) -> list[ModelFile]:
    """All files of a commit with their sizes and hashes, sorted by name. Raises StageError."""
    with _typed(repo, commit, repo_type):
        tree = account.api().list_repo_tree(repo, recursive=True, revision=commit, repo_type=repo_type)
        # A mirror may list anything: what would leave the folder it is copied to is no file of a repository.
        files = [item for item in tree if isinstance(item, RepoFile) and ".." not in item.path.split("/")]
    return sorted(
        (
            ModelFile(item.path, item.lfs.size, sha256=item.lfs.sha256)
            if item.lfs is not None
            else ModelFile(item.path, item.size, git_oid=item.blob_id)
            for item in files
        ),
        key=lambda file: file.name,
    )


def dataset_licence(repo: str, commit: str, account: Account) -> str:
    """The licence that a data set's card states, several joined by commas; empty = none. Raises StageError."""
    with _typed(repo, commit, "dataset"):
        card = account.api().dataset_info(repo, revision=commit, timeout=_TIMEOUT_S).card_data
    stated = card.get("license") if card is not None else None
    return ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated or "")


def download_files(
    repo: str,
    commit: str,
    names: Sequence[str],
    repo_type: RepoType,
    folder: Path,
    account: Account,
    got: Callable[[int], None] = lambda _count: None,
) -> None:
    """Copy files of a commit into a folder, a few at once.

    A connection that breaks is taken up where it broke (HTTP Range, by the hub's client). What is complete in the
    folder is not fetched again.

    Args:
        repo: owner/name.
        commit: full hash.
        names: paths in the repository.
        repo_type: model or dataset.
        folder: where they go, by their paths.
        account: who asks.
        got: called with the bytes that arrived, from several threads; may raise to stop.

    Raises:
        StageError: see `stage_error`.
    """

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> None:
            got(int(n or 0))

    def one(name: str) -> None:
        with _typed(f"{repo}/{name}", commit, repo_type):
            hf_hub_download(
                repo,
                name,
                repo_type=repo_type,
                revision=commit,
                local_dir=folder,
                token=account.token,
                endpoint=account.endpoint,
                tqdm_class=Bar,
            )

    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        futures = [pool.submit(one, name) for name in names]
        for future in as_completed(futures):
            if future.exception() is not None:
                pool.shutdown(cancel_futures=True)  # and let those that run end: they share the stop
            future.result()


@contextmanager
def _typed(what: str, revision: str, repo_type: RepoType) -> Iterator[None]:
    try:
        yield
    except (HfHubHTTPError, HFValidationError, httpx2.HTTPError, OSError) as error:
        raise stage_error(error, f"datasets/{what}" if repo_type == "dataset" else what, revision) from error


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
    if isinstance(error.__cause__, FileMetadataError):
        return StageError(
            ExitCode.STORAGE_UNAVAILABLE,
            f"hf://{what}: what answers at HF_ENDPOINT does not answer as the hub does",
            "let HF_ENDPOINT name the hub or a mirror that keeps the X-Repo-Commit and ETag headers of its files",
            evidence,
        )
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return _unreachable(what, evidence)
    if isinstance(error, RevisionNotFoundError):
        return StageError(
            ExitCode.SOURCE_NOT_FOUND,
            f"hf://{what} has no revision {revision}",
            "check model.revision (of data: what follows the @)",
            evidence,
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
