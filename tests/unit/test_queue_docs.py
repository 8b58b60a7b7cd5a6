"""What docs/queues.md tells a platform team to apply is what the tests with the real Kueue apply."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from finetune_operator.decide import queueing
from tests.cluster.harness.kueue import EXCLUDED_PREFIXES, cluster_queue, local_queue, priority_class, resource_flavor

PAGE = (Path(__file__).parents[2] / "docs" / "queues.md").read_text()
BLOCKS = [list(yaml.safe_load_all(text)) for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]


def test_the_objects_are_those_of_the_tests() -> None:
    [objects] = [block for block in BLOCKS if block[0].get("kind") == "ResourceFlavor"]
    assert objects == [
        resource_flavor("a100-80", {"gpu": "a100-80"}),
        cluster_queue("fine-tuning", "a100-80", 16),
        local_queue("team-a", "team-a", "fine-tuning"),
        priority_class("urgent", 1000),
    ]


def test_the_configuration_leaves_out_what_the_tests_leave_out() -> None:
    [[configuration]] = [block for block in BLOCKS if block[0].get("kind") == "Configuration"]
    assert tuple(configuration["resources"]["excludeResourcePrefixes"]) == EXCLUDED_PREFIXES
    assert configuration["integrations"] == {"frameworks": ["batch/job"]}


def test_every_reason_is_in_the_table() -> None:
    source = Path(queueing.__file__).read_text()
    reasons = set(re.findall(r'"([A-Z][a-z]+[A-Za-z]*[a-z])",\n|Wait\(\s*"([A-Za-z]+)"', source))
    named = {name for pair in reasons for name in pair if name}
    assert {"WaitingForQuota", "QueueNotFound", "KueueMissing", "Admitted", "HeldBack"} <= named
    assert {name for name in named if f"| `{name}` |" not in PAGE} <= {"Queued"}
