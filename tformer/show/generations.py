"""What `tformer eval generations` shows: the measures side by side, what was copied, samples to read."""

import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tformer.counted import counted
from tformer.evals.writing import COPIED
from tformer.show import terminal
from tformer.show.generations_words import columns_of, table_rows
from tformer.show.words import printable

if TYPE_CHECKING:  # it imports torch
    from tformer.evals.generations import Generations

LEGEND = (
    "Known words are in the training text. Bits per byte are what the text costs the model itself. "
    "Repeated: came before in the same sample. Distinct-n: the different ones of all runs of n words. "
    "Overlap: characters in a row that are in a text word for word, white space counting as one: the "
    "longest of all, the longest of each sample, the longest from each place on, the share that lies in "
    "stretches of {copied} or more. "
    "Text never seen overlaps too: copying is what lies well above the validation column. "
    "Equal texts: {equal} characters of each."
)
LEGEND_OF_DOCUMENTS = (
    "Valid: ended by itself, and not blank. Unique: what is left of these when each counts once. Novel: of "
    "what is left, what is no document of the training text."
)


def generations_view(run: str, result: "Generations", console: Console) -> None:
    """Everything, the samples last."""
    first = next(iter(result.columns.values()))
    facts = {
        "run": run,
        "text": f"{result.source}: {result.training_characters:,} characters of training text, "
        f"{result.validation_characters:,} of validation text",
        "samples": f"{first.samples} at each temperature T, of {result.max_tokens:,} tokens",
    }
    terminal.fact_table(console, facts)
    grid = _measures(result, console, errors=True)
    if terminal.natural_width(grid, console) > console.width:
        grid = _measures(result, console, errors=False)
    console.print(grid)
    legend = LEGEND.format(copied=COPIED, equal=f"{result.equal_characters:,}")
    if first.ended is not None:
        legend = f"{LEGEND_OF_DOCUMENTS} {legend}"
    console.print(Text(legend, style="dim"))
    _copies(result, console)
    _samples(result, console)


def _measures(result: "Generations", console: Console, errors: bool) -> Table:
    names = [*columns_of(result), "training"]
    title = "Samples, and validation text of the same lengths" + " (± standard error)" * errors
    grid = terminal.table(console, "", *names, title=title, right=names)
    grid.columns[0].no_wrap = True
    for label, *cells in table_rows(result, errors):
        grid.add_row(Text(label, style="" if any(cells) else "bold"), *cells)
    return grid


def _copies(result: "Generations", console: Console) -> None:
    """The longest stretch of each column as it stands in the training text, and the words it lacks."""
    measured = columns_of(result)
    console.print()
    terminal.heading("The longest stretch that is in the training text", console)
    for name, c in measured.items():
        stretch = json.dumps(printable(c.longest_overlap_text, terminal=True), ensure_ascii=False)
        console.print(Text.assemble((f"{name}, {c.longest_overlap} characters: ", "dim"), stretch))
    console.print()
    terminal.heading("Words that the training text lacks, the most frequent first", console)
    for name, c in measured.items():
        words = [word + f" ×{times}" * (times > 1) for word, times in c.unknown_words]
        console.print(Text.assemble((f"{name}: ", "dim"), ", ".join(words) or "none"))


def _samples(result: "Generations", console: Console) -> None:
    """Of every prompt the first sample at each temperature, and the text's own continuation."""
    samples, shown = result.samples, 0
    real = dict(reversed(result.continuations))
    for prompt in dict.fromkeys(s.prompt for s in samples):
        console.print()
        terminal.heading(json.dumps(printable(prompt, terminal=True), ensure_ascii=False), console)
        for temperature in result.columns:
            first = next(s for s in samples if (s.prompt, s.temperature) == (prompt, temperature))
            _sample(f"T {temperature:g}, seed {first.seed}", prompt, first.text, console)
            shown += 1
        if prompt in real:
            _sample("validation text", prompt, real[prompt], console)
    if len(samples) > shown:
        console.print(Text(f"\n{counted(len(samples) - shown, 'more sample')} in --json", style="dim"))


def _sample(name: str, prompt: str, text: str, console: Console) -> None:
    console.print(Text(f"\n{name}", style="cyan"))
    before, after = (printable(part, console.is_terminal) for part in (prompt, text))
    console.print(Text.assemble((before, "bold"), after.rstrip("\n")))
