"""Question 1, memory: what generation carries along, and what is learned over a distance."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from tformer.answer.claims import Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import (
    Subject,
    accuracies,
    build,
    fresh_tensors,
    n_parameters,
    relative_difference,
    tiny,
    train,
)
from tformer.answer.parts import start_random
from tformer.answer.q1_recurrence.chain import CLOSED, OPEN, SYMBOLS, reach
from tformer.answer.q1_recurrence.lstm import LSTMConfig, as_large_as, build_lstm
from tformer.answer.tasks import Recall
from tformer.config import ModelConfig
from tformer.figures import Lines, Numbers, Series, Table
from tformer.kv_cache import KVCache
from tformer.model import Transformer
from tformer.text.data import Reversal

# The best that was tried: of 0.003 to 0.03 for the LSTM, of 0.003 to 0.01 for the transformer.
LR, LSTM_LR = 5e-3, 1e-2

# ---------------------------------------------------------------------------- what is carried


@dataclass(frozen=True)
class CarriedEvidence:
    """Bytes carried after each number of tokens, and how far outputs that go on from them are off."""

    lengths: tuple[int, ...]
    cache_bytes: tuple[int, ...]
    state_bytes: tuple[int, ...]
    difference: float  # of logits, of either model, as a fraction of the largest
    cache_parameters: int
    state_parameters: int


def kept_of(model: Transformer, ids: Tensor) -> Tensor:
    """Keys and values of ids and nothing else, shape (2, layer, batch, head, position, d_head)."""
    cache = KVCache(model.config, ids.shape[0], next(model.parameters()))
    model(ids, cache)
    return torch.stack((cache.keys, cache.values))[..., : cache.length, :].clone()


def continued(model: Transformer, kept: Tensor, ids: Tensor) -> Tensor:
    """Logits of the last of ids, (batch, vocab), by a fresh cache that holds no more than what was kept."""
    n = kept.shape[-2]
    cache = KVCache(model.config, ids.shape[0], kept)
    cache.length = n
    cache.keys[..., :n, :], cache.values[..., :n, :] = kept
    return model(ids[:, n:], cache)[:, -1]


def measure_carried(effort: Effort, seed: int, subject: Subject | None) -> CarriedEvidence:
    """Read a text, keep nothing but what is carried, go on; compare with reading all of it at once."""
    longest = effort.pick(quick=256, full=1024)
    if subject:
        model, ids = subject.model.eval(), subject.ids(1, longest, seed)
    else:
        model = build(tiny(vocab_size=SYMBOLS, n_ctx=longest), seed, start_random).eval()
        ids = torch.randint(SYMBOLS, (1, longest))
    recurrent = build_lstm(LSTMConfig(SYMBOLS), seed)
    symbols = ids % SYMBOLS
    lengths = tuple(sorted({max(2, ids.shape[1] // 4**i - 1) for i in range(3)}))
    cache_bytes, state_bytes, differences = [], [], []
    with torch.inference_mode():
        for n in lengths:
            kept = kept_of(model, ids[:, :n])
            cache_bytes.append(kept.nbytes)
            going_on = continued(model, kept, ids[:, : n + 1])
            differences.append(relative_difference(going_on, model(ids[:, : n + 1])[:, -1]))
            h, c = recurrent.carry(symbols[:, :n])[1]
            state_bytes.append(h.nbytes + c.nbytes)
            going_on = recurrent.carry(symbols[:, n : n + 1], (h.clone(), c.clone()))[0][:, -1]
            differences.append(relative_difference(going_on, recurrent(symbols[:, : n + 1])[:, -1]))
    return CarriedEvidence(
        lengths,
        tuple(cache_bytes),
        tuple(state_bytes),
        max(differences),
        n_parameters(model),
        n_parameters(recurrent),
    )


def show_carried(seeds: Seeds[CarriedEvidence]) -> Finding:
    """The state stays as it is, the cache grows."""
    first = seeds.first
    carried = {"KV cache": first.cache_bytes, "LSTM's h and c": first.state_bytes}
    return Finding.of(
        f"A transformer of {first.cache_parameters:,} parameters and an LSTM of {first.state_parameters:,}. "
        "What is kept is copied out, put into a fresh cache or state, and one more token is read.",
        Table(
            "Bytes carried from token to token, one sequence",
            ("carried", *(f"{n} tokens" for n in first.lengths)),
            tuple(
                (name, *(Numbers((float(b),), ",.0f") for b in n_bytes)) for name, n_bytes in carried.items()
            ),
        ),
        Lines(
            "What is carried in generation",
            "tokens so far",
            "bytes",
            tuple(
                Series(name, tuple(map(float, first.lengths)), tuple(map(float, n_bytes)))
                for name, n_bytes in carried.items()
            ),
            log_x=True,
            log_y=True,
        ),
        at_most(
            "This is all that has to be carried: logits go on as if all were read again",
            seeds.of(lambda e: e.difference, ".1e"),
            1e-3,
            "Rounding of float32 is about 1e-6; a token that is missing changes them by much more.",
        ),
        at_least(
            "The KV cache grows as fast as the text (its growth over the text's)",
            # One division of whole numbers, so that equal growth is 1 and not 1 - 1e-16.
            seeds.of(lambda e: e.cache_bytes[-1] * e.lengths[0] / (e.cache_bytes[0] * e.lengths[-1])),
            1,
            "2 · n_layers · n_kv_heads · d_head numbers for every token, exactly.",
        ),
        at_most(
            "The LSTM's state does not grow (last over first)",
            seeds.of(lambda e: e.state_bytes[-1] / e.state_bytes[0]),
            1,
            "2 · n_layers · d_hidden numbers, whatever was read.",
        ),
    )


# ---------------------------------------------------------------------------- one token, remembered

TRANSFORMER = "transformer"


def transformer_or_lstm(config: ModelConfig, seed: int, forget_bias: float | None) -> nn.Module:
    """A fresh transformer where there is no forget bias; else an LSTM of about as many parameters."""
    model = build(config, seed)
    if forget_bias is None:
        return model
    return build_lstm(as_large_as(n_parameters(model), config.vocab_size, config.d_model, forget_bias), seed)


RECALL_BIASES = {TRANSFORMER: None, CLOSED: 0.0, OPEN: 4.0}  # of the forget gates, of those that have any


@dataclass(frozen=True)
class RecallEvidence:
    """For each model and distance: accuracy at the mark, and the gradient's share at the first symbol."""

    distances: tuple[int, ...]
    steps: int
    accuracy: dict[str, tuple[float, ...]]
    share: dict[str, tuple[float, ...]]
    parameters: dict[str, int]
    chance: float


def measure_recall(effort: Effort, seed: int, subject: Subject | None) -> RecallEvidence:
    """Train each model afresh for each distance, on the same batches."""
    distances = effort.pick(quick=(4, 16), full=(4, 8, 16, 32))
    steps = effort.pick(quick=120, full=300)
    accuracy: dict[str, list[float]] = {name: [] for name in RECALL_BIASES}
    share: dict[str, list[float]] = {name: [] for name in RECALL_BIASES}
    parameters: dict[str, int] = {}
    for distance in distances:
        task = Recall(distance, seed=seed)
        config = tiny(vocab_size=task.symbols + 1, n_ctx=task.n_ctx, n_layers=1, d_model=48)
        for name, bias in RECALL_BIASES.items():
            model = transformer_or_lstm(config, seed, bias)
            train(model, task, steps, seed, batch_size=32, lr=LR if bias is None else LSTM_LR)
            accuracy[name].append(float(accuracies(model, task)[-1]))
            share[name].append(reach(model, fresh_tensors(task, 16)[0])[distance])
            parameters[name] = n_parameters(model)
    return RecallEvidence(
        distances,
        steps,
        {name: tuple(values) for name, values in accuracy.items()},
        {name: tuple(values) for name, values in share.items()},
        parameters,
        1 / Recall.symbols,
    )


def show_recall(seeds: Seeds[RecallEvidence]) -> Finding:
    """Attention learns it at any distance; an LSTM near by, and with the same steps not far away."""
    first = seeds.first
    near, far = first.distances[0], first.distances[-1]
    halfway = (1 + first.chance) / 2

    def accuracy(name: str, i: int, style: str = ".3f") -> Numbers:
        return seeds.of(lambda e: e.accuracy[name][i], style)

    def share(name: str, i: int) -> Numbers:
        return seeds.of(lambda e: e.share[name][i], ".3f")

    because = f"Halfway between guessing among 8 ({first.chance:g}) and 1."
    sizes = ", ".join(f"{first.parameters[name]:,}" for name in RECALL_BIASES)
    return Finding.of(
        f"Trained for {first.steps} steps on sequences that end with a mark, at which the first symbol is to "
        f"be named. Parameters: {sizes}. Where it is learned the gradient reaches the first symbol, in an "
        "LSTM too. That it can at the start is not enough: with gates that start open it does, and yet "
        f"after these steps such an LSTM names {accuracy(OPEN, -1).mean:.0%} right {far} back, where "
        f"guessing gets {first.chance:.0%}. It has to find what to keep among all that it reads; attention "
        "looks it up.",
        Table(
            "After training: the first symbol, named at the mark",
            ("model", "tokens back", "accuracy", "share of gradient"),
            tuple(
                (name, str(distance), accuracy(name, i, ".2f"), share(name, i))
                for name in RECALL_BIASES
                for i, distance in enumerate(first.distances)
            ),
        ),
        at_least(
            f"A transformer learns to look back {far} tokens", accuracy(TRANSFORMER, -1), halfway, because
        ),
        at_least(f"An LSTM as torch initialises it learns {near}", accuracy(CLOSED, 0), halfway, because),
        at_most(f"With the same steps it does not learn {far}", accuracy(CLOSED, -1), halfway, because),
    )


# ---------------------------------------------------------------------------- reversal, by distance

SAME_STEPS, LONGER = "LSTM", "LSTM, longer"
REVERSAL_BIAS = 1.0  # of the forget gates


@dataclass(frozen=True)
class ReversalEvidence:
    """Accuracy in the second half of each model, by the distance of the token to be named."""

    distances: tuple[int, ...]
    accuracy: dict[str, tuple[float, ...]]
    steps: dict[str, int]
    parameters: dict[str, int]
    chance: float
    run: tuple[float, ...]  # of the run of --run, if it is one on reversal, at distances 0, 2, 4, …


def known_half(model: nn.Module, task: Reversal) -> tuple[float, ...]:
    """Accuracy at each position of the second half; its first names the token just read, distance 0."""
    return tuple(map(float, accuracies(model, task)[task.length - 1 :]))


def measure_reversal(effort: Effort, seed: int, subject: Subject | None) -> ReversalEvidence:
    """Train a transformer and an LSTM of its size for the same steps, and the LSTM for more of them."""
    task = Reversal(effort.pick(quick=6, full=10), 10, seed)
    steps, longer = effort.pick(quick=(100, 250), full=(150, 900))  # few, yet enough for the transformer
    config = tiny(vocab_size=task.symbols, n_ctx=task.n_ctx)
    accuracy, parameters = {}, {}
    steps_of = {TRANSFORMER: steps, SAME_STEPS: steps, LONGER: longer}
    for name, n_steps in steps_of.items():
        bias, lr = (None, LR) if name == TRANSFORMER else (REVERSAL_BIAS, LSTM_LR)
        model = transformer_or_lstm(config, seed, bias)
        train(model, task, n_steps, seed, batch_size=32, lr=lr)
        accuracy[name] = known_half(model, task)
        parameters[name] = n_parameters(model)
    run: tuple[float, ...] = ()
    if subject and subject.task and subject.model.config.n_ctx >= subject.task.n_ctx:
        run = known_half(subject.model, subject.task)
    distances = tuple(2 * i for i in range(task.length))
    return ReversalEvidence(distances, accuracy, steps_of, parameters, 1 / task.symbols, run)


def show_reversal(seeds: Seeds[ReversalEvidence]) -> Finding:
    """What each has learned with the same parameters and steps."""
    first = seeds.first
    n, halfway = len(first.distances), (1 + first.chance) / 2

    def over_distances(name: str, summary: Callable[[tuple[float, ...]], float]) -> Numbers:
        return seeds.of(lambda e: summary(e.accuracy[name]), ".2f")

    def row(name: str) -> tuple[str | Numbers, ...]:
        summaries: tuple[Any, ...] = (fmean, min, lambda curve: curve[0], lambda curve: curve[-1])
        return (name, str(first.steps[name]), *(over_distances(name, summary) for summary in summaries))

    def curve(name: str) -> Series:
        return seeds.curve(name, first.distances, lambda e: e.accuracy[name])

    series = [curve(name) for name in first.steps]
    if first.run:
        series.append(seeds.curve("the run", range(0, 2 * len(first.run), 2), lambda e: e.run))
    mean, worst = over_distances(LONGER, fmean).mean, over_distances(LONGER, min).mean
    farthest = over_distances(LONGER, lambda curve: curve[-1]).mean
    because = f"Halfway between guessing ({first.chance:g}) and 1."
    return Finding.of(
        f"{first.parameters[TRANSFORMER]:,} parameters against {first.parameters[SAME_STEPS]:,}, the same "
        "batches, each at the learning rate that suits it. What the LSTM lacks is time to learn, not room: "
        f"after {first.steps[LONGER]} steps it names {mean:.0%} right. Nor need it fail with distance, as is "
        f"often said: the farthest token, the first one read, is right in {farthest:.0%} then, the worst in "
        f"{worst:.0%}. (A tally of what was read, less what was named, is enough for the last one.)",
        Table(
            f"Accuracy on {n} symbols reversed",
            ("model", "steps", "mean", "worst", "0 back", f"{2 * n - 2} back"),
            tuple(row(name) for name in first.steps),
        ),
        Lines("Reversal, by how far back the token lies", "tokens back", "accuracy", tuple(series)),
        at_least(
            "The transformer reverses, at every distance", over_distances(TRANSFORMER, min), halfway, because
        ),
        at_most(
            "An LSTM of as many parameters has not learned it in as many steps (mean over distances)",
            over_distances(SAME_STEPS, fmean),
            halfway,
            because,
        ),
    )
