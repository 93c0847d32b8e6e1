"""The script for whoever has a card says of a CPU what it would say of the card."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "gpu.sh"
TINY = (
    "--no-compile --precision fp32 --batch-size 4 --set model.n_layers=1 --set model.n_heads=2 "
    "--set model.d_model=16 --set model.n_ctx=16"
)


def run(folder, *arguments, **environment):
    """The script, in another working directory: its rows by name, all below their head, its exit code."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TFORMER_", "PYTHONPATH"))}
    clean |= {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "DEVICE": "cpu", "STEPS": "2"}
    clean |= {"SETTINGS": TINY, "PRESETS": "nanogpt-char-gpu"}
    done = subprocess.run(
        [SCRIPT, *arguments], cwd=folder, capture_output=True, text=True, timeout=500, env=clean | environment
    )
    table, _, below = done.stdout.partition("|---|---|---|---|---|---|\n")
    assert table.startswith("cpu, PyTorch "), done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in below.splitlines() if "|" in line]
    return {name: cells for name, *cells in rows}, below, done.returncode


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_row_is_as_it_should_be(tmp_path):
    (tmp_path / "my.txt").write_text("The world's a stage,\nAnd all the men and women merely players\n" * 60)
    rows, below, code = run(tmp_path, "my.txt")
    assert code == 0 and "FAILED" not in below, below
    assert len(rows) == 7
    seconds, rate, loss, exit_code, peak = rows["train nanogpt-char-gpu, 2 steps"]
    assert float(seconds) > 0 and float(rate.replace(",", "")) > 0 and float(peak) > 0
    assert float(loss) > float(rows["and back on cpu"][2]), "22 steps more"
    assert exit_code == "0" and rows["a card that is not there"][3] == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["my.txt"], (
        "nothing is left in the working directory"
    )


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.parametrize("presets", ["shakespeare-gpu", "shakespeare-gpu char-12l"])
def test_a_row_that_fails_is_named_and_the_others_still_run_on_a_text_that_is_made(tmp_path, presets):
    rows, below, code = run(tmp_path, PRESETS=f"nosuch {presets}", STEPS="1", LIMIT="100")
    assert code == 1
    assert re.search(r"train nosuch, 1 steps: FAILED: tformer: error: no preset 'nosuch'", below)
    for preset in presets.split():
        assert [cells[3] for name, cells in rows.items() if preset in name] == ["0"] * 4, below
    assert rows["a card that is not there"][3] == "2"


@pytest.mark.slow
def test_a_row_ends_when_its_time_is_over(tmp_path):
    rows, below, code = run(tmp_path, LIMIT="1")
    assert code == 1 and "ran longer than its limit" in below
    assert rows["train nanogpt-char-gpu, 2 steps"][3] == "**124**, expected 0"
