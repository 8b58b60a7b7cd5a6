"""The built images as one OCI image layout (image-spec 1.1, image-layout.md), and archives written from it."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from .buildah import Buildah, say

_REFERENCE = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"


class Layout:
    """Layers are stored once, large ones uncompressed: an image with new code adds no more than that layer.

    Args:
        folder: the layout's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, buildah: Buildah, image: str, dependencies: str) -> None:
        """Copy an image out of buildah's store, unless it is here already; layers that are here are not copied.

        Args:
            buildah: whose store.
            image: which image.
            dependencies: the image it was built from, with the large layers.

        Raises:
            ImageError: buildah could not.
        """
        if image in self._references():
            return
        inspected = json.loads(buildah("inspect", "--type", "image", dependencies))
        layers = inspected["OCIv1"]["rootfs"]["diff_ids"]
        if not all(self.path(layer).exists() for layer in layers):
            # What it pushes to a layout buildah compresses (1.28, whatever it is told), but for layers that the layout
            # has; what it pushes to a folder it does not.
            with tempfile.TemporaryDirectory(prefix="layers-", dir=buildah.temporary) as folder:
                buildah("push", "--quiet", "--disable-compression", "--format", "oci", dependencies, f"dir:{folder}")
                self.path(layers[0]).parent.mkdir(parents=True, exist_ok=True)
                for layer in layers:
                    os.replace(Path(folder) / layer.removeprefix("sha256:"), self.path(layer))
        buildah("push", "--quiet", "--format", "oci", image, f"oci:{self._folder}:{image}")

    def remove(self, images: Collection[str]) -> None:
        """Forget images, and delete what no other image has."""
        kept = {name: entry for name, entry in self._references().items() if name not in images}
        used = {digest for entry in kept.values() for digest in self._closure(entry["digest"])}
        write_atomically(self._folder / "index.json", _index(list(kept.values())))
        for path in (self._folder / "blobs" / "sha256").iterdir():
            if f"sha256:{path.name}" not in used:
                path.unlink()

    def path(self, digest: str) -> Path:
        """The file of a blob."""
        return self._folder / "blobs" / digest.replace(":", "/")

    def config(self, image: str) -> dict[str, Any]:
        """The image's configuration: `config` (user, labels, environment), `rootfs`, `history`."""
        manifest = self._manifest(image)
        return self._json(manifest["config"]["digest"])

    def layer_sizes_bytes(self, image: str) -> list[int]:
        """The sizes of its layers here, the base image's first."""
        return [layer["size"] for layer in self._manifest(image)["layers"]]

    def digest(self, image: str) -> str:
        """The digest of its manifest."""
        return str(self._references()[image]["digest"])

    def archive(self, image: str, name: str) -> Path:
        """An OCI archive of an image under another name; written once, and then kept until the image changes."""
        target = name.partition(":")[0].rpartition("/")[2]
        path = self._folder.parent / f"{target}.{self.digest(image).removeprefix('sha256:')[:16]}.tar"
        if not path.exists():
            for old in path.parent.glob(f"{target}.*.tar"):
                old.unlink()
            say(f"writing {path} ...")
            unfinished = path.with_suffix(".writing")
            with unfinished.open("wb") as output:
                self.write(output, image, [name])
            unfinished.rename(path)
        return path

    def write(self, output: IO[bytes], image: str, names: Sequence[str], without: Collection[str] = ()) -> None:
        """Write an OCI archive as a stream.

        Args:
            output: where to.
            image: which image.
            names: the names it has in the archive.
            without: digests of blobs that the reader has, left out.
        """
        entry = self._references()[image]
        index = [{**entry, "annotations": {_REFERENCE: name, _CONTAINERD_NAME: name}} for name in names]
        with tarfile.open(fileobj=output, mode="w|") as archive:
            for path, content in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", _index(index))):
                text = json.dumps(content).encode()
                member = tarfile.TarInfo(path)
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
            for digest in self._closure(entry["digest"]):
                if digest not in without:
                    archive.add(self.path(digest), f"blobs/{digest.replace(':', '/')}")

    def blobs(self, image: str) -> list[str]:
        """The digests of its manifest, configuration and layers."""
        return list(self._closure(self.digest(image)))

    def _references(self) -> dict[str, dict[str, Any]]:
        path = self._folder / "index.json"
        entries = json.loads(path.read_bytes())["manifests"] if path.exists() else []
        return {entry["annotations"][_REFERENCE]: entry for entry in entries}

    def _manifest(self, image: str) -> dict[str, Any]:
        return self._json(self.digest(image))

    def _closure(self, digest: str) -> Iterator[str]:
        yield digest
        yield from _contents(self._json(digest))

    def _json(self, digest: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.path(digest).read_bytes())
        return content


def write_atomically(path: Path, content: object) -> None:
    """Write JSON so that nobody, not even after a crash, sees half of it."""
    unfinished = path.with_suffix(".writing")
    unfinished.write_text(json.dumps(content, indent=1))
    os.replace(unfinished, path)


def _contents(manifest: dict[str, Any]) -> list[str]:
    """The digests of a manifest's configuration and layers."""
    return [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]


def _index(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
