"""Is this loss normal? Each preset says where it ends, and a run that kept to it is held to that.

A preset's file carries it under `expected`. A setting or a text that is not the preset's moves the loss,
and then there is nothing to hold the run to; the reason is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from tformer.config import Config, Section
from tformer.layers import merge, preset_layer, preset_names, preset_values
from tformer.run.record import Record

# What moves the loss of a finished run by no more than chance does. The vocabulary's size follows from
# the text, precision from the machine, and when one looks is taste.
IMMATERIAL = {
    "model": {"vocab_size"},
    "train": {
        "seed",
        "precision",
        "compile",
        "kernels",
        "recompute",
        "shard",
        "micro_batch_size",
        "eval_every",
        "checkpoint_every",
        "log_every",
        "keep_checkpoints",
    },
}
UNITS = {"val_loss": "nats per token", "bits_per_byte": "bits per byte"}


class Expected(Section):
    """Where a preset ends: a band of the best validation loss, in one of two units, or none yet."""

    data: str = Field("", description="the text, by its name, that the band is of; empty: any")
    sha256: str = Field("", description="of that text, by which it is known under another name")
    val_loss: list[float] | None = Field(None, min_length=2, max_length=2, description="nats per token")
    bits_per_byte: list[float] | None = Field(None, min_length=2, max_length=2, description="of the text")
    basis: Literal["measured", "published", "arithmetic", "typical", "unmeasured"] = Field(
        description="how the band is known: published is by others, with other initialisation"
    )

    @property
    def quantity(self) -> str:
        """Which number of a result the band is of; empty where none is known."""
        return next((key for key in UNITS if getattr(self, key)), "")


@dataclass(frozen=True)
class Expectation:
    """A result beside its band. `missing` says why there is none to hold it to."""

    preset: str
    quantity: str = ""
    basis: str = ""
    low: float = 0.0
    high: float = 0.0
    found: float = 0.0
    missing: str = ""

    @property
    def inside(self) -> bool | None:
        """Whether it ended where it should; None where that is not known."""
        return None if self.missing else self.low <= self.found <= self.high

    def as_dict(self) -> dict[str, Any]:
        """For JSON and the record."""
        return {
            "expected": None if self.missing else [self.low, self.high],
            "expected_of": self.quantity or None,
            "as_expected": self.inside,
            "expectation": self.sentence,
        }

    @property
    def sentence(self) -> str:
        """The answer to the question, in words, and where it is not yes what to look at."""
        if self.missing:
            return f"not known: {self.missing}"
        band = f"{self.low:.2f}–{self.high:.2f} {UNITS[self.quantity]}"
        where = {
            "measured": f"where the preset {self.preset} ends",
            "published": f"which was published for what the preset {self.preset} repeats",
            "arithmetic": "which is what can be known and no more",
            "typical": "where texts in a natural language end",
        }[self.basis]
        if self.inside:
            return f"yes: {self.found:.3f} is inside {band}, {where}"
        if self.found > self.high:
            return (
                f"no: {self.found:.3f} is above {band}, {where}; look at loss.svg: still falling wants more "
                "steps, restless a lower --lr, rising at the end more text or model.dropout"
            )
        if self.basis == "typical":
            return (
                f"no: {self.found:.3f} is below {band}, {where}; logs, lists and code may end there, and so "
                "does a text whose validation part repeats its training part"
            )
        return (
            f"no: {self.found:.3f} is below {band}, {where}; does the validation part repeat the training "
            "text? Does the mask leak (tformer eval causality)?"
        )


def read_expected(preset: str) -> Expected:
    """What a preset's file says."""
    return Expected.model_validate(preset_values(preset).get("expected"))


def expectation(config: Config, record: Record, result: dict[str, Any]) -> Expectation:
    """Hold a result to the band of the preset that the record names, if the run kept to it."""
    preset = record.preset
    if record.init_from:
        return Expectation(preset or "", missing="it began from trained weights")
    if preset not in preset_names():
        return Expectation(preset or "", missing="the run names no preset")
    expected = read_expected(preset)
    quantity = expected.quantity
    missing = _missing(preset, expected, config, record)
    if not missing and result.get(quantity) is None:
        missing = "nothing was kept for validation"
    if missing:
        return Expectation(preset, missing=missing)
    low, high = getattr(expected, quantity)
    return Expectation(preset, quantity, expected.basis, low, high, float(result[quantity]))


def _missing(preset: str, expected: Expected, config: Config, record: Record) -> str:
    """Why there is no band; empty if there is one."""
    if not expected.quantity:
        return f"the preset {preset} has not been measured"
    by_hash = bool(expected.sha256) and record.data.sha256 == expected.sha256
    known = by_hash or record.data.source == [expected.data]
    if expected.data and not known:
        return f"the preset {preset} is known on {expected.data}, and this is another text"
    if changed := changes(config, merge([preset_layer(preset)])):
        key, here, there = changed[0]
        others = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"{key} is {here}, where the preset {preset} has {there}{others}"
    return ""


def changes(config: Config, preset: Config) -> Sequence[tuple[str, Any, Any]]:
    """The settings that move the loss and differ: key, value, the preset's value."""
    here, there = config.model_dump(), preset.model_dump()
    return [
        (f"{section}.{key}", here[section][key], value)
        for section, values in there.items()
        for key, value in values.items()
        if key not in IMMATERIAL.get(section, ())
        and here[section][key] != value
        and value != "auto"  # what the preset leaves open, the text has settled
    ]
