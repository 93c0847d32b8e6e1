"""Is this loss normal? Bands are where arithmetic and measurement put them, each for its preset alone."""

import math

import pytest

from tformer.layers import all_keys, merge, preset_layer, preset_names
from tformer.run.data import prepare_data
from tformer.run.record import Record, record_of
from tformer.training.expected import IMMATERIAL, Expectation, expectation, read_expected

SHAKESPEARE = {"data": {"source": ["shakespeare"]}}
# The tables in examples/benchmarks/LOG.md.
MEASURED = {
    "shakespeare": [2.7607],
    "shakespeare-bpe": [3.9852],
    "shakespeare-char": [1.2940],
    "tinyshakespeare": [1.4361, 1.4450, 1.4516],
    "nanogpt-char-cpu": [1.723, 1.718],
}
UNMEASURED = {"char-12l", "shakespeare-gpu", "list"}  # a list is as hard as whoever made it


def held(preset="shakespeare", val_loss=2.77, met=SHAKESPEARE, bits=2.0, **changes):
    """What is said of a run of a preset with some settings of `train` changed."""
    config = merge([preset_layer(preset)]).updated("train", **changes)
    record = record_of({"record": met | {"preset": preset}}, "tformer.yaml")
    return expectation(config, record, {"val_loss": val_loss, "bits_per_byte": bits})


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_says_where_it_ends_or_that_nobody_has_measured_it(name):
    expected = read_expected(name)
    assert (expected.quantity == "") == (name in UNMEASURED) == (expected.basis == "unmeasured")
    if expected.quantity:
        low, high = getattr(expected, expected.quantity)
        assert 0 < low < high
        assert high - low < 0.1 * low or expected.basis == "typical", (
            "a band that holds everything says nothing"
        )


@pytest.mark.parametrize("name", MEASURED)
def test_the_bands_hold_what_was_measured(name):
    low, high = read_expected(name).val_loss
    assert all(low < loss < high for loss in MEASURED[name])
    assert high < min(MEASURED[name]) + 0.07


def test_the_band_of_reversal_is_the_arithmetic_optimum_and_a_little_more():
    data = merge([preset_layer("reversal")]).data
    n, symbols = data.reversal_length, data.reversal_symbols
    best = (n - 1) * math.log(symbols) / (2 * n - 1)
    low, high = read_expected("reversal").val_loss
    assert best - 0.02 < low < best < high < best + 0.05
    # A model that saw one more letter of the ten in every sequence would fall out of it.
    assert (n - 2) * math.log(symbols) / (2 * n - 1) < low
    assert math.log(symbols) > high, "one that has learned nothing is above it"


@pytest.mark.parametrize(
    ("loss", "inside", "said"),
    [
        (2.77, True, "yes: 2.770 is inside"),
        (2.72, False, "below"),
        (2.82, False, "above"),
        (2.73, True, "yes"),
        (2.81, True, "yes"),
    ],
)
def test_a_loss_is_inside_below_or_above(loss, inside, said):
    found = held(val_loss=loss)
    assert found.inside is inside and said in found.sentence
    assert found.as_dict() | {"expectation": ""} == {
        "expected": [2.73, 2.81],
        "expected_of": "val_loss",
        "as_expected": inside,
        "expectation": "",
    }


def test_a_loss_below_what_can_be_known_asks_for_the_mask():
    found = held("reversal", 1.2, {"data": {"source": ["reversal"]}})
    assert found.inside is False and "eval causality" in found.sentence


@pytest.mark.parametrize("key", sorted(IMMATERIAL["train"]))
def test_what_moves_no_loss_leaves_the_band(key):
    others = {"precision": "fp32", "compile": "off", "kernels": "sdpa", "micro_batch_size": 8}
    other = (others | {"recompute": True, "shard": True}).get(key, 7)
    assert held(**{key: other}).inside is True


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 60}, "train.steps is 60, where the preset shakespeare has 1400"),
        ({"lr": 0.1, "batch_size": 4}, "and 1 more"),
        ({"keep": "last"}, "train.keep"),
        ({"patience": 3}, "train.patience"),
    ],
)
def test_a_setting_that_moves_the_loss_takes_the_band_away_and_is_named(changes, named):
    found = held(**changes)
    assert found.inside is None and named in found.sentence
    assert found.as_dict()["expected"] is None and found.as_dict()["as_expected"] is None


def test_every_setting_moves_the_loss_unless_it_is_known_not_to():
    known = {f"{section}.{key}" for section, keys in IMMATERIAL.items() for key in keys}
    assert known < set(all_keys()), "a key that was renamed"


@pytest.mark.parametrize(
    ("met", "said"),
    [
        ({"data": {"source": ["/my/shakespeare.txt"]}}, "another text"),
        ({}, "another text"),
        (SHAKESPEARE | {"init_from": {"source": "x"}}, "trained weights"),
    ],
)
def test_another_text_or_another_beginning_takes_the_band_away(met, said):
    found = held(met=met)
    assert found.inside is None and said in found.sentence


def test_a_text_is_known_by_its_hash_under_any_name():
    known = read_expected("nanogpt-char-cpu").sha256
    met = {"data": {"source": ["/my/input.txt"], "sha256": known}}
    assert held("nanogpt-char-cpu", 1.72, met).inside is True
    assert (
        held("nanogpt-char-cpu", 1.72, {"data": {"source": ["/my/input.txt"], "sha256": "0"}}).inside is None
    )
    assert held("nanogpt-char-cpu", 1.72, {"data": {"source": ["tinyshakespeare"]}}).inside is True


def test_any_text_is_judged_in_bits_per_byte():
    met = {"data": {"source": ["/my/novel.txt"]}}
    assert held("text", 5.0, met, bits=2.2).inside is True
    assert held("text", 5.0, met, bits=3.4).inside is False
    assert held("text", 5.0, met, bits=0.4).inside is False
    assert "bits per byte" in held("text", 5.0, met, bits=2.2).sentence
    below = held("text", 5.0, met, bits=0.4).sentence
    assert "mask" not in below and "logs, lists and code" in below


def test_a_run_without_a_band_says_why():
    assert "not been measured" in held("shakespeare-gpu").sentence
    assert "no preset" in expectation(merge([]), Record(), {}).sentence
    assert "no preset" in expectation(merge([]), Record(preset="gone"), {}).sentence
    assert "validation" in held(val_loss=None).sentence
    assert Expectation("x", missing="why").inside is None


def test_what_is_decided_at_the_beginning_does_not_take_the_band_away(tmp_path):
    import torch

    from tformer.training.settings import decide

    config = merge([preset_layer("reversal")])
    data = prepare_data(config, ["reversal"])
    settled = decide(config, torch.device("cpu"), data.tokenizer.vocab_size)
    assert settled != config
    record = Record(preset="reversal", data=data.facts)
    assert expectation(settled, record, {"val_loss": 1.545}).inside is True
