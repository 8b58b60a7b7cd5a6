"""A kubelet without containers: pods bound to its node run as local processes.

What is real: scheduling, the pod's arguments, variables, volumes, tokens, signals, grace periods, exit codes and
termination messages, all read and written with the rights of a node. What is not: images, namespaces, limits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from . import pod_status
from .cluster import Cluster
from .pod_files import CannotStart, PodFiles, Rewriter, expand
from .process import Process
from .waiting import wait_for

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
_JOIN_DEADLINE_S = 30
_DEFAULT_MESSAGE_PATH = "/dev/termination-log"
_FALLBACK_BYTES, _FALLBACK_LINES = 2048, 80
_MARK = "FINETUNE_TEST_POD_UID"
# An API server that is away or restarts is part of the tests; the next round tries again.
_AWAY = (urllib3.exceptions.HTTPError, OSError)


class ProcessKubelet:
    """Runs the pods of one node as processes, from ``with`` to its end.

    Args:
        cluster: where the node is; create the Node itself with ``PodPlayer.add_node``.
        node: the node's name; the kubelet speaks as ``system:node:<node>``.
        environment: variables every process gets besides its own (a container's image would set them).
        hosts: regular expression -> address, for names of Services that only exist inside a cluster.
        entrypoint: the image's entrypoint, for containers without a command.
    """

    def __init__(
        self,
        cluster: Cluster,
        node: str,
        *,
        environment: Mapping[str, str] | None = None,
        hosts: Mapping[str, str] | None = None,
        entrypoint: str = "finetune-runner",
    ) -> None:
        self.node = node
        self.work_dir = Path(tempfile.mkdtemp(prefix=f"finetune-kubelet-{node}-"))
        self.logs_dir = self.work_dir / "logs"
        self.logs_dir.mkdir()
        self.entrypoint = entrypoint
        self.environment = dict(environment or {})
        self.hosts = dict(hosts or {})
        self.core = client.CoreV1Api(cluster.api(f"system:node:{node}", ("system:nodes",)))
        self.files = PodFiles(self.core, self.work_dir / "claims")
        self._pods: dict[str, _PodWorker] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"kubelet-{node}", daemon=True)

    def __enter__(self) -> Self:
        """Start to watch for pods."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill every pod's processes and stop; the pods stay in the API as they are."""
        self.close()

    def close(self) -> None:
        """Kill what runs, stop, remove the files."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_DEADLINE_S)
        for worker in self._pods.values():
            worker.abandon()
        shutil.rmtree(self.work_dir, ignore_errors=True)

    def logs(self, namespace: str, pod: str) -> str:
        """What a pod's process has written so far; empty where it never started."""
        path = self.logs_dir / f"{namespace}_{pod}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(ApiException, *_AWAY):
                self._round()
            self._stop.wait(_POLL_S)

    def _round(self) -> None:
        listed = self.core.list_pod_for_all_namespaces(field_selector=f"spec.nodeName={self.node}", _request_timeout=10)
        seen = {pod.metadata.uid: pod for pod in listed.items}
        for uid, pod in seen.items():
            if uid not in self._pods:
                self._pods[uid] = _PodWorker(self, pod)
                self._pods[uid].start()
            if pod.metadata.deletion_timestamp:
                self._pods[uid].end(pod.metadata.deletion_grace_period_seconds or 0)
        for uid in set(self._pods) - set(seen):  # force-deleted: a real kubelet kills it as soon as it notices
            self._pods.pop(uid).abandon()


class _PodWorker(threading.Thread):
    """The life of one pod: set up, run, report, and remove it when it is being deleted."""

    def __init__(self, kubelet: ProcessKubelet, pod: client.V1Pod) -> None:
        super().__init__(name=f"pod-{pod.metadata.name}", daemon=True)
        self._kubelet = kubelet
        self._pod = pod
        self._folder = kubelet.work_dir / "pods" / pod.metadata.uid
        self._deleted = threading.Event()
        self._abandoned = threading.Event()
        self._grace_s = 0.0
        self._process: Process | None = None
        self._message_file = self._folder / "termination-log"

    def end(self, grace_s: float) -> None:
        """The pod is being deleted: end it politely, then with force."""
        self._grace_s = grace_s
        self._deleted.set()

    def abandon(self) -> None:
        """The pod is gone or the kubelet stops: kill and report nothing."""
        self._abandoned.set()
        self._deleted.set()
        self.join(_JOIN_DEADLINE_S)

    def run(self) -> None:
        """Play the pod from start to end."""
        try:
            if self._pod.status.phase not in {"Succeeded", "Failed"}:
                self._play()
            self._deleted.wait()
            if not self._abandoned.is_set():
                self._call(lambda: pod_status.remove(self._kubelet.core, self._pod))
        finally:
            self._kill()

    def _play(self) -> None:
        while not self._deleted.is_set():
            try:
                process = self._prepare()
                break
            except CannotStart as error:
                status = pod_status.waiting(self._pod, error.reason, str(error))
                self._write(status)
                self._deleted.wait(1.0)  # then look again, as a kubelet does
            except (ApiException, *_AWAY) as error:
                _LOG.warning("kubelet %s, pod %s: %s", self._kubelet.node, self._pod.metadata.name, error)
                self._deleted.wait(1.0)
        else:
            self._write(pod_status.terminated(self._pod, 137, "ContainerStatusUnknown", "deleted before it started"))
            return
        self._process = process
        process.start(cwd=self._folder)
        running = pod_status.running(self._pod, "127.0.0.1")
        self._write(running)
        code = self._wait(process)
        self._kill()
        if self._abandoned.is_set():
            return
        exit_code = 128 - code if code < 0 else code
        self._write(
            pod_status.terminated(
                self._pod, exit_code, "Completed" if exit_code == 0 else "Error", self._message(exit_code)
            )
        )

    def _wait(self, process: Process) -> int:
        """Wait for the end of the process or of its grace period; returns the exit status (negative: a signal)."""
        while not self._deleted.is_set():
            code = process.wait(_POLL_S)
            if code is not None:
                return code
        if not self._abandoned.is_set():
            process.signal(signal.SIGTERM)
            waited_s = 0.0
            while waited_s < self._grace_s and not self._abandoned.is_set():
                code = process.wait(_POLL_S)
                if code is not None:
                    return code
                waited_s += _POLL_S
        self._kill()
        code = process.wait()
        return -signal.SIGKILL if code is None else code

    def _prepare(self) -> Process:
        pod, kubelet = self._pod, self._kubelet
        container = pod.spec.containers[0]
        volumes = kubelet.files.volumes(pod, self._folder / "volumes")
        variables = kubelet.files.environment(pod, container)
        self._message_file.touch()
        message_path = container.termination_message_path or _DEFAULT_MESSAGE_PATH
        paths = {message_path: self._message_file}
        for mount in container.volume_mounts or []:
            paths[mount.mount_path.rstrip("/")] = volumes[mount.name] / (mount.sub_path or "")
        for folder, local in parents_of_mounts(paths, self._folder / "root").items():
            paths.setdefault(folder, local)
        for path in paths.values():
            if path != self._message_file:
                path.mkdir(parents=True, exist_ok=True)
        rewrite = Rewriter(paths, {**_gang_hosts(pod), **kubelet.hosts})
        temporary = paths.get("/tmp", self._folder / "tmp")
        home = self._folder / "home"
        for folder in (temporary, home):
            folder.mkdir(parents=True, exist_ok=True)
        scripts = str(Path(sys.executable).parent)
        environment = {
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "LANG": "C.UTF-8",
            **kubelet.environment,
            **{name: rewrite(value) for name, value in variables.items()},
            "FINETUNE_TERMINATION_LOG": str(self._message_file),
            _MARK: pod.metadata.uid,
        }
        words = [*(container.command or [kubelet.entrypoint]), *(container.args or [])]
        command = [rewrite(expand(word, variables)) for word in words]
        program = shutil.which(command[0], path=environment["PATH"])
        if program is None:
            raise CannotStart("CreateContainerError", f'exec: "{command[0]}": executable file not found in $PATH')
        log = kubelet.logs_dir / f"{pod.metadata.namespace}_{pod.metadata.name}.log"
        return Process(pod.metadata.name, [program, *command[1:]], log, environment)

    def _message(self, exit_code: int) -> str:
        message = self._message_file.read_text(errors="replace") if self._message_file.exists() else ""
        policy = self._pod.spec.containers[0].termination_message_policy
        if not message and exit_code != 0 and policy == "FallbackToLogsOnError" and self._process is not None:
            tail = self._process.log_tail(_FALLBACK_BYTES)
            message = "\n".join(tail.splitlines()[-_FALLBACK_LINES:])
        return message

    def _write(self, status: dict[str, object]) -> None:
        def patch() -> None:
            pod_status.write(self._kubelet.core, self._pod, status)
            self._pod = self._kubelet.core.read_namespaced_pod(self._pod.metadata.name, self._pod.metadata.namespace)

        self._call(patch)

    def _call(self, request: Callable[[], None]) -> None:
        """Send a request until it is answered; a pod that is gone needs no answer."""

        def answered() -> bool:
            if self._abandoned.is_set():
                return True
            try:
                request()
            except ApiException as error:
                if error.status in {404, 409}:
                    return True
                _LOG.warning("kubelet %s, pod %s: %s", self._kubelet.node, self._pod.metadata.name, error)
                return False
            return True

        wait_for(answered, 120, f"the API server to take the status of pod {self._pod.metadata.name}", ignore=_AWAY)

    def _kill(self) -> None:
        """SIGKILL the process and all it started, in any process group: a container leaves nothing behind."""
        if self._process is not None:
            self._process.kill()
            for pid in _marked(self._pod.metadata.uid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def parents_of_mounts(mounts: Mapping[str, Path], root: Path) -> dict[str, Path]:
    """Folders in which several volumes meet, as `/etc/finetune/secrets` for a Secret each: local folders of links."""
    found: dict[str, Path] = {}
    for path, local in mounts.items():
        parents = [str(parent) for parent in Path(path).parents if len(parent.parts) > 2]
        if any(parent in mounts for parent in parents):
            continue
        for parent in parents:
            found[parent] = root / parent.lstrip("/")
            found[parent].mkdir(parents=True, exist_ok=True)
        if parents:
            (root / path.lstrip("/")).symlink_to(local)
    return found


def _gang_hosts(pod: client.V1Pod) -> dict[str, str]:
    """The names a headless Service gives the pods of a gang all mean this machine."""
    if not pod.spec.subdomain:
        return {}
    domain = rf"\.{pod.metadata.namespace}(?:\.svc(?:\.[a-z0-9.-]*[a-z0-9])?)?"
    return {rf"\b[a-z0-9-]+\.{pod.spec.subdomain}(?:{domain})?(?![a-z0-9.-])": "127.0.0.1"}


def _marked(uid: str) -> list[int]:
    """The processes that inherited a pod's mark."""
    mark = f"{_MARK}={uid}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
