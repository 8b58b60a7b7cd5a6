"""s3://: an object, or the objects below a prefix, copied to the scratch folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_api.common import SecretRef
from finetune_api.exit_codes import ExitCode
from finetune_runner.context import StageContext
from finetune_runner.data.listing import Listing
from finetune_runner.errors import StageError
from finetune_runner.storage.s3 import split

SCHEMES = ("s3",)


def list_source(context: StageContext, uri: str, secret_ref: SecretRef | None, folder: Path) -> Listing:
    """The object, or those below the prefix."""
    store = context.open_source(uri, secret_ref)
    bucket, key = split(uri)
    prefix = uri.rstrip("/") + "/"
    single = bool(key) and not uri.endswith("/") and store.exists(uri)
    if single:
        found = {uri.rpartition("/")[2]: uri}
    else:
        found = {item.uri.removeprefix(prefix): item.uri for item in store.list(prefix)}
    # A key may be named like a way out of the folder it is copied to.
    names = [name for name in found if name and ".." not in name.split("/") and not name.startswith("/")]
    if not names:
        raise StageError(
            ExitCode.SOURCE_NOT_FOUND,
            f"{uri}: no such object and nothing below it in bucket {bucket}",
            "check the name",
        )

    def copy(wanted: Sequence[str]) -> dict[str, Path]:
        for name in wanted:
            store.download_file(found[name], folder / name, lambda _count: context.check_stop())
        return {name: folder / name for name in wanted}

    return Listing(names, copy, single=single)
