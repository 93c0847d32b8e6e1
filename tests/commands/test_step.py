"""`--step N`: the weights of a checkpoint are judged and sampled from, and it is said which they were."""

import hashlib
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from tformer import load
from tformer.cli import app
from tformer.errors import RequestError
from tformer.evals.loss import token_losses
from tformer.run.loaded import load_run
from tformer.sample import Sampling, continue_text
from tformer.text.data import split_text

TEXT = "To be, or not to be, that is the question:\n" * 20
TRAIN = """train text.txt --tokenizer char --steps 4 --batch-size 2 --lr 0.05 --out run --device cpu
    --set train.checkpoint_every=1 --set train.keep_checkpoints=3 --set model.n_layers=1 --set model.n_heads=1
    --set model.d_model=8 --set model.n_ctx=16 --set train.precision=fp32 --set train.compile=off"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of four steps, of which the last three are kept."""
    folder = tmp_path_factory.mktemp("steps")
    (folder / "text.txt").write_text(TEXT)
    (folder / "passages.jsonl").write_text(json.dumps({"text": "not to be"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        app(shlex.split(TRAIN), standalone_mode=False)
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy of it, to work in."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFORMER_DEVICE", "cpu")
    return tmp_path


def command(line):
    app(shlex.split(line), standalone_mode=False)


def checkpoint(step):
    return Path(f"run/checkpoints/step-{step:08d}")


def evaluations():
    return [json.loads(line) for line in Path("run/evals.jsonl").read_text().splitlines()]


def test_each_step_is_judged_by_its_own_weights(place, capsys):
    val, kept = split_text(TEXT, 0.1).val, load("run")[0]
    losses = {}
    for step in (2, 3, 4):
        at_step = load_run(Path("run"), step=step)
        losses[step] = float(token_losses(at_step.model, at_step.tokenizer.encode_array([val])).mean())
        command(f"eval loss --run run --step {step} --json")
        values = json.loads(capsys.readouterr().out)
        assert (values["step"], values["loss"]) == (step, losses[step])
        assert values["tokens_seen"] is None or step == 4, "metrics.jsonl has no line of the others"
    assert len({*losses.values()}) == 3
    assert all(map(torch.equal, kept.parameters(), load_run(Path("run"), step=4).model.parameters()))


def test_the_record_says_which_weights_were_judged_and_the_page_keeps_to_its_own(place, capsys):
    command("eval loss --run run")
    page = Path("run/report.html").read_bytes()
    command("eval loss --run run --step 2")
    command("eval causality --run run --step 3 --positions 2")
    own, of_loss, of_causality = evaluations()
    assert "step" not in own and [of_loss["step"], of_causality["step"]] == [2, 3]
    for line in (of_loss, of_causality):
        weights = checkpoint(line["step"]) / "model.safetensors"
        assert line["weights"] == hashlib.sha256(weights.read_bytes()).hexdigest() != own["weights"]
    assert Path("run/report.html").read_bytes() == page
    said = capsys.readouterr()
    assert "run at step 2" in said.out and "the weights are those of step 2" in said.err


@pytest.mark.parametrize(
    "task",
    [
        "lambada --data passages.jsonl",
        "attention --prompt To",
        "generations --prompt To -n 1 --max-tokens 2 --temperature 1",
    ],
)
def test_every_task_takes_a_step(place, capsys, task):
    command(f"eval {task} --run run --step 3 --json")
    assert json.loads(capsys.readouterr().out)["step"] == 3
    command(f"eval {task} --run run --step 3")
    assert "run at step 3" in capsys.readouterr().out


def test_a_sample_is_that_of_the_step(place, capsys):
    command("sample To --run run --step 2 --greedy --max-tokens 9 --json")
    run = load_run(Path("run"), step=2)
    ids = run.tokenizer.encode("To")
    expected = continue_text(run.model, run.tokenizer, ids, 1, 9, Sampling(0.0), 0)[0].ids
    assert json.loads(capsys.readouterr().out)["ids"] == expected


@pytest.mark.parametrize("task", ["eval loss", "eval causality", "sample To", "eval"])
def test_a_step_that_is_not_there_names_those_that_are(place, task):
    with pytest.raises(RequestError, match=r"of step 1 in run .it has 2, 3, 4.; leave --step out"):
        command(f"{task} --run run --step 1")
    shutil.rmtree("run/checkpoints")
    with pytest.raises(RequestError, match=r"no checkpoint of step 2 in run .it has none.; leave --step out"):
        command(f"{task} --run run --step 2")


def test_of_many_steps_the_nearest_are_named(place):
    for step in (*range(10, 90, 10), 1000):
        checkpoint(step).mkdir()
    with pytest.raises(RequestError, match="it has 40, 50, 60, 70, 80 and 7 more"):
        command("eval loss --run run --step 61")


def test_several_runs_are_refused_before_any_work_where_one_lacks_the_step(place):
    shutil.copytree("run", "other")
    shutil.rmtree("other/checkpoints/step-00000002")
    with pytest.raises(RequestError, match="no checkpoint of step 2 in other"):
        command("eval loss --run run --run other --step 2")
    assert not Path("run/evals.jsonl").exists()


def test_weights_that_are_not_whole_or_not_the_runs_are_refused(place):
    weights = checkpoint(2) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(RequestError, match=r"step-00000002 is not whole .*sha256"):
        command("eval loss --run run --step 2")
    settings = Path("run/tformer.yaml").read_text()
    line = next(line for line in settings.splitlines() if line.strip().startswith("id: "))
    Path("run/tformer.yaml").write_text(settings.replace(line, "  id: anothers"))
    with pytest.raises(RequestError, match="step-00000003 is a checkpoint of another run"):
        command("sample To --run run --step 3")
