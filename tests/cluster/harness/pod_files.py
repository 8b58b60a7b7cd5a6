"""A pod's volumes and environment on the local disk: what a kubelet and a container runtime would set up."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kubernetes import client
from kubernetes.client.exceptions import ApiException

_NOT_FOUND = 404
_FIELD_REF = re.compile(r"metadata\.(?P<map>annotations|labels)\['(?P<key>[^']+)'\]")
_VARIABLE = re.compile(r"\$\$|\$\((?P<name>[A-Za-z_][A-Za-z0-9_.-]*)\)")


class CannotStart(Exception):
    """The pod names something that is not there; its container waits, as it does on a real node."""

    def __init__(self, reason: str, message: str) -> None:
        """``reason`` is the word the kubelet puts into the waiting state."""
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Rewriter:
    """Replaces container paths by local ones and cluster host names by local addresses, in arguments and variables.

    A path is replaced where it stands as a whole or as the beginning of a longer path: at the start of a text or
    after one of ``= : , " '``, white space or ``://``.
    """

    paths: Mapping[str, Path]
    hosts: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, text: str) -> str:
        """The text with every mount path and host name replaced."""
        for pattern, address in self.hosts.items():
            text = re.sub(pattern, address, text)
        if not self.paths:
            return text
        ordered = sorted(self.paths, key=len, reverse=True)  # /data/cache before /data
        pattern = r"(^|[=:,\s\"']|://)(" + "|".join(map(re.escape, ordered)) + r")(?=$|[/:,\s\"'])"
        return re.sub(pattern, lambda match: f"{match[1]}{self.paths[match[2]]}", text)


class PodFiles:
    """Sets up volumes and the environment of one pod after another, reading Secrets and ConfigMaps as the node does."""

    def __init__(self, core: client.CoreV1Api, claims_dir: Path) -> None:
        """Persistent volume claims become folders of ``claims_dir`` that outlive the pods."""
        self._core = core
        self._claims_dir = claims_dir

    def volumes(self, pod: client.V1Pod, folder: Path) -> dict[str, Path]:
        """Make every volume of a pod below ``folder``; returns volume name -> local folder.

        Raises:
            CannotStart: a Secret or ConfigMap is missing, or the kind of volume is not supported here.
        """
        return {volume.name: self._volume(pod, volume, folder / volume.name) for volume in pod.spec.volumes or []}

    def environment(self, pod: client.V1Pod, container: client.V1Container) -> dict[str, str]:
        """The container's variables, in the order Kubernetes resolves them, with ``$(NAME)`` expanded.

        Raises:
            CannotStart: a variable comes from something that does not exist.
        """
        namespace = pod.metadata.namespace
        result: dict[str, str] = {}
        for source in container.env_from or []:
            if source.secret_ref:
                values = self._secret(namespace, source.secret_ref.name, optional=bool(source.secret_ref.optional))
            else:
                reference = source.config_map_ref
                values = self._config_map(namespace, reference.name, optional=bool(reference.optional))
            result |= {f"{source.prefix or ''}{key}": value.decode() for key, value in values.items()}
        for item in container.env or []:
            if item.value_from is None:
                result[item.name] = expand(item.value or "", result)
                continue
            source = item.value_from
            if source.field_ref:
                result[item.name] = field_value(pod, source.field_ref.field_path)
            elif source.secret_key_ref or source.config_map_key_ref:
                reference = source.secret_key_ref or source.config_map_key_ref
                optional = bool(reference.optional)
                read = self._secret if source.secret_key_ref else self._config_map
                values = read(namespace, reference.name, optional=optional)
                if reference.key in values:
                    result[item.name] = values[reference.key].decode()
                elif not optional:
                    raise CannotStart(
                        "CreateContainerConfigError", f"couldn't find key {reference.key} in {reference.name}"
                    )
            else:
                raise CannotStart(
                    "CreateContainerConfigError", f"variable {item.name}: this source is not supported here"
                )
        return result

    def _volume(self, pod: client.V1Pod, volume: client.V1Volume, folder: Path) -> Path:
        namespace = pod.metadata.namespace
        if volume.persistent_volume_claim:
            folder = self._claims_dir / namespace / volume.persistent_volume_claim.claim_name
        elif volume.host_path:
            return Path(volume.host_path.path)
        folder.mkdir(parents=True, exist_ok=True)
        if volume.downward_api:
            _write(folder, _downward(pod, volume.downward_api.items))
        elif volume.secret:
            found = self._secret(namespace, volume.secret.secret_name, optional=bool(volume.secret.optional))
            _write(folder, _chosen(found, volume.secret.items))
        elif volume.config_map:
            found = self._config_map(namespace, volume.config_map.name, optional=bool(volume.config_map.optional))
            _write(folder, _chosen(found, volume.config_map.items))
        elif volume.projected:
            for source in volume.projected.sources or []:
                _write(folder, self._projected(pod, source))
        elif not (volume.empty_dir or volume.persistent_volume_claim):
            raise CannotStart("FailedMount", f"volume {volume.name}: this kind of volume is not supported here")
        return folder

    def _projected(self, pod: client.V1Pod, source: client.V1VolumeProjection) -> dict[str, bytes]:
        namespace = pod.metadata.namespace
        if source.service_account_token:
            return {source.service_account_token.path: self._token(pod, source.service_account_token)}
        if source.downward_api:
            return _downward(pod, source.downward_api.items)
        if source.secret:
            found = self._secret(namespace, source.secret.name, optional=bool(source.secret.optional))
            return _chosen(found, source.secret.items)
        if source.config_map:
            found = self._config_map(namespace, source.config_map.name, optional=bool(source.config_map.optional))
            return _chosen(found, source.config_map.items)
        raise CannotStart("FailedMount", "this kind of projected volume is not supported here")

    def _token(self, pod: client.V1Pod, wanted: client.V1ServiceAccountTokenProjection) -> bytes:
        """A token bound to the pod, asked for as the node."""
        request = client.AuthenticationV1TokenRequest(
            spec=client.V1TokenRequestSpec(
                audiences=[wanted.audience] if wanted.audience else [],
                expiration_seconds=wanted.expiration_seconds or 3600,
                bound_object_ref=client.V1BoundObjectReference(
                    api_version="v1", kind="Pod", name=pod.metadata.name, uid=pod.metadata.uid
                ),
            )
        )
        account = pod.spec.service_account_name or "default"
        answer = self._core.create_namespaced_service_account_token(account, pod.metadata.namespace, request)
        return str(answer.status.token).encode()

    def _secret(self, namespace: str, name: str, *, optional: bool) -> dict[str, bytes]:
        try:
            data = self._core.read_namespaced_secret(name, namespace).data
        except ApiException as error:
            return _missing(f'secret "{name}" not found', error, optional=optional)
        return {key: base64.b64decode(value) for key, value in (data or {}).items()}

    def _config_map(self, namespace: str, name: str, *, optional: bool) -> dict[str, bytes]:
        try:
            found = self._core.read_namespaced_config_map(name, namespace)
        except ApiException as error:
            return _missing(f'configmap "{name}" not found', error, optional=optional)
        binary = {key: base64.b64decode(value) for key, value in (found.binary_data or {}).items()}
        return {key: value.encode() for key, value in (found.data or {}).items()} | binary


def field_value(pod: client.V1Pod, path: str) -> str:
    """The value of a downward API ``fieldRef``; a missing annotation or label is empty, as in Kubernetes."""
    match = _FIELD_REF.fullmatch(path)
    if match:
        values = pod.metadata.annotations if match["map"] == "annotations" else pod.metadata.labels
        return str((values or {}).get(match["key"], ""))
    known = {
        "metadata.name": pod.metadata.name,
        "metadata.namespace": pod.metadata.namespace,
        "metadata.uid": pod.metadata.uid,
        "metadata.labels": _lines(pod.metadata.labels),
        "metadata.annotations": _lines(pod.metadata.annotations),
        "spec.nodeName": pod.spec.node_name,
        "spec.serviceAccountName": pod.spec.service_account_name,
        "status.podIP": "127.0.0.1",
        "status.podIPs": "127.0.0.1",
        "status.hostIP": "127.0.0.1",
    }
    if path not in known:
        raise CannotStart("CreateContainerConfigError", f"fieldRef {path} is not supported here")
    return str(known[path] or "")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Expand ``$(NAME)`` as Kubernetes does: unknown names stay as they are, ``$$`` is a dollar sign."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match["name"], match[0])

    return _VARIABLE.sub(value, text)


def _lines(values: Mapping[str, str] | None) -> str:
    return "\n".join(f'{key}="{value}"' for key, value in sorted((values or {}).items()))


def _downward(pod: client.V1Pod, items: list[client.V1DownwardAPIVolumeFile] | None) -> dict[str, bytes]:
    unsupported = [item.path for item in items or [] if not item.field_ref]
    if unsupported:
        raise CannotStart(
            "FailedMount", f"downward API files {', '.join(unsupported)}: only fieldRef is supported here"
        )
    return {item.path: field_value(pod, item.field_ref.field_path).encode() for item in items or []}


def _chosen(found: Mapping[str, bytes], items: list[client.V1KeyToPath] | None) -> dict[str, bytes]:
    if not items:
        return dict(found)
    missing = [item.key for item in items if item.key not in found]
    if missing:
        raise CannotStart("FailedMount", f"references non-existent keys: {', '.join(missing)}")
    return {item.path: found[item.key] for item in items}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _missing(message: str, error: ApiException, *, optional: bool) -> dict[str, bytes]:
    if error.status == _NOT_FOUND and optional:
        return {}
    # The Node authorizer answers 403 for a Secret no pod of the node names, and also for one that does not exist yet.
    raise CannotStart("CreateContainerConfigError", f"{message} ({error.status})") from error
