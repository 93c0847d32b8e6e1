"""Evidence for question 6: previous-token heads, and the heads for repeated tokens that build on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tformer.answer.claims import Budget, Claim, Finding
from tformer.answer.lab import Subject, build, tiny, train
from tformer.answer.q6_heads.lookups import (
    HeadScores,
    Repeats,
    best,
    head_scores,
    looking_everywhere,
    not_looking_back_by,
    random_repeats,
)
from tformer.evals.attention import attention_weights
from tformer.figures import Cell, Heat, Numbers, Table
from tformer.model import Transformer

MAPS = 24  # positions of a picture


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
        n = budget.pick(quick=4, full=16)
        ids = random_repeats(model.config.vocab_size, n, length, seed)
        known = (torch.arange(ids.shape[1] - 1) >= length).expand(len(ids), -1)
        text = subject.ids(n, 64, seed) if subject.text_ids is not None else None
        return _repeating(model, ids, known, text, float("nan"))
    task = Repeats(16, 18, (4, 7), seed)
    trained = [_trained(task, budget.pick(quick=160, full=500), n_layers) for n_layers in (2, 1)]
    ids, known = task.fresh(300)
    one_layer = _accuracy(trained[1], ids, known)
    return _repeating(trained[0], ids, known, None, one_layer)


def _trained(task: Repeats, steps: int, n_layers: int) -> Transformer:
    """Rotary positions: how far back a token stands is what a previous-token head has to see."""
    config = tiny(
        family="nanochat", vocab_size=task.symbols, n_ctx=task.n_ctx, n_layers=n_layers, n_heads=2, d_mlp=32
    )
    model = build(config, task.seed)
    train(model, task, steps, task.seed, batch_size=48, lr=8e-3)
    return model


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
        scores,
        looking_everywhere(inputs),
        head_scores(attention_weights(model, text), text) if text is not None else [],
        looking_everywhere(text) if text is not None else None,
        accuracy,
        repeated,
        one_layer,
        [weights[h.layer - 1, 0, h.head - 1, :MAPS, :MAPS].tolist() for h in (before, after)],
        own=one_layer == one_layer,
    )


KINDS = {"previous": "the token before", "repeated": "what followed last time", "first": "the first token"}


def show_repeats(measured: Sequence[RepeatsEvidence]) -> Finding:
    """Previous-token heads, and heads for repeated tokens that need them."""
    first = measured[0]
    maps = Heat(
        "One sequence",
        "position that asks",
        "position looked at",
        (
            ("the token before", tuple(map(tuple, first.maps[0]))),
            ("what followed last time", tuple(map(tuple, first.maps[1]))),
        ),
    )
    knocked = Table(
        "A path closed in the layers below the second head",
        ("", "known targets right", "weight on what followed"),
        tuple(
            (
                name,
                Numbers(tuple(e.accuracy[name] for e in measured), ".2f"),
                Numbers(tuple(e.repeated[name] for e in measured), ".2f"),
            )
            for name in (USUAL, BACK_1, BACK_2)
        ),
    )
    if not first.own:
        said = (
            "Random ids and then the same again: nothing but the repetition can be learned from them. Below "
            "are the three heads that give most weight to each kind of place. Whether a run has such heads "
            "depends on what it has learned, so nothing is claimed."
        )
        return Finding(said, (_run_table(measured), knocked), (maps,))
    rows = []
    for field, what in KINDS.items():
        tops = [best(e.scores, field) for e in measured]
        layers = ", ".join(str(top.layer) for top in tops)
        rows.append(
            (
                what,
                layers,
                Numbers(tuple(getattr(top, field) for top in tops), ".2f"),
                Numbers(tuple(getattr(e.uniform, field) for e in measured), ".2f"),
            )
        )
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
            "at least",
            0.5,
            "Of its queries, those whose largest weight is there: most of them.",
        ),
        Claim(
            "A head of the second block looks mostly at what followed an earlier copy",
            Numbers(tuple(max(h.repeated_most for h in e.scores if h.layer == 2) for e in measured), ".2f"),
            "at least",
            0.5,
            "Of its queries, those whose largest weight is there: most of them.",
        ),
        Claim(
            "The second needs the first: without the look 1 back accuracy is lost",
            Numbers(tuple(e.accuracy[USUAL] - e.accuracy[BACK_1] for e in measured), ".2f"),
            "at least",
            0.4,
            "About half of what is above a guess among the symbols of the sequence (1/7 to 1/4).",
        ),
        Claim(
            "It is that path: without the look 2 back accuracy stays",
            Numbers(tuple(e.accuracy[USUAL] - e.accuracy[BACK_2] for e in measured), ".2f"),
            "at most",
            0.1,
            "A quarter of what the other path must cost; 0 would be no loss at all.",
        ),
        Claim(
            "Two blocks get more right than one",
            Numbers(tuple(e.accuracy[USUAL] - e.one_layer for e in measured), ".2f"),
            "at least",
            0.1,
            "0 if the second block were of no use; one alone guesses better the longer it learns.",
        ),
    )
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


def too_short(subject: Subject | None) -> str | None:
    """A repetition needs two positions of each kind."""
    if subject and not subject.task and subject.model.config.n_ctx < 6:
        return "the model of --run sees fewer than 6 positions"
    return None
