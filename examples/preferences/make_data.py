"""Preference pairs from the tickets of `support-triage`: the label as JSON against what people complained about.

Usage: `.venv/bin/python examples/preferences/make_data.py > examples/preferences/preferences.jsonl`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TICKETS = Path(__file__).parents[1] / "support-triage" / "tickets.jsonl"
PAIRS = 700


def worse(label: dict[str, str], number: int) -> str:
    """An answer that downstream cannot use: prose, JSON with words around it, or half of the label."""
    if number % 3 == 0:
        return f"Thank you for your message. It is about {label['category']}."
    if number % 3 == 1:
        return f"Sure! {json.dumps(label)}"
    return json.dumps({"category": label["category"]})


def pairs() -> Iterator[dict[str, Any]]:
    """Rows of format `preference`: prompt, chosen, rejected, each a list of messages."""
    with TICKETS.open(encoding="utf-8") as lines:
        for line in lines:
            *prompt, answer = json.loads(line)["messages"]
            try:
                label = json.loads(answer["content"])
            except ValueError:
                continue  # some tickets have no usable label on purpose
            if isinstance(label, dict) and {"category", "urgency"} <= set(label):
                yield {"prompt": prompt, "chosen": [answer], "label": label}


def main() -> None:
    """Write the rows to standard output."""
    for number, (pair, _) in enumerate(zip(pairs(), range(PAIRS), strict=False)):
        rejected = {"role": "assistant", "content": worse(pair.pop("label"), number)}
        sys.stdout.write(json.dumps(pair | {"rejected": [rejected]}) + "\n")


if __name__ == "__main__":
    main()
