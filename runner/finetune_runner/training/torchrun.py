"""torchrun that also says which rank failed first: `python -m finetune_runner.training.torchrun ARGUMENTS`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from finetune_runner.training.eager_imports import import_unseen
from finetune_runner.training.launch import FIRST_FAILURE_FILE, FOLDER_VARIABLE
from finetune_runner.training.lifeline import end_with_parent


def main() -> int:
    """Run torchrun; leave rank and exit code (negative = signal) of the first failure in the ranks' folder."""
    end_with_parent()
    import_unseen("torch.distributed.run")
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        path = Path(os.environ[FOLDER_VARIABLE]) / FIRST_FAILURE_FILE
        path.write_text(json.dumps({"rank": rank, "exitCode": failure.exitcode}), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
