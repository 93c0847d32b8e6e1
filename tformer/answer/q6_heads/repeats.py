"""Evidence for question 6: previous-token heads, and the heads for repeated tokens that build on them."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tformer.answer import lab
from tformer.answer.claims import Claim, Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, build, tiny, train
from tformer.answer.q6_heads.looks import (
    HeadScores,
    PlaceKind,
    head_scores,
    looking_everywhere,
    not_looking_back_by,
    strongest,
)
from tformer.answer.tasks import Repeats, Stream
from tformer.evals.attention import attention_weights
from tformer.figures import Cell, Heat, Table
from tformer.model import Transformer
from tformer.text.data import rng

POSITIONS_PICTURED = 24  # positions of a picture
PLACE_KINDS: dict[PlaceKind, str] = {
    "previous": "the token before",
    "repeated": "what followed last time",
    "first": "the first token",
}
AS_TRAINED, BACK_1, BACK_2 = "as trained", "without the look 1 back", "without the look 2 back"

# ---------------------------------------------------------------------------- measuring


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


def too_short_to_repeat(subject: Subject | None) -> str | None:
    """Why a run cannot be examined: a repetition needs two positions of each kind."""
    return None if subject and subject.task else lab.too_short(subject, 6)


def random_repeats(vocab_size: int, n: int, length: int, seed: int) -> Tensor:
    """`n` sequences of `length` random ids that are followed by the same again, (n, 2 · length)."""
    half = rng(seed, Stream.REPEATS_FRESH, 1).integers(vocab_size, size=(n, length))
    return torch.from_numpy(np.concatenate((half, half), axis=1))


def measure_repeats(effort: Effort, seed: int, subject: Subject | None) -> RepeatsEvidence:
    """Score the heads of the run, or of a model trained here on repeating sequences."""
    if subject and not subject.task:
        length = min(24, subject.model.config.n_ctx // 2)
        n = effort.pick(quick=4, full=16)
        ids = random_repeats(subject.model.config.vocab_size, n, length, seed)
        known = (torch.arange(ids.shape[1] - 1) >= length).expand(len(ids), -1)
        evidence = examine_heads(subject.model, ids, known)
        if subject.text_ids is None:
            return evidence
        text = subject.ids(n, 64, seed)
        return replace(
            evidence,
            text_scores=head_scores(attention_weights(subject.model, text), text),
            text_uniform=looking_everywhere(text),
        )
    task = Repeats(16, 18, (4, 7), seed)
    steps = effort.pick(quick=160, full=500)
    two, one = (learn_repeats(task, steps, n_layers) for n_layers in (2, 1))
    ids, known = task.fresh_and_known(300)
    return replace(examine_heads(two, ids, known), one_layer=accuracy_on(one, ids, known), own=True)


def learn_repeats(task: Repeats, steps: int, n_layers: int) -> Transformer:
    """Rotary positions: how far back a token stands is what a previous-token head has to see."""
    config = tiny(
        family="nanochat", vocab_size=task.symbols, n_ctx=task.n_ctx, n_layers=n_layers, n_heads=2, d_mlp=32
    )
    model = build(config, task.seed)
    train(model, task, steps, task.seed, batch_size=48, lr=8e-3)
    return model


@torch.inference_mode()
def accuracy_on(model: Transformer, ids: Tensor, known: Tensor) -> float:
    """Of the targets that are known: ids is (batch, position + 1), known (batch, position)."""
    return float((model(ids[:, :-1]).argmax(-1) == ids[:, 1:])[known].double().mean())


def examine_heads(model: Transformer, ids: Tensor, known: Tensor) -> RepeatsEvidence:
    """Score all heads, and again what the best one for repeats can do with a path below it closed."""
    inputs = ids[:, :-1]
    weights = attention_weights(model, inputs)
    scores = head_scores(weights, inputs)
    before, after = strongest(scores, "previous"), strongest(scores, "repeated")
    accuracy, repeated = {AS_TRAINED: accuracy_on(model, ids, known)}, {AS_TRAINED: after.repeated}
    for name, distance in ((BACK_1, 1), (BACK_2, 2)):
        with not_looking_back_by(model, distance, range(after.layer - 1)):
            accuracy[name] = accuracy_on(model, ids, known)
            now = head_scores(attention_weights(model, inputs), inputs)
        repeated[name] = next(h.repeated for h in now if (h.layer, h.head) == (after.layer, after.head))
    return RepeatsEvidence(
        scores,
        uniform=looking_everywhere(inputs),
        text_scores=[],
        text_uniform=None,
        accuracy=accuracy,
        repeated=repeated,
        one_layer=math.nan,
        maps=[
            weights[h.layer - 1, 0, h.head - 1, :POSITIONS_PICTURED, :POSITIONS_PICTURED].tolist()
            for h in (before, after)
        ],
        own=False,
    )


# ---------------------------------------------------------------------------- showing


def show_repeats(seeds: Seeds[RepeatsEvidence]) -> Finding:
    """Previous-token heads, and heads for repeated tokens that need them."""
    maps = Heat(
        "One sequence",
        "position that asks",
        "position looked at",
        (
            (PLACE_KINDS["previous"], tuple(map(tuple, seeds.first.maps[0]))),
            (PLACE_KINDS["repeated"], tuple(map(tuple, seeds.first.maps[1]))),
        ),
    )
    if not seeds.first.own:
        said = (
            "Random ids and then the same again: nothing but the repetition can be learned from them. Below "
            "are the three heads that give most weight to each kind of place. Whether a run has such heads "
            "depends on what it has learned, so nothing is claimed."
        )
        return Finding(said, (_run_table(seeds), _closed_table(seeds)), (maps,))
    one = seeds.of(lambda e: e.one_layer, ".2f")
    said = (
        "Two blocks of two heads learned sequences in which a few symbols repeat, at a distance that varies. "
        "A head that finds what followed the last time needs to know what stood before each token; if that "
        "comes from a previous-token head in the block below, closing its path must undo both. One block "
        f"alone, with the same training, gets {one} of the known targets right."
    )
    return Finding(said, (_own_table(seeds), _closed_table(seeds)), (maps,), _repeats_claims(seeds))


def _closed_table(seeds: Seeds[RepeatsEvidence]) -> Table:
    def row(name: str) -> tuple[Cell, ...]:
        return (
            name,
            seeds.of(lambda e: e.accuracy[name], ".2f"),
            seeds.of(lambda e: e.repeated[name], ".2f"),
        )

    return Table(
        "A path closed in the layers below the second head",
        ("", "known targets right", "weight on what followed"),
        tuple(map(row, (AS_TRAINED, BACK_1, BACK_2))),
    )


def _own_table(seeds: Seeds[RepeatsEvidence]) -> Table:
    """The best head of each seed for each kind of place."""

    def row(kind: PlaceKind) -> tuple[Cell, ...]:
        return (
            PLACE_KINDS[kind],
            ", ".join(str(strongest(e.scores, kind).layer) for e in seeds),
            seeds.of(lambda e: strongest(e.scores, kind).on(kind), ".2f"),
            seeds.of(lambda e: e.uniform.on(kind), ".2f"),
        )

    return Table(
        "Heads by where they look",
        ("most weight on", "layers", "weight", "if uniform"),
        tuple(map(row, PLACE_KINDS)),
    )


def _run_table(seeds: Seeds[RepeatsEvidence]) -> Table:
    """The three best heads of the run for each kind of place."""
    rows = [row for kind in PLACE_KINDS for row in _run_rows(seeds, kind)]
    return Table(
        "Weight that heads (layer.head) give", ("to", "head", "random ids, repeated", "its text"), tuple(rows)
    )


def _run_rows(seeds: Seeds[RepeatsEvidence], kind: PlaceKind) -> list[tuple[Cell, ...]]:
    def of_head(i: int) -> tuple[Cell, ...]:
        head = seeds.first.scores[i]
        on_text = seeds.of(lambda e: e.text_scores[i].on(kind), ".2f") if seeds.first.text_scores else "-"
        name = f"{head.layer}.{head.head}"
        return (PLACE_KINDS[kind], name, seeds.of(lambda e: e.scores[i].on(kind), ".2f"), on_text)

    def on_uniform_text(evidence: RepeatsEvidence) -> float:
        return evidence.text_uniform.on(kind) if evidence.text_uniform else math.nan

    mean = np.mean([[head.on(kind) for head in e.scores] for e in seeds], axis=0)
    best = np.argsort(-mean, kind="stable")[:3]
    on_text = seeds.of(on_uniform_text, ".2f") if seeds.first.text_uniform else "-"
    uniform: tuple[Cell, ...] = (
        PLACE_KINDS[kind],
        "uniform",
        seeds.of(lambda e: e.uniform.on(kind), ".2f"),
        on_text,
    )
    return [*(of_head(int(i)) for i in best), uniform]


def _repeats_claims(seeds: Seeds[RepeatsEvidence]) -> tuple[Claim, ...]:
    return (
        at_least(
            "A head of the first block looks mostly at the token before",
            seeds.of(lambda e: max(h.previous_most for h in e.scores if h.layer == 1), ".2f"),
            0.5,
            "Of its queries, those whose largest weight is there: most of them.",
        ),
        at_least(
            "A head of the second block looks mostly at what followed an earlier copy",
            seeds.of(lambda e: max(h.repeated_most for h in e.scores if h.layer == 2), ".2f"),
            0.5,
            "Of its queries, those whose largest weight is there: most of them.",
        ),
        at_least(
            "The second needs the first: without the look 1 back accuracy is lost",
            seeds.of(lambda e: e.accuracy[AS_TRAINED] - e.accuracy[BACK_1], ".2f"),
            0.4,
            "About half of what is above a guess among the symbols of the sequence (1/7 to 1/4).",
        ),
        at_most(
            "It is that path: without the look 2 back accuracy stays",
            seeds.of(lambda e: e.accuracy[AS_TRAINED] - e.accuracy[BACK_2], ".2f"),
            0.1,
            "A quarter of what the other path must cost; 0 would be no loss at all.",
        ),
        at_least(
            "Two blocks get more right than one",
            seeds.of(lambda e: e.accuracy[AS_TRAINED] - e.one_layer, ".2f"),
            0.1,
            "0 if the second block were of no use; one alone guesses better the longer it learns.",
        ),
    )
