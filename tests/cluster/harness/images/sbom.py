"""What is in the images, as SPDX 2.3 documents by syft: `python -m tests.cluster.harness.images.sbom FOLDER`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.cluster.harness.binaries import BuildError, binary

from . import mounted
from .buildah import ImageError, run, say
from .sources import project_version

_QUIET = {
    "SYFT_CHECK_FOR_APP_UPDATE": "false",
    # Packages, not a checksum of each of 50,000 files that the packages already pin.
    "SYFT_FILE_METADATA_SELECTION": "none",
}


def write_sbom(target: str, folder: Path) -> Path:
    """Write the bill of materials of an image: its Debian and Python packages with versions and licences.

    Args:
        target: "operator" or "runner".
        folder: where to; the file is ``finetune-<target>-<version>.spdx.json``.

    Raises:
        ImageError: the image could not be built, or syft could not read it.
        BuildError: syft could not be built.
    """
    version = project_version()
    syft = binary("syft")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"finetune-{target}-{version}.spdx.json"
    with mounted(target) as root:
        started = time.monotonic()
        run(
            [
                syft, "scan", f"dir:{root}", "--override-default-catalogers", "image", "--quiet",
                "--source-name", f"finetune-{target}", "--source-version", version, "--output", f"spdx-json={path}",
            ],
            {**os.environ, **_QUIET},
        )  # fmt: skip
    say(f"wrote {path} in {time.monotonic() - started:.0f} s")
    return path


if __name__ == "__main__":
    try:
        for name in ("operator", "runner"):
            print(write_sbom(name, Path(sys.argv[1])))
    except (BuildError, ImageError) as error:
        sys.exit(f"images: {error}")
