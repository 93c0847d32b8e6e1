"""Question 2, cost: counted bytes are arithmetic; each claim fails where its mechanism is broken."""

from dataclasses import replace
from functools import cache

import torch

from tests.answer.verdicts import refuted, shown, verdicts
from tformer.answer.experiment import QUICK
from tformer.answer.q2_qkv import cost, scores
from tformer.answer.q2_qkv.cost import kept_bytes

SQUARE = "A matrix of weights costs memory that grows as n² (the scaled dot's exponent)"
LINEAR = "The linear kernel needs none: its sums formed first, memory grows as n (exponent)"
KEEPS_MORE = "Additive keeps many times what the scaled dot keeps, 512 positions (ratio)"
LONGER = "Additive takes longer than the scaled dot, 512 positions (ratio)"

# ---------------------------------------------------------------------------- cost


@cache
def cost_evidence():
    return cost.measure_cost(QUICK, 0, None)


def test_cost_holds_here_and_is_arithmetic():
    evidence = cost_evidence()
    holds = dict.fromkeys((SQUARE, LINEAR, KEEPS_MORE, LONGER), True)
    assert verdicts(shown(cost.show_cost, evidence)) == holds
    n, d = evidence.lengths[-1], evidence.d_head
    assert evidence.kept["scaled dot"][-1] == 4 * (3 * n * d + n * n) + n * n  # q, k, v, weights; ~mask
    assert evidence.kept[cost.SUMS][-1] >= 4 * n * d * d


def test_a_matrix_for_sums_and_no_matrix_for_the_dot_refute_the_growth():
    evidence = cost_evidence()
    kept = evidence.kept | {
        cost.SUMS: evidence.kept["linear kernel"],
        "scaled dot": evidence.kept[cost.FUSED],
    }
    assert refuted(shown(cost.show_cost, replace(evidence, kept=kept))) >= {SQUARE, LINEAR}


def test_an_additive_that_is_a_dot_product_costs_no_more(monkeypatch):
    class Dot(scores.Additive):
        def forward(self, q, k, mask):
            return scores.scaled_dot(q, k, mask)

    monkeypatch.setattr(cost, "Additive", Dot)
    assert refuted(shown(cost.show_cost, cost.measure_cost(QUICK, 0, None))) == {KEEPS_MORE, LONGER}


# ---------------------------------------------------------------------------- bytes kept


def test_kept_bytes_are_those_of_the_tensors_that_backward_needs():
    weight = torch.nn.Parameter(torch.ones(5, 7))
    x = torch.ones(3, 5, requires_grad=True)

    def forward():
        return torch.tanh(x @ weight)  # keeps x, the weight and its own output

    assert kept_bytes(forward, [weight]) == 4 * (3 * 5 + 3 * 7)
    assert kept_bytes(forward) == 4 * (3 * 5 + 3 * 7 + 5 * 7)


def test_kept_bytes_count_a_storage_once():
    x = torch.ones(4, 6, requires_grad=True)
    assert kept_bytes(lambda: (x.view(24) * x.flatten()).sum() + (x * x).sum()) == 4 * 24
