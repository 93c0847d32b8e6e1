"""A run's page says what its files say, stands alone, and obeys no text."""

import numpy as np

from tests.show.test_page import check
from tformer.run.record import Evaluation, Record, record_of
from tformer.show.run_page import run_page

RECORD = {
    "model": {"n_layers": 2},
    "record": {
        "versions": {"tformer": "0.1.0"},
        "device": "cpu",
        "data": {"source": ["/home/me/<text>.txt"]},
        "tokenizer": {"kind": "char", "size": 83},
        "result": {"parameters": 12345, "steps": 30, "tokens": 960, "seconds": 1.5, "val_loss": 2.5},
    },
}
METRICS = [
    {"step": 10 * i, "loss": 3.0 / i, "lr": 0.1, "grad_norm": 1.0}
    | ({"val_loss": 3.1 / i, "sample": f"<b>O God {i}</b>"} if i % 2 else {})
    for i in range(1, 1001)
]
EVALS = list(
    map(
        Evaluation.model_validate,
        [
            {
                "task": "loss",
                "on": "its validation part",
                "result": {"loss": 9.0, "by_position": [3.0, 2.0, 1.0]},
            },
            {
                "task": "loss",
                "on": "its validation part",
                "result": {"loss": 2.25, "by_position": [3.0, 2.0, 1.0]},
            },
            {
                "task": "reversal",
                "result": {
                    "chance": 0.25,
                    "passed": True,
                    "positions": [{"position": 1, "half": "first", "accuracy": 0.26}],
                },
            },
            {"task": "causality", "result": {"passed": True, "positions": [1, 2, 3], "max_leak": 0.0}},
        ],
    )
)
MAPS = ("to be", np.full((2, 12, 5, 5), 0.2))


def test_everything_is_on_the_page():
    text = run_page("shake<speare>", record_of(RECORD, "tformer.yaml"), METRICS, EVALS, MAPS)
    check(text)
    assert "shake&lt;speare&gt;" in text and "&lt;text&gt;.txt" in text
    assert "12,345" in text and "2.5000" in text
    assert "&lt;b&gt;O God 999&lt;/b&gt;" in text, "the last sample"
    assert "2.2500" in text and "9.0000" not in text, "the latest evaluation of a kind"
    assert "max leak" in text
    assert "16 of 24 heads" in text
    assert "n_layers: 2" in text
    assert text.count("<svg") == 5  # losses, learning rate, loss by position, accuracies, maps


def test_whole_word_and_last_token_are_named():
    result = {"accuracy": 0.25, "perplexity": 18296431.25, "last_token_accuracy": 0.5}
    text = run_page("x", Record(), [], [Evaluation(task="lambada", result=result)])
    assert "accuracy of the whole last word" in text and "<td>last token accuracy" in text
    assert "<td>accuracy</td>" not in text
    assert ">18,296,431.2<" in text, "no decimals that mean nothing"


def test_a_page_grows_with_what_there_is():
    text = run_page("new", Record(), [], [])
    check(text)
    assert "not at its end yet" in text
    assert "<svg" not in text and "Evaluations" not in text and "wrote" not in text


def test_a_long_run_makes_no_large_page():
    many = [{"step": i, "loss": 1.0, "lr": 0.1} for i in range(1, 50_001)]
    assert len(run_page("long", Record(), many, [])) < 100_000
