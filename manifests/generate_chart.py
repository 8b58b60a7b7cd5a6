"""Write what the Helm chart and the monitoring component share with the kustomize base, so that nothing is kept twice.

`make generate` runs it: templates that a value changes are made from the objects of `base` with Go template expressions
put in, the rest is copied. `values.yaml`, its schema, the helpers and NOTES.txt are written by hand; tests compare what
`helm template` and `kubectl kustomize` render, object by object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).parent
BASE = MANIFESTS / "base"
CHART = MANIFESTS / "chart"
NAMESPACE = "finetune-system"
OWN_NAMESPACE = "{{ .Release.Namespace }}"
HEADER = "{{/* Generated from manifests/%s by make generate; do not edit. */}}\n"

POLICIES = (
    "admission-adapterversions",
    "admission-adapters",
    "admission-credentials",
    "admission-sources",
    "admission-pool-limits",
)
CRDS = ("adapters", "adapterversions", "finetunejobs", "gpupools")


class Block(str):
    """Text that goes into the YAML as it is, on lines of its own, in the place of a value."""


def documents(path: Path) -> list[dict[str, Any]]:
    """The objects of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def render(document: dict[str, Any]) -> str:
    """YAML in which strings that are template expressions stand without quotes, and blocks on lines of their own."""
    blocks: list[str] = []

    def mark(value: Any) -> Any:
        if isinstance(value, Block):
            blocks.append(value)
            return f"BLOCK{len(blocks) - 1}END"
        if isinstance(value, dict):
            return {key: mark(item) for key, item in value.items()}
        if isinstance(value, list):
            return [mark(item) for item in value]
        return value

    text = yaml.safe_dump(mark(document), sort_keys=False, width=10_000, allow_unicode=True)
    text = re.sub(r"'(\{\{[^'\n]*\}\})'", r"\1", text)  # a whole value that is an expression
    for number, block in enumerate(blocks):
        # `key: BLOCK` becomes the block alone: it writes its own key.
        text = re.sub(rf"^.*BLOCK{number}END\n", block.replace("\\", r"\\"), text, flags=re.MULTILINE)
    return text


def in_own_namespace(text: str) -> str:
    """The release's namespace instead of the base's, in metadata, subjects, arguments and user names."""
    return text.replace(NAMESPACE, OWN_NAMESPACE)


def guard(condition: str, text: str) -> str:
    """Text that is rendered only under a condition."""
    return f"{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n"


def deployment() -> str:
    """The Deployment, with the values that an installation may set."""
    [found] = documents(BASE / "deployment.yaml")
    found["spec"]["replicas"] = "{{ .Values.replicas }}"
    template = found["spec"]["template"]
    template["metadata"]["labels"]["extra"] = Block(
        "        {{- with .Values.podLabels }}\n        {{- toYaml . | nindent 8 }}\n        {{- end }}\n"
    )
    template["metadata"]["annotations"] = Block(
        "      {{- with .Values.podAnnotations }}\n      annotations:\n        {{- toYaml . | nindent 8 }}\n"
        "      {{- end }}\n"
    )
    pod = template["spec"]
    pod["imagePullSecrets"] = optional("imagePullSecrets", 6)
    for name in ("nodeSelector", "tolerations", "affinity"):
        pod[name] = optional(name, 6)
    pod["topologySpreadConstraints"] = optional("topologySpreadConstraints", 6)
    pod["priorityClassName"] = Block(
        "      {{- with .Values.priorityClassName }}\n      priorityClassName: {{ . }}\n      {{- end }}\n"
    )
    [container] = pod["containers"]
    container["image"] = '{{ include "finetune-operator.image" . }}'
    container["imagePullPolicy"] = "{{ .Values.image.pullPolicy }}"
    container["resources"] = Block("        resources:\n          {{- toYaml .Values.resources | nindent 10 }}\n")
    before = Block(
        "        {{- range .Values.watchNamespaces }}\n        - --namespace\n        - {{ . }}\n        {{- end }}\n"
    )
    after = Block("        {{- range .Values.extraArgs }}\n        - {{ . | quote }}\n        {{- end }}\n")
    container["args"] = [before, *container["args"], after]
    return in_own_namespace(render(found))


def optional(name: str, indent: int) -> Block:
    """A member of the pod that is left out while its value is empty."""
    space = " " * indent
    return Block(
        f"{space}{{{{- with .Values.{name} }}}}\n{space}{name}:\n{space}  {{{{- toYaml . | nindent {indent + 2} }}}}\n"
        f"{space}{{{{- end }}}}\n"
    )


def rbac() -> str:
    """The operator's roles: those about namespaces become one Role per watched namespace."""
    texts = []
    for found in documents(BASE / "rbac.yaml"):
        name, kind = found["metadata"]["name"], found["kind"]
        if name != "finetune-operator":
            texts.append(render(found))
            continue
        cluster = render(found)
        found["kind"] = kind.removeprefix("Cluster")
        found["metadata"]["namespace"] = "{{ . }}"
        if "roleRef" in found:
            found["roleRef"]["kind"] = "Role"
            for subject in found["subjects"]:
                subject["namespace"] = "{{ $.Release.Namespace }}"
        of_each = f"{{{{- range .Values.watchNamespaces }}}}\n---\n{render(found)}"
        texts.append(f"{of_each}{{{{- else }}}}\n---\n{cluster}{{{{- end }}}}\n")
    return in_own_namespace("".join(text if text.startswith("{{-") else f"---\n{text}" for text in texts))


def network_policy() -> str:
    """The network policy; where the API server is known to be, only that."""
    [found] = documents(BASE / "network-policy.yaml")
    egress = found["spec"]["egress"]
    if [port["port"] for port in egress[0]["ports"]] != [443, 6443]:
        raise SystemExit("network-policy.yaml: the first egress rule must be about the API server, ports 443 and 6443")
    egress[0] = Block(
        "  - ports:\n    {{- range .Values.networkPolicy.apiServer.ports }}\n    - port: {{ . }}\n      protocol: TCP\n"
        "    {{- end }}\n    {{- with .Values.networkPolicy.apiServer.cidrs }}\n    to:\n    {{- range . }}\n"
        "    - ipBlock:\n        cidr: {{ . }}\n    {{- end }}\n    {{- end }}\n"
    )
    return guard(".Values.networkPolicy.enabled", in_own_namespace(render(found)))


def policy(name: str) -> str:
    """An admission policy as text: its comments stay, the operator's user name follows the release."""
    text = in_own_namespace((BASE / f"{name}.yaml").read_text())
    everything = """    expression: "['hf://', 's3://', 'pvc://', 'oci://']"\n"""
    choice = """ternary "[]" "['hf://', 's3://', 'pvc://', 'oci://']" .Values.policies.strictSources"""
    strict = f"    expression: {{{{ {choice} | quote }}}}\n"
    return guard(".Values.policies.enabled", text.replace(everything, strict))


def crd(plural: str) -> str:
    """A CRD as a template, so that an upgrade of the chart upgrades it; uninstalling keeps it and what it holds."""
    text = (MANIFESTS.parent / "crds" / f"finetune.dev_{plural}.yaml").read_text()
    keep = "metadata:\n  {{- if .Values.crds.keep }}\n  annotations:\n    helm.sh/resource-policy: keep\n  {{- end }}\n"
    if "{{" in text or text.count("\nmetadata:\n  name:") != 1:
        raise SystemExit(
            f"{plural}: a CRD with '{{{{' or with annotations of its own needs more than this generator does"
        )
    return guard(".Values.crds.install", text.replace("\nmetadata:\n", f"\n{keep}", 1))


def prometheus_rule() -> str:
    """rules.yaml as the Prometheus operator wants it."""
    rules = yaml.safe_load((MANIFESTS / "components" / "monitoring" / "rules.yaml").read_text())
    found = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "finetune-operator",
            "namespace": NAMESPACE,
            "labels": {"app.kubernetes.io/name": "finetune-operator"},
        },
        "spec": rules,
    }
    comment = "# Generated from rules.yaml by make generate; do not edit.\n"
    return comment + yaml.safe_dump(found, sort_keys=False, width=10_000)


def copied(path: str) -> str:
    """An object that no value changes but the namespace."""
    return in_own_namespace((MANIFESTS / path).read_text())


def files() -> Iterator[tuple[str, str, str]]:
    """(path below manifests, source, content) of everything that is generated."""
    yield "components/monitoring/prometheus-rule.yaml", "", prometheus_rule()
    yield "chart/files/dashboard.json", "", (MANIFESTS / "components/monitoring/dashboard.json").read_text()
    yield "chart/files/rules.yaml", "", (MANIFESTS / "components/monitoring/rules.yaml").read_text()
    templates = "chart/templates"
    yield f"{templates}/deployment.yaml", "base/deployment.yaml", deployment()
    yield f"{templates}/rbac.yaml", "base/rbac.yaml", rbac()
    yield f"{templates}/network-policy.yaml", "base/network-policy.yaml", network_policy()
    for name in ("service-account", "service", "roles-for-people"):
        yield f"{templates}/{name}.yaml", f"base/{name}.yaml", copied(f"base/{name}.yaml")
    for name, condition in (
        ("namespace", ".Values.namespace.create"),
        ("disruption-budget", ".Values.disruptionBudget.enabled"),
    ):
        yield f"{templates}/{name}.yaml", f"base/{name}.yaml", guard(condition, copied(f"base/{name}.yaml"))
    for name in POLICIES:
        yield f"{templates}/{name}.yaml", f"base/{name}.yaml", policy(name)
    author = "components/four-eyes/record-author.yaml"
    yield f"{templates}/record-author.yaml", author, guard(".Values.policies.recordAuthor", copied(author))
    monitor = "components/monitoring/service-monitor.yaml"
    yield f"{templates}/service-monitor.yaml", monitor, guard(".Values.monitoring.serviceMonitor", copied(monitor))
    for plural in CRDS:
        source = f"../crds/finetune.dev_{plural}.yaml"
        yield f"{templates}/crd-{plural}.yaml", f"{source.removeprefix('../')}", crd(plural)


def main() -> None:
    """Write every generated file."""
    for path, source, content in files():
        target = MANIFESTS / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((HEADER % source if source else "") + content)


if __name__ == "__main__":
    main()
