"""Who may decide on what, in both worlds alike. Pure."""

from __future__ import annotations

from finetune_api.adapter import Policy
from finetune_api.adapterversion import AdapterVersion
from finetune_cli.errors import CliError
from finetune_cli.options import VersionName
from finetune_operator.decide.release import release_phase


def refuse_if_decided(version: AdapterVersion, policy: Policy, wanted: VersionName, user: str) -> None:
    """Raise CliError when the gate failed, this person has decided, or nothing is left to decide."""
    phase, message = release_phase(version, policy)
    if phase == "GateFailed":
        raise CliError(
            f"{wanted} cannot be decided on: {message}",
            "A version whose gate failed is never released. Change data or settings and run again.",
        )
    for decision in version.spec.decisions:
        if decision.by == user:
            why = f" ({decision.reason})" if decision.reason else ""
            raise CliError(
                f"{user} has already decided on {wanted}: {decision.decision}{why}",
                "A decision stays; the next version can be decided differently.",
            )
    if phase in ("Approved", "Rejected"):
        raise CliError(f"{wanted} is already {phase.lower()}: {message}", "There is nothing left to decide.")


def refuse_own_approval(version: AdapterVersion, policy: Policy, wanted: VersionName, user: str) -> None:
    """Raise CliError when four eyes are asked for and this pair made the version."""
    if policy.approvals.four_eyes and version.spec.origin.author == user:
        raise CliError(
            f"{wanted} was made by you ({user}): your own approval does not count, its Adapter asks for four eyes",
            "Ask somebody with the role finetune-approver, or reject it.",
        )


def eyes_line(version: AdapterVersion, policy: Policy) -> str:
    """Who has to agree and who has, for people."""
    author = version.spec.origin.author
    approvals = policy.approvals
    counted = {d.by for d in version.spec.decisions if d.decision == "approve"}
    if approvals.four_eyes and author:
        counted -= {author}
        rule = f"four eyes: anybody but the author ({author})"
    elif approvals.four_eyes:
        rule = "four eyes: not enforced, who asked for the job is not recorded (docs/install.md, component four-eyes)"
    else:
        rule = "four eyes are not asked for"
    return f"approvals {len(counted)} of {approvals.required}; {rule}"
