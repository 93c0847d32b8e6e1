"""Dropout as one product by a mask whose bits are cheap, and a function of seed, step and order of use.

`torch.nn.functional.dropout` draws from a Bernoulli distribution for every element: on a CPU that was two
fifths of a step of nanoGPT's larger character configuration. Here a mask is 16 random bits an element,
compared with a bound, and already what an element is multiplied by: 0, or 1 / (1 - p).
"""

import numpy as np
import torch
from torch import Tensor, nn

CHOICES = 1 << 16  # p is taken as a multiple of 1 / CHOICES, and the scale is that of what was taken


class Masks:
    """Where masks come from. `begin` starts the stream of a step; masks then follow in the order of use."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Start again from a seed, below 2**63."""
        self.bits = np.random.SFC64(seed)

    def draw(self, shape: tuple[int, ...], p: float, dtype: torch.dtype) -> Tensor:
        """A mask on the CPU: 0 with probability p, else 1 / (1 - p)."""
        n = int(np.prod(shape))
        bound = round(p * CHOICES)
        raw = self.bits.random_raw((n + 3) // 4).view(np.uint16)[:n]
        kept = (raw >= bound) if bound else np.ones(n, dtype=bool)
        scale = torch.tensor(CHOICES / (CHOICES - bound) if bound < CHOICES else 0.0, dtype=dtype)
        if dtype == torch.bfloat16:  # numpy has no such type: its 16 bits, times 0 or 1
            pattern = scale.view(torch.int16).numpy()
            return torch.from_numpy(kept.view(np.uint8) * pattern).view(dtype).view(shape)
        return torch.from_numpy(kept.view(np.uint8) * scale.numpy()).view(shape)


class MaskedDropout(nn.Module):
    """In place of `nn.Dropout`: the same distribution, other random numbers."""

    def __init__(self, p: float, masks: Masks):
        super().__init__()
        self.p, self.masks = p, masks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * self.masks.draw(tuple(x.shape), self.p, x.dtype)
