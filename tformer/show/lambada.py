"""What `tformer eval lambada` shows: the whole last word, and its last token alone, each with its errors."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from tformer.show import terminal
from tformer.show.words import percent

if TYPE_CHECKING:  # it imports torch
    from tformer.evals.lambada import LambadaResult


def passages_of(result: "LambadaResult", source: str) -> str:
    """How many passages of what were scored, and how many were not or not whole."""
    parts = [f"{result.n:,} of {source}"]
    if result.skipped:
        parts.append(f"{result.skipped:,} passed over")
    if result.cut:
        parts.append(f"{result.cut:,} cut to their end")
    return ", ".join(parts)


def lambada_table(run: str, result: "LambadaResult", source: str, console: Console) -> None:
    """Accuracy and perplexity with their standard errors; `source` is where the passages are from."""
    facts = {
        "run": run,
        "passages": passages_of(result, source),
        "last word": f"{result.tokens_per_word:.2f} tokens, {result.next_word_loss:.4f} nats",
    }
    rows = [
        (
            "whole last word",
            percent(result.accuracy),
            _or_none(result.accuracy_stderr, percent),
            _or_none(result.perplexity, "{:,.4g}".format),
            _or_none(result.perplexity_stderr, "{:,.2g}".format),
        ),
        (
            "last token only",
            percent(result.last_token_accuracy),
            _or_none(result.last_token_accuracy_stderr, percent),
            _or_none(result.last_token_perplexity, "{:,.4g}".format),
            _or_none(result.last_token_perplexity_stderr, "{:,.2g}".format),
        ),
    ]
    terminal.fact_table(console, facts)
    columns = ("", "accuracy", "± 1 standard error", "perplexity", "± 1 standard error")
    terminal.list_table("LAMBADA: is the last word predicted?", columns, rows, console)


def _or_none(value: float | None, written: Callable[[float], str]) -> str:
    return "-" if value is None else written(value)
