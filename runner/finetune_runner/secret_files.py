"""Credentials as files: one folder per Secret, one file per key, as a Secret volume mounts them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune_api.common import SecretRef
from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError


@dataclass(frozen=True)
class Secrets:
    """The folder that holds one sub-folder per Secret. Values are read when needed and never logged."""

    folder: Path

    def read(self, ref: SecretRef | None) -> dict[str, str]:
        """Keys and values of a Secret.

        Empty without a reference or without its folder: then the environment's identity is used (a service account, a
        profile, variables).

        Raises:
            StageError: ACCESS_DENIED when the files cannot be read.
        """
        if ref is None or not (self.folder / ref.name).is_dir():
            return {}
        try:
            return {
                path.name: path.read_text(encoding="utf-8").strip()
                for path in sorted((self.folder / ref.name).iterdir())
                if path.is_file() and not path.name.startswith(".")
            }
        except (OSError, UnicodeDecodeError) as error:
            raise StageError(
                ExitCode.ACCESS_DENIED,
                f"Secret {ref.name} cannot be read: {error}",
                "its values must be text, mounted readable for the pod's user",
            ) from error
