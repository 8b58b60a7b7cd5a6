"""oci://image/path: an OCI image as a folder (Kubernetes' image volume), and the files in it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_HOST = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?"
_PART = r"[a-z0-9]+([._-]+[a-z0-9]+)*"
_VERSION = r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|@sha256:[a-f0-9]{64})"
OCI = f"^oci://{_HOST}(/{_PART})+({_VERSION}(/.*)?)?$"
"""A reference as in the distribution specification, with its registry; a path only behind a tag or digest."""

_SPLIT = re.compile(f"^oci://(?P<reference>{_HOST}(/{_PART})+{_VERSION}?)(/(?P<path>.*))?$")


@dataclass(frozen=True)
class ImageSource:
    """The two halves of an oci:// source."""

    reference: str
    """As a container runtime pulls it."""
    path: str
    """Inside the image; empty = its root."""

    @property
    def mount_name(self) -> str:
        """Name of the folder that the image is mounted at: short, and the same for operator and runner."""
        return hashlib.sha256(self.reference.encode()).hexdigest()[:16]


def parse_image_source(source: str) -> ImageSource:
    """Both halves. Raises ValueError for what is no oci:// source."""
    found = _SPLIT.fullmatch(source)
    if found is None:
        raise ValueError(f"{source} is not an oci:// source; write oci://registry/image:tag/path")
    return ImageSource(found["reference"], (found["path"] or "").strip("/"))
