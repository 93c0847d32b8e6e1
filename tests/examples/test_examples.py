"""The examples do what they say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tformer.layers import file_layer, merge, preset_layer
from tformer.text.documents import looks_like_a_list

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*command, cwd, stdin="", seconds=200):
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
        command, cwd=cwd, input=stdin.encode(), capture_output=True, env=environment, timeout=seconds
    )  # bytes: a model may write a carriage return, which is no line end here
    assert done.returncode == 0, done.stderr[-2000:].decode()
    return done.stdout.decode()


def test_the_configuration_is_valid():
    config = merge([preset_layer("text"), file_layer(EXAMPLES / "small.yaml")])
    assert config.train.lr == 0.01
    assert config.model.family == "nanochat"


@pytest.fixture
def text(tmp_path):
    """A small text in the working directory of the examples."""
    path = tmp_path / "my.txt"
    path.write_text("All the world's a stage,\nAnd all the men and women merely players\n" * 60)
    return path


@pytest.mark.slow
def test_the_names_are_a_list():
    names = run(sys.executable, EXAMPLES / "names.py", "500", cwd=EXAMPLES).splitlines()
    assert len({*names}) == 500 and names == sorted(names) and looks_like_a_list("\n".join(names))


@pytest.mark.slow
def test_sweep_sorts_by_loss(tmp_path, text):
    table = run(EXAMPLES / "sweep.sh", "my.txt", "5", cwd=tmp_path).splitlines()
    losses = [float(line.split()[0]) for line in table]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
@pytest.mark.slow
def test_a_corpus_of_ones_own_and_a_pipeline_with_jq(tmp_path, text):
    judged = run(EXAMPLES / "my_corpus.sh", "my.txt", "6", cwd=tmp_path)
    assert "perplexity" in judged and "The " in judged
    lines = run(EXAMPLES / "pipeline.sh", "mine", cwd=tmp_path, stdin="All the\nAnd\n").strip().split("\n")
    assert [line[:3] for line in lines] == ["All"] * 3 + ["And"] * 3


@pytest.mark.slow
def test_a_gpt2_directory_is_fine_tuned_and_loads_in_transformers(tmp_path, text):
    transformers = pytest.importorskip("transformers")
    run("tformer", "train", "my.txt", "--tokenizer", "bpe", "--steps", "2", "--out", "first", cwd=tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "gpt2")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "gpt2")
    judged = run(EXAMPLES / "fine_tune.sh", "gpt2", "my.txt", "5", cwd=tmp_path)
    before, after = (
        float(line.split()[1]) for line in judged.splitlines() if line.startswith("cross-entropy")
    )
    assert after < before
    script = EXAMPLES / "load_in_transformers.py"
    written = run(sys.executable, script, "runs/fine-tuned", "All the world", cwd=tmp_path)
    assert written.startswith("All the world") and len(written) > len("All the world\n")


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_the_pictures_are_drawn_from_real_runs(tmp_path):
    run(sys.executable, EXAMPLES / "pictures.py", "drawn", cwd=tmp_path, seconds=570)
    drawn = {path.name for path in (tmp_path / "drawn").glob("*.svg")}
    assert drawn == {path.name for path in (EXAMPLES / "pictures").glob("*.svg")}
    for name, shown in (("reversal", "passed:"), ("attention", "layer.head"), ("answer", "claims hold")):
        text = (tmp_path / "drawn" / f"{name}.svg").read_text(encoding="utf-8").replace("&#160;", " ")
        assert shown in text, name
