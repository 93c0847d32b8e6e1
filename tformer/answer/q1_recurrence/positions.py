"""Evidence for question 1: what attention knows of order, by itself, by its mask and by positions."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tformer.answer.claims import Budget, Claim, Experiment, Finding
from tformer.answer.lab import Subject, accuracies, build, tiny, train
from tformer.figures import Bars, Numbers, Table
from tformer.kv_cache import LayerCache
from tformer.model import (
    Block,
    CausalSelfAttention,
    Rotation,
    Transformer,
    attention,
    rotary_angles,
)
from tformer.text.data import rng

STREAM_ORDER, STREAM_ORDER_EVAL = 101, 102

# ---------------------------------------------------------------------------- parts to put in


class Timeless(CausalSelfAttention):
    """Queries and keys are never turned."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        return super().forward(x, mask, None, cache)


class Unmasked(Timeless):
    """Every query sees every key."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attention(q, k, v)[0]


class Rotary(CausalSelfAttention):
    """Queries and keys are turned, in whatever model this is put: only nanochat's layout has it built in."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        positions = torch.arange(x.shape[1])[None]
        cos, sin = rotary_angles(positions, self.config.d_head, self.config.rope_theta)
        return super().forward(x, mask, (cos[:, None], sin[:, None]), cache)


def with_attention(kind: type[CausalSelfAttention]) -> Callable[[Transformer], None]:
    """Puts this attention into every block, with the weights that are there."""

    def replace(model: Transformer) -> None:
        for block in model.blocks:
            assert isinstance(block, Block)
            part = kind(model.config).to(block.attn.qkv.weight.dtype)
            part.load_state_dict(block.attn.state_dict())
            block.attn = part

    return replace


@torch.no_grad()
def stir(model: Transformer) -> None:
    """Draw the projections back into the residual stream as all other matrices are drawn.

    They start at zero, so a fresh model hands nothing from position to position: it would pass any test
    of what depends on what.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("attn.out.weight", "mlp.down.weight")):
            parameter.normal_(std=parameter.shape[1] ** -0.5)


def shrink_positions(model: Transformer) -> None:
    """Sinusoids as small as the embeddings, where they would drown the tokens at first.

    Vaswani et al. do it the other way, and multiply the embeddings by √d_model (section 3.4).
    """
    assert model.position is not None
    model.position = model.position * (0.02 / 0.5**0.5)  # 0.02 is theirs, √½ a sinusoid's root mean square


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
    with_attention(kind)(bare)
    return bare.eval()


@torch.inference_mode()
def measure_permutation(budget: Budget, seed: int, subject: Subject | None) -> PermutationEvidence:
    """Reorder the inputs of models with random weights, or with those of the run, in float64."""
    length = budget.pick(quick=24, full=64)
    if subject:
        model, ids = subject.model, subject.ids(4, length, seed)
    else:
        model = build(tiny(vocab_size=32, n_ctx=length), seed, stir)
        ids = torch.randint(32, (4, length))
    n = ids.shape[1]
    reversed_ids = torch.cat((ids[:, :-1].flip(1), ids[:, -1:]), dim=1)
    order = torch.from_numpy(rng(seed, STREAM_ORDER, 0).permutation(n))

    def moved(model: Transformer) -> float:
        return _difference(model(reversed_ids)[:, -1], model(ids)[:, -1])

    bag = timeless(model, 2, Unmasked)
    placed = copy.deepcopy(model).double().eval()
    placed.blocks = placed.blocks[:1]
    repeated = timeless(model, 2)(ids[:, :1].expand(-1, n))
    return PermutationEvidence(
        unmasked=_difference(bag(ids[:, order]), bag(ids)[:, order]),
        one_layer=moved(timeless(model, 1)),
        two_layers=moved(timeless(model, 2)),
        with_positions=moved(placed),
        one_token=_difference(repeated, repeated[:, :1]),
    )


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def show_permutation(measured: Sequence[PermutationEvidence]) -> Finding:
    """Only the mask of two layers, or positions, tell one order from another."""
    by_name = {name: _numbers(measured, name) for name in asdict(measured[0])}
    rows = (
        ("none", "none", "2", "all tokens shuffled", by_name["unmasked"]),
        ("causal", "none", "1", "earlier tokens reversed", by_name["one_layer"]),
        ("causal", "none", "2", "earlier tokens reversed", by_name["two_layers"]),
        ("causal", "its own", "1", "earlier tokens reversed", by_name["with_positions"]),
        ("causal", "none", "2", "one token repeated", by_name["one_token"]),
    )
    columns = ("mask", "positions", "layers", "input", "of largest")
    table = Table("How far the output moves", columns, rows)
    because = (
        "Float64 rounds at 1e-16, an output that depends on order moves by up to 1: halfway on a log scale."
    )
    claims = (
        Claim(
            "Without mask and positions, permuting the inputs permutes the outputs and does nothing else",
            by_name["unmasked"],
            "at most",
            1e-8,
            because,
        ),
        Claim(
            "Under the causal mask alone, one layer does not see the order of the earlier tokens",
            by_name["one_layer"],
            "at most",
            1e-8,
            because,
        ),
        Claim(
            "Under the causal mask alone, two layers do",
            by_name["two_layers"],
            "at least",
            1e-8,
            because,
        ),
    )
    said = (
        "Inputs in another order, in float64. Without a mask each output is compared with that of the same "
        "token before; under it the last output, whose token stays in its place. One limit remains under the "
        "mask, at any depth: one token repeated looks alike at every position."
    )
    return Finding(said, (table,), (), claims)


def _numbers(measured: Sequence[PermutationEvidence], name: str) -> Numbers:
    return Numbers(tuple(getattr(e, name) for e in measured), ".1e")


# ---------------------------------------------------------------------------- a task that needs order


@dataclass(frozen=True)
class Previous:
    """`n` different symbols in random order; the target is the token before (at the start, the first).

    Whoever knows the tokens up to t but not their order finds the one before t by guessing among t.
    """

    n: int
    seed: int = 0

    @property
    def guessing(self) -> float:
        """The best accuracy that is possible without order: the mean of 1, 1, 1/2, … 1/(n - 1)."""
        return (1 + sum(1 / t for t in range(1, self.n))) / self.n

    def batch(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a step."""
        return self._draw(batch_size, STREAM_ORDER, step)

    def fresh(self, n: int, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets that no step draws from."""
        return self._draw(n, STREAM_ORDER_EVAL, index)

    def _draw(self, count: int, stream: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        ids = rng(self.seed, stream, index).permuted(np.tile(np.arange(self.n), (count, 1)), axis=1)
        return ids, np.concatenate((ids[:, :1], ids[:, :-1]), axis=1)


@dataclass(frozen=True)
class Variant:
    """A GPT-2 block or two with one kind of positions; the rest is the same for all."""

    name: str
    positions: str
    n_layers: int
    replace: Callable[[Transformer], object] = lambda model: None


VARIANTS = (
    Variant("none, 1 layer", "none", 1),
    Variant("sinusoidal, 1 layer", "sinusoidal", 1, shrink_positions),
    Variant("learned, 1 layer", "learned", 1),
    Variant("rotary, 1 layer", "none", 1, with_attention(Rotary)),
    Variant("none, 2 layers", "none", 2),
    Variant("none, 2 layers, no mask", "none", 2, with_attention(Unmasked)),
)
PLACED = tuple(variant.name for variant in VARIANTS[1:4])


@dataclass(frozen=True)
class OrderEvidence:
    """Accuracy of each variant on the token before."""

    accuracy: dict[str, float]
    guessing: float


def measure_order(budget: Budget, seed: int, subject: Subject | None) -> OrderEvidence:
    """Train each variant from the same draw on the same batches."""
    task = Previous(budget.pick(quick=8, full=12), seed)
    steps, width = budget.pick(quick=(100, 48), full=(300, 64))
    found = {}
    for variant in VARIANTS:
        config = tiny(
            vocab_size=task.n,
            n_ctx=task.n,
            d_model=width,
            positions=variant.positions,
            n_layers=variant.n_layers,
        )
        model = build(config, seed, variant.replace)
        train(model, task, steps, seed, batch_size=32, lr=5e-3)
        found[variant.name] = float(accuracies(model, task).mean())
    return OrderEvidence(found, task.guessing)


def show_order(measured: Sequence[OrderEvidence]) -> Finding:
    """Positions solve it in one layer, the mask alone in two; neither, and it is a guess."""
    guessing = measured[0].guessing
    half = round((1 + guessing) / 2, 3)
    numbers = {n: Numbers(tuple(e.accuracy[n] for e in measured), ".3f") for n in measured[0].accuracy}
    placed = Numbers(tuple(min(e.accuracy[n] for n in PLACED) for e in measured), ".3f")
    figure = Bars(
        "Naming the token before, by what brings order in",
        "accuracy",
        tuple(numbers.items()),
        ("best without order", guessing),
    )
    because = f"Halfway between {guessing:.3f}, the best that is possible without order, and 1."
    claims = (
        Claim(
            "One layer without positions can only guess", numbers["none, 1 layer"], "at most", half, because
        ),
        Claim(
            "Sinusoidal, learned and rotary positions each tell it the order",
            placed,
            "at least",
            half,
            because,
        ),
        Claim(
            "From two layers on, the causal mask alone does",
            numbers["none, 2 layers"],
            "at least",
            half,
            because,
        ),
    )
    said = (
        "The task: all symbols once, in random order; name the token before. The blocks are GPT-2's in every "
        "variant, only the positions differ: rotary ones are put into its attention, sinusoids are scaled to "
        "the size of the embeddings. The last variant has no mask, so it cannot even tell which tokens came "
        "before: two layers by themselves bring no order."
    )
    return Finding(said, (), (figure,), claims)


EXPERIMENTS: tuple[Experiment[PermutationEvidence] | Experiment[OrderEvidence], ...] = (
    Experiment(
        "permutation",
        "Is attention a bag of words?",
        measure_permutation,
        show_permutation,
        seeds=(3, 5),
        skip=lambda subject: (
            "its context has fewer than three positions"
            if subject and subject.model.config.n_ctx < 3
            else None
        ),
    ),
    Experiment("order", "A task that needs order", measure_order, show_order, seeds=(2, 5)),
)
