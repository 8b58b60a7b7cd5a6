"""A containerd root in the cache that has the images unpacked, and roots of nodes made from it in milliseconds.

Importing gigabytes takes minutes; a node's containerd therefore gets a copy of the databases and links to the rest.
That is safe because containerd never writes to a committed snapshot (it is a lower layer of overlayfs) nor to a blob,
and because what it removes is the link.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.harness.process import Process
from tests.cluster.harness.waiting import wait_for

from .buildah import ImageError, run, say
from .layout import Layout, write_atomically

NAMESPACE = "k8s.io"
"""Where the kubelet's images are."""

_METADATA = "io.containerd.metadata.v1.bolt"
_CONTENT = "io.containerd.content.v1.content"
_SNAPSHOTS = "io.containerd.snapshotter.v1.overlayfs"
_LINKED = (f"{_CONTENT}/blobs/sha256", f"{_SNAPSHOTS}/snapshots")
_COPIED = (f"{_METADATA}/meta.db", f"{_SNAPSHOTS}/metadata.db")
_RECORD = "images.json"
_DEADLINE_S = 60


@dataclass(frozen=True)
class Prepared:
    """An image: the name pods use, and the one it has in the layout, which no other build gets."""

    name: str
    image: str


class ContainerdStore:
    """The root in the cache. The caller holds the lock of the cache.

    Args:
        folder: the root.
        layout: where images come from.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder = folder
        self._layout = layout

    def fill(self, root: Path, wanted: Sequence[Prepared]) -> Path:
        """Make a root with the wanted images for a containerd that was not started yet; the folder it links to.

        Raises:
            ImageError: containerd refused an image.
            FileExistsError: the root is in use.
        """
        self._import(wanted)
        for name in _LINKED:
            (root / name).mkdir(parents=True)
            for path in (self._folder / name).iterdir():
                (root / name / path.name).symlink_to(path.resolve())
        for name in _COPIED:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._folder / name, root / name)
        return self._folder.resolve()

    def remove(self, images: Sequence[str]) -> None:
        """Forget images, and delete what no other image has.

        Raises:
            ImageError: containerd refused.
        """
        record = self._record()
        gone = [name for name in images if name in record]
        if gone:
            with serving(self._folder) as ctr:
                run([*ctr, "images", "rm", "--sync", *gone])
            self._write({name: digest for name, digest in record.items() if name not in gone})

    def _import(self, wanted: Sequence[Prepared]) -> None:
        record = self._record()
        digests = {item: self._layout.digest(item.image) for item in wanted}
        new = [item for item, digest in digests.items() if record.get(item.name) != digest]
        if not new:
            return
        with serving(self._folder) as ctr:
            for item in new:
                started = time.monotonic()
                blobs = self._layout.blobs(item.image)
                for digest in blobs:
                    self._adopt(ctr, digest)
                # Under its own name too: what a node runs is kept when another checkout takes the short name.
                with tempfile.TemporaryFile() as archive:
                    self._layout.write(archive, item.image, [item.name, item.image], without=blobs)
                    archive.seek(0)
                    run([*ctr, "images", "import", "-"], stdin=archive)
                record |= {item.name: digests[item], item.image: digests[item]}
                say(f"unpacked {item.image} in {time.monotonic() - started:.1f} s")
        self._write(record)

    def _adopt(self, ctr: list[str | Path], digest: str) -> None:
        """Put a blob of the layout into the content store without copying it.

        The store is shared by containerd's namespaces: content whose file it has already is recorded, not read.
        """
        mine, theirs = self._blob(digest), self._layout.path(digest)
        if not mine.exists():
            mine.parent.mkdir(parents=True, exist_ok=True)
            mine.hardlink_to(theirs)
        elif not theirs.samefile(mine):
            link = theirs.with_suffix(".link")
            link.unlink(missing_ok=True)
            link.hardlink_to(mine)
            link.replace(theirs)
        expected = ["--expected-digest", digest, "--expected-size", str(mine.stat().st_size)]
        with mine.open("rb") as content:
            run([*ctr, "content", "ingest", *expected, digest], stdin=content)

    def _blob(self, digest: str) -> Path:
        return self._folder / _CONTENT / "blobs" / digest.replace(":", "/")

    def _record(self) -> dict[str, str]:
        path = self._folder / _RECORD
        content: dict[str, str] = json.loads(path.read_bytes()) if path.exists() else {}
        return content

    def _write(self, record: dict[str, str]) -> None:
        write_atomically(self._folder / _RECORD, record)


@contextmanager
def serving(root: Path) -> Iterator[list[str | Path]]:
    """Run containerd on a root, without the kubelet's plugin; yields the beginning of a `ctr` command.

    Raises:
        ImageError: it did not stop at the end.
        ProcessDied, NotInTime: it did not start.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="finetune-images-") as work:
        socket, config = Path(work) / "containerd.sock", Path(work) / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{root}"\nstate = "{work}/state"\noom_score = 0\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs",\n'
            '  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",\n'
            '  "io.containerd.snapshotter.v1.native", "io.containerd.snapshotter.v1.zfs"]\n'
            f'[grpc]\n  address = "{socket}"\n'
            f'[plugins."io.containerd.internal.v1.opt"]\n  path = "{work}/opt"\n'
            # Nothing refers to a blob between its adoption and the import, and what nothing refers to is collected as
            # garbage: at the start, after some writes, and when asked (`images rm --sync`). Here only when asked.
            f'[plugins."io.containerd.gc.v1.scheduler"]\n  startup_delay = "24h"\n  mutation_threshold = 0\n'
        )
        server = Process("containerd", ["containerd", "--config", config], Path(work) / "containerd.log")
        server.start()
        ctr: list[str | Path] = ["ctr", "--address", socket, "--namespace", NAMESPACE]
        try:

            def answers() -> bool:
                server.check()
                asked = [*ctr, "--connect-timeout", "2s", "version"]
                return socket.exists() and subprocess.run(asked, capture_output=True, check=False).returncode == 0

            wait_for(answers, _DEADLINE_S, "containerd to answer", poll_s=0.05, context=server.log_tail)
            yield ctr
            server.signal(signal.SIGTERM)  # its databases are read next
            if server.wait(_DEADLINE_S) is None:
                raise ImageError(f"containerd did not stop within {_DEADLINE_S} s:\n{server.log_tail()}")
        finally:
            server.kill()
