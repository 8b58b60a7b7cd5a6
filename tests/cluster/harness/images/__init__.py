"""The project's two images, built here with buildah and without a registry, and given to the nodes of the tests.

An image is built when something that goes into it changed (`sources.py`), and its dependencies, gigabytes for the
runner, only when a lock did. Everything lies in the cache folder, several checkouts share it:

- ``storage/``: buildah's own store, with the layers that builds reuse;
- ``layout/``: both images as one OCI image layout, layers uncompressed;
- ``containerd/``: a containerd root that has them unpacked, which nodes start from (`fill_containerd_root`).

Run ``python -m tests.cluster.harness.images`` to build ahead of the tests.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.cluster.harness.binaries import cache_root, locked

from . import sources
from .buildah import BASE, Buildah, ImageError, say
from .containerd import NAMESPACE, ContainerdStore, Prepared
from .layout import Layout
from .retention import Use, superfluous

__all__ = [
    "BASE",
    "NAMESPACE",
    "OPERATOR",
    "RUNNER",
    "Buildah",
    "BuiltImage",
    "ImageError",
    "base_image",
    "built",
    "fill_containerd_root",
    "folder",
    "missing",
    "mounted",
    "operator_image",
    "runner_image",
]

OPERATOR = "localhost/finetune-operator:dev"
RUNNER = "localhost/finetune-runner:dev"

_NAMES = {"operator": OPERATOR, "runner": RUNNER}
_PACKAGE_OF = {
    "apt-get": "apt",
    "buildah": "buildah",
    "containerd": "containerd",
    "ctr": "containerd",
    "debootstrap": "debootstrap",
    "runc": "runc",
}


@dataclass(frozen=True)
class BuiltImage:
    """An image in the cache.

    Args:
        target: "operator" or "runner".
        image: its name in the cache; it ends with the key of its sources.
        layout: where it is.
    """

    target: str
    image: str
    layout: Layout

    @property
    def name(self) -> str:
        """The name that nodes know it by."""
        return _NAMES[self.target]


def missing() -> str | None:
    """One line that says what this machine lacks to build images; None where it lacks nothing."""
    if os.geteuid() != 0:
        return "images are built by root: they hold files of other users"
    packages = sorted({package for program, package in _PACKAGE_OF.items() if shutil.which(program) is None})
    return f"not installed: {', '.join(packages)} (`make node-deps` installs them)" if packages else None


def operator_image() -> Path:
    """An OCI archive with the operator's image, named ``localhost/finetune-operator:dev``; built if needed.

    Raises:
        ImageError: something it takes is not installed, or the build failed.
    """
    return _archive("operator")


def runner_image() -> Path:
    """An OCI archive with the runner's image, named ``localhost/finetune-runner:dev``; built if needed.

    It has gigabytes and takes a while to write and to import. Nodes of the tests get the image by
    `fill_containerd_root`, which needs no archive.

    Raises:
        ImageError: something it takes is not installed, or the build failed.
    """
    return _archive("runner")


def fill_containerd_root(root: Path, *targets: str) -> Path:
    """Give a containerd that was not started yet the images, unpacked: no import, no copy, milliseconds.

    The root gets databases of its own and links to layers in the cache, which containerd only reads.

    Args:
        root: the ``root`` of its configuration; new or empty. Its snapshotter must be overlayfs.
        targets: "operator", "runner"; by default both. Pods find them as `OPERATOR` and `RUNNER`.

    Returns:
        The folder the links lead to: containerd must see it at this path; read-only is enough.

    Raises:
        ImageError: something it takes is not installed, or a build failed.
    """
    with _cache() as (buildah, layout, store):
        images = [_ensure(target, buildah, layout, store) for target in targets or _NAMES]
        return store.fill(root, [Prepared(image.name, image.image) for image in images])


def built(target: str) -> BuiltImage:
    """The image of a target; built if needed.

    Raises:
        ImageError: something it takes is not installed, or the build failed.
    """
    with _cache() as (buildah, layout, store):
        return _ensure(target, buildah, layout, store)


@contextmanager
def mounted(target: str) -> Iterator[Path]:
    """The file system of an image, as a folder to read from; the image is built if needed.

    Raises:
        ImageError: something it takes is not installed, or the build failed.
    """
    image = built(target).image
    buildah = Buildah(folder())
    container = buildah("from", "--pull=never", image)
    try:
        yield Path(buildah("mount", container))
    finally:
        buildah("rm", container)


def base_image() -> str:
    """The name of the base image in buildah's store; made if needed. For `make images` without a registry.

    Raises:
        ImageError: something it takes is not installed, or debootstrap failed.
    """
    with _cache() as (buildah, _, _):
        return buildah.base()


def folder() -> Path:
    """Where everything about images is."""
    return cache_root() / "images"


def _archive(target: str) -> Path:
    with _cache() as (buildah, layout, store):
        image = _ensure(target, buildah, layout, store)
        return layout.archive(image.image, image.name)


@contextmanager
def _cache() -> Iterator[tuple[Buildah, Layout, ContainerdStore]]:
    """Hold the cache: one process builds, the others wait and find what it built."""
    reason = missing()
    if reason:
        raise ImageError(reason)
    with locked(folder() / "lock"):
        layout = Layout(folder() / "layout")
        yield Buildah(folder()), layout, ContainerdStore(folder() / "containerd", layout)


def _ensure(target: str, buildah: Buildah, layout: Layout, store: ContainerdStore) -> BuiltImage:
    key = sources.key(target, BASE)
    image = f"localhost/finetune-{target}:{key}"
    # A name of its own keeps the large layers in reach of later builds, whatever else is removed.
    dependencies = f"localhost/finetune-{target}-dependencies:{key}"
    if not buildah.has(image):
        _remove_superfluous(target, buildah, layout, store)
        buildah.build(f"{target}-dependencies", dependencies)
        buildah.build(target, image)
        if sources.key(target, BASE) != key:
            buildah("rmi", "--force", image, dependencies)
            say(f"the sources of {image} were edited while it was built: building again")
            return _ensure(target, buildah, layout, store)
    layout.add(buildah, image, dependencies)
    used = _uses(target) / key
    used.parent.mkdir(parents=True, exist_ok=True)
    if not used.exists():
        used.write_text(buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", dependencies))
    used.touch()
    return BuiltImage(target, image, layout)


def _uses(target: str) -> Path:
    """A folder with a file per image: its key, its dependencies, and when it was asked for."""
    return folder() / "used" / target


def _remove_superfluous(target: str, buildah: Buildah, layout: Layout, store: ContainerdStore) -> None:
    uses = [
        Use(path.name, path.read_text(), datetime.fromtimestamp(path.stat().st_mtime, UTC))
        for path in _uses(target).glob("*")
    ]
    gone = [use.key for use in superfluous(uses, datetime.now(UTC))]
    if not gone:
        return
    images = [f"localhost/finetune-{target}:{key}" for key in gone]
    store.remove(images)
    layout.remove(images)
    for image, key in zip(images, gone, strict=True):
        for name in (image, image.replace(":", "-dependencies:")):
            if buildah.has(name):
                buildah("rmi", "--force", name)
        (_uses(target) / key).unlink()
    buildah("rmi", "--prune", "--force")
