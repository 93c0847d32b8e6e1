"""The two ways of `tformer eval loss`: a run alone, and several compared on one text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tformer.commands.evaluation import keep, load_and_say, named, tell, write_out
from tformer.commands.options import check_range, print_json
from tformer.errors import RequestError

if TYPE_CHECKING:
    import torch

    from tformer.evals.judged import Judged, OneText
    from tformer.run.loaded import LoadedRun

TOKENS_OF_A_PAGE = 300  # that --out shows if --tokens does not say


@dataclass(frozen=True)
class LossOptions:
    """How a loss is measured, and how it is told: windows, the first so many tokens, a page, JSON."""

    step: int | None
    stride: int | None
    tokens: int | None
    out: Path | None
    precision: str
    device: "torch.device"
    json: bool
    parts: "Sequence[OneText]" = ()  # of a text that is several: each, scored by itself as well


def check_stride(stride: int | None, folders: Sequence[Path]) -> None:
    """Raises RequestError unless windows that far apart leave no token out, of any of these runs."""
    if stride is None:
        return
    from tformer.files import read_json
    from tformer.run.huggingface import from_hf_config

    check_range("--stride", stride, 1)
    for path in (folder / "config.json" for folder in folders):
        n_ctx = from_hf_config(read_json(path), str(path)).n_ctx
        if stride > n_ctx:
            what = f"--stride {stride:,} is more than the window of {path.parent}"
            raise RequestError(what, f"expected 1 to {n_ctx:,}", "leave it out for disjoint windows")


def check_step(step: int | None, folders: Sequence[Path]) -> None:
    """Raises RequestError unless each of these runs has a checkpoint of that step."""
    if step is None:
        return
    from tformer.run.loaded import checkpoint_of

    check_range("--step", step, 0)
    for folder in folders:
        checkpoint_of(folder, step)


def judge_alone(folder: Path, text: "OneText", options: LossOptions) -> None:
    """Score a run. Its first so many tokens are told if asked for, and in any case on the page of `--out`."""
    from tformer.evals.tokens import ReadText, surprise
    from tformer.show.loss import loss_table, surprise_text
    from tformer.show.loss_page import loss_page
    from tformer.show.loss_words import along_the_window, loss_facts

    run, out, tokens = load_and_say(folder, options.device, options.step), options.out, options.tokens
    judged = _judge_run(run, text, options)
    facts, figure = loss_facts(judged, text.on), along_the_window([judged])
    surprises = None
    if n := tokens or (TOKENS_OF_A_PAGE if out else 0):
        read = ReadText(text.ids[folder], judged.scored.losses, judged.contexts, run.tokenizer.token_bytes)
        surprises = surprise(run.model, read, n, precision=options.precision)
    if out is not None:
        write_out(
            out,
            loss_page(f"{run.name}: loss on a text", facts, figure, surprises).encode(
                errors="backslashreplace"
            ),
        )

    def show(console: Any) -> None:
        loss_table(facts, judged.result, figure, console)
        if surprises and tokens:
            surprise_text(surprises, console)

    also = surprises.as_dict() if surprises and tokens else {}  # too long to be kept
    keep(run, "loss", judged.as_dict(), text.on)
    tell(run, judged.as_dict() | also, options.json, show)


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
            print_json(named(one.folder, one.step) | one.compared())
    else:
        comparison_view(compared, terminal.out())


def _judged_and_kept(folder: Path, text: "OneText", options: LossOptions) -> "Judged":
    """The model is gone when it returns."""
    run = load_and_say(folder, options.device, options.step)
    judged = _judge_run(run, text, options)
    keep(run, "loss", judged.as_dict(), text.on)
    return judged


def _judge_run(run: "LoadedRun", text: "OneText", options: LossOptions) -> "Judged":
    from tformer.evals.judged import judge
    from tformer.show.progress import steps_progress

    def scored(one: "OneText", on: str = "") -> "Judged":
        with steps_progress(f"scoring {run.name}{on}") as progress:
            return judge(run, one.ids[run.folder], options.precision, progress, options.stride)

    parts = tuple((part.on, scored(part, f" on {part.on}").result) for part in options.parts)
    return replace(scored(text), parts=parts)
