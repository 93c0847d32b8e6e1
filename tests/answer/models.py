"""Models with random weights of their own start, for the tests of experiments."""

from tformer.answer.lab import build, tiny
from tformer.answer.parts import start_random
from tformer.model import Transformer


def random_model(**changes: object) -> Transformer:
    """Two blocks that add something at once, where tformer's own start adds nothing yet."""
    settings = {"vocab_size": 13, "n_ctx": 20, "d_model": 32} | changes
    return build(tiny(**settings), 0, start_random).eval()
