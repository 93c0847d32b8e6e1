"""A pipe in the place of a file that others gave: who opened it would wait for ever, deaf to signals."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.kill import run
from tests.faults.tiny import EVAL, SAMPLE, TRAIN, made, no_pictures

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")

RESUME = [*TRAIN, "--resume", "--steps", "7"]
TOKENIZE = ["tokenize", "text.txt", "--tokenizer", "run", "--stats"]
CAUSALITY = ["eval", "causality", "--run", "run", "--device", "cpu", "--positions", "2"]
OF_IDS = ["train", "ids.npy", "--tokenizer", "run/tokenizer.json", *TRAIN[2:3], "new", *TRAIN[4:9]]
CASES = [
    ("run/config.json", SAMPLE, 2),
    ("run/config.json", CAUSALITY, 2),
    ("run/model.safetensors", SAMPLE, 2),
    ("run/model.safetensors", EVAL, 2),
    ("run/tokenizer.json", SAMPLE, 2),
    ("run/tokenizer.json", TOKENIZE, 2),
    ("run/tokenizer_config.json", TOKENIZE, 2),
    ("run/tformer.yaml", EVAL, 2),
    ("run/tformer.yaml", RESUME, 2),
    ("run/metrics.jsonl", RESUME, 2),
    ("newest/manifest.json", RESUME, 0),
    ("newest/model.safetensors", RESUME, 0),
    ("newest/optimizer.safetensors", RESUME, 0),
    ("ids.npy", OF_IDS, 2),
    ("run/evals.jsonl", EVAL, 0),
    ("run/generation_config.json", SAMPLE, 0),
]


@pytest.fixture(scope="module")
def made_here(tmp_path_factory):
    return made(tmp_path_factory.mktemp("pipes") / "made")[0]


def alarmed() -> None:
    """The copy ends after a while; it opens nothing that waits, so no signal of Python's would."""
    no_pictures()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(20)


@pytest.mark.parametrize(("name", "command", "code"), CASES, ids=lambda value: str(value)[:40])
def test_a_pipe_in_the_place_of_a_file_is_named_and_not_opened(name, command, code, made_here, tmp_path):
    here = Path(shutil.copytree(made_here, tmp_path / "here"))
    newest = max((here / "run/checkpoints").iterdir())
    path = newest / name.removeprefix("newest/") if name.startswith("newest/") else here / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    found, said = run(command, here, prepare=alarmed)
    assert found == code, said
    assert "Traceback" not in said and "this is a bug" not in said
    if name != "run/generation_config.json":
        assert f"{path.name} is not a regular file" in said


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no device that never ends")
def test_a_device_that_never_ends_is_no_text(made_here):
    """All of it would be read into memory first."""
    code, said = run(["train", "/dev/zero", "--out", "new", "--device", "cpu"], made_here, prepare=alarmed)
    assert code == 2 and "/dev/zero is no text: it has many NUL bytes" in said
    assert not (made_here / "new").exists()


def test_a_pipe_that_a_person_names_is_read(made_here, tmp_path):
    """As the shell's <(…) gives one."""
    here = Path(shutil.copytree(made_here, tmp_path / "here"))
    os.mkfifo(here / "my.yaml")

    def written() -> None:
        alarmed()
        if os.fork() == 0:
            Path("my.yaml").write_text("train:\n  steps: 1\n")
            os._exit(0)

    line = [*TRAIN[:3], "new", *(word for word in TRAIN[4:] if word not in ("--steps", "6"))]
    code, said = run([*line, "--config", "my.yaml"], here, prepare=written)
    assert code == 0, said
    assert (here / "new/checkpoints/step-00000001").exists()
