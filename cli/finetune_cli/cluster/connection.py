"""From kubectl's flags to an API server: which cluster, which namespace, and as whom."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_cli.cluster.api import Api
from finetune_cli.cluster.refusals import Refusal, explain
from finetune_cli.cluster.resources import SELF_SUBJECT_REVIEWS, Resource
from finetune_cli.errors import CliError
from finetune_cli.options import checked_name

SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
LOCAL_HINT = "Without a cluster, `finetune run FILE` runs the same YAML on this machine."


@dataclass(frozen=True)
class Connection:
    """A cluster, a namespace in it, and how to name both again in a command."""

    api: Api
    namespace: str
    flags: tuple[str, ...] = ()
    """The flags that lead to this cluster again, for commands that are shown to people."""
    names_namespace: bool = False
    """Whether such a command must name the namespace: it is not the context's."""

    def command(self, *words: str) -> str:
        """What to type for another verb about the same cluster and namespace."""
        where = ["-n", self.namespace] if self.names_namespace else []
        return " ".join(["kubectl finetune", *words, *where, *self.flags])

    def in_namespace(self, namespace: str) -> Connection:
        """The same cluster, looking at another namespace."""
        if namespace == self.namespace:
            return self
        return Connection(self.api, namespace, self.flags, names_namespace=True)

    @contextmanager
    def asking(self, verb: str, resource: Resource, name: str = "", *, everywhere: bool = False) -> Iterator[None]:
        """Turn a Refusal inside into a sentence about `verb` (of RBAC) on this resource."""
        try:
            yield
        except Refusal as refusal:
            namespace = None if everywhere else self.namespace
            raise explain(refusal, verb, resource, namespace, name, self.api.server) from refusal

    def user_name(self) -> str:
        """The caller's own name, as the API server sees it."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": SELF_SUBJECT_REVIEWS.kind}
        with self.asking("create", SELF_SUBJECT_REVIEWS):
            review = self.api.create(SELF_SUBJECT_REVIEWS, None, body)
        name = ((review.get("status") or {}).get("userInfo") or {}).get("username")
        if not name:
            raise CliError("the API server does not say who you are", "Try `kubectl auth whoami`.")
        return str(name)


def connect(args: argparse.Namespace) -> Connection:
    """The connection that the flags of `add_cluster` describe.

    Raises CliError when there is no kubeconfig, the context does not exist, or its credentials cannot be had.
    """
    # The client logs retries and failed plugins by itself; what matters is raised and told once.
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise CliError(
            "the Kubernetes client is not installed", "Install it with `pip install 'finetune-operator[cli]'`."
        ) from error
    configuration = client.Configuration()
    namespace = _load(config, configuration, args.kubeconfig, args.context)
    configuration.retries = False
    asked = checked_name(args.namespace, "--namespace") if args.namespace is not None else namespace
    flags: list[str] = []
    for flag, value in (("--context", args.context), ("--kubeconfig", args.kubeconfig)):
        flags += [flag, str(value)] if value is not None else []
    api = Api(client.ApiClient(configuration), lambda text: print(f"warning: {text}", file=sys.stderr))
    return Connection(api, asked, tuple(flags), names_namespace=asked != namespace)


def _load(config: Any, configuration: Any, file: Path | None, context: str | None) -> str:
    """Fill the configuration; returns the namespace of the context."""
    given = str(file) if file is not None else os.environ.get("KUBECONFIG", "")
    paths = [Path(part).expanduser() for part in given.split(os.pathsep) if part] or [
        Path("~/.kube/config").expanduser()
    ]
    there = [path for path in paths if path.is_file()]
    if not there and not given and SERVICE_ACCOUNT_NAMESPACE.exists():
        config.load_incluster_config(client_configuration=configuration)
        return SERVICE_ACCOUNT_NAMESPACE.read_text(encoding="utf-8").strip()
    if not there:
        named = "--kubeconfig" if file is not None else "KUBECONFIG" if given else "the default"
        raise CliError(
            f"there is no kubeconfig: {os.pathsep.join(map(str, paths))} ({named}) does not exist",
            f"Name one with --kubeconfig FILE or $KUBECONFIG. {LOCAL_HINT}",
        )
    joined = os.pathsep.join(map(str, there))
    try:
        contexts, current = config.list_kube_config_contexts(config_file=joined)
        if context is not None and context not in {item["name"] for item in contexts}:
            names = ", ".join(sorted(item["name"] for item in contexts)) or "none"
            raise CliError(f"--context: there is no context {context} in {joined}", f"There are: {names}.")
        config.load_kube_config(config_file=joined, context=context, client_configuration=configuration)
    except CliError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise CliError(f"the kubeconfig {joined} cannot be used: {said}", "`kubectl config view` shows it.") from error
    chosen = next((item for item in contexts if item["name"] == context), current) if context else current
    return str((chosen or {}).get("context", {}).get("namespace") or "default")
