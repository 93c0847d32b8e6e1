"""What a run says of itself, where somebody else has written in it."""

import json

import pytest

from tformer.run.record import read_lines, read_metrics

GOOD = {
    "step": 5,
    "tokens": 1280,
    "seconds": 0.5,
    "loss": 4.25,
    "lr": 1e-3,
    "grad_norm": 2,
    "val_loss": 4.5,
    "bits_per_byte": 5.75,
    "sample": "To be",
    "by_position": [[1, 4.5], [2, 4]],
    "next_word_loss": 9.5,
    "of a newer version": {"a": [None]},
}
WRONG = [None, True, "5", "", [], {}, [[]], [[1]], [["a", 1.0]], [1.0], 1e999, float("nan"), 10**400]


def written(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_what_train_writes_is_read_as_it_is(tmp_path):
    lines = [GOOD, {"step": 6, "loss": 4.0, "lr": 0.0}]
    assert read_metrics(written(tmp_path / "metrics.jsonl", *lines)) == lines
    assert read_metrics(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
@pytest.mark.parametrize("key", [key for key in GOOD if key != "of a newer version"])
def test_a_line_with_a_value_of_another_type_is_passed_over(tmp_path, key, wrong):
    fits = {"sample": isinstance(wrong, str), "by_position": wrong == []}.get(key, False)
    line = GOOD | {key: wrong}
    assert read_metrics(written(tmp_path / "metrics.jsonl", line, GOOD)) == [line] * fits + [GOOD]


@pytest.mark.parametrize("line", ["null", "[1]", '{"step": 1', "[" * 100_000, '"\\ud800"', "\x00", "NaN"])
def test_a_line_that_is_no_object_is_passed_over(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n" + json.dumps(GOOD) + "\n" + line)
    assert read_lines(path) == read_metrics(path) == [GOOD]
