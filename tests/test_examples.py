"""The examples do what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tformer.config import file_layer, merge, preset_layer

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*command, cwd, stdin=""):
    """Run a script with `tformer` on its path; return its stdout."""
    binaries = cwd / "bin"
    binaries.mkdir(exist_ok=True)
    (binaries / "tformer").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tformer "$@"\n')
    (binaries / "tformer").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(EXAMPLES.parent),
    }
    done = subprocess.run(
        command, cwd=cwd, input=stdin, capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_configuration_is_valid():
    config = merge([preset_layer("text"), file_layer(EXAMPLES / "small.yaml")])
    assert config.train.lr == 0.01
    assert config.model.family == "nanochat"


def test_sweep_and_pipeline_run(tmp_path):
    (tmp_path / "my.txt").write_text(
        "All the world's a stage,\nAnd all the men and women merely players\n" * 60
    )
    table = run(EXAMPLES / "sweep.sh", "my.txt", "5", cwd=tmp_path).splitlines()
    losses = [float(line.split()[0]) for line in table]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3
    best = table[-1].split()[-1]
    samples = run(EXAMPLES / "pipeline.sh", best, cwd=tmp_path, stdin="All the\nAnd\n").splitlines()
    assert [json.loads(line)["prompt"] for line in samples] == ["All the"] * 3 + ["And"] * 3
