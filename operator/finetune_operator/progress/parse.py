"""The body of a push: one Progress as JSON, every bad field named. Pure."""

from __future__ import annotations

import json
from typing import NoReturn

from pydantic import ValidationError

from finetune_api.stages import Progress
from finetune_operator.progress.refusal import Refused


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON; leave the field out")


def parse_progress(body: bytes) -> Progress:
    """Raises Refused (400) that says what is wrong with which field. A newer runner's fields are passed over."""
    try:
        wire = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "invalid", f"the body is not JSON: {error}") from error
    if not isinstance(wire, dict):
        raise Refused(400, "invalid", "the body is not a JSON object; send one Progress")
    try:
        return Progress.from_any_version(wire)
    except ValidationError as error:
        told = [
            f"{'.'.join(str(part) for part in found['loc']) or 'progress'}: {found['msg']}"
            for found in error.errors(include_url=False, include_input=False)
        ]
        raise Refused(400, "invalid", f"not a Progress: {'; '.join(told)}"[:500]) from error
