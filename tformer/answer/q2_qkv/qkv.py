"""Evidence for question 2: the shapes of Q, K and V, traced through a real forward pass."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tformer.answer.claims import Budget, Claim, Finding, largest
from tformer.answer.lab import Subject, build, tiny
from tformer.answer.trace import Call, cached_calls_of, calls_of, grown_vocabulary
from tformer.figures import Numbers, Table
from tformer.model import Transformer, attention

# ---------------------------------------------------------------------------- shapes

MORE_TOKENS = 7
AXES = {  # of each traced tensor
    "Q": ("batch", "head", "query", "d_head"),
    "K": ("batch", "head", "key", "d_head"),
    "V": ("batch", "head", "key", "d_head"),
    "weights": ("batch", "head", "query", "key"),
    "output": ("batch", "head", "query", "d_head"),
}
COLUMNS = ("batch", "head", "query", "key", "d_head")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Trace:
    """The shapes of one model's attention, and what they follow."""

    model: str
    layers: int
    n_query_heads: int
    different_key_heads: int  # of the traced keys; fewer than heads: each serves several
    whole: Shapes  # of layer 1, all positions at once
    step: Shapes  # of layer 1, the last position with a KV cache
    cached: Shapes  # keys and values as the cache holds them
    calls: int
    irregular: int  # of these calls: widths of Q and K, or lengths of K and V, that differ
    follow_vocabulary: int  # axes, of all layers, that change with the vocabulary
    against_length: int  # axes that should change with the number of positions and do not, or the reverse
    moved: float  # largest change in Q, K and V as the vocabulary grows
    step_difference: float  # of the step's output from the last row of the whole, of its largest number


@dataclass(frozen=True)
class ShapeEvidence:
    """Traces, and which shapes `attention` takes."""

    traces: tuple[Trace, ...]
    combinations: int  # of widths and lengths tried
    possible: int
    wrong: int  # possible against the rule, or the reverse
    d_value: int  # a width of V other than d_head
    wide_difference: float  # attention of V · P from (attention of V) · P, of its largest number


def measure_shapes(budget: Budget, seed: int, subject: Subject | None) -> ShapeEvidence:
    """Trace the run, or two fresh models: one like GPT-2, one with fewer key heads than query heads."""
    n = budget.pick(quick=12, full=64)
    if subject:
        models = {subject.folder.name: subject.model}
        inputs = subject.ids(2, n, seed)
    else:
        grouped = {"family": "nanochat", "n_kv_heads": 2}
        kinds: dict[str, dict[str, Any]] = {"gpt2, 4 heads": {}, "nanochat, 4 heads on 2 key heads": grouped}
        models = {name: build(tiny(vocab_size=29, n_ctx=n, **kind), seed) for name, kind in kinds.items()}
        inputs = torch.randint(29, (2, n), generator=torch.Generator().manual_seed(seed))
    traces = tuple(trace(model, inputs, name) for name, model in models.items())
    call = calls_of(next(iter(models.values())), inputs)[0]
    tried, possible, wrong = combinations()
    d_value = call.v.shape[-1] + 3
    p = torch.randn(call.v.shape[-1], d_value, generator=torch.Generator().manual_seed(seed))
    wide, narrow = (attention(call.q, call.k, v, call.mask)[0] for v in (call.v @ p, call.v))
    assert wide.shape[-1] == d_value
    return ShapeEvidence(traces, tried, possible, wrong, d_value, relative(wide, narrow @ p))


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest number expected."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def shapes_of(call: Call) -> Shapes:
    """Sizes along the axes that `AXES` names; the weights are those of `attention`."""
    weights = attention(call.q, call.k, call.v, call.mask)[1]
    tensors = (call.q, call.k, call.v, weights, call.output)
    return {name: tuple(t.shape) for name, t in zip(AXES, tensors, strict=True)}


def is_regular(shapes: Shapes) -> bool:
    """Q and K share their width, K and V their positions; weights and output are what follows."""
    (batch, heads, query, width), (_, _, key, _) = shapes["Q"], shapes["K"]
    return (
        shapes["K"] == (batch, heads, key, width)
        and shapes["V"][:3] == (batch, heads, key)
        and shapes["weights"] == (batch, heads, query, key)
        and shapes["output"] == (batch, heads, query, shapes["V"][3])
    )


def changed(some: list[Shapes], others: list[Shapes]) -> list[tuple[str, str, bool]]:
    """Each axis of each tensor of each layer, and whether its size differs."""
    return [
        (name, axis, a != b)
        for one, other in zip(some, others, strict=True)
        for name, axes in AXES.items()
        for axis, a, b in zip(axes, one[name], other[name], strict=True)
    ]


def trace(model: Transformer, ids: Tensor, name: str) -> Trace:
    """Forward `ids` whole, with more tokens in the vocabulary, with fewer positions, and step by step."""
    n = ids.shape[1]
    whole = calls_of(model, ids)
    with grown_vocabulary(model, MORE_TOKENS):
        grown = calls_of(model, ids)
    fewer = calls_of(model, ids[:, : n - max(1, n // 3)])
    step, stored = cached_calls_of(model, ids)
    shapes = [shapes_of(call) for call in whole]
    every = [shapes_of(call) for call in (*whole, *grown, *fewer, *step)]
    by_vocabulary = changed(shapes, [shapes_of(call) for call in grown])
    by_length = changed(shapes, [shapes_of(call) for call in fewer])
    keys = whole[0].k
    return Trace(
        model=name,
        layers=len(whole),
        n_query_heads=keys.shape[1],
        different_key_heads=len(torch.unique(keys.transpose(0, 1).flatten(1), dim=0)),
        whole=shapes[0],
        step=shapes_of(step[0]),
        cached={"K": tuple(stored[0][0].shape), "V": tuple(stored[0][1].shape)},
        calls=len(every),
        irregular=sum(not is_regular(s) for s in every),
        follow_vocabulary=sum(differs for _, _, differs in by_vocabulary),
        against_length=sum(differs != (axis in ("query", "key")) for _, axis, differs in by_length),
        moved=largest(
            float((getattr(a, t) - getattr(b, t)).abs().max())
            for a, b in zip(whole, grown, strict=True)
            for t in "qkv"
        ),
        step_difference=largest(
            relative(s.output, w.output[:, :, -1:]) for s, w in zip(step, whole, strict=True)
        ),
    )


def combinations() -> tuple[int, int, int]:
    """How many shapes were tried on `attention`, were possible, and were so against the rule."""
    tried = list(itertools.product((4, 5), repeat=5))
    possible = wrong = 0
    for d_q, d_k, d_v, n_k, n_v in tried:
        try:
            output, weights = attention(torch.ones(3, d_q), torch.ones(n_k, d_k), torch.ones(n_v, d_v))
            works = output.shape == (3, d_v) and weights.shape == (3, n_k)
        except (RuntimeError, TypeError):  # the second where shapes are checked as it runs
            works = False
        possible += works
        wrong += works != (d_q == d_k and n_k == n_v)
    return len(tried), possible, wrong


def show_shapes(measured: Sequence[ShapeEvidence]) -> Finding:
    """Tables of the first seed's shapes; counts over all seeds."""
    first = measured[0]
    tables = tuple(table for found in first.traces for table in _tables(found))
    calls = sum(found.calls for found in first.traces)

    def worst(name: str, style: str = ".0f") -> Numbers:
        return Numbers(tuple(float(largest(getattr(t, name) for t in e.traces)) for e in measured), style)

    irregular, step = worst("irregular"), worst("step_difference", ".1e")
    misplaced = tuple(float(sum(t.follow_vocabulary + t.against_length for t in e.traces)) for e in measured)
    wrong = Numbers(tuple(float(e.wrong) for e in measured), ".0f")
    moved, wide = worst("moved", ".1e").mean, largest(e.wide_difference for e in measured)
    claims = (
        Claim(
            "In every traced call Q and K have one width, K and V one length",
            irregular,
            "at most",
            0,
            f"A single call that differs, of {calls}, would refute it.",
        ),
        Claim(
            "n is positions, not vocabulary: with fewer positions just the query and key axes change, "
            f"with {MORE_TOKENS} more tokens no axis does",
            Numbers(misplaced, ".0f"),
            "at most",
            0,
            "Counted over all axes and layers; were n the vocabulary, all query and key axes would count.",
        ),
        Claim(
            "Attention exists just where Q and K share d_k and K and V their length; V's width is free",
            wrong,
            "at most",
            0,
            f"Of all {first.combinations} combinations of two sizes of each, {first.possible} worked.",
        ),
        Claim(
            "One query on cached keys gives what the last of all queries gives",
            step,
            "at most",
            1e-3,
            "Relative; rounding of float32 is about 1e-6, another key is about 1.",
        ),
    )
    said = (
        f"Q, K and V were caught on their way into `attend`. {MORE_TOKENS} more tokens in the vocabulary "
        f"moved their numbers by {moved:.1g}. V may be projected to width {first.d_value} before attention "
        f"or after it: the same to {wide:.1g}."
    )
    return Finding(said, tables, (), claims)


def _tables(found: Trace) -> tuple[Table, ...]:
    heads = found.different_key_heads
    grouped = heads < found.n_query_heads
    note = f" ({heads} different K)" if grouped else ""

    def row(name: str, tensor: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        sizes = dict(zip(AXES[tensor], map(str, shape), strict=True))
        return (name, *(sizes.get(column, "–") for column in COLUMNS))

    whole = tuple(row(name, name, shape) for name, shape in found.whole.items())
    step = tuple(row(name, name, shape) for name, shape in found.step.items())
    cached = tuple(row(f"{name} in the cache", name, shape) for name, shape in found.cached.items())
    title = f"{found.model}: layer 1 of {found.layers}"
    return (
        Table(f"{title}, all at once{note}", ("", *COLUMNS), whole),
        Table(f"{title}, the last position with a KV cache", ("", *COLUMNS), (*cached, *step)),
    )
