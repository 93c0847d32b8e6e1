"""Names that are longer or stranger than most: of steps, of runs."""

import json
import shutil

import pytest
import yaml

from tests.faults.tiny import TRAIN
from tformer.cli import app
from tformer.run.manifest import manifest_hash

pytestmark = pytest.mark.figured

FAR = 99_999_999  # one step more has nine digits


def test_a_step_of_nine_digits_is_saved_and_found_again(here, capsys):
    app(TRAIN, standalone_mode=False)
    run = here / "run"
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    checkpoint = (run / "checkpoints" / "step-00000006").rename(run / "checkpoints" / f"step-{FAR}")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["state"]["step"] = FAR  # as if it had taken weeks
    manifest["sha256"] = manifest_hash(manifest)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    values = yaml.safe_load((run / "tformer.yaml").read_text())
    values["train"]["steps"] = FAR + 2
    (run / "tformer.yaml").write_text(yaml.safe_dump(values))
    more = ["--set", "train.checkpoint_every=1", "--resume", "--steps"]
    app([*TRAIN, *more, str(FAR + 1)], standalone_mode=False)
    app([*TRAIN, *more, str(FAR + 2)], standalone_mode=False)
    assert f"continuing after step {FAR + 1}" in capsys.readouterr().err
    assert {p.name for p in (run / "checkpoints").iterdir()} == {f"step-{FAR + 1}", f"step-{FAR + 2}"}


@pytest.mark.parametrize("name", ["a$x_{$b", "$", "\\frac", "<b>&"])
def test_a_run_may_have_any_name(name, here, capsys):
    app([*TRAIN, "--out", name], standalone_mode=False)
    assert "warning" not in capsys.readouterr().err
    assert (here / name / "report.html").exists()
