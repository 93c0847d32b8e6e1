"""Question 4: the lens reads what is there, and a stream without skips is no sum that it could read."""

import pytest
import torch

from tests.answer.subjects import random_model, subject
from tests.answer.verdicts import refuted, verdicts
from tests.conftest import FAMILIES, tiny_model
from tformer.answer.experiment import QUICK, Seeds
from tformer.answer.parts import BOTH, NEITHER, NoMLPSkip, NoSkips
from tformer.answer.q4_skips import lens
from tformer.loss import cross_entropy
from tformer.model import Block
from tformer.watch import put_blocks

IS_SUM = "With skips the last x is the embedding plus all branch outputs"
READ_EARLY = "With skips, most of the answer can be read one block before the end"
READ_LATE = "Without skips it cannot: what is read comes with the last block"


def measured():
    return lens.show_lens(Seeds([lens.measure_lens(QUICK, 5, None)]))


def test_only_a_stream_with_skips_is_a_sum():
    ids = torch.randint(13, (2, 6))
    assert lens.sum_error(random_model(), ids) < 1e-6
    assert lens.sum_error(put_blocks(random_model(), NoMLPSkip), ids) > 0.1


def test_the_lens_at_the_end_reads_the_model_itself(model):
    ids = torch.randint(23, (4, 9))
    reading = lens.lens(model, ids[:, :-1], ids[:, 1:], 2)
    logits = model(ids[:, :-1]).detach()
    assert reading.losses[-1] == pytest.approx(
        float(cross_entropy(logits, ids[:, 1:])[:, 2:].mean()), rel=1e-5
    )
    assert reading.accuracies[-1] == pytest.approx(
        float((logits.argmax(-1) == ids[:, 1:])[:, 2:].float().mean())
    )


def test_the_lens_reads_a_stream_with_skips_alone(monkeypatch):
    assert verdicts(measured()) == {IS_SUM: True, READ_EARLY: True, READ_LATE: True}
    monkeypatch.setitem(lens.SKIP_VARIANTS, BOTH, NoSkips)
    monkeypatch.setitem(lens.SKIP_VARIANTS, NEITHER, Block)
    assert refuted(measured()) == {IS_SUM, READ_EARLY, READ_LATE}


@pytest.mark.parametrize("changes", FAMILIES[::3], ids=["gpt2", "nanochat-gqa"])
def test_a_run_of_either_family_is_examined_and_left_as_it_was(changes):
    model = tiny_model(**changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    finding = lens.show_lens(Seeds([lens.measure_lens(QUICK, 0, subject(model))]))
    assert verdicts(finding) == {IS_SUM: True}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
