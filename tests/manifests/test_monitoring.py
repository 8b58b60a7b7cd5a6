"""Rules and dashboard ask only for metrics that a running operator serves, and the rules say what they should."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from finetune_operator.decide.causes import registry
from tests.cluster.harness.binaries import binary
from tests.cluster.harness.operator_process import OperatorProcess
from tests.cluster.harness.runs import Runs
from tests.manifests.rendering import MANIFESTS, ROOT, run

COMPONENT = MANIFESTS / "components" / "monitoring"
RULES = yaml.safe_load((COMPONENT / "rules.yaml").read_text())
DASHBOARD = json.loads((COMPONENT / "dashboard.json").read_text())
ALL_RULES: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
METRIC = re.compile(r"\b((?:finetune|process)_[a-z_]+)\b")


def expressions() -> list[str]:
    """Every expression of rules and dashboard, and the dashboard's variables."""
    asked = [rule["expr"] for rule in ALL_RULES]
    asked += [target["expr"] for panel in PANELS for target in panel["targets"]]
    return asked + [variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]


@pytest.fixture
def scrape(operated: Runs, operator: OperatorProcess) -> dict[str, set[str]]:
    """Names of the samples that a leading operator serves, with their labels, after a run with a failure in it."""
    operated.cluster.kubectl(
        *("patch", "gpupool", operated.namespace, "--type=merge"),
        *("-p", json.dumps({"spec": {"price": {"gpuPerHour": 2.5, "currency": "EUR"}}})),
    )
    operated.apply()
    operated.fail("prepare", 82)
    operated.succeed("prepare", attempt=2)
    operated.succeed_from("baseline")
    operated.wait(
        lambda: 'finetune_versions{phase="PendingApproval"} 0' not in operator.get("metrics")[1], "the version"
    )
    operated.wait(operator.leads, "the operator to lead")
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^([a-z_]+)(?:\{(.*)\})? \S+$", operator.get("metrics")[1], re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def test_every_metric_and_label_that_is_asked_for_exists(scrape: dict[str, set[str]]) -> None:
    named = {name for expression in expressions() for name in METRIC.findall(expression)}
    assert len(named) >= 14
    assert named - set(scrape) == set()
    # Prometheus adds these when it scrapes a pod.
    added = {"namespace", "pod"}
    for expression in expressions():
        for name, matchers in re.findall(r"\b(finetune_[a-z_]+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", matchers))
            assert labels <= scrape[name] | added, f"{name} has {scrape[name]}: {expression}"
        labels = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
        known = set.union(added, *(scrape[name] for name in METRIC.findall(expression)))
        assert labels <= known, expression


def test_causes_that_the_rules_name_exist() -> None:
    [expression] = [rule["expr"] for rule in ALL_RULES if rule.get("alert") == "FineTunePlatformFailures"]
    named = set(re.findall(r'cause=~"([^"]+)"', expression)[0].split("|"))
    assert named <= set(registry())


def test_promtool_accepts_the_rules() -> None:
    done = run(binary("promtool"), "check", "rules", "--lint-fatal", COMPONENT / "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALL_RULES)} rules found" in done.stdout


def test_the_rules_fire_when_they_should_and_only_then() -> None:
    done = run(binary("promtool"), "test", "rules", ROOT / "tests" / "manifests" / "rules.test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_test() -> None:
    tested = (ROOT / "tests" / "manifests" / "rules.test.yaml").read_text()
    names = [rule.get("alert") or rule["record"] for rule in ALL_RULES]
    assert [name for name in names if name not in tested] == []


@pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if "alert" in rule], ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["description"].strip()


def test_the_prometheus_rule_is_the_rules() -> None:
    rule = yaml.safe_load((COMPONENT / "prometheus-rule.yaml").read_text())
    assert rule["spec"] == RULES


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & own, panel["title"]
        cells |= own
    assert all(panel["description"] for panel in PANELS)
