"""Weights that another tool trained on a run of ours: what the run held fixed, and is not so any more.

The layout of GPT-2 has positions and biases that are learned, so transformers trains them where a run has
sinusoids or zeros there. Its config.json still says what the run had.
"""

import torch
from torch import Tensor

from tformer.config import ModelConfig
from tformer.model import sinusoidal_positions

BUFFERS = (".attn.bias", ".attn.masked_bias")  # old transformers saved them: they are masks
TOLERANCE = 1e-6


def as_trained(config: ModelConfig, tensors: dict[str, Tensor]) -> ModelConfig:
    """`config`, with learned positions and with biases where the tensors of a directory have them."""
    if config.family != "gpt2":
        return config
    found = {name.removeprefix("transformer."): t for name, t in tensors.items() if t.is_floating_point()}
    changed: dict[str, object] = {}
    positions = found.get("wpe.weight")
    shape = (config.n_ctx, config.d_model)
    if config.positions != "learned" and positions is not None and positions.shape == shape:
        fixed = sinusoidal_positions(*shape) if config.positions == "sinusoidal" else torch.zeros(shape)
        if not torch.allclose(positions.float(), fixed, atol=TOLERANCE):
            changed["positions"] = "learned"
    biases = (t for name, t in found.items() if name.endswith(".bias") and not name.endswith(BUFFERS))
    if not config.bias and any(t.abs().max() > TOLERANCE for t in biases if t.numel()):
        changed["bias"] = True
    return config.model_copy(update=changed)


def told_of(said: ModelConfig, found: ModelConfig) -> tuple[str, ...]:
    """In words, for a person: how a model is not as its config.json says."""
    told = []
    if said.positions != found.positions:
        fixed = "sinusoids" if said.positions == "sinusoidal" else "zeros"
        told.append(f"its positions are no longer {fixed}, as trained elsewhere: taken as learned")
    if said.bias != found.bias:
        told.append("its biases are no longer zero, as trained elsewhere: taken as biases")
    return tuple(told)
