"""Lines of metrics.jsonl that somebody else wrote, or half of one: they are passed over, and end nothing."""

import json
from pathlib import Path

import pytest

from tests.faults.test_kills import TRAIN, place
from tformer.cli import app
from tformer.show import training as show

WHOLE = {"step": 1, "tokens": 16, "seconds": 0.1, "loss": 3.0, "lr": 0.1, "grad_norm": 1.0}
STRANGE = {
    "no step": {k: v for k, v in WHOLE.items() if k != "step"},
    "a step that is none": WHOLE | {"step": "1"},
    "no loss": {k: v for k, v in WHOLE.items() if k != "loss"},
    "no rate": {k: v for k, v in WHOLE.items() if k != "lr"},
    "a loss of null": WHOLE | {"loss": None},
    "a loss of words": WHOLE | {"loss": "low"},
    "a rate of true": WHOLE | {"lr": True},
    "a loss that is not finite": WHOLE | {"loss": float("nan")},
    "an evaluation of words": WHOLE | {"val_loss": "low", "bits_per_byte": []},
    "a last word of words": WHOLE | {"next_word_loss": {}},
    "a sample that is none": WHOLE | {"sample": 3},
    "positions that are none": WHOLE | {"by_position": [1, 2, 3]},
    "positions of words": WHOLE | {"by_position": [["a", "b"], ["c", "d"]]},
    "an evaluation without its bits": WHOLE | {"val_loss": 0.1},
    "deep": "[" * 100_000,
    "only a step": {"step": 2},
}


@pytest.fixture(scope="module")
def place_of_a_run(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        folder = place(tmp_path_factory.mktemp("strange") / "here")
        patch.chdir(folder)
        app(TRAIN, standalone_mode=False)
    return folder


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_line_ends_no_training_and_no_picture(name, place_of_a_run, monkeypatch, capsys):
    monkeypatch.chdir(place_of_a_run)
    path = Path("run/metrics.jsonl")
    line = STRANGE[name]
    path.write_text((line if isinstance(line, str) else json.dumps(line)) + "\n" + path.read_text())
    monkeypatch.setattr(show, "FIRST_PICTURE", 0.0)
    app([*TRAIN, "--resume", "--json"], standalone_mode=False)
    out, err = capsys.readouterr()
    assert "warning" not in err
    assert json.loads(out)["val_loss"] > 1, "of a line that is one"
    app(["eval", "loss", "--run", "run", "--device", "cpu"], standalone_mode=False)
    assert "warning" not in capsys.readouterr().err
