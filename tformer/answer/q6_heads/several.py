"""Evidence for question 6: one head against several, at equal width."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tformer.answer.claims import Claim, Finding, at_least
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import (
    Subject,
    accuracies,
    build,
    fresh_tensors,
    halves,
    n_parameters,
    tiny,
    train,
)
from tformer.answer.q6_heads.removed import SOLVED
from tformer.answer.tasks import Places
from tformer.evals.attention import attention_weights
from tformer.figures import Cell, Lines, Table
from tformer.loss import cross_entropy
from tformer.text.data import Reversal

WIDTH = 32
DISTANCES = (1, 2, 4)
N_HEADS = (1, 2, 4, 8, 32)


@dataclass(frozen=True)
class SeveralEvidence:
    """By number of heads, at equal width."""

    n_heads: list[int]
    parameters: list[int]
    loss: list[float]  # nats, where three places are needed
    accuracy: list[float]
    looks: list[float]  # weight on a place by the head that looks there most, summed over three places
    reversal: float  # accuracy of the second half with one head, where one place is needed


@dataclass(frozen=True)
class PlacesResult:
    """A block with so many heads that has learned to name three places at once."""

    parameters: int
    loss: float  # nats
    accuracy: float
    looks: float


def measure_several(effort: Effort, seed: int, subject: Subject | None) -> SeveralEvidence:
    """Train one block of width 32 with 1 to 32 heads on a task of three places, and on the reversal."""
    steps = effort.pick(quick=150, full=400)
    results = [learn_places(n_heads, steps, seed) for n_heads in N_HEADS]
    return SeveralEvidence(
        list(N_HEADS),
        [result.parameters for result in results],
        [result.loss for result in results],
        [result.accuracy for result in results],
        [result.looks for result in results],
        learn_reversal(effort.pick(quick=120, full=400), seed),
    )


def learn_places(n_heads: int, steps: int, seed: int) -> PlacesResult:
    """Train on three places at once, and look at the queries that have all three behind them."""
    places = Places(4, 8, DISTANCES, seed)
    config = tiny(
        vocab_size=places.outcomes,
        n_ctx=places.n_ctx,
        n_layers=1,
        n_heads=n_heads,
        d_model=WIDTH,
        tied=False,
    )
    model = build(config, seed)
    train(model, places, steps, seed, batch_size=32, lr=1e-2)
    inputs, targets = fresh_tensors(places, 500)
    asked = slice(max(DISTANCES), None)
    with torch.inference_mode():
        logits = model(inputs)
        loss = cross_entropy(logits, targets)[:, asked].mean()
    return PlacesResult(
        n_parameters(model),
        float(loss),
        float((logits.argmax(-1) == targets)[:, asked].double().mean()),
        weight_on_places(attention_weights(model, inputs)[0]),
    )


def weight_on_places(weights: Tensor) -> float:
    """Of (batch, head, query, key): the weight of the head that looks there most, summed over the places."""
    queries = torch.arange(max(DISTANCES), weights.shape[-1])
    by_place = [weights[:, :, queries, queries - d].mean((0, 2)).max() for d in DISTANCES]
    return float(torch.stack(by_place).sum())


def learn_reversal(steps: int, seed: int) -> float:
    """Accuracy of the second half of a block with one head."""
    task = Reversal(4, 8, seed)
    config = tiny(vocab_size=task.symbols, n_ctx=task.n_ctx, n_layers=1, n_heads=1, d_model=WIDTH)
    model = build(config, seed)
    train(model, task, steps, seed, batch_size=32, lr=6e-3)
    return halves(accuracies(model, task), task)[1]


def show_several(seeds: Seeds[SeveralEvidence]) -> Finding:
    """Three places at once are easier for several heads; one place is not."""
    n_heads = seeds.first.n_heads

    def row(i: int) -> tuple[Cell, ...]:
        return (
            f"{n_heads[i]} × {WIDTH // n_heads[i]}",
            seeds.of(lambda e: e.loss[i], ".2f"),
            seeds.of(lambda e: e.accuracy[i], ".2f"),
            seeds.of(lambda e: e.looks[i], ".2f"),
        )

    parameters = seeds.first.parameters[n_heads.index(1)]
    table = Table(
        f"One block of width {WIDTH} and {parameters:,} parameters, three places at once",
        ("heads × d_head", "loss", "right", "weight on the three"),
        tuple(map(row, range(len(n_heads)))),
    )
    figure = Lines(
        "Equal width, equal parameters, equal steps",
        "heads",
        "loss (nats) where three places are needed",
        (seeds.curve("loss", n_heads, lambda e: e.loss),),
        log_x=True,
    )
    said = (
        f"The target is the triple of the symbols 1, 2 and 4 places before, one of {4 ** len(DISTANCES)}. "
        "One softmax can tell places apart only by giving them unequal weights; it may still get most of "
        "them right. Weight on the three: for each place that of the head that looks there most, summed. The "
        "last row has heads of one feature each. The reversal needs one place at a time; it was learned by a "
        "block with one head."
    )
    return Finding(said, (table,), (figure,), _several_claims(seeds))


def _several_claims(seeds: Seeds[SeveralEvidence]) -> tuple[Claim, ...]:
    one, four = seeds.first.n_heads.index(1), seeds.first.n_heads.index(4)
    return (
        at_least(
            "Where three places are needed at once, one head has a higher loss than four (ratio)",
            seeds.of(lambda e: e.loss[one] / e.loss[four], ".1f"),
            2,
            "1 if the number of heads did not matter.",
        ),
        at_least(
            "Four heads give the three places more weight than one head has to give",
            seeds.of(lambda e: e.looks[four], ".2f"),
            1.5,
            "One head's weights sum to 1, three heads could give 3: half more than one head can.",
        ),
        at_least(
            "Where one place is needed, one head is enough: it reverses",
            seeds.of(lambda e: e.reversal, ".2f"),
            SOLVED,
            "Chance is 0.12; the second half is fully determined.",
        ),
    )
