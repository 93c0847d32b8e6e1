"""Linear maps with weights in bfloat16, for text that is generated: half as much to read for every token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tformer.model import Transformer


class BF16Linear(nn.Module):
    """x Wᵀ + b where W and x are rounded to bfloat16; sums, bias and what comes out are as x is.

    On a CPU the weights lie as its library multiplies them: else it would lay them out anew at every call,
    which for a single row takes longer than the product.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().to(torch.bfloat16)
        self.is_packed = weight.device.type == "cpu" and packs()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1) if self.is_packed else weight
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        rounded = x.to(torch.bfloat16)
        if self.is_packed:
            y = torch.ops.mkldnn._linear_pointwise(rounded, self.weight, None, "none", [], "")
        else:
            y = F.linear(rounded, self.weight)
        y = y.to(x.dtype)
        return y if self.bias is None else y + self.bias


def packs() -> bool:
    """Whether this processor's library has products of bfloat16, and a layout of its own for them."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def use_bf16(model: Transformer) -> None:
    """Put a BF16Linear in the place of every linear map of a model that is to be trained no more."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, BF16Linear(child))
