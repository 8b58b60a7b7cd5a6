"""hf://datasets/owner/name/path: a file, or all files of a folder, of a data set on the hub."""

from __future__ import annotations

from pathlib import Path

from finetune_api.common import SecretRef
from finetune_api.exit_codes import ExitCode
from finetune_runner.context import StageContext
from finetune_runner.errors import StageError

SCHEMES = ("hf",)


def fetch(context: StageContext, uri: str, secret_ref: SecretRef | None, folder: Path) -> dict[str, Path]:
    """Names and paths of the copies."""
    from finetune_runner import hub  # takes a while to import

    parts = uri.removeprefix("hf://").strip("/").split("/")
    if len(parts) < 3 or parts[0] != "datasets":
        raise StageError(ExitCode.INVALID_SPEC, f"{uri} is not a data set", "write hf://datasets/owner/name/file")
    repo, wanted = "/".join(parts[1:3]), "/".join(parts[3:])
    token = context.secrets.read(secret_ref).get("HF_TOKEN")
    commit = hub.resolve_revision(repo, "main", "dataset", token)
    below = f"{wanted}/" if wanted else ""
    every = hub.list_files(repo, commit, "dataset", token)
    names = (
        [wanted] if wanted in every else [n for n in every if n.startswith(below) and "/" not in n.removeprefix(below)]
    )
    if not names:
        raise StageError(ExitCode.SOURCE_NOT_FOUND, f"{uri}: hf://datasets/{repo} has no {wanted}", "check the path")
    found = {}
    for name in names:
        context.check_stop()
        found[f"{name.rpartition('/')[2]}"] = hub.download_file(repo, name, commit, folder, token)
    return found
