"""What the loss's gradient is in each block."""

import torch
from torch import Tensor

from tformer.answer.parts import blocks_of
from tformer.loss import cross_entropy
from tformer.model import Transformer


def gradients(model: Transformer, inputs: Tensor, targets: Tensor) -> tuple[list[float], list[float]]:
    """Norm of the loss's gradient in each block: of all its weights, and of queries' and keys' alone."""
    model.zero_grad(set_to_none=True)
    cross_entropy(model(inputs), targets).mean().backward()
    whole, looking = [], []
    for block in blocks_of(model):
        found = [p.grad.norm() for p in block.parameters() if p.grad is not None]
        whole.append(float(torch.stack(found).norm()))
        of_projection = block.attn.qkv.weight.grad
        assert of_projection is not None
        looking.append(float(of_projection[: sum(block.attn.qkv_rows[:2])].norm()))
    model.zero_grad(set_to_none=True)
    return whole, looking
