"""Question 1, order: what attention knows of it by itself, by its mask and by positions."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from tformer.answer.claims import Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, accuracies, build, relative_difference, tiny, train
from tformer.answer.parts import Rotary, Timeless, Unmasked, shrink_positions, start_random
from tformer.answer.tasks import Previous, Stream
from tformer.figures import Bars, Numbers, Table
from tformer.model import CausalSelfAttention, Transformer
from tformer.text.data import rng
from tformer.watch import put_attention

# ---------------------------------------------------------------------------- permuted inputs


@dataclass(frozen=True)
class PermutationEvidence:
    """By how much outputs move, as a fraction of the largest, when inputs change their order."""

    unmasked: float  # every output, against the outputs of the sequence permuted alike
    one_layer: float  # the last output, when the tokens before it are reversed
    two_layers: float
    with_positions: float  # one layer, and the positions that the model has
    one_token: float  # all outputs of one token repeated, against the first


def timeless(model: Transformer, n_layers: int, kind: type[CausalSelfAttention] = Timeless) -> Transformer:
    """A copy in float64 without positions, of the first blocks (over again if there are too few)."""
    bare = copy.deepcopy(model).double()
    bare.blocks = nn.ModuleList((list(bare.blocks) * n_layers)[:n_layers])
    if bare.position is not None:
        with torch.no_grad():
            bare.position.zero_()
    return put_attention(bare, kind).eval()


@torch.inference_mode()
def measure_permutation(effort: Effort, seed: int, subject: Subject | None) -> PermutationEvidence:
    """Reorder the inputs of models with random weights, or with those of the run, in float64."""
    length = effort.pick(quick=24, full=64)
    if subject:
        model, ids = subject.model, subject.ids(4, length, seed)
    else:
        model = build(tiny(vocab_size=32, n_ctx=length), seed, start_random)
        ids = torch.randint(32, (4, length))
    n = ids.shape[1]
    reversed_ids = torch.cat((ids[:, :-1].flip(1), ids[:, -1:]), dim=1)
    order = torch.from_numpy(rng(seed, Stream.PREVIOUS, 0).permutation(n))

    def moved(model: Transformer) -> float:
        return relative_difference(model(reversed_ids)[:, -1], model(ids)[:, -1])

    bag = timeless(model, 2, Unmasked)
    placed = copy.deepcopy(model).double().eval()
    placed.blocks = placed.blocks[:1]
    repeated = timeless(model, 2)(ids[:, :1].expand(-1, n))
    return PermutationEvidence(
        unmasked=relative_difference(bag(ids[:, order]), bag(ids)[:, order]),
        one_layer=moved(timeless(model, 1)),
        two_layers=moved(timeless(model, 2)),
        with_positions=moved(placed),
        one_token=relative_difference(repeated, repeated[:, :1]),
    )


def show_permutation(seeds: Seeds[PermutationEvidence]) -> Finding:
    """Only the mask of two layers, or positions, tell one order from another."""
    unmasked = seeds.of(lambda e: e.unmasked, ".1e")
    one_layer = seeds.of(lambda e: e.one_layer, ".1e")
    two_layers = seeds.of(lambda e: e.two_layers, ".1e")
    with_positions = seeds.of(lambda e: e.with_positions, ".1e")
    one_token = seeds.of(lambda e: e.one_token, ".1e")
    because = (
        "Float64 rounds at 1e-16, an output that depends on order moves by up to 1: halfway on a log scale."
    )
    return Finding.of(
        "Inputs in another order, in float64. Without a mask each output is compared with that of the same "
        "token before; under it the last output, whose token stays in its place. One limit remains under the "
        "mask, at any depth: one token repeated looks alike at every position.",
        Table(
            "How far the output moves",
            ("mask", "positions", "layers", "input", "of largest"),
            (
                ("none", "none", "2", "all tokens shuffled", unmasked),
                ("causal", "none", "1", "earlier tokens reversed", one_layer),
                ("causal", "none", "2", "earlier tokens reversed", two_layers),
                ("causal", "its own", "1", "earlier tokens reversed", with_positions),
                ("causal", "none", "2", "one token repeated", one_token),
            ),
        ),
        at_most(
            "Without mask and positions, permuting the inputs permutes the outputs and does nothing else",
            unmasked,
            1e-8,
            because,
        ),
        at_most(
            "Under the causal mask alone, one layer does not see the order of the earlier tokens",
            one_layer,
            1e-8,
            because,
        ),
        at_least("Under the causal mask alone, two layers do", two_layers, 1e-8, because),
    )


# ---------------------------------------------------------------------------- a task that needs order


@dataclass(frozen=True)
class OrderVariant:
    """A GPT-2 block or two with one kind of positions; the rest is the same for all."""

    name: str
    positions: str
    n_layers: int
    replace: Callable[[Transformer], object] = lambda model: None


BARE, MASK_ALONE = "none, 1 layer", "none, 2 layers"
PLACED = (
    OrderVariant("sinusoidal, 1 layer", "sinusoidal", 1, shrink_positions),
    OrderVariant("learned, 1 layer", "learned", 1),
    OrderVariant("rotary, 1 layer", "none", 1, partial(put_attention, kind=Rotary)),
)
ORDER_VARIANTS = (
    OrderVariant(BARE, "none", 1),
    *PLACED,
    OrderVariant(MASK_ALONE, "none", 2),
    OrderVariant("none, 2 layers, no mask", "none", 2, partial(put_attention, kind=Unmasked)),
)


@dataclass(frozen=True)
class OrderEvidence:
    """Accuracy of each variant on the token before, by its name."""

    accuracy: dict[str, float]
    guessing: float  # the best accuracy without order


def measure_order(
    effort: Effort, seed: int, subject: Subject | None, variants: Sequence[OrderVariant] = ORDER_VARIANTS
) -> OrderEvidence:
    """Train each variant from the same draw on the same batches."""
    task = Previous(effort.pick(quick=8, full=12), seed)
    steps, width = effort.pick(quick=(100, 48), full=(300, 64))
    accuracy = {}
    for variant in variants:
        config = tiny(
            vocab_size=task.n,
            n_ctx=task.n,
            d_model=width,
            positions=variant.positions,
            n_layers=variant.n_layers,
        )
        model = build(config, seed, variant.replace)
        train(model, task, steps, seed, batch_size=32, lr=5e-3)
        accuracy[variant.name] = float(accuracies(model, task).mean())
    return OrderEvidence(accuracy, task.guessing)


def show_order(seeds: Seeds[OrderEvidence]) -> Finding:
    """Positions solve it in one layer, the mask alone in two; neither, and it is a guess."""
    guessing = seeds.first.guessing
    halfway = round((1 + guessing) / 2, 3)

    def accuracy(name: str) -> Numbers:
        return seeds.of(lambda e: e.accuracy[name], ".3f")

    because = f"Halfway between {guessing:.3f}, the best that is possible without order, and 1."
    worst_placed = seeds.of(lambda e: min(e.accuracy[variant.name] for variant in PLACED), ".3f")
    return Finding.of(
        "The task: all symbols once, in random order; name the token before. The blocks are GPT-2's in every "
        "variant, only the positions differ: rotary ones are put into its attention, sinusoids are scaled to "
        "the size of the embeddings. The last variant has no mask, so it cannot even tell which tokens came "
        "before: two layers by themselves bring no order.",
        Bars(
            "Naming the token before, by what brings order in",
            "accuracy",
            tuple((name, accuracy(name)) for name in seeds.first.accuracy),
            ("best without order", guessing),
        ),
        at_most("One layer without positions can only guess", accuracy(BARE), halfway, because),
        at_least(
            "Sinusoidal, learned and rotary positions each tell it the order", worst_placed, halfway, because
        ),
        at_least("From two layers on, the causal mask alone does", accuracy(MASK_ALONE), halfway, because),
    )
