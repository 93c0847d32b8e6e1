"""The learning rate of a step, which parameter gets which optimizer, and Muon.

Knows nothing of data or losses. Optimizer state goes in and out as tensors keyed by parameter name.
"""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from tformer.config import TrainConfig
from tformer.errors import TformerError
from tformer.model import CausalSelfAttention
from tformer.ranks import Ranks, here
from tformer.training.sharded import on_whole, part_of


def lr_at(step: int, train: TrainConfig) -> float:
    """The learning rate of step 0, 1, 2, …, a function of the step alone.

    Linear warm-up through lr/(w+1), 2·lr/(w+1), …, then lr, then over the last `decay_fraction` of all
    steps down to lr · lr_final, as half a cosine (Loshchilov and Hutter 2017) or a line. The final
    value would be that of step `steps`, which is not taken.
    """
    if step < train.warmup_steps:
        return train.lr * (step + 1) / (train.warmup_steps + 1)
    start = steps_before_decay(train)
    if step < start or start >= train.steps:
        return train.lr
    progress = min(1.0, (step - start) / (train.steps - start))
    left = 0.5 * (1 + math.cos(math.pi * progress)) if train.decay == "cosine" else 1 - progress
    return train.lr * (train.lr_final + left * (1 - train.lr_final))


def steps_before_decay(train: TrainConfig) -> int:
    """After how many steps the rate begins to fall. No earlier rate depends on how many steps there are."""
    return max(train.warmup_steps, train.steps - round(train.decay_fraction * train.steps))


# Each round of Newton-Schulz takes singular values s to a·s + b·s³ + c·s⁵, the polynomial of its kind that
# brings those of an interval nearest to 1: the first one [0.01, 1], each other what the round before made of
# that (Amsel et al. 2025, "The Polar Express"). All three bring [0.01, 1] into 1 ± 0.27, and what is smaller
# to 78 times itself.
NEWTON_SCHULZ = (
    (8.0934, -23.6204, 17.4462),
    (3.6366, -2.7219, 0.5365),
    (2.6613, -1.9772, 0.4526),
)


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32, eps: float = 1e-7) -> Tensor:
    """U Vᵀ, nearly, of each matrix U S Vᵀ in (n, rows, columns), rows ≤ columns."""
    x = matrices.to(dtype)
    # Not x.norm: on MPS that is a deprecated function, and warns.
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=eps)
    # The norm of X Xᵀ is the root of the sum of all s⁴: at least the square of the largest s, and far less
    # than the square of X's own norm, so that fewer rounds do. Two per cent for what bfloat16 rounds.
    gram = x @ x.mT
    largest = 1.02 * torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True).clamp(min=eps)
    x, gram = x / largest.sqrt(), gram / largest
    for i, (a, b, c) in enumerate(NEWTON_SCHULZ):
        if i:
            gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


class Optimizer(ABC):
    """Some parameters, and what is kept of each from step to step, by name.

    Not a torch.optim.Optimizer, the first of which imports PyTorch's compiler: 1.7 of the 4 seconds of a
    small training.
    """

    def __init__(self, params: Iterable[Tensor]):
        self.params = list(params)
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @abstractmethod
    def step(self, lr: float, skip: Tensor | None = None) -> None:
        """One update, at this learning rate, of every parameter that has a gradient.

        `skip`, if given, is 1 where nothing is to change, else 0, and stays on the device.
        """


class AdamW(Optimizer):
    """Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019).

    By PyTorch's fused kernel.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    @torch.no_grad()
    def step(self, lr: float, skip: Tensor | None = None) -> None:
        given = [p for p in self.params if p.grad is not None]
        if not given:
            return
        for p in given:
            if p not in self.state:
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                means = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p] = {"step": step, **means}
        kept = [self.state[p] for p in given]
        steps = [state["step"] for state in kept]
        if skip is None:
            torch._foreach_add_(steps, 1)
        else:
            torch._foreach_add_(steps, [1 - skip] * len(steps))  # one tensor alone is read
        torch._fused_adamw_(
            [here(p) for p in given],
            [here(p.grad) for p in given if p.grad is not None],
            [here(state["exp_avg"]) for state in kept],
            [here(state["exp_avg_sq"]) for state in kept],
            [],
            steps,
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )


class Muon(Optimizer):
    """Momentum, orthogonalised: every singular value of a matrix's update is about the same.

    Source: Jordan et al. 2024, "Muon"; the update is scaled by 0.2·√max(rows, columns), which gives it
    the size of AdamW's, so one learning rate serves both (Liu et al. 2025, "Muon is Scalable for LLM
    Training", section 2.2). Matrices of one shape are orthogonalised together. `parts[p]` are the row
    counts of the matrices that p stacks (queries, keys and values are three), each treated on its own.
    `dtype` is that of the Newton-Schulz products: bfloat16 is enough, float32 gives the same bits however
    a batch is split. Of sharded parameters each process orthogonalises some, whole.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
        parts: dict[Tensor, tuple[int, ...]] | None = None,
    ):
        super().__init__(params)
        self.momentum, self.weight_decay = momentum, weight_decay
        self.dtype, self.parts = dtype, parts or {}

    @torch.no_grad()
    def step(self, lr: float, skip: Tensor | None = None) -> None:
        given = [p for p in self.params if p.grad is not None]
        if not given:
            return
        skip = None if skip is None else skip.bool()
        updates = [self._momentum(p, skip) for p in given]
        kept = 1 - lr * self.weight_decay
        if skip is None:
            torch._foreach_mul_([here(p) for p in given], kept)
        else:
            torch._foreach_mul_(given, given[0].new_full((), kept).masked_fill_(skip, 1))
        rows = [self.parts.get(p, (p.shape[0],)) for p in given]
        if here(given[0]) is given[0]:
            self._subtract(given, updates, rows, lr, skip)
            return
        moved = on_whole(updates, [p.shape for p in given], partial(self._moves, rows, lr))
        torch._foreach_add_([here(p) for p in given], moved)

    def _moves(
        self, rows: list[tuple[int, ...]], lr: float, which: list[int], updates: list[Tensor]
    ) -> list[Tensor]:
        """What is to be added to some of the matrices, given whole."""
        moved = [torch.zeros_like(update) for update in updates]
        self._subtract(moved, updates, [rows[i] for i in which], lr)
        return moved

    def _momentum(self, p: Tensor, skip: Tensor | None) -> Tensor:
        """What is to be orthogonalised of a parameter, Nesterov's; of a sharded one, the rows here."""
        if p not in self.state:
            self.state[p] = {"momentum": torch.zeros_like(p)}
        assert p.grad is not None
        gradient, mean = here(p.grad), here(self.state[p]["momentum"])
        if skip is not None:
            gradient = torch.where(skip, mean, gradient)  # the mean moves nowhere
        mean.lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(mean, self.momentum)

    def _subtract(
        self,
        targets: list[Tensor],
        updates: list[Tensor],
        rows: list[tuple[int, ...]],
        lr: float,
        skip: Tensor | None = None,
    ) -> None:
        """From each matrix its update, orthogonalised part by part."""
        same_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for whole_target, update, counts in zip(targets, updates, rows, strict=True):
            for target, part in zip(whole_target.split(counts), update.split(counts), strict=True):
                if part.shape[0] > part.shape[1]:
                    target, part = target.mT, part.mT
                same_shape[part.shape[0], part.shape[1]].append((target, part))
        for (_, columns), pairs in same_shape.items():
            orthogonal = orthogonalise(torch.stack([part for _, part in pairs]), self.dtype)
            if skip is not None:
                orthogonal.masked_fill_(skip, 0)
            scale = lr * 0.2 * math.sqrt(columns)
            torch._foreach_add_([target for target, _ in pairs], list(orthogonal), alpha=-scale)


class Optimizers:
    """AdamW, or Muon on the matrices of the blocks and AdamW on the rest, as one.

    `train.precision` is bf16, or anything else for float32.
    """

    def __init__(self, model: nn.Module, train: TrainConfig):
        self.names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        matrices: list[Tensor] = []
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        for parameter, name in self.names.items():
            if parameter.ndim < 2:
                plain.append(parameter)
            elif train.optimizer == "muon" and name.startswith("blocks."):
                matrices.append(parameter)
            else:
                decayed.append(parameter)
        assert sorted(map(id, matrices + decayed + plain)) == sorted(map(id, model.parameters())), (
            "every parameter belongs to exactly one group"
        )
        self.all: list[Optimizer] = [
            AdamW(decayed, (train.beta1, train.beta2), train.eps, train.weight_decay),
            AdamW(plain, (train.beta1, train.beta2), train.eps),
        ]
        if matrices:
            parts: dict[Tensor, tuple[int, ...]] = {
                module.qkv.weight: module.qkv_rows
                for module in model.modules()
                if isinstance(module, CausalSelfAttention)
            }
            dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
            self.all.append(Muon(matrices, train.momentum, train.weight_decay, dtype, parts))
        self.owner = {p: optimizer for optimizer in self.all for p in optimizer.params}

    def step(self, lr: float, skip: Tensor | None = None) -> None:
        """Update every parameter at this learning rate and clear the gradients.

        `skip`, if given, is 1 where nothing is to change, else 0; nothing waits for it.
        """
        for optimizer in self.all:
            optimizer.step(lr, skip)
            for p in optimizer.params:
                p.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as `parameter name/quantity`."""
        return {
            f"{self.names[p]}/{key}": value
            for optimizer in self.all
            for p, state in optimizer.state.items()
            for key, value in state.items()
        }

    def state_shapes(self) -> dict[str, torch.Size]:
        """The shapes of `state_tensors`, once a step was taken."""
        return {
            f"{name}/{key}": shape
            for p, name in self.names.items()
            for key, shape in self._quantities(p).items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state_tensors`, after a step. Raises TformerError naming what does not fit."""
        expected = self.state_shapes()
        for path in [*sorted(tensors), *sorted(expected.keys() - tensors.keys())]:
            found = tensors.get(path)
            if path not in expected:
                problem = "is unknown"
            elif found is None:
                problem = "is missing"
            elif found.shape != expected[path]:
                problem = f"is {tuple(found.shape)}, expected {tuple(expected[path])}"
            elif not found.is_floating_point() or not bool(found.isfinite().all()):
                problem = "holds no finite numbers"
            else:
                continue
            raise TformerError(
                "the optimizer state of the checkpoint does not fit this version",
                f"{path} {problem}",
                "--init-from this run begins another with its weights",
            )
        parameters = {name: p for p, name in self.names.items()}
        for path, tensor in tensors.items():
            name, _, key = path.rpartition("/")
            p = parameters[name]
            device = torch.device("cpu") if key == "step" and p.device.type == "cpu" else p.device
            self.owner[p].state.setdefault(p, {})[key] = tensor.to(device)

    def receive(self, tensors: dict[str, Tensor], ranks: Ranks) -> None:
        """The first process's `state_tensors` in all of them, one after another; each keeps its part."""
        for p, name in self.names.items():
            for key, shape in sorted(self._quantities(p).items()):
                path = f"{name}/{key}"
                given = tensors[path] if ranks.is_first else torch.empty(shape)
                value = ranks.broadcast(given.to(p.device))
                kept = self.owner[p].state.setdefault(p, {})
                kept[key] = part_of(value, p) if value.ndim else value

    def _quantities(self, parameter: Tensor) -> dict[str, torch.Size]:
        """What its optimizer keeps of a parameter, by name, with the shapes."""
        if isinstance(self.owner[parameter], Muon):
            return {"momentum": parameter.shape}
        return {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape, "step": torch.Size([])}
