"""What a run keeps of how it went: it moves no weight, comes back on resume, and costs a small share."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from tests.show.test_page import check
from tformer.commands.train_choices import check_minutes, default_preset, settle_steps
from tformer.config import Config, Layer, merge, preset_layer
from tformer.errors import RequestError
from tformer.evals.loss import octaves
from tformer.run.checkpoint import open_run
from tformer.run.data import prepare_data
from tformer.run.record import Record, record_of
from tformer.show.progress import TrainingProgress
from tformer.text.tokenizer import Tokenizer
from tformer.training import noted as journal
from tformer.training.fit import Report, State
from tformer.training.noted import SHARE, Pictures, draw, draw_last, loss_by_position, sampled_line
from tformer.training.session import decide, finish, open_session, train_session

CPU = torch.device("cpu")
TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 10
HOOKS = [sampled_line, loss_by_position]


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("tformer.training.session.loss_svg", lambda metrics, title: "<svg/>")


@pytest.fixture
def pictures():
    """Asks for real ones."""


def config(**sections) -> Config:
    small = {"n_ctx": 8, "n_layers": 1, "n_heads": 2, "d_model": 8, "dropout": 0.2}
    steps = {
        "steps": 8,
        "batch_size": 2,
        "eval_every": 3,
        "checkpoint_every": 2,
        "log_every": 1,
        "precision": "fp32",
        "compile": "off",
    }
    return Config.model_validate(
        {"model": small, "data": sections.pop("data", {}), "train": steps | sections}
    )


def trained(folder: Path, wanted: Config, hooks, until: int = 0, source="text"):
    """Train, or go on, to the end or until a step."""
    (folder.parent / "text.txt").write_text(TEXT)
    sources = [str(folder.parent / "text.txt")] if source == "text" else [source]
    with open_run(folder) as run:
        own = Tokenizer.load(folder) if (folder / "tokenizer.json").exists() else None
        data = prepare_data(wanted, sources, own, run.record().data.sha256)
        session = open_session(run, decide(wanted, CPU, data.tokenizer.vocab_size), data, CPU)
        session.at_evaluation += hooks
        for _ in train_session(session, stop=lambda: session.state.step == until):
            pass
    return session


def lines(folder: Path, *without: str):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", *without)} for line in found]


# ---------------------------------------------------------------------------- at an evaluation


def test_a_sampled_line_moves_no_weight_and_no_number(tmp_path):
    for name, hooks in (("with", HOOKS), ("without", [])):
        (tmp_path / name).mkdir()
        trained(tmp_path / name / "run", config(), hooks)
    one, other = (tmp_path / name / "run" for name in ("with", "without"))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert [line["step"] for line in lines(one) if "sample" in line] == [3, 6, 8]
    assert lines(one, "sample", "by_position") == lines(other)


def test_a_resumed_run_samples_the_very_same_lines(tmp_path):
    trained(tmp_path / "whole", config(), HOOKS)
    trained(tmp_path / "parts", config(), HOOKS, until=5)
    torch.rand(9)
    trained(tmp_path / "parts", config(), HOOKS)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_sampling_leaves_torchs_random_numbers_alone_and_depends_on_seed_and_step(tmp_path):
    session = trained(tmp_path / "run", config(), [])
    before = torch.random.get_rng_state()
    first = sampled_line(session)["sample"]
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    assert sampled_line(session)["sample"] == first
    assert 0 < len(first) <= journal.CHARACTERS
    session.state = State(step=7)
    assert sampled_line(session)["sample"] != first
    session.state, session.config = State(step=8), session.config.updated("train", seed=1)
    assert sampled_line(session)["sample"] != first


def test_on_reversal_the_line_is_a_sequence_and_how_the_model_goes_on(tmp_path):
    wanted = merge(
        [
            preset_layer("reversal"),
            Layer(
                "",
                {
                    "data": {"reversal_length": 4},
                    "model": {"n_ctx": 7},
                    "train": {"steps": 1, "batch_size": 2},
                },
            ),
        ]
    )
    session = trained(tmp_path / "run", wanted, HOOKS, source="reversal")
    half, arrow, rest = lines(tmp_path / "run")[-1]["sample"].split(" ")
    assert (len(half), arrow, len(rest)) == (4, "→", 4)
    ids = session.data.tokenizer.encode(half)
    for letter in rest:  # the oracle: a loop over whole forward passes
        with torch.inference_mode():
            ids.append(int(session.model(torch.tensor([ids]))[0, -1].argmax()))
        assert session.data.tokenizer.text_of(ids[-1]) == letter


def test_without_a_validation_part_lines_are_sampled_all_the_same(tmp_path):
    trained(tmp_path / "run", config(data={"val_fraction": 0.0}, log_every=5), HOOKS)
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found if "sample" in line] == [3, 6, 8]
    assert not any("val_loss" in line or "by_position" in line for line in found)


def test_the_loss_by_position_adds_up_to_the_validation_loss(tmp_path):
    session = trained(tmp_path / "run", config(), HOOKS)
    spans = octaves(session.judged.by_position)
    assert [(a, b) for a, b, _ in spans] == [(1, 1), (2, 2), (3, 4), (5, 8)]
    n = len(session.data.val_ids) - 1
    counts = [sum(n // 8 + (i < n % 8) for i in range(a - 1, b)) for a, b, _ in spans]
    whole = [session.judged.by_position[i] * (n // 8 + (i < n % 8)) for i in range(8)]
    assert sum(whole) / n == pytest.approx(session.judged.loss)
    assert sum(counts) == n
    assert lines(tmp_path / "run")[-1]["by_position"] == [[b, round(mean, 4)] for _, b, mean in spans]


# ---------------------------------------------------------------------------- pictures


def test_pictures_take_a_small_share_of_the_time_and_come_again_and_again(monkeypatch):
    now, spent = [0.0], [0.0]

    def drawn(session):
        now[0] += 3.0
        spent[0] += 3.0

    monkeypatch.setattr(journal, "draw", drawn)
    pictures = Pictures(None, clock=lambda: now[0])
    times = []
    while now[0] < 5000:
        now[0] += 0.5  # a step
        if pictures.refresh():
            times.append(now[0])
        assert spent[0] <= SHARE * now[0] + 3.0
    assert times[0] < 60, "the first one comes before a minute has passed"
    assert len(times) > 0.8 * SHARE * 5000 / 3.0, "and the share is used"


def test_the_page_shows_the_run_at_every_moment(tmp_path, pictures):
    session = trained(tmp_path / "run", config(eval_every=4), HOOKS, until=5)
    draw(session)
    page = (tmp_path / "run" / "report.html").read_text()
    check(page)
    assert "not at its end yet" in page and "after step 5" in page
    session = trained(tmp_path / "run", config(eval_every=4), HOOKS)
    result = finish(session)
    draw_last(session)
    page = (tmp_path / "run" / "report.html").read_text()
    check(page)
    assert "not at its end yet" not in page and "after step" not in page
    assert f"validation at step {result['kept_step']}" in page and "What it wrote" in page
    assert "Is this loss normal? not known: the run names no preset." in page


def test_the_last_page_has_the_heads_of_the_weights_that_are_kept(tmp_path, pictures, monkeypatch):
    losses = iter([(2.0, 1.0), (3.0, 1.5)])
    monkeypatch.setattr("tformer.training.session.Session.validate", lambda self: next(losses))
    session = trained(tmp_path / "run", config(eval_every=4), [sampled_line])
    assert finish(session)["kept_step"] == 4
    seen = []
    monkeypatch.setattr(journal, "run_text", lambda folder, model, step=None: seen.append(model) or "")
    draw_last(session)
    assert seen[0] is not session.model
    assert any(
        not torch.equal(a, b) for a, b in zip(seen[0].parameters(), session.model.parameters(), strict=True)
    )


# ---------------------------------------------------------------------------- what is shown


def shown(text: str, terminal: bool) -> str:
    progress = TrainingProgress(10, 0)
    stream = io.StringIO()
    progress.console = Console(file=stream, force_terminal=terminal, width=60, soft_wrap=not terminal)
    report = Report(State(step=5), 1.0, 0.1, 1.0, 2.0, 3.0, noted={"sample": text})
    progress.update(report)
    return stream.getvalue()


def test_a_sampled_line_is_one_line_that_cannot_move_the_cursor():
    for terminal in (False, True):
        out = shown("To be,\n\nor \x1b[2Jnot" + " and on" * 20, terminal)
        first, *rest = out.splitlines()
        assert "wrote: " in first and "To be, / or \ufffd[2Jnot" in first
        assert "\x1b[2J" not in out
        assert len(rest) == (0 if terminal else 1), "then the step's own line, where there is no live one"
    assert shown("and on" * 30, False).count("and on") == 30
    assert shown("", False).count("\n") == 2


# ---------------------------------------------------------------------------- what is chosen


def test_on_a_gpu_shakespeare_takes_the_larger_preset_and_says_so(capsys):
    cuda = torch.device("cuda")
    assert default_preset(["shakespeare"], cuda, on_gpu=True) == "shakespeare-gpu"
    assert "--preset shakespeare" in capsys.readouterr().err
    assert default_preset(["shakespeare"], cuda, on_gpu=False) == "shakespeare"
    assert default_preset(["shakespeare"], CPU, on_gpu=True) == "shakespeare"
    assert default_preset(["my.txt"], cuda, on_gpu=True) == "text"
    assert default_preset(["shakespeare", "my.txt"], cuda, on_gpu=True) == "text"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({}, "shakespeare-gpu"), ({"preset": "shakespeare"}, "shakespeare"), ({"resume": True}, "shakespeare")],
)
def test_what_else_is_asked_for_goes_before_the_gpus_preset(flags, expected, monkeypatch, tmp_path):
    """Up to the configuration: there is no GPU to go on with."""
    from tformer.commands import train as command

    folder = tmp_path / "run"
    if flags.get("resume"):
        folder.mkdir()
        recorded = merge([preset_layer("shakespeare")]).model_dump() | {"record": {"preset": "shakespeare"}}
        (folder / "tformer.yaml").write_text(json.dumps(recorded))
        (folder / "tokenizer.json").write_text(Tokenizer.train("char", ["ab"]).to_json())
    configured = []

    def stop(config, *rest):
        configured.append(config)
        raise RequestError("far enough")

    monkeypatch.setattr("tformer.device.resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("tformer.run.data.prepare_data", stop)
    arguments = {"preset": None, "resume": False} | flags
    with pytest.raises(RequestError, match="far enough"):
        command.command(["shakespeare"], device="auto", out=folder, json=False, **arguments)
    assert configured == [merge([preset_layer(expected)])]


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_no_time_is_no_budget(minutes):
    with pytest.raises(RequestError, match="above 0"):
        check_minutes(minutes, Layer("", {}))


def test_steps_and_minutes_contradict_each_other():
    with pytest.raises(RequestError, match="both"):
        check_minutes(5.0, Layer("", {"train": {"steps": 5}}))
    check_minutes(5.0, Layer("", {"train": {"lr": 0.1}}))
    check_minutes(None, Layer("", {"train": {"steps": 5}}))


BUDGET = {
    "minutes": 5.0,
    "steps": 77,
    "seconds_before": 1.0,
    "seconds_per_step": 3.0,
    "seconds_per_evaluation": 1.0,
}


def test_a_resumed_run_keeps_the_steps_that_its_minutes_gave_it():
    session = SimpleNamespace(record=record_of({"record": {"budget": BUDGET}}, "it"), config=config(steps=77))
    settle_steps(session, None, resumed=True)
    settle_steps(session, (5.0, 0.0), resumed=True)
    assert session.config.train.steps == 77
    with pytest.raises(RequestError, match=r"5 minutes, and has 77 steps"):
        settle_steps(session, (6.0, 0.0), resumed=True)
    session.record = Record()
    with pytest.raises(RequestError, match="given steps"):
        settle_steps(session, (6.0, 0.0), resumed=True)
