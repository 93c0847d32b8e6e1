"""The measures of `tformer eval generations` in words: what each is called, and how it is written."""

from enum import Enum, auto
from typing import TYPE_CHECKING

from tformer.evals.writing import COPIED, Measures

if TYPE_CHECKING:  # it imports torch
    from tformer.evals.generations import Generations


class Unit(Enum):
    """How a measure is written."""

    SHARE = auto()
    LENGTH = auto()
    COUNT = auto()
    BITS = auto()


# Of a measure its name, what a person calls it, how it is written; a row without a name is a title.
ROWS = (
    ("characters", "characters", Unit.COUNT),
    ("ended", "ended by itself", Unit.SHARE),
    ("mean_length", "characters each", Unit.LENGTH),
    ("valid", "valid", Unit.SHARE),
    ("unique", "unique", Unit.SHARE),
    ("novel", "novel", Unit.SHARE),
    ("known_words", "known words", Unit.SHARE),
    ("bits_per_byte", "bits per byte", Unit.BITS),
    ("repetition", "repeated 4-grams", Unit.SHARE),
    ("distinct_1", "distinct-1", Unit.SHARE),
    ("distinct_2", "distinct-2", Unit.SHARE),
    ("distinct_3", "distinct-3", Unit.SHARE),
    ("words_per_sentence", "words per sentence", Unit.LENGTH),
    ("characters_per_line", "characters per line", Unit.LENGTH),
    ("", "overlap, training text", Unit.COUNT),
    ("longest_overlap", "  longest", Unit.COUNT),
    ("mean_longest_overlap", "  longest of each", Unit.LENGTH),
    ("mean_overlap", "  from each place", Unit.LENGTH),
    ("copied", f"  in {COPIED} or more", Unit.SHARE),
    ("", "overlap, equal texts", Unit.COUNT),
    ("equal_longest_overlap", "  longest, training", Unit.COUNT),
    ("validation_longest_overlap", "  longest, validation", Unit.COUNT),
    ("equal_mean_overlap", "  mean, training", Unit.LENGTH),
    ("validation_mean_overlap", "  mean, validation", Unit.LENGTH),
)
OF_DOCUMENTS = ("ended", "mean_length", "valid", "unique", "novel")


def cell(value: float | None, error: float | None, unit: Unit) -> str:
    """A measure with its standard error.

    >>> cell(0.9512, 0.0081, Unit.SHARE), cell(7.125, None, Unit.LENGTH), cell(None, None, Unit.BITS)
    ('95.1 ±0.8 %', '7.1', '–')
    """
    if value is None:
        return "–"
    if unit is Unit.COUNT:
        return f"{value:,}"
    written = {Unit.SHARE: (100, 1, " %"), Unit.LENGTH: (1, 1, ""), Unit.BITS: (1, 2, "")}
    scale, digits, sign = written[unit]
    # None, or 0 where no sample differs from another: that says nothing of how far off it is.
    around = "" if not error else f" ±{scale * error:.{digits}f}"
    return f"{scale * value:.{digits}f}{around}{sign}"


def columns_of(result: "Generations") -> dict[str, Measures]:
    """The measured columns, by their names."""
    sampled = {f"T {temperature:g}": measures for temperature, measures in result.columns.items()}
    return sampled | {"validation": result.validation}


def table_rows(result: "Generations", errors: bool = True) -> list[tuple[str, ...]]:
    """A row for each measure: what it is called, its value in each column, and in the training text."""
    rows: list[tuple[str, ...]] = []
    columns = columns_of(result)
    for name, label, unit in ROWS:
        if not name:
            rows.append((label, *[""] * len(columns), ""))
            continue
        if name in OF_DOCUMENTS and all(getattr(measures, name) is None for measures in columns.values()):
            continue
        cells = [
            cell(getattr(measures, name), measures.errors.get(name) if errors else None, unit)
            for measures in columns.values()
        ]
        of_training = cell(result.training[name], None, unit) if name in result.training else ""
        rows.append((label, *cells, of_training))
    return rows
