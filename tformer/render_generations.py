"""What `tformer eval generations` shows: the measures side by side, what was copied, samples to read."""

import json
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tformer import render
from tformer.generations import COPIED
from tformer.render_answer import heading

SHARE, LENGTH, COUNT, BITS = "share", "length", "count", "bits"
# Names in the result, what a row is called, how its number is written; a row without a name is a title.
ROWS = (
    ("characters", "characters", COUNT),
    ("known_words", "known words", SHARE),
    ("bits_per_byte", "bits per byte", BITS),
    ("repetition", "repeated 4-grams", SHARE),
    ("distinct_1", "distinct-1", SHARE),
    ("distinct_2", "distinct-2", SHARE),
    ("distinct_3", "distinct-3", SHARE),
    ("words_per_sentence", "words per sentence", LENGTH),
    ("characters_per_line", "characters per line", LENGTH),
    ("", "overlap, training text", ""),
    ("longest_overlap", "  longest", COUNT),
    ("mean_longest_overlap", "  longest of each", LENGTH),
    ("mean_overlap", "  from each place", LENGTH),
    ("copied", f"  in {COPIED} or more", SHARE),
    ("", "overlap, equal texts", ""),
    ("equal_longest_overlap", "  longest, training", COUNT),
    ("validation_longest_overlap", "  longest, validation", COUNT),
    ("equal_mean_overlap", "  mean, training", LENGTH),
    ("validation_mean_overlap", "  mean, validation", LENGTH),
)
LEGEND = (
    "Known words: of the words, those that the training text has. Bits per byte: what each byte costs the model "
    "itself; below the validation text's is duller than real text. Distinct-n: of the runs of n words, the "
    "different ones; repeated: those that the same sample had before. Overlap: characters that stand word "
    "for word in a text: the longest of all samples, the mean of the longest of each, the mean of the "
    "longest from every character on, the share that lies in stretches of {copied} or more. Text that the model "
    "has never seen overlaps too: what is above the validation column is copying. Equal texts: {equal} "
    "characters of each."
)


def generations(run: str, result: dict[str, Any], console: Console) -> None:
    """Everything, the samples last."""
    columns = result["temperatures"]
    facts = {
        "run": run,
        "text": f"{result['text']}: {result['training_characters']:,} characters of training text, "
        f"{result['validation_characters']:,} of validation text",
        "samples": f"{columns[0]['samples']} at each temperature T, of {result['max_tokens']:,} tokens",
    }
    render.fact_table(console, facts)
    grid = _measures(result, console, errors=True)
    if console.is_terminal and _width(grid, console) > console.width:
        grid = _measures(result, console, errors=False)
    console.print(grid)
    legend = LEGEND.format(copied=COPIED, equal=f"{result['equal_characters']:,}")
    console.print(Text(legend, style="dim"))
    _copies(result, console)
    _samples(result, console)


def cell(value: float | None, error: float | None, kind: str) -> str:
    """A measure with its standard error.

    >>> cell(0.9512, 0.0081, SHARE), cell(7.125, None, LENGTH), cell(None, None, BITS)
    ('95.1 ±0.8 %', '7.1', '–')
    """
    if value is None:
        return "–"
    if kind == COUNT:
        return f"{value:,}"
    scale, digits, unit = {SHARE: (100, 1, " %"), LENGTH: (1, 1, ""), BITS: (1, 2, "")}[kind]
    around = "" if error is None else f" ±{scale * error:.{digits}f}"
    return f"{scale * value:.{digits}f}{around}{unit}"


def _measures(result: dict[str, Any], console: Console, errors: bool) -> Table:
    measured = {f"T {c['temperature']:g}": c for c in result["temperatures"]}
    measured["validation"] = result["validation"]
    names = [*measured, "training"]
    title = "Samples, and validation text of the same lengths" + " (± standard error)" * errors
    grid = render.table(console, "", *names, title=title, right=names)
    for name, label, kind in ROWS:
        cells = [
            cell(c[name], c["errors"].get(name) if errors else None, kind) if name else ""
            for c in measured.values()
        ]
        whole = cell(result["training"][name], None, kind) if name in result["training"] else ""
        grid.add_row(Text(label, style="" if name else "bold"), *cells, whole)
    return grid


def _width(grid: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(max_width=1000), grid).maximum


def _copies(result: dict[str, Any], console: Console) -> None:
    """The longest stretch of each column as it stands in the training text, and the words it lacks."""
    measured = {f"T {c['temperature']:g}": c for c in result["temperatures"]}
    measured["validation text"] = result["validation"]
    console.print()
    heading("The longest stretch that is in the training text", console)
    for name, c in measured.items():
        said = json.dumps(render.printable(c["longest_overlap_text"], terminal=True), ensure_ascii=False)
        console.print(Text.assemble((f"{name}, {c['longest_overlap']} characters: ", "dim"), said))
    console.print()
    heading("Words that the training text lacks, the most frequent first", console)
    for name, c in measured.items():
        words = [word + f" ×{times}" * (times > 1) for word, times in c["unknown_words"]]
        console.print(Text.assemble((f"{name}: ", "dim"), ", ".join(words) or "none"))


def _samples(result: dict[str, Any], console: Console) -> None:
    """Of every prompt the first sample at each temperature, and the text's own continuation."""
    samples, shown = result["samples"], 0
    real = {s["prompt"]: s["text"] for s in reversed(result["validation_samples"])}
    for prompt in dict.fromkeys(s["prompt"] for s in samples):
        console.print()
        heading(json.dumps(render.printable(prompt, terminal=True), ensure_ascii=False), console)
        for temperature in (c["temperature"] for c in result["temperatures"]):
            first = next(s for s in samples if (s["prompt"], s["temperature"]) == (prompt, temperature))
            _sample(f"T {temperature:g}, seed {first['seed']}", prompt, first["text"], console)
            shown += 1
        if prompt in real:
            _sample("validation text", prompt, real[prompt], console)
    if len(samples) > shown:
        console.print(Text(f"\n{len(samples) - shown} more samples in --json", style="dim"))


def _sample(name: str, prompt: str, text: str, console: Console) -> None:
    console.print(Text(f"\n{name}", style="cyan"))
    before, after = (render.printable(part, console.is_terminal) for part in (prompt, text))
    console.print(Text.assemble((before, "bold"), after.rstrip("\n")))
