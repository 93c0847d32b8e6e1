"""The verdicts of a finding by the claims' own words, so that a new claim renumbers no test."""

from collections.abc import Callable
from typing import Any

from tformer.answer.claims import Finding
from tformer.answer.experiment import Seeds


def verdicts(finding: Finding) -> dict[str, bool]:
    """Whether each claim holds, by its sentence."""
    found = {claim.claim: claim.passed for claim in finding.claims}
    assert len(found) == len(finding.claims), "two claims of one finding are the same sentence"
    return found


def refuted(finding: Finding) -> set[str]:
    """The sentences that do not hold."""
    return {claim for claim, holds in verdicts(finding).items() if not holds}


def shown(show: Callable[[Seeds[Any]], Finding], *evidence: Any) -> Finding:
    """What a room shows of this evidence, one for each seed."""
    return show(Seeds(evidence))
