"""Question 5: one forward gives the losses of all prefixes, with the mask alone."""

import pytest
import torch

from tests.answer.subjects import subject
from tests.answer.verdicts import refuted, verdicts
from tests.conftest import FAMILIES, tiny_model
from tformer import model as room
from tformer.answer.experiment import QUICK, Seeds
from tformer.answer.parts import unmasked
from tformer.answer.q5_mask import prefixes
from tformer.watch import put_formula

LOSSES = "One forward of {} positions gives the losses of all {} prefixes"
GRADIENT = "The gradient of the one is the sum of the others'"
TIME = "{} forwards of the prefixes take many times as long"


def measured():
    return prefixes.show_prefixes(Seeds([prefixes.measure_prefixes(QUICK, 5, None)]))


def test_prefix_losses_see_no_future_even_in_a_model_with_a_leak():
    model = put_formula(tiny_model(), unmasked)
    ids = torch.randint(23, (3, 8))
    changed = torch.cat((ids[:, :5], (ids[:, 5:] + 1) % 23), dim=1)
    one, two = (prefixes.prefix_losses(model, x[:, :-1], x[:, 1:]) for x in (ids, changed))
    assert torch.equal(one[:, :4], two[:, :4])


def test_one_forward_is_all_prefixes_with_the_mask_alone(monkeypatch):
    claims = {LOSSES.format(32, 32), GRADIENT, TIME.format(32)}
    assert verdicts(measured()) == dict.fromkeys(claims, True)
    monkeypatch.setattr(room, "causal_mask", lambda n, m, device=None: torch.ones(n, m, dtype=torch.bool))
    monkeypatch.setattr(prefixes, "prefix_losses", lambda model, inputs, targets: torch.zeros(inputs.shape))
    assert refuted(measured()) == claims


@pytest.mark.parametrize("changes", FAMILIES[::3], ids=["gpt2", "nanochat-gqa"])
def test_a_run_of_either_family_is_examined(changes):
    evidence = prefixes.measure_prefixes(QUICK, 0, subject(tiny_model(**changes)))
    found = verdicts(prefixes.show_prefixes(Seeds([evidence])))
    n = evidence.positions
    assert found[LOSSES.format(n, n)] and found[GRADIENT]
