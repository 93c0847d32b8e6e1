"""The two ways of `tformer eval loss`: a run alone, and several compared on one text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tformer.commands.evaluation import keep, tell, write_out
from tformer.commands.options import print_json

if TYPE_CHECKING:
    import torch

    from tformer.evals.loss import Judged, OneText
    from tformer.run.loaded import LoadedRun

TOKENS_OF_A_PAGE = 300  # that --out shows if --tokens does not say


def judge_alone(
    folder: Path,
    text: "OneText",
    tokens: int | None,
    out: Path | None,
    precision: str,
    device: "torch.device",
    json: bool,
) -> None:
    """Score a run. Its first so many tokens are told if asked for, and in any case on the page of `out`."""
    from tformer.evals.tokens import surprise
    from tformer.run.loaded import load_run
    from tformer.show.loss import loss_table, surprise_text
    from tformer.show.loss_page import loss_page
    from tformer.show.loss_words import along_the_window, facts_of

    run, ids = load_run(folder, device), text.ids[folder]
    judged = _scored(run, text, precision)
    facts, figure = facts_of(judged, text.on), along_the_window([judged])
    found = None
    if n := tokens or (TOKENS_OF_A_PAGE if out else 0):
        losses, token_bytes = judged.scored.losses, run.tokenizer.token_bytes
        found = surprise(run.model, ids, losses, token_bytes, n, precision=precision)
    if out is not None:
        write_out(out, loss_page(f"{folder.name}: loss on a text", facts, figure, found).encode())

    def show(console: Any) -> None:
        loss_table(facts, judged.result, figure, console)
        if found and tokens:
            surprise_text(found, console)

    also = found.as_dict() if found and tokens else {}  # too long to be kept
    tell(folder, judged.as_dict() | also, json, show)
    keep(run, "loss", judged.as_dict(), text.on)


def compare(
    folders: Sequence[Path],
    text: "OneText",
    on: str,
    out: Path | None,
    precision: str,
    device: "torch.device",
    json: bool,
) -> None:
    """Score several runs, a model at a time, and show them the best first; `on` says which text in words."""
    from tformer.evals.loss import ranked
    from tformer.show import terminal
    from tformer.show.loss import comparison
    from tformer.show.loss_page import comparison_page
    from tformer.show.loss_words import COLUMNS, along_the_window, notes_on, rows_of

    runs = ranked([_scored_and_kept(folder, text, precision, device) for folder in folders])
    facts = {"text": f"{on}, {int(runs[0].scored.ends[-1]):,} bytes"}
    rows, notes, figure = rows_of(runs), notes_on(runs), along_the_window(runs)
    if out is not None:
        page = comparison_page("Runs compared on one text", facts, COLUMNS, rows, notes, figure)
        write_out(out, page.encode())
    if json:
        for one in runs:
            print_json({"run": str(one.folder)} | one.compared())
    else:
        comparison(facts, COLUMNS, rows, notes, figure, terminal.out())


def _scored_and_kept(folder: Path, text: "OneText", precision: str, device: "torch.device") -> "Judged":
    """The model is gone when it returns."""
    from tformer.run.loaded import load_run

    run = load_run(folder, device)
    judged = _scored(run, text, precision)
    keep(run, "loss", judged.as_dict(), text.on)
    return judged


def _scored(run: "LoadedRun", text: "OneText", precision: str) -> "Judged":
    from tformer.evals.loss import judge
    from tformer.show.progress import steps_progress

    with steps_progress(f"scoring {run.folder.name}") as progress:
        return judge(run, text.ids[run.folder], precision, progress)
