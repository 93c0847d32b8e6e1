"""`tformer answer`: the frame around the experiments. Each room's own claims are tested beside it."""

import io
import json
import math
from dataclasses import dataclass

import pytest
import torch
from rich.console import Console

from tests.answer.verdicts import verdicts
from tests.conftest import save_run, tiny_model
from tests.show.test_page import check
from tformer import answer
from tformer.answer.claims import Claim, Finding
from tformer.answer.experiment import FULL, QUICK, Experiment
from tformer.answer.investigate import experiments_of, investigate
from tformer.answer.lab import accuracies, build, halves, load_subject, tiny, train
from tformer.figures import Bars, Heat, Lines, Numbers, Series, Table
from tformer.model import Transformer
from tformer.run.record import DataFacts, Record
from tformer.show import answer_page as report
from tformer.show.answer import show_evidence
from tformer.text.corpus import load_corpus
from tformer.text.data import Reversal
from tformer.text.tokenizer import Tokenizer

pytestmark = pytest.mark.drawn

QUESTION = answer.questions()[0]


@dataclass(frozen=True)
class Evidence:
    seed: int
    value: float


def measure(effort, seed, subject):
    return Evidence(seed, effort.pick(quick=1.0, full=2.0) + seed)


def show(measured):
    numbers = Numbers(tuple(e.value for e in measured), ".2f", "units")
    return Finding(
        "What was <done> | here.",
        (Table("Values | all", ("", "value"), (("row", numbers), ("|", "text"))),),
        (
            Lines(
                "Curve", "step", "loss", (Series("a", (1, 2), (1.0, 0.5)), Series("b", (1, 2), (1.0, 2.0)))
            ),
            Bars("Bars", "height", (("a", numbers),), ("chance", 0.5)),
            Heat("Maps", "query", "key", (("1.1", ((1.0, 0.0), (0.5, 0.5))),)),
        ),
        (
            Claim("this holds", numbers, "at least", 0.0, "It must."),
            Claim("this does not", numbers, "at most", 0.5, "It cannot."),
        ),
    )


PLAIN = Experiment("plain", "A plain one", measure, show, quick_seeds=2, full_seeds=4)
LEFT_OUT = Experiment("other", "Another", measure, show, skip=lambda subject: None if subject else "no run")


@pytest.fixture
def answered():
    return investigate(QUESTION, QUICK, seed=3, experiments=(PLAIN, LEFT_OUT))


# ---------------------------------------------------------------------------- running


def test_every_seed_is_measured_and_judged(answered):
    plain, left_out = answered.results
    assert [e["seed"] for e in plain.evidence] == [3000, 3001]
    assert verdicts(plain.finding) == {"this holds": True, "this does not": False}
    assert [c.claim for c in answered.claims] == ["this holds", "this does not"]
    assert not answered.passed
    assert left_out.skipped == "no run" and not left_out.evidence and not left_out.finding.claims


def test_the_effort_decides_how_many_seeds():
    done = investigate(QUESTION, FULL, experiments=(PLAIN,))
    assert [e["value"] for e in done.results[0].evidence] == [2.0, 3.0, 4.0, 5.0]


def test_progress_ends_where_it_said_it_would():
    seen = []
    investigate(QUESTION, QUICK, progress=lambda *values: seen.append(values), experiments=(PLAIN, LEFT_OUT))
    assert [done for _, done, _ in seen] == [0, 1, 2, 3, 4, 5]
    assert {total for _, _, total in seen} == {5}


def test_json_is_json_even_of_what_is_no_number():
    broken = Experiment("nan", "Broken", lambda b, s, r: Evidence(s, math.nan), show)
    values = investigate(QUESTION, QUICK, experiments=(broken,)).as_dict()
    text = json.dumps(values, allow_nan=False)
    assert not any(c["passed"] for c in json.loads(text)["claims"])
    assert set(values["claims"][0]) >= {"claim", "passed", "measured", "threshold"}
    assert values["evidence"]["nan"]["by_seed"][0]["value"] is None


@pytest.mark.parametrize("question", answer.questions(), ids=lambda q: q.slug)
def test_every_question_has_experiments_with_names_of_their_own(question):
    found = experiments_of(question)
    assert found
    assert len({e.slug for e in found}) == len(found)
    assert all(2 <= e.quick_seeds <= e.full_seeds for e in found), "full has no fewer seeds"


# ---------------------------------------------------------------------------- showing


def shown(answered, **options):
    console = Console(width=80, record=True, file=io.StringIO(), **options)
    show_evidence(answered, console)
    return console.export_text()


@pytest.mark.parametrize("terminal", [True, False])
def test_each_claim_ends_in_its_verdict(answered, terminal):
    text = shown(answered, force_terminal=terminal)
    assert "✓ this holds" in text and "✗ this does not" in text
    flowing = " ".join(text.split())
    assert "required ≥ 0" in flowing and "It must." in flowing
    assert "left out: no run" in text
    assert "1 of 2 claims hold" in text
    assert all(len(line) <= 80 for line in text.splitlines()) or not terminal


def test_html_says_it_all_and_stands_alone(answered):
    text = report.html_report([answered, answered], None)
    check(report.html_report([answered], None))
    assert text.count('class="claim"') == 2 and text.count('class="claim no"') == 2
    assert "What was &lt;done&gt; | here." in text
    assert text.count("<svg") == 6
    assert "Left out: no run" in text


def test_markdown_says_it_all(answered):
    text = report.markdown_report([answered], None)
    assert "**✓ this holds**" in text and "**✗ this does not**" in text
    assert "| \\| | text |" in text
    assert text.count("<svg") == 3
    inside = text.split("<svg", 1)[1].split("</svg>")[0]
    assert "\n\n" not in inside


# ---------------------------------------------------------------------------- the lab


def test_variants_start_from_the_same_draw():
    replaced = []
    one, two = build(tiny(vocab_size=8, n_ctx=5), 1), build(tiny(vocab_size=8, n_ctx=5), 1, replaced.append)
    assert replaced == [two]
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_training_in_the_lab_learns_and_is_repeatable():
    task = Reversal(3, 4, seed=1)
    runs = []
    for _ in range(2):
        model = build(tiny(vocab_size=4, n_ctx=task.n_ctx, d_model=32), 0)
        runs.append(train(model, task, 80, 0, batch_size=32))
    assert runs[0] == runs[1]
    first, second = halves(accuracies(model, task), task)
    assert second > 0.9
    assert first < 0.6


# ---------------------------------------------------------------------------- the run of --run


def test_a_subject_gives_ids_of_what_it_has(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=12, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    subject = load_subject(tmp_path)
    assert isinstance(subject.model, Transformer)
    assert subject.tokenizer is None and subject.task is None
    ids = subject.ids(3, 64)
    assert ids.shape == (3, 12) and ids.max() < 50
    assert torch.equal(ids, subject.ids(3, 64))
    assert not torch.equal(ids, subject.ids(3, 64, seed=1))


def test_a_subject_reads_the_text_of_its_run_only_as_it_was(tmp_path):
    """A text that has changed since is not what the run was trained on; our prose has other letters."""
    text = tmp_path / "text.txt"
    text.write_text("abcd" * 90 + "dcba" * 10)
    tokenizer = Tokenizer.train("char", ["abcd"], 0)
    facts = DataFacts(source=[str(text)], sha256=load_corpus([str(text)]).sha256)
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    run = save_run(tmp_path / "run", model, tokenizer, record=Record(data=facts))
    assert tokenizer.decode(load_subject(run).text_ids.tolist()) == "dcba" * 10
    text.write_text("dcba" * 100)
    assert load_subject(run).text_ids is None
