"""What the tests of answer/ examine: small runs and models, and such as lack what a claim is about."""

import torch

from tests.conftest import tiny_model
from tformer.answer.lab import Subject, build, tiny
from tformer.answer.parts import start_random
from tformer.answer.q1_recurrence.lstm import LSTM
from tformer.model import CausalSelfAttention, Transformer, causal_mask
from tformer.watch import put_attention

OLD = 3  # what a short-sighted model still sees


def subject(model=None, task=None, text_ids=None, **changes):
    """A run of this model, or of a tiny one with these settings."""
    return Subject(None, model or tiny_model(**changes), None, task, text_ids)


def random_model(**changes: object) -> Transformer:
    """Two blocks that add something at once, where tformer's own start adds nothing yet."""
    settings = {"vocab_size": 13, "n_ctx": 20, "d_model": 32} | changes
    return build(tiny(**settings), 0, start_random).eval()


class ShortSighted(CausalSelfAttention):
    """Sees itself and the `OLD` tokens before."""

    def attend(self, q, k, v, mask):
        return super().attend(q, k, v, mask & causal_mask(*mask.shape[-2:]).triu(-OLD))


def short_sighted(config, seed, change=lambda model: None):
    """`lab.build`, of models that see `OLD` tokens back."""
    return put_attention(build(config, seed, change), ShortSighted)


class Forgetful(LSTM):
    """Starts afresh at every token: no recurrence."""

    def carry(self, ids, state=None):
        hidden, state = self.lstm(self.embed(ids).flatten(0, 1)[:, None])
        return self.unembed(hidden).view(*ids.shape, -1), state


def forgetful(config, seed):
    """`build_lstm`, of models without recurrence."""
    torch.manual_seed(seed)
    return Forgetful(config)
