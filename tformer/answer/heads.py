"""Evidence for question 6: what heads learn, shown by removing them, and one head against several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tformer.answer.lab import Subject, accuracies, build, halves, n_parameters, tiny, train
from tformer.answer.lookups import (
    HeadScores, Places, Repeats, best, head_scores, looking_everywhere, not_looking_back_by,
    random_repeats, without_heads,
)  # fmt: skip
from tformer.answer.mlps import arguments
from tformer.attention_maps import CARRIES, attention_weights, mirror
from tformer.data import Reversal
from tformer.evidence import (
    Budget, Cell, Claim, Experiment, Finding, Heat, Lines, Numbers, Table, over_seeds,
)  # fmt: skip
from tformer.model import Transformer
from tformer.train import cross_entropy

SOLVED = 0.9  # accuracy of the second half from which on a run is said to reverse
MAPS = 24  # positions of a picture

# ---------------------------------------------------------------------------- a sum over heads


@dataclass(frozen=True)
class SumEvidence:
    """The largest difference of all blocks, relative to the largest output."""

    difference: float
    heads: int


@torch.inference_mode()
def measure_sum(budget: Budget, seed: int, subject: Subject | None) -> SumEvidence:
    """Attention's output, against the sum of what each head alone adds to the residual stream."""
    if subject:
        model, ids = subject.model, subject.ids(2, budget.pick(quick=32, full=128), seed)
    else:
        model = build(tiny(vocab_size=32, n_ctx=32), seed)
        ids = torch.randint(32, (2, 32))
        for block in model.blocks:  # it starts at zero
            block.attn.out.weight.normal_(std=model.config.d_model**-0.5)
    worst, c = 0.0, model.config
    for layer, (gathered,) in enumerate(arguments([b.attn.out for b in model.blocks], model, ids)):
        out = model.blocks[layer].attn.out
        whole, nothing = out(gathered), out(torch.zeros_like(gathered))
        summed = nothing.clone()
        for head in range(c.n_heads):
            others = [(layer, other) for other in range(c.n_heads) if other != head]
            with without_heads(model, others):
                summed += out(gathered) - nothing
        worst = max(worst, float((whole - summed).abs().max() / whole.abs().max().clamp(min=1e-30)))
    return SumEvidence(worst, c.n_heads)


def show_sum(measured: Sequence[SumEvidence]) -> Finding:
    """Heads add up."""
    claim = Claim(
        f"The output of attention is the sum of what its {measured[0].heads} heads add, each alone",
        Numbers(tuple(e.difference for e in measured), ".1e"), "at most", 1e-4,
        "Relative to the largest output; rounding of float32 is about 1e-6.",
    )  # fmt: skip
    said = "All heads but one were silenced in front of the output projection, one after the other."
    return Finding(said, (), (), (claim,))


# ---------------------------------------------------------------------------- the mirror


@dataclass(frozen=True)
class MirrorEvidence:
    """Heads of a model that reverses, those first that look most at the mirrored place."""

    names: list[str]
    shares: list[float]
    uniform: float
    accuracy: float  # of the second half
    chance: float
    zeroed: list[float]  # accuracy without this head
    averaged: list[float]  # the same, its output replaced by its mean over sequences
    without_lookers: float  # without all heads that give half of their weight to the mirrored place
    without_others: float  # their output averaged
    lookers: int
    weights: list[list[float]]  # of the first head, mean over sequences
    own: bool


def measure_mirror(budget: Budget, seed: int, subject: Subject | None) -> MirrorEvidence:
    """Where heads look, and the accuracy without each, on the run or on a model trained here."""
    if subject and subject.task:
        return _mirrored(subject.model, subject.task, seed, own=False)
    task = Reversal(*budget.pick(quick=(5, 10), full=(8, 16)), seed)
    model = build(tiny(vocab_size=task.symbols, n_ctx=task.n_ctx, d_model=budget.pick(32, 64)), seed)
    train(model, task, budget.pick(quick=120, full=500), seed, batch_size=32, lr=budget.pick(6e-3, 3e-3))
    return _mirrored(model, task, seed, own=True)


def _mirrored(model: Transformer, task: Reversal, seed: int, own: bool) -> MirrorEvidence:
    found = mirror(model, task, index=1 + seed)
    heads = [(h.layer - 1, h.head - 1) for h in found.heads]
    lookers = [at for at, h in zip(heads, found.heads, strict=True) if h.share >= CARRIES]
    others = [at for at in heads if at not in lookers]

    def accuracy(without: list[tuple[int, int]], mean: bool = False) -> float:
        with without_heads(model, without, mean):
            return halves(accuracies(model, task, index=1 + seed), task)[1]

    layer, head = heads[0]
    inputs = torch.from_numpy(np.ascontiguousarray(task.fresh(100, 1 + seed)[0]))
    return MirrorEvidence(
        names=[f"layer {h.layer}, head {h.head}" for h in found.heads],
        shares=[h.share for h in found.heads],
        uniform=found.uniform,
        accuracy=accuracy([]),
        chance=1 / task.symbols,
        zeroed=[accuracy([at]) for at in heads],
        averaged=[accuracy([at], mean=True) for at in heads],
        without_lookers=accuracy(lookers),
        without_others=accuracy(others, mean=True),
        lookers=len(lookers),
        weights=attention_weights(model, inputs)[layer, :, head].mean(0).tolist(),
        own=own,
    )


def show_mirror(measured: Sequence[MirrorEvidence]) -> Finding:
    """Some heads look at the mirrored place, and they carry the reversal."""
    first = measured[0]

    def row(name: str, values: Sequence[Sequence[float]]) -> tuple[Cell, ...]:
        return (name, *(Numbers(tuple(v), ".2f") for v in values))

    accuracy = Numbers(tuple(e.accuracy for e in measured), ".2f")
    ranks = range(min(8, len(first.shares)))
    table = Table(
        f"Accuracy of the second half without heads (with all: {accuracy})",
        ("left out", "weight on the mirrored place", "set to 0", "set to its mean"),
        tuple(
            row(f"head {i + 1}" if first.own else first.names[i],
                [[e.shares[i] for e in measured], [e.zeroed[i] for e in measured],
                 [e.averaged[i] for e in measured]])
            for i in ranks
        ),
    )  # fmt: skip
    heat = Heat(
        f"Where the head {first.names[0]} looks, mean over sequences", "position that asks", "position looked at",
        (("", tuple(map(tuple, first.weights))),),
    )  # fmt: skip
    alone = Numbers(tuple(e.accuracy - e.zeroed[0] for e in measured), ".2f")
    said = (
        "Heads are ordered by the weight that queries of the second half give to the place where the answer "
        f"stands; a head that looks everywhere alike gives it {first.uniform:.2f}. Without the first head "
        f"alone accuracy falls by {alone}: where others look at the same place, they stand in. So all heads "
        f"with half of their weight there ({', '.join(str(e.lookers) for e in measured)} of "
        f"{len(first.shares)}) were removed together, and then all the others."
    )
    if min(e.accuracy for e in measured) < SOLVED:
        return Finding(f"{said} No claim is made: the model does not reverse.", (table,), (heat,))
    halfway = (1 + first.chance) / 2
    because = f"Halfway between chance ({first.chance:.2g}) and 1."
    claims = (
        Claim(
            "A head looks at the mirrored place: the anti-diagonal",
            Numbers(tuple(e.shares[0] for e in measured), ".2f"), "at least", CARRIES,
            f"More there than everywhere else together; a uniform head has {first.uniform:.2f}.",
        ),
        Claim(
            "Without the heads that look there the reversal is lost",
            Numbers(tuple(e.without_lookers for e in measured), ".2f"), "at most", halfway, because,
        ),
        Claim(
            "Without all the other heads, set to their mean, it is kept",
            Numbers(tuple(e.without_others for e in measured), ".2f"), "at least", halfway, because,
        ),
    )  # fmt: skip
    return Finding(said, (table,), (heat,), claims)


# ---------------------------------------------------------------------------- repeats


@dataclass(frozen=True)
class RepeatsEvidence:
    """Scores of all heads on sequences that repeat, and what is left without the look one back."""

    scores: list[HeadScores]
    uniform: HeadScores
    text_scores: list[HeadScores]  # on the run's text
    text_uniform: HeadScores | None
    accuracy: dict[str, float]  # of the targets that repeat
    repeated: dict[str, float]  # score of the best head for repeated tokens
    one_layer: float  # accuracy of a model of one block; NaN for a run
    maps: list[list[list[float]]]  # of the best head of either kind, on one sequence
    own: bool


USUAL, BACK_1, BACK_2 = "as trained", "without the look 1 back", "without the look 2 back"


def measure_repeats(budget: Budget, seed: int, subject: Subject | None) -> RepeatsEvidence:
    """Score the heads of the run, or of a model trained here on repeating sequences."""
    if subject and not subject.task:
        model, length = subject.model, min(24, subject.model.config.n_ctx // 2)
        ids = random_repeats(model.config.vocab_size, 16, length, seed)
        known = (torch.arange(ids.shape[1] - 1) >= length).expand(len(ids), -1)
        text = subject.ids(16, 64, seed) if subject.text_ids is not None else None
        return _repeating(model, ids, known, text, float("nan"))
    task = Repeats(16, 18, (4, 7), seed)
    trained = []
    for n_layers in (2, 1):
        config = tiny(
            family="nanochat",
            vocab_size=task.symbols,
            n_ctx=task.n_ctx,
            n_layers=n_layers,
            n_heads=2,
            d_mlp=32,
        )
        trained.append(build(config, seed))
        train(trained[-1], task, budget.pick(quick=160, full=500), seed, batch_size=48, lr=8e-3)
    ids, known = task.fresh(300)
    one_layer = _accuracy(trained[1], ids, known)
    return _repeating(trained[0], ids, known, None, one_layer)


@torch.inference_mode()
def _accuracy(model: Transformer, ids: Tensor, known: Tensor) -> float:
    return float((model(ids[:, :-1]).argmax(-1) == ids[:, 1:])[known].double().mean())


def _repeating(
    model: Transformer, ids: Tensor, known: Tensor, text: Tensor | None, one_layer: float
) -> RepeatsEvidence:
    inputs = ids[:, :-1]
    weights = attention_weights(model, inputs)
    scores = head_scores(weights, inputs)
    before, after = best(scores, "previous"), best(scores, "repeated")
    accuracy, repeated = {USUAL: _accuracy(model, ids, known)}, {USUAL: after.repeated}
    for name, distance in ((BACK_1, 1), (BACK_2, 2)):
        with not_looking_back_by(model, distance, range(after.layer - 1)):
            accuracy[name] = _accuracy(model, ids, known)
            now = head_scores(attention_weights(model, inputs), inputs)
        repeated[name] = next(h.repeated for h in now if (h.layer, h.head) == (after.layer, after.head))
    return RepeatsEvidence(
        scores, looking_everywhere(inputs),
        head_scores(attention_weights(model, text), text) if text is not None else [],
        looking_everywhere(text) if text is not None else None,
        accuracy, repeated, one_layer,
        [weights[h.layer - 1, 0, h.head - 1, :MAPS, :MAPS].tolist() for h in (before, after)],
        own=one_layer == one_layer,
    )  # fmt: skip


KINDS = {"previous": "the token before", "repeated": "what followed last time", "first": "the first token"}


def show_repeats(measured: Sequence[RepeatsEvidence]) -> Finding:
    """Previous-token heads, and heads for repeated tokens that need them."""
    first = measured[0]
    maps = Heat(
        "One sequence", "position that asks", "position looked at",
        (("the token before", tuple(map(tuple, first.maps[0]))),
         ("what followed last time", tuple(map(tuple, first.maps[1])))),
    )  # fmt: skip
    knocked = Table(
        "A path closed: no query below the second head's layer may look 1, or 2, back",
        ("", "known targets right", "weight on what followed"),
        tuple(
            (name, Numbers(tuple(e.accuracy[name] for e in measured), ".2f"),
             Numbers(tuple(e.repeated[name] for e in measured), ".2f"))
            for name in (USUAL, BACK_1, BACK_2)
        ),
    )  # fmt: skip
    if not first.own:
        said = (
            "Random ids and then the same again: nothing but the repetition can be learned from them. Below are "
            "the three heads that give most weight to each kind of place. Whether a run has such heads "
            "depends on what it has learned, so nothing is claimed."
        )
        return Finding(said, (_run_table(measured), knocked), (maps,))
    rows = []
    for field, what in KINDS.items():
        tops = [best(e.scores, field) for e in measured]
        layers = ", ".join(str(top.layer) for top in tops)
        rows.append(
            (what, layers, Numbers(tuple(getattr(top, field) for top in tops), ".2f"),
             Numbers(tuple(getattr(e.uniform, field) for e in measured), ".2f"))
        )  # fmt: skip
    table = Table(
        "Heads by where they look", ("most weight on", "layers", "weight", "if uniform"), tuple(rows)
    )
    one = Numbers(tuple(e.one_layer for e in measured), ".2f")
    said = (
        "Two blocks of two heads learned sequences in which a few symbols repeat, at a distance that varies. "
        "A head that finds what followed the last time needs to know what stood before each token; if that "
        "comes from a previous-token head in the block below, closing its path must undo both. One block "
        f"alone, with the same training, gets {one} of the known targets right."
    )
    claims = (
        Claim(
            "A head of the first block looks mostly at the token before",
            Numbers(tuple(max(h.previous_most for h in e.scores if h.layer == 1) for e in measured), ".2f"),
            "at least", 0.5, "Of its queries, those whose largest weight is there: most of them.",
        ),
        Claim(
            "A head of the second block looks mostly at what followed an earlier copy",
            Numbers(tuple(max(h.repeated_most for h in e.scores if h.layer == 2) for e in measured), ".2f"),
            "at least", 0.5, "Of its queries, those whose largest weight is there: most of them.",
        ),
        Claim(
            "The second needs the first: without the look 1 back accuracy is lost",
            Numbers(tuple(e.accuracy[USUAL] - e.accuracy[BACK_1] for e in measured), ".2f"), "at least", 0.4,
            "About half of what is above a guess among the symbols of the sequence (1/7 to 1/4).",
        ),
        Claim(
            "It is that path: without the look 2 back accuracy stays",
            Numbers(tuple(e.accuracy[USUAL] - e.accuracy[BACK_2] for e in measured), ".2f"), "at most", 0.1,
            "A quarter of what the other path must cost; 0 would be no loss at all.",
        ),
        Claim(
            "Two blocks get more right than one",
            Numbers(tuple(e.accuracy[USUAL] - e.one_layer for e in measured), ".2f"), "at least", 0.2,
            "No need of two blocks would be 0; a quarter of what is above a guess.",
        ),
    )  # fmt: skip
    return Finding(said, (table, knocked), (maps,), claims)


def _run_table(measured: Sequence[RepeatsEvidence]) -> Table:
    """The three best heads of the run for each kind of place."""
    first = measured[0]
    rows: list[tuple[Cell, ...]] = []
    for field, what in KINDS.items():
        by_head = np.array([[getattr(h, field) for h in e.scores] for e in measured])
        for i in np.argsort(-by_head.mean(0), kind="stable")[:3]:
            head = first.scores[i]
            text = tuple(getattr(e.text_scores[i], field) for e in measured if e.text_scores)
            cells: list[Cell] = [Numbers(tuple(by_head[:, i]), ".2f"), Numbers(text, ".2f") if text else "-"]
            rows.append((what, f"{head.layer}.{head.head}", *cells))
        uniform = [Numbers(tuple(getattr(e.uniform, field) for e in measured), ".2f")]
        text = tuple(getattr(e.text_uniform, field) for e in measured if e.text_uniform)
        rows.append((what, "uniform", *uniform, Numbers(text, ".2f") if text else "-"))
    return Table(
        "Weight that heads (layer.head) give", ("to", "head", "random ids, repeated", "its text"), tuple(rows)
    )


# ---------------------------------------------------------------------------- one head or several


@dataclass(frozen=True)
class SeveralEvidence:
    """By number of heads, at equal width."""

    n_heads: list[int]
    parameters: list[int]
    loss: list[float]  # nats, where three places are needed
    accuracy: list[float]
    least: list[float]  # of three places, the least weight that the best head for it gives it
    reversal: dict[int, float]  # accuracy of the second half, where one place is needed


DISTANCES = (1, 2, 4)
N_HEADS = (1, 2, 4, 8, 32)


def measure_several(budget: Budget, seed: int, subject: Subject | None) -> SeveralEvidence:
    """Train one block of width 32 with 1 to 32 heads on a task of three places, and on the reversal."""
    places, task = Places(4, 8, DISTANCES, seed), Reversal(4, 8, seed)
    evidence = SeveralEvidence(list(N_HEADS), [], [], [], [], {})
    for n_heads in N_HEADS:
        config = tiny(
            vocab_size=places.outcomes,
            n_ctx=places.n_ctx,
            n_layers=1,
            n_heads=n_heads,
            d_model=32,
            tied=False,
        )
        model = build(config, seed)
        train(model, places, budget.pick(quick=150, full=400), seed, batch_size=32, lr=1e-2)
        inputs, targets = (torch.from_numpy(a) for a in places.fresh(500))
        asked = slice(max(DISTANCES), None)  # queries that have all three places behind them
        with torch.inference_mode():
            logits = model(inputs)
            loss = cross_entropy(logits, targets)[:, asked].mean()
        evidence.parameters.append(n_parameters(model))
        evidence.loss.append(float(loss))
        evidence.accuracy.append(float((logits.argmax(-1) == targets)[:, asked].double().mean()))
        evidence.least.append(_least(attention_weights(model, inputs)[0]))
    for n_heads in (1, 4):
        config = tiny(vocab_size=task.symbols, n_ctx=task.n_ctx, n_layers=1, n_heads=n_heads, d_model=32)
        model = build(config, seed)
        train(model, task, budget.pick(quick=120, full=400), seed, batch_size=32, lr=6e-3)
        evidence.reversal[n_heads] = halves(accuracies(model, task), task)[1]
    return evidence


def _least(weights: Tensor) -> float:
    """Of (batch, head, query, key): for each place the head that looks there most; of these, the least."""
    queries = torch.arange(max(DISTANCES), weights.shape[-1])
    by_place = [weights[:, :, queries, queries - d].mean((0, 2)).max() for d in DISTANCES]
    return float(torch.stack(by_place).min())


def show_several(measured: Sequence[SeveralEvidence]) -> Finding:
    """Three places at once are easier for several heads; one place is not."""
    first = measured[0]
    one, four = first.n_heads.index(1), first.n_heads.index(4)

    def over(field: str, i: int, style: str = ".2f") -> Numbers:
        return Numbers(tuple(getattr(e, field)[i] for e in measured), style)

    table = Table(
        "One block of width 32: three places at once, and the reversal",
        ("heads", "d_head", "parameters", "loss", "right", "least weight", "reversal"),
        tuple(
            (str(n), str(32 // n), f"{first.parameters[i]:,}", over("loss", i), over("accuracy", i),
             over("least", i), over("reversal", n) if n in first.reversal else "-")
            for i, n in enumerate(first.n_heads)
        ),
    )  # fmt: skip
    figure = Lines(
        "Equal width, equal parameters, equal steps", "heads", "loss (nats) where three places are needed",
        (over_seeds("loss", first.n_heads, [e.loss for e in measured]),), log_x=True,
    )  # fmt: skip
    said = (
        f"The target is the triple of the symbols 1, 2 and 4 places before, one of {4 ** len(DISTANCES)}. "
        "One softmax can tell places apart only by giving them unequal weights; it may still get most of "
        "them right. Least weight: of the three places, the one that its best head looks at least. The "
        "last row has heads of one feature each. The reversal needs one place at a time."
    )
    claims = (
        Claim(
            "Where three places are needed at once, one head has a higher loss than four (ratio)",
            Numbers(tuple(e.loss[one] / e.loss[four] for e in measured), ".1f"), "at least", 2,
            "1 if the number of heads did not matter; twice the loss is more than seeds differ.",
        ),
        Claim(
            "With four heads, every place has a head that gives it most of its weight",
            over("least", four), "at least", 0.5,
            "One head's weights sum to 1, so it can give each of three places at most 1/3.",
        ),
        Claim(
            "Where one place is needed, one head is enough: it reverses",
            Numbers(tuple(e.reversal[1] for e in measured), ".2f"), "at least", SOLVED,
            "Chance is 0.12; the second half is fully determined.",
        ),
    )  # fmt: skip
    return Finding(said, (table,), (figure,), claims)


def too_short(subject: Subject | None) -> str | None:
    """A repetition needs two positions of each kind."""
    if subject and not subject.task and subject.model.config.n_ctx < 6:
        return "the model of --run sees fewer than 6 positions"
    return None


EXPERIMENTS = (
    Experiment("sum", "Heads add up", measure_sum, show_sum, (2, 3)),
    Experiment("mirror", "The anti-diagonal head, and the model without it", measure_mirror, show_mirror, (3, 5)),
    Experiment("repeats", "Previous-token and repeated-token heads", measure_repeats, show_repeats, (2, 5),
               too_short),
    Experiment("several", "One head against several", measure_several, show_several, (2, 5)),
)  # fmt: skip
