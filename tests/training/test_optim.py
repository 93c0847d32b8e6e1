"""The schedule against tables, Muon against its formula and torch's, AdamW against torch's."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import FAMILIES, tiny_model
from tformer.config import TrainConfig
from tformer.errors import TformerError
from tformer.training.optim import NEWTON_SCHULZ, Muon, Optimizers, lr_at, orthogonalise

BOTH = pytest.mark.parametrize("optimizer", ["adamw", "muon"])


def config(**changes) -> TrainConfig:
    return TrainConfig.model_validate({"lr": 1.0, "warmup_steps": 0, "steps": 8, "lr_final": 0.0} | changes)


# ---------------------------------------------------------------------------- the schedule

HALF = math.sqrt(0.5)
TABLES = {
    "warm-up, then half a cosine to a tenth": (
        {"warmup_steps": 3, "steps": 7, "lr_final": 0.1, "decay_fraction": 1.0},
        [0.25, 0.5, 0.75, 1.0, 0.1 + 0.9 * (1 + HALF) / 2, 0.55, 0.1 + 0.9 * (1 - HALF) / 2],
    ),
    "no warm-up": ({"steps": 4}, [1.0, (1 + HALF) / 2, 0.5, (1 - HALF) / 2]),
    "a line over the last half": (
        {"decay": "linear", "decay_fraction": 0.5, "lr_final": 0.2},
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4],
    ),
    "warm-up, plateau, line": (
        {"decay": "linear", "decay_fraction": 0.25, "warmup_steps": 1},
        [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5],
    ),
    "no decay": ({"decay_fraction": 0.0, "warmup_steps": 1}, [0.5, 1, 1, 1, 1, 1, 1, 1]),
    "warm-up longer than the run": ({"warmup_steps": 9}, [n / 10 for n in range(1, 9)]),
    "decay that would begin inside the warm-up begins after it": (
        {"steps": 4, "warmup_steps": 2, "decay": "linear", "decay_fraction": 0.75},
        [1 / 3, 2 / 3, 1.0, 0.5],
    ),
}


@pytest.mark.parametrize(("settings_", "table"), TABLES.values(), ids=list(TABLES))
def test_learning_rates_are_those_of_the_table(settings_, table):
    found = [lr_at(step, config(**settings_)) for step in range(len(table))]
    assert found == pytest.approx(table, abs=1e-12)


def test_the_schedule_is_nanogpts():
    train = config(lr=6e-4, lr_final=0.1, warmup_steps=20, steps=300)

    def nano_gpt(it, learning_rate=6e-4, min_lr=6e-5, warmup_iters=20, lr_decay_iters=300):
        if it < warmup_iters:
            return learning_rate * (it + 1) / (warmup_iters + 1)
        ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
        return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)

    assert [lr_at(i, train) for i in range(300)] == pytest.approx([nano_gpt(i) for i in range(300)])


@given(
    steps=st.integers(1, 300),
    warmup=st.integers(0, 300),
    fraction=st.floats(0, 1),
    final=st.floats(0, 1),
    decay=st.sampled_from(["cosine", "linear"]),
    lr=st.floats(1e-6, 1.0),
)
def test_the_learning_rate_rises_then_falls_without_a_jump(steps, warmup, fraction, final, decay, lr):
    train = config(
        steps=steps, warmup_steps=warmup, decay_fraction=fraction, lr_final=final, decay=decay, lr=lr
    )
    rates = [lr_at(step, train) for step in range(steps)]
    # The steepest step: one of the warm-up, or of the decay (half a cosine is π/2 times a line).
    decaying = min(steps - warmup, round(fraction * steps))
    steepest = max(1 / (warmup + 1), math.pi / 2 / max(1, decaying))
    top = min(warmup, steps - 1)
    assert all(0 < rate <= lr * (1 + 1e-12) or final == 0 for rate in rates)
    assert all(rate >= final * lr * (1 - 1e-12) for rate in rates[warmup:])
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in pairwise(rates[top:]))
    assert all(abs(a - b) <= lr * steepest * (1 + 1e-9) for a, b in pairwise(rates))


# ---------------------------------------------------------------------------- Muon


def matrix(rows: int, columns: int, seed: int, least: float = 0.1) -> tuple[torch.Tensor, ...]:
    """U, V of a random matrix U S Vᵀ and the matrix, its singular values between `least` and 1."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(noise, full_matrices=False)
    s = least + (1 - least) * torch.rand(rows, generator=generator, dtype=torch.float64)
    return u, vh, u @ s.diag() @ vh


def formula(x: torch.Tensor) -> torch.Tensor:
    """U p(S / √(1.02 ‖S²‖)) Vᵀ in float64, p the polynomials of the rounds one after another: no products."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / max(math.sqrt(1.02 * (s**4).sum().sqrt().item()), 1e-7)
    for a, b, c in NEWTON_SCHULZ:
        s = a * s + b * s**3 + c * s**5
    return u @ s.diag() @ vh


def test_each_round_is_the_best_of_its_degree_and_all_bring_a_hundredth_near_to_one():
    """Chebyshev: that odd polynomial of degree 5 whose error has one size, in turns, at four points."""
    low, high = 0.01, 1.0
    for a, b, c in NEWTON_SCHULZ:
        root = math.sqrt(9 * b * b - 20 * a * c)
        extremes = [math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))]
        errors = [a * s + b * s**3 + c * s**5 - 1 for s in (low, *extremes, high)]
        assert low < extremes[0] < extremes[1] < high
        assert errors == pytest.approx([errors[0] * sign for sign in (1, -1, 1, -1)], abs=2e-3)
        assert errors[0] < 0
        low, high = 1 + errors[0], 1 - errors[0]
    assert (low, high) == pytest.approx((0.73, 1.27), abs=0.005)
    assert math.prod(a for a, _, _ in NEWTON_SCHULZ) == pytest.approx(78, abs=1)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 8), extra=st.integers(0, 8), seed=st.integers(0, 2**31))
def test_orthogonalising_keeps_the_singular_vectors_and_levels_the_values(rows, extra, seed):
    u, vh, x = matrix(rows, rows + extra, seed)
    inside = u.T @ orthogonalise(x[None], torch.float64)[0] @ vh.T  # diagonal if the vectors are kept
    values = inside.diagonal()
    assert torch.allclose(inside, values.diag(), atol=1e-10)
    assert values.min() > 0.72 and values.max() < 1.28


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonalise_is_its_formula_matrix_by_matrix(dtype):
    stack = torch.stack([matrix(5, 9, seed)[2] * 10.0**seed for seed in range(4)])
    found = orthogonalise(stack.to(dtype), dtype)
    expected = torch.stack([formula(x) for x in stack])
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, atol=1e-4 if dtype == torch.float32 else 1e-12)


def test_orthogonalising_zero_gives_zero():
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def gradients(shapes, steps: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(steps)]


def stepped(optimizer, parameters, all_gradients, *lr: float) -> list[torch.Tensor]:
    for one in all_gradients:
        for p, gradient in zip(parameters, one, strict=True):
            p.grad = gradient.clone()
        optimizer.step(*lr)
    return [p.detach().clone() for p in parameters]


SHAPES = [(6, 10), (10, 6), (8, 8), (6, 10), (1, 5)]
LR, HYPER = 0.02, {"momentum": 0.9, "weight_decay": 0.3}


def parameters_of(shapes) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("steps", [1, 6])
def test_muon_is_torchs_but_for_its_polynomials(steps, monkeypatch):
    theirs_of = pytest.importorskip("torch.optim._muon")

    def orthogonal(matrix, *args):
        tall = matrix.shape[0] > matrix.shape[1]
        found = orthogonalise((matrix.T if tall else matrix)[None])[0]
        return found.T if tall else found

    monkeypatch.setattr(theirs_of, "_zeropower_via_newtonschulz", orthogonal)
    ours, theirs, all_gradients = parameters_of(SHAPES), parameters_of(SHAPES), gradients(SHAPES, steps)
    found = stepped(Muon(ours, **HYPER), ours, all_gradients, LR)
    oracle = theirs_of.Muon(theirs, lr=LR, nesterov=True, adjust_lr_fn="match_rms_adamw", **HYPER)
    expected = stepped(oracle, theirs, all_gradients)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6 * steps)


@pytest.mark.parametrize("steps", [1, 6])
def test_muon_in_float32_is_its_formula(steps):
    ours, all_gradients = parameters_of(SHAPES), gradients(SHAPES, steps)
    found = stepped(Muon(ours, **HYPER), ours, all_gradients, LR)
    for i, shape in enumerate(SHAPES):
        weights, momentum = parameters_of(SHAPES)[i].detach().double(), torch.zeros(shape).double()
        for one in all_gradients:
            g = one[i].double()
            momentum = 0.9 * momentum + 0.1 * g
            update = formula(0.1 * g + 0.9 * momentum)
            weights = weights * (1 - 0.02 * 0.3) - 0.02 * 0.2 * math.sqrt(max(shape)) * update
        assert torch.allclose(found[i].double(), weights, atol=1e-5 * steps)


def test_queries_keys_and_values_are_orthogonalised_each_on_its_own():
    rows = (8, 4, 4)  # grouped queries: shapes that differ
    whole = [torch.nn.Parameter(torch.cat([p.detach() for p in parameters_of([(r, 6) for r in rows])]))]
    apart = parameters_of([(r, 6) for r in rows])
    all_gradients = gradients([(r, 6) for r in rows], 4)
    joined = [[torch.cat(one)] for one in all_gradients]
    (found,) = stepped(Muon(whole, parts={whole[0]: rows}, **HYPER), whole, joined, LR)
    expected = torch.cat(stepped(Muon(apart, **HYPER), apart, all_gradients, LR))
    assert torch.allclose(found, expected, atol=1e-6)
    together = [torch.nn.Parameter(torch.cat([p.detach() for p in parameters_of([(r, 6) for r in rows])]))]
    (other,) = stepped(Muon(together, **HYPER), together, joined, LR)
    assert not torch.allclose(other, expected, atol=1e-3)


def test_the_model_gives_muon_its_queries_keys_and_values_apart():
    model = tiny_model(family="nanochat", n_heads=4, n_kv_heads=2)
    optimizers = Optimizers(model, config(optimizer="muon", weight_decay=0.0))
    before = model.blocks[0].attn.qkv.weight.detach().clone()
    set_gradients(model, 0)
    gradient = model.blocks[0].attn.qkv.weight.grad.clone()
    optimizers.step(0.01)
    update = (before - model.blocks[0].attn.qkv.weight.detach()) / 0.01
    for part, g in zip(update.split((16, 8, 8)), gradient.split((16, 8, 8)), strict=True):
        assert torch.allclose(part, (0.2 * 4 * formula(g)).float(), atol=2e-3)


# ---------------------------------------------------------------------------- the groups


def set_gradients(model: torch.nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


@BOTH
def test_every_parameter_belongs_to_exactly_one_group(model, optimizer):
    grouped = [p for o in Optimizers(model, config(optimizer=optimizer)).all for p in o.params]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(model.parameters())


@BOTH
def test_weight_decay_acts_on_matrices_and_embeddings_alone(model, optimizer):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = Optimizers(model, config(optimizer=optimizer, weight_decay=0.5))
    set_gradients(model, 0, scale=0.0)  # then decay is all that moves a weight
    optimizers.step(0.1)
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim >= 2 else 1.0
        assert torch.allclose(parameter, before[name] * factor, atol=1e-7), name


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest(model):
    optimizers = Optimizers(model, config(optimizer="muon"))
    set_gradients(model, 0)
    optimizers.step(0.1)
    by_muon = {name.rpartition("/")[0] for name in optimizers.state_tensors() if name.endswith("/momentum")}
    matrices = {n for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
    assert by_muon == matrices


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_steps_equal_torchs_and_those_of_its_fused_kernel_to_the_bit(fused):
    ours, theirs = tiny_model(family="gpt2"), tiny_model(family="gpt2")
    train = config(weight_decay=0.2, beta1=0.8, beta2=0.95, eps=1e-6)
    optimizers = Optimizers(ours, train)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.2},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    oracle = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6, foreach=False, fused=fused)
    for step, lr in enumerate([0.1, 0.03, 0.05]):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizers.step(lr)
        for group in oracle.param_groups:
            group["lr"] = lr
        oracle.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) if fused else torch.allclose(a, b, atol=1e-6)


@BOTH
def test_a_step_clears_the_gradients(optimizer):
    model = tiny_model()
    set_gradients(model, 0)
    Optimizers(model, config(optimizer=optimizer)).step(0.1)
    assert all(p.grad is None for p in model.parameters())


@BOTH
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_loaded_optimizer_state_gives_the_next_step_to_the_bit(family, optimizer):
    train = config(optimizer=optimizer, weight_decay=0.1)
    first = tiny_model(**family)
    optimizers = Optimizers(first, train)
    for step in range(3):
        set_gradients(first, step)
        optimizers.step(0.05)
    second = copy.deepcopy(first)
    resumed = Optimizers(second, train)
    resumed.load_state_tensors({k: t.clone() for k, t in optimizers.state_tensors().items()})
    for model, its in ((first, optimizers), (second, resumed)):
        set_gradients(model, 3)
        its.step(0.02)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    states = optimizers.state_tensors(), resumed.state_tensors()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_state_of_a_parameter_that_is_not_there_is_refused():
    with pytest.raises(TformerError, match="nobody"):
        Optimizers(tiny_model(), config()).load_state_tensors({"nobody.weight/exp_avg": torch.zeros(1)})
