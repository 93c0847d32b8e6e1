"""What a model that is to train is given beside its formulas, by its settings."""

import torch

from tformer.config import TrainConfig
from tformer.fast.kernels import attach, dropout_streams
from tformer.fast.recompute import recompute_blocks
from tformer.model import Transformer


def put_parts(model: Transformer, train: TrainConfig, device: torch.device) -> None:
    """Kernels for `device`, and blocks that compute their activations again where they are to."""
    attach(model, train.kernels, device)
    if train.recompute:
        recompute_blocks(model, dropout_streams(model))
