"""A recurrent language model to compare with: torch's LSTM between an embedding and an unembedding.

It has the interface that `lab.train` and `lab.accuracies` use: `model(ids) -> logits` and `model.config`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

LSTMState = tuple[Tensor, Tensor]  # h and c, each (layer, batch, d_hidden)


@dataclass(frozen=True)
class LSTMConfig:
    """Its architecture; `forget_bias` is added to the biases of the forget gates, which torch draws near 0.

    A bias of b lets a cell keep about sigmoid(b) of its content at each token: 1/2 at 0, 0.98 at 4. To
    raise it is the usual remedy (Gers et al. 2000, "Learning to Forget"; Jozefowicz et al. 2015, "An
    Empirical Exploration of Recurrent Network Architectures", which has 1).
    """

    vocab_size: int
    d_model: int = 64  # of the embedding
    d_hidden: int = 128
    n_layers: int = 1
    forget_bias: float = 0.0
    dropout: float = 0.0  # fit asks for it


class LSTM(nn.Module):
    """ids → embedding → LSTM → logits over the vocabulary, initialised as torch does."""

    def __init__(self, config: LSTMConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.lstm = nn.LSTM(config.d_model, config.d_hidden, config.n_layers, batch_first=True)
        self.unembed = nn.Linear(config.d_hidden, config.vocab_size)
        forget = slice(config.d_hidden, 2 * config.d_hidden)  # torch's order is input, forget, cell, output
        with torch.no_grad():
            for name, parameter in self.lstm.named_parameters():
                if name.startswith("bias_hh"):
                    parameter[forget] += config.forget_bias

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next token, shape (batch, position, vocab), for ids of shape (batch, position)."""
        return self.carry(ids)[0]

    def carry(self, ids: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """The same, going on from the state after earlier ids; and the state after these."""
        hidden, state = self.lstm(self.embed(ids), state)
        return self.unembed(hidden), state


def build_lstm(config: LSTMConfig, seed: int) -> LSTM:
    """A fresh one; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return LSTM(config)


def size(config: LSTMConfig) -> int:
    """Trained numbers: four gates a layer, torch gives each two biases."""
    h, v = config.d_hidden, config.vocab_size
    layers = sum(4 * h * ((h if layer else config.d_model) + h + 2) for layer in range(config.n_layers))
    return v * config.d_model + layers + v * h + v


def as_large_as(n_parameters: int, vocab_size: int, d_model: int, forget_bias: float = 0.0) -> LSTMConfig:
    """The one of a layer whose number of parameters is nearest."""
    configs = [LSTMConfig(vocab_size, d_model, h, forget_bias=forget_bias) for h in range(1, 1025)]
    return min(configs, key=lambda config: abs(size(config) - n_parameters))
