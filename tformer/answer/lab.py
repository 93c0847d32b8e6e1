"""What the experiments share: small models with parts replaced, one training loop, the run of --run.

The models are `tformer.model`'s, the loop is `tformer.training.fit`'s: what is shown is what
`tformer train` uses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tformer import answer
from tformer.answer.tasks import Stream, Task
from tformer.config import ModelConfig, TrainConfig
from tformer.counted import counted
from tformer.errors import RequestError, TformerError
from tformer.model import Transformer
from tformer.run.kept_ids import text_ids
from tformer.run.loaded import LoadedRun, load_run
from tformer.run.own_tokenizer import run_tokenizer
from tformer.run.source import recorded_source
from tformer.text.data import Batches, Reversal, rng
from tformer.text.split import cut_of
from tformer.text.tokenizer import Tokenizer
from tformer.training.fit import Learner, State, StepDone, fit
from tformer.training.optim import Optimizers
from tformer.watch import AttentionCall, attention_calls

READ = 200_000  # characters of a text, at most

# ---------------------------------------------------------------------------- the run of --run


@dataclass(frozen=True)
class Subject:
    """A trained run, or a Hugging Face directory, to be examined. Without a tokenizer its ids are random."""

    folder: Path
    model: Transformer
    tokenizer: Tokenizer | None
    task: Reversal | None  # of a run on reversal
    text_ids: np.ndarray | None  # of its validation text, or of some prose; None: nothing to read
    notes: tuple[str, ...] = ()  # what a person should know of its weights

    def ids(self, n: int, length: int, seed: int = 0) -> Tensor:
        """`n` inputs of at most `length` positions, shape (n, ≤ length): fresh sequences, text, or random."""
        length = min(length, self.model.config.n_ctx)
        if self.task:
            inputs = self.task.fresh(n, index=1 + seed)[0][:, :length]
        elif self.text_ids is not None and len(self.text_ids) >= length:
            random = rng(seed, Stream.SUBJECT, 0)
            starts = random.integers(len(self.text_ids) - length + 1, size=n)
            inputs = self.text_ids[starts[:, None] + np.arange(length)]
        else:
            size = self.model.config.vocab_size
            inputs = rng(seed, Stream.SUBJECT, 1).integers(size, size=(n, length))
        return torch.from_numpy(np.ascontiguousarray(inputs).astype(np.int64))


def too_short(subject: Subject | None, positions: int) -> str | None:
    """Why a run cannot be examined that sees fewer positions than an experiment takes; None if it can."""
    n = subject.model.config.n_ctx if subject else positions
    if n >= positions:
        return None
    return f"the run sees {counted(n, 'position')}, and this takes at least {positions}"


def load_subject(folder: Path) -> Subject:
    """The model of a directory, its tokenizer if it has one, and something to read for it."""
    run = load_run(folder)
    tokenizer = (
        run_tokenizer(folder, run.record) if run.has_tokenizer else None
    )  # it may have more ids than the model
    text_ids = None if run.reversal else _text_ids(run, tokenizer)
    return Subject(folder, run.model, tokenizer, run.reversal, text_ids, run.notes)


def _text_ids(run: LoadedRun, tokenizer: Tokenizer | None) -> np.ndarray | None:
    """Ids of the validation part of what a run was trained on, if it lies here; else of our own prose."""
    if tokenizer is None:
        return None
    prose = "\n\n".join(question.text for question in answer.questions())
    for read in (_validation_ids, lambda _, known: known.encode_array([prose])):
        try:
            if len(ids := read(run, tokenizer)):
                return ids
        except TformerError:  # a character that its alphabet lacks
            continue
    return None


def _validation_ids(run: LoadedRun, tokenizer: Tokenizer) -> np.ndarray:
    """Of no text where it cannot be read as it was; nothing is downloaded here."""
    none = np.zeros(0, dtype=np.int64)
    try:
        source = recorded_source(run.folder, run.record)
        if source.is_ids or not source.is_here:
            return none
        corpus = source.corpus()
    except RequestError:
        return none
    start = cut_of(corpus, source.fraction) if source.fraction else 0
    stop = min(start + READ, len(corpus.text))
    return text_ids(tokenizer, corpus, start, stop, run.is_of_documents and corpus.n_documents > 1)


# ---------------------------------------------------------------------------- building and training


def tiny(**changes: Any) -> ModelConfig:
    """The model that the experiments change one thing of: 2 blocks, 4 heads, width 64."""
    return ModelConfig.model_validate({"n_layers": 2, "n_heads": 4, "d_model": 64} | changes)


def build(
    config: ModelConfig, seed: int, replace: Callable[[Transformer], object] = lambda model: None
) -> Transformer:
    """A fresh model; `replace` puts other parts into it, after the same draw of weights."""
    torch.manual_seed(seed)
    model = Transformer(config)
    replace(model)
    return model


def relative_difference(found: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """The largest difference, as a share of the largest number expected, or of `least` if that is more."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(least))


@torch.no_grad()
def calls_of(model: Transformer, ids: Tensor) -> list[AttentionCall]:
    """The calls of attention in one forward of ids, (batch, position): one a layer."""
    with attention_calls(model) as calls:
        model.eval()(ids)
    return calls


def n_parameters(model: nn.Module) -> int:
    """Trained numbers, each tensor once."""
    return sum(p.numel() for p in model.parameters())


def train(
    model: nn.Module,
    batches: Batches,
    steps: int,
    seed: int,
    on_step: Callable[[StepDone], object] = lambda done: None,
    **settings: Any,
) -> list[float]:
    """Train with `tformer.training.fit.fit`, AdamW, and return the loss of every step in nats a token.

    `model` is a Transformer or has its interface: `model(ids) -> logits` and `model.config`. A training
    that diverges raises DivergedError, as `tformer train` does.
    """
    values = {
        "seed": seed,
        "steps": steps,
        "batch_size": 64,
        "lr": 3e-3,
        "warmup_steps": min(20, steps // 10),
        "weight_decay": 0.0,
        "lr_final": 0.0,
        "precision": "fp32",
    } | settings
    config = TrainConfig.model_validate(values)
    losses = []
    for done in fit(Learner(model, Optimizers(model, config)), batches, config, State()):
        losses.append(done.loss)
        on_step(done)
    model.eval()
    return losses


def fresh_tensors(task: Task, n: int, index: int = 0) -> tuple[Tensor, Tensor]:
    """`n` inputs and targets that no step draws from, for a model: each (n, position) of int64."""
    inputs, targets = task.fresh(n, index)
    return torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(np.ascontiguousarray(targets))


@torch.inference_mode()
def accuracies(model: nn.Module, task: Task, n: int = 500, index: int = 1) -> np.ndarray:
    """Accuracy at each target position of `n` fresh sequences, shape (n_ctx,)."""
    inputs, targets = fresh_tensors(task, n, index)
    model.eval()
    return (model(inputs).argmax(-1) == targets).double().mean(0).numpy()


def halves(by_position: np.ndarray, task: Reversal) -> tuple[float, float]:
    """Mean accuracy of the first half, which nothing can predict, and of the second, which is known."""
    first = task.length - 1
    return float(by_position[:first].mean()) if first else 1 / task.symbols, float(by_position[first:].mean())
