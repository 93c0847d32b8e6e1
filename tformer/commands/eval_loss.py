"""The two ways of `tformer eval loss`: a run alone, and several compared on one text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tformer.commands.evaluation import keep, tell, write_out
from tformer.commands.options import print_json

if TYPE_CHECKING:
    import torch

    from tformer.evals.judged import Judged, OneText
    from tformer.run.loaded import LoadedRun

TOKENS_OF_A_PAGE = 300  # that --out shows if --tokens does not say


@dataclass(frozen=True)
class LossOptions:
    """How a loss is measured, and how it is told: the first so many tokens, a page, JSON."""

    tokens: int | None
    out: Path | None
    precision: str
    device: "torch.device"
    json: bool


def judge_alone(folder: Path, text: "OneText", options: LossOptions) -> None:
    """Score a run. Its first so many tokens are told if asked for, and in any case on the page of `--out`."""
    from tformer.evals.tokens import ReadText, surprise
    from tformer.run.loaded import load_run
    from tformer.show.loss import loss_table, surprise_text
    from tformer.show.loss_page import loss_page
    from tformer.show.loss_words import along_the_window, loss_facts

    run, out, tokens = load_run(folder, options.device), options.out, options.tokens
    judged = _judge_run(run, text, options)
    facts, figure = loss_facts(judged, text.on), along_the_window([judged])
    surprises = None
    if n := tokens or (TOKENS_OF_A_PAGE if out else 0):
        read = ReadText(text.ids[folder], judged.scored.losses, run.tokenizer.token_bytes)
        surprises = surprise(run.model, read, n, precision=options.precision)
    if out is not None:
        write_out(out, loss_page(f"{run.name}: loss on a text", facts, figure, surprises).encode())

    def show(console: Any) -> None:
        loss_table(facts, judged.result, figure, console)
        if surprises and tokens:
            surprise_text(surprises, console)

    also = surprises.as_dict() if surprises and tokens else {}  # too long to be kept
    tell(folder, judged.as_dict() | also, options.json, show)
    keep(run, "loss", judged.as_dict(), text.on)


def compare_runs(folders: Sequence[Path], text: "OneText", on: str, options: LossOptions) -> None:
    """Score several runs, a model at a time, and show them the best first; `on` says which text in words."""
    from tformer.evals.judged import ranked
    from tformer.show import terminal
    from tformer.show.loss import comparison_view
    from tformer.show.loss_page import comparison_page
    from tformer.show.loss_words import comparison_of

    runs = ranked([_judged_and_kept(folder, text, options) for folder in folders])
    compared = comparison_of(runs, on)
    if options.out is not None:
        write_out(options.out, comparison_page("Runs compared on one text", compared).encode())
    if options.json:
        for one in runs:
            print_json({"run": str(one.folder)} | one.compared())
    else:
        comparison_view(compared, terminal.out())


def _judged_and_kept(folder: Path, text: "OneText", options: LossOptions) -> "Judged":
    """The model is gone when it returns."""
    from tformer.run.loaded import load_run

    run = load_run(folder, options.device)
    judged = _judge_run(run, text, options)
    keep(run, "loss", judged.as_dict(), text.on)
    return judged


def _judge_run(run: "LoadedRun", text: "OneText", options: LossOptions) -> "Judged":
    from tformer.evals.judged import judge
    from tformer.show.progress import steps_progress

    with steps_progress(f"scoring {run.name}") as progress:
        return judge(run, text.ids[run.folder], options.precision, progress)
