"""What the shell is offered as somebody types: commands, tasks, options, their words, and runs."""

import subprocess
import sys

import pytest

from tests.command import ENVIRONMENT


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tformer ", {"tokenize", "train", "eval", "sample", "answer"}),
        ("tformer ans", {"answer"}),
        ("tformer eval --run ", {"mine", "other"}),
        ("tformer sample --run m", {"mine"}),
        ("tformer eval l", {"loss", "lambada"}),
        ("tformer eval --json --run mine l", {"loss", "lambada"}),
        ("tformer eval --pr", {"--precision", "--prompt"}),
        ("tformer eval --run mine loss --p", {"--precision"}),
        ("tformer eval loss --run ", {"mine", "other"}),
        ("tformer eval --precision b", {"bf16"}),
        ("tformer answer sk", {"skip-connections"}),
        ("tformer train --device c", {"cpu", "cuda"}),
        ("tformer train --preset nano", {"nanogpt-char-cpu", "nanogpt-char-gpu"}),
    ],
)
def test_the_shell_completes_commands_runs_and_words(tmp_path, typed, offered):
    for name in ("mine", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "tformer.yaml").write_text("model: {}\n")
    environment = ENVIRONMENT | {
        "_TFORMER_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(typed.count(" ")),
    }
    binary = tmp_path / "tformer"
    binary.write_text(
        f"#!{sys.executable}\nimport sys; sys.argv[0] = 'tformer'; import tformer.cli; tformer.cli.main()\n"
    )
    binary.chmod(0o755)
    done = subprocess.run([binary], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == offered
