"""s3://: an object, or all objects directly below a prefix, copied to the scratch folder."""

from __future__ import annotations

from pathlib import Path

from finetune_api.common import SecretRef
from finetune_api.exit_codes import ExitCode
from finetune_runner.context import StageContext
from finetune_runner.errors import StageError
from finetune_runner.storage.s3 import split

SCHEMES = ("s3",)


def fetch(context: StageContext, uri: str, secret_ref: SecretRef | None, folder: Path) -> dict[str, Path]:
    """Names and paths of the copies."""
    store = context.open_source(uri, secret_ref)
    bucket, key = split(uri)
    prefix = uri.rstrip("/") + "/"
    if key and not uri.endswith("/") and store.exists(uri):
        names = {uri.rpartition("/")[2]: uri}
    else:
        names = {
            item.uri.removeprefix(prefix): item.uri
            for item in store.list(prefix)
            if "/" not in item.uri.removeprefix(prefix)
        }
    if not names:
        raise StageError(
            ExitCode.SOURCE_NOT_FOUND,
            f"{uri}: no such object and nothing below it in bucket {bucket}",
            "check the name",
        )
    for name, each in names.items():
        context.check_stop()
        store.download_file(each, folder / name)
    return {name: folder / name for name in names}
