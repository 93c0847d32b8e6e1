"""The end of `tformer train`: the run is recorded as finished, judged, drawn and told."""

from contextlib import suppress
from typing import TYPE_CHECKING

from tformer.commands.options import print_json

if TYPE_CHECKING:
    from tformer.evals.reversal import ReversalResult
    from tformer.show.training import Pictures
    from tformer.training.session import Session


def finish(session: "Session", pictures: "Pictures", json: bool) -> bool:
    """All of it; whether the verdict, where there is one, is favourable."""
    from tformer.show import terminal
    from tformer.show.reversal import reversal_table
    from tformer.show.training import draw_last, summarise
    from tformer.training.fit import is_exhausted

    result, passed = session.finish(), True
    if session.data.reversal:
        verdict = _verdict(session)
        reversal_table(verdict, terminal.err())
        passed = result["passed"] = verdict.passed
    pictures.attempt(draw_last)
    if json:
        print_json(result)
    else:
        summarise(result, is_exhausted(session.state, session.config.train))
    return passed


def _verdict(session: "Session") -> "ReversalResult":
    """On the weights that are kept: the one that the run has already, or a new one, kept in it."""
    from dataclasses import asdict

    from pydantic import TypeAdapter, ValidationError

    from tformer.evals.reversal import N, ReversalResult, reversal
    from tformer.run.record import keep_evaluation, read_evaluations

    task, folder, kept = session.data.reversal, session.run.folder, session.kept
    assert task and kept, "a run on reversal that is at its end"
    on = f"{N:,} fresh sequences"
    for line in read_evaluations(folder):
        if (line.task, line.on, line.weights) == ("reversal", on, kept.sha256):
            with suppress(ValidationError):
                return TypeAdapter(ReversalResult).validate_python(line.result)
    verdict = reversal(session.kept_model(), task, N, session.config.train.precision)
    keep_evaluation(folder, "reversal", asdict(verdict), on, kept.sha256)
    return verdict
