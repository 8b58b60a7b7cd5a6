"""hf://datasets/owner/name[@revision][/path]: a data set on the hub, or a file or folder of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from finetune_api.common import SecretRef
from finetune_api.exit_codes import ExitCode
from finetune_runner.context import StageContext
from finetune_runner.data.listing import Listing
from finetune_runner.data.source_files import CARD
from finetune_runner.errors import StageError

SCHEMES = ("hf",)
_SOURCE = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?(/(?P<path>.*))?")


def list_source(context: StageContext, uri: str, secret_ref: SecretRef | None, folder: Path) -> Listing:
    """The files of the commit that the revision (default: main) names now."""
    from finetune_runner import hub  # takes a while to import

    source = _SOURCE.fullmatch(uri)
    if source is None:
        raise StageError(ExitCode.INVALID_SPEC, f"{uri} is not a data set", "write hf://datasets/owner/name/file")
    repo, revision, path = source["repo"], source["revision"] or "main", (source["path"] or "").strip("/")
    account = hub.Account.of(context.secrets.read(secret_ref))
    asked = (f"datasets/{repo}", revision)
    if asked not in context.commits:
        context.commits[asked] = hub.resolve_revision(repo, revision, "dataset", account)
    commit = context.commits[asked]
    every = [file.name for file in hub.list_files(repo, commit, "dataset", account)]
    single = path in every
    below = "" if not path else (path.rpartition("/")[0] + "/").removeprefix("/") if single else f"{path}/"
    names = [path.removeprefix(below)] if single else [n.removeprefix(below) for n in every if n.startswith(below)]
    if not names:
        raise StageError(
            ExitCode.SOURCE_NOT_FOUND, f"{uri}: hf://datasets/{repo} has no {path or 'files'}", "check the path"
        )

    def copy(wanted: Sequence[str]) -> dict[str, Path]:
        def got(_count: int) -> None:
            context.check_stop()

        hub.download_files(repo, commit, [below + name for name in wanted], "dataset", folder, account, got)
        return {name: folder / (below + name) for name in wanted}

    def card() -> str:
        if path or CARD not in every:
            return ""
        return copy([CARD])[CARD].read_text(encoding="utf-8", errors="replace")

    return Listing(names, copy, single=single, revision=commit, card=card)
