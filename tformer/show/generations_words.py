"""The measures of `tformer eval generations` in words: what each is called, and how it is written."""

from typing import Any

from tformer.evals.writing import COPIED

SHARE, LENGTH, COUNT, BITS = "share", "length", "count", "bits"
# Of a measure its name, what a person calls it, how it is written; a row without a name is a title.
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
    # None, or 0 where no sample differs from another: that says nothing of how far off it is.
    around = "" if not error else f" ±{scale * error:.{digits}f}"
    return f"{scale * value:.{digits}f}{around}{unit}"


def columns_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The measured columns of a result of `eval generations`, by their names."""
    sampled = {f"T {c['temperature']:g}": c for c in result["temperatures"]}
    return sampled | {"validation": result["validation"]}


def table_rows(result: dict[str, Any], errors: bool = True) -> list[tuple[str, ...]]:
    """A row for each measure: what it is called, its value in each column, and in the training text."""
    rows: list[tuple[str, ...]] = []
    for name, label, kind in ROWS:
        cells = [
            cell(c[name], c["errors"].get(name) if errors else None, kind) if name else ""
            for c in columns_of(result).values()
        ]
        rows.append(
            (label, *cells, cell(result["training"][name], None, kind) if name in result["training"] else "")
        )
    return rows
