"""Errors that the user can act on, and the exit codes of the command line."""

from __future__ import annotations

from enum import IntEnum


class CliExit(IntEnum):
    """What `finetune` ends with. Documented in docs/cli.md and in `finetune run --help`."""

    SUCCEEDED = 0
    FAILED = 1
    USAGE = 2
    GATES_FAILED = 3
    INCONCLUSIVE = 4
    TIMED_OUT = 124
    SUSPENDED = 130


EXIT_CODES_HELP = """exit codes:
  0    succeeded, and every gate passed
  1    failed or cancelled
  2    wrong usage, an invalid YAML, or something that cannot be done
  3    succeeded, but a gate failed: the version exists and will not be released
  4    succeeded, but a gate is inconclusive: too few test rows to decide
  130  suspended by Ctrl-C; the same command resumes"""

FOLLOWING_EXIT_CODES_HELP = """exit codes:
  0    the run succeeded, and every gate passed
  1    the run failed or was cancelled, was deleted, or the API server was gone for too long
  2    wrong usage, no such job, no access
  3    the run succeeded, but a gate failed
  4    the run succeeded, but a gate is inconclusive
  130  Ctrl-C: only the watching ended, the job goes on"""


class CliError(Exception):
    """Something the user can put right: what was wrong, and the fix. Never shown as a traceback."""

    def __init__(self, message: str, fix: str = "", exit_code: CliExit = CliExit.USAGE) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.exit_code = exit_code
