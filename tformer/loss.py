"""Cross-entropy, the one loss of the package, a pure function of logits and targets; and a check."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tformer.errors import TformerError


def cross_entropy(
    logits: Float[Tensor, "batch position vocab"], targets: Int[Tensor, "batch position"]
) -> Float[Tensor, "batch position"]:
    """-log softmax(logits)[target] in nats, one for each target, in float32 at least."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def check_finite(values: Tensor, what: str, without: str) -> None:
    """Raise TformerError where what a model made is not finite; `without` that nothing can be done.

    Weights that are finite may make it, where they are very large.
    """
    if not values.isfinite().all():
        raise TformerError(f"the {what} are not finite", f"nothing can be {without}", "give another --run")
