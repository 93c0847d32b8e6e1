"""What the tests of experiments examine: models with random weights, and runs made of them."""

from pathlib import Path

import numpy as np

from tformer.answer.lab import Subject, build, tiny
from tformer.answer.parts import start_random
from tformer.model import Transformer
from tformer.text.data import Reversal


def random_model(**changes: object) -> Transformer:
    """Two blocks that add something at once, where tformer's own start adds nothing yet."""
    settings = {"vocab_size": 13, "n_ctx": 20, "d_model": 32} | changes
    return build(tiny(**settings), 0, start_random).eval()


def subject(model: Transformer, task: Reversal | None = None, text: np.ndarray | None = None) -> Subject:
    """A run of this model, on a task, with a text, or with neither."""
    return Subject(Path("a-run"), model, None, task, text)
