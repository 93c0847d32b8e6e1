"""`tformer eval lambada`: the last word of each passage, predicted."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from tformer.commands.evaluation import Outcome, Request

if TYPE_CHECKING:
    from rich.console import Console

    from tformer.evals.lambada import LambadaResult


def lambada(request: Request) -> Outcome:
    """Score the LAMBADA test set, downloaded once, or the passages of `--data`."""
    from tformer.evals import lambada as measure
    from tformer.show import terminal
    from tformer.show.progress import download_progress, steps_progress
    from tformer.text.corpus import LAMBADA, download

    sources = request.data
    if not sources:
        with download_progress("downloading LAMBADA") as shown:
            sources = [str(download(LAMBADA, shown))]
    texts = [text for source in sources for text in measure.read_passages(source)][: request.limit]
    tokenizer = request.run.tokenizer
    passages = measure.encode_passages(texts, tokenizer, request.run.model.config.n_ctx)
    for why, count in passages.skipped.items():
        terminal.warn(f"passed over {count:,} of {len(texts):,} passages: {why}")
    with steps_progress("predicting last words") as progress:
        result = measure.lambada(request.run.model, passages, request.precision, progress)
    name = " ".join(request.data) or "the LAMBADA test set"
    facts = {
        "run": str(request.run.folder),
        "passages": f"{result.n:,} of {name}"
        + (f", {result.skipped:,} passed over" if result.skipped else "")
        + (f", {result.cut:,} cut to their end" if result.cut else ""),
        "last word": f"{result.tokens_per_word:.2f} tokens, {result.next_word_loss:.4f} nats",
    }
    return Outcome(asdict(result), lambda console: _show(facts, result, console), on=facts["passages"])


def _show(facts: dict[str, str], result: "LambadaResult", console: "Console") -> None:
    from tformer.show import terminal

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    rows = []
    for name, prefix in (("whole last word", ""), ("last token only", "last_token_")):
        accuracy, its_error, perplexity, error = (
            getattr(result, f"{prefix}{key}")
            for key in ("accuracy", "accuracy_stderr", "perplexity", "perplexity_stderr")
        )
        rows.append(
            (
                name,
                terminal.percent(accuracy),
                "-" if its_error is None else terminal.percent(its_error),
                number(perplexity, ",.4g"),
                number(error, ",.2g"),
            )
        )
    terminal.fact_table(console, facts)
    columns = ("", "accuracy", "± 1 standard error", "perplexity", "± 1 standard error")
    terminal.list_table("LAMBADA: is the last word predicted?", columns, rows, console)
