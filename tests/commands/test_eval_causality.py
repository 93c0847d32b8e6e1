"""`tformer eval causality`: its exit codes, its object, its picture."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tformer.model
from tests.command import run
from tests.conftest import tiny_model
from tformer.cli import app
from tformer.config import Config
from tformer.files import cannot_write
from tformer.run.checkpoint import Run
from tformer.run.huggingface import to_hf, to_hf_config
from tformer.run.record import Record, read_evaluations
from tformer.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A Hugging Face directory of random weights with no tokenizer and no record of training."""
    folder = tmp_path_factory.mktemp("directory")
    model = tiny_model(family="nanochat")
    (folder / "config.json").write_text(json.dumps(to_hf_config(model.config)))
    tensors = to_hf(model.config, dict(model.named_parameters(remove_duplicate=False)))
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def test_the_command_says_its_verdict_as_json(directory):
    done = run("eval", "causality", "--run", ".", "--positions", "5", "--json", cwd=directory, check=0)
    values = json.loads(done.stdout)
    assert (values["passed"], values["max_leak"], values["cached"]["passed"]) == (True, 0, True)
    assert values["positions"] == [1, 4, 8, 12, 15]
    assert values["mask"]["kind"] == "exact"


def test_the_command_draws_plain_characters_in_a_pipe(directory):
    done = run("eval", "causality", "--run", ".", cwd=directory, check=0)
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["1", ".", *"+" * 15]
    assert lines[15].split() == ["15", *"." * 15, "+"]
    assert "all 15" in done.stdout
    assert lines[-1] == "passed: no logit depends on a later token"
    assert "\x1b" not in done.stdout


def test_a_leak_is_exit_1(directory):
    def unmasked():
        tformer.model.causal_mask = lambda q, k, device=None: torch.ones(q, k, dtype=torch.bool)

    causality = ("eval", "causality", "--run", ".")
    done, machine = (
        run(*causality, *args, cwd=directory, check=1, prepare=unmasked) for args in ([], ["--json"])
    )
    assert " X" in done.stdout.splitlines()[15]
    assert "open: some later keys are not hidden in blocks 1, 2" in done.stdout
    assert done.stdout.splitlines()[-1] == "FAILED: the future leaks"
    values = json.loads(machine.stdout)
    assert (values["passed"], values["cached"]["passed"]) == (False, False)
    assert values["max_leak"] > 0


def test_fewer_than_one_position_is_a_wrong_request(directory):
    done = run("eval", "causality", "--run", ".", "--positions", "0", cwd=directory, check=2)
    assert "--positions" in done.stderr


@pytest.mark.parametrize("error", [cannot_write(Path("a file"), OSError()), OSError(30, "read-only")])
@pytest.mark.parametrize(
    ("refused", "warned", "kept"),
    [
        ("tformer.run.record.keep_evaluation", "the result is not kept in {}", 0),
        ("tformer.show.run_page.write_page", "{}/report.html is not renewed", 1),
    ],
)
def test_a_verdict_that_a_run_cannot_keep_stays_the_verdict(
    tmp_path, monkeypatch, capsys, error, refused, warned, kept
):
    run = Run(tmp_path / "run")
    model, tokenizer = tiny_model(), Tokenizer.train("char", ["abcdefghijklmnopqrstuvw"])
    config = Config().updated("model", **model.config.model_dump())
    run.write_identity(config, tokenizer)
    run.write_weights(model)
    run.write_record(config, Record())
    run.close()

    def refuse(*args):
        raise error

    monkeypatch.setattr(refused, refuse)
    code = app(["eval", "causality", "--run", str(run.folder), "--device", "cpu"], standalone_mode=False)
    streams = capsys.readouterr()
    assert not code
    assert streams.out.splitlines()[-1].startswith("passed")
    assert f"warning: {warned.format(run.folder)}: " in streams.err
    assert streams.err.count("warning") == 1
    assert len(read_evaluations(run.folder)) == kept
