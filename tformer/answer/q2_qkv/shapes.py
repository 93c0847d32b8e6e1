"""Question 2, shapes: those of Q, K and V, traced through a real forward pass."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tformer.answer.claims import Finding, at_most, largest
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, build, calls_of, relative_difference, tiny
from tformer.figures import Numbers, Table
from tformer.kv_cache import KVCache
from tformer.model import Formula, Transformer, attention
from tformer.watch import AttentionCall, attention_calls

MORE_TOKENS = 7
TINY_NUMBER = 1e-30  # what differences are divided by where all that is expected is 0
AXES = {  # of each traced tensor
    "Q": ("batch", "head", "query", "d_head"),
    "K": ("batch", "head", "key", "d_head"),
    "V": ("batch", "head", "key", "d_head"),
    "weights": ("batch", "head", "query", "key"),
    "output": ("batch", "head", "query", "d_head"),
}
AXIS_COLUMNS = ("batch", "head", "query", "key", "d_head")
Shapes = dict[str, tuple[int, ...]]

# ---------------------------------------------------------------------------- measuring


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


def measure_shapes(effort: Effort, seed: int, subject: Subject | None) -> ShapeEvidence:
    """Trace the run, or two fresh models: one like GPT-2, one with fewer key heads than query heads."""
    n = effort.pick(quick=12, full=64)
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
    difference = relative_difference(wide, narrow @ p, TINY_NUMBER)
    return ShapeEvidence(traces, tried, possible, wrong, d_value, difference)


def shapes_of(call: AttentionCall) -> Shapes:
    """Sizes along the axes that `AXES` names."""
    tensors = (call.q, call.k, call.v, call.weights, call.output)
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


def changed(some: list[Shapes], others: list[Shapes]) -> list[tuple[str, bool]]:
    """Each axis of each tensor of each layer, and whether its size differs."""
    return [
        (axis, a != b)
        for one, other in zip(some, others, strict=True)
        for name, axes in AXES.items()
        for axis, a, b in zip(axes, one[name], other[name], strict=True)
    ]


@contextmanager
def grown_vocabulary(model: Transformer, by: int) -> Iterator[None]:
    """The same model with `by` more tokens, which nothing uses, inside the block."""
    tables = (model.embed, model.unembed)
    before = [table.weight for table in tables]
    for table, weight in zip(tables, before, strict=True):
        table.weight = nn.Parameter(torch.cat((weight.detach(), weight.detach()[:1].expand(by, -1))))
    try:
        yield
    finally:
        for table, weight in zip(tables, before, strict=True):
            table.weight = weight


@torch.no_grad()
def cached_calls_of(model: Transformer, ids: Tensor) -> tuple[list[AttentionCall], Shapes]:
    """The calls for the last position alone, the others being in the cache; and what layer 1 has there."""
    cache = KVCache(model.config, len(ids), model.embed.weight)
    model.eval()(ids[:, :-1], cache)
    with attention_calls(model) as calls:
        model(ids[:, -1:], cache)
    kept = {"K": cache.keys[0, :, :, : cache.length], "V": cache.values[0, :, :, : cache.length]}
    return calls, {name: tuple(tensor.shape) for name, tensor in kept.items()}


def trace(model: Transformer, ids: Tensor, name: str) -> Trace:
    """Forward `ids` whole, with more tokens in the vocabulary, with fewer positions, and step by step."""
    n = ids.shape[1]
    whole = calls_of(model, ids)
    with grown_vocabulary(model, MORE_TOKENS):
        grown = calls_of(model, ids)
    fewer = calls_of(model, ids[:, : n - max(1, n // 3)])
    step, cached = cached_calls_of(model, ids)
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
        cached=cached,
        calls=len(every),
        irregular=sum(not is_regular(s) for s in every),
        follow_vocabulary=sum(differs for _, differs in by_vocabulary),
        against_length=sum(differs != (axis in ("query", "key")) for axis, differs in by_length),
        moved=largest(
            float((getattr(a, t) - getattr(b, t)).abs().max())
            for a, b in zip(whole, grown, strict=True)
            for t in "qkv"
        ),
        step_difference=largest(
            relative_difference(s.output, w.output[:, :, -1:], TINY_NUMBER)
            for s, w in zip(step, whole, strict=True)
        ),
    )


def combinations(formula: Formula = attention) -> tuple[int, int, int]:
    """How many shapes were tried on attention, were possible, and were so against the rule."""
    tried = list(itertools.product((4, 5), repeat=5))
    possible = wrong = 0
    for d_q, d_k, d_v, n_k, n_v in tried:
        try:
            output, weights = formula(torch.ones(3, d_q), torch.ones(n_k, d_k), torch.ones(n_v, d_v))
            works = output.shape == (3, d_v) and weights.shape == (3, n_k)
        except (RuntimeError, TypeError):  # the second where shapes are checked as it runs
            works = False
        possible += works
        wrong += works != (d_q == d_k and n_k == n_v)
    return len(tried), possible, wrong


# ---------------------------------------------------------------------------- showing


def show_shapes(seeds: Seeds[ShapeEvidence]) -> Finding:
    """Tables of the first seed's shapes; counts over all seeds."""
    first = seeds.first
    n_calls = sum(found.calls for found in first.traces)
    moved = seeds.of(lambda e: largest(t.moved for t in e.traces)).mean
    wide = largest(e.wide_difference for e in seeds)
    return Finding.of(
        f"Q, K and V were caught on their way into `attend`. {MORE_TOKENS} more tokens in the vocabulary "
        f"moved their numbers by {moved:.1g}. V may be projected to width {first.d_value} before attention "
        f"or after it: the same to {wide:.1g}.",
        *(table for found in first.traces for table in _tables(found)),
        at_most(
            "In every traced call Q and K have one width, K and V one length",
            seeds.of(lambda e: largest(t.irregular for t in e.traces), ".0f"),
            0,
            f"A single call that differs, of {n_calls}, would refute it.",
        ),
        at_most(
            "n is positions, not vocabulary: with fewer positions just the query and key axes change, "
            f"with {MORE_TOKENS} more tokens no axis does",
            seeds.of(lambda e: sum(t.follow_vocabulary + t.against_length for t in e.traces), ".0f"),
            0,
            "Counted over all axes and layers; were n the vocabulary, all query and key axes would count.",
        ),
        at_most(
            "Attention exists just where Q and K share d_k and K and V their length; V's width is free",
            seeds.of(lambda e: e.wrong, ".0f"),
            0,
            f"Of all {first.combinations} combinations of two sizes of each, {first.possible} worked.",
        ),
        at_most(
            "One query on cached keys gives what the last of all queries gives",
            seeds.of(lambda e: largest(t.step_difference for t in e.traces), ".1e"),
            1e-3,
            "Relative; rounding of float32 is about 1e-6, another key is about 1.",
        ),
    )


def _tables(found: Trace) -> tuple[Table, ...]:
    """One model's shapes: all positions at once, and the last one with a cache."""

    def row(name: str, tensor: str, shape: tuple[int, ...]) -> tuple[str | Numbers, ...]:
        sizes = dict(zip(AXES[tensor], map(str, shape), strict=True))
        return (name, *(sizes.get(column, "–") for column in AXIS_COLUMNS))

    heads = found.different_key_heads
    note = f" ({heads} different K)" if heads < found.n_query_heads else ""
    whole = tuple(row(name, name, shape) for name, shape in found.whole.items())
    step = tuple(row(name, name, shape) for name, shape in found.step.items())
    cached = tuple(row(f"{name} in the cache", name, shape) for name, shape in found.cached.items())
    title = f"{found.model}: layer 1 of {found.layers}"
    return (
        Table(f"{title}, all at once{note}", ("", *AXIS_COLUMNS), whole),
        Table(f"{title}, the last position with a KV cache", ("", *AXIS_COLUMNS), (*cached, *step)),
    )
