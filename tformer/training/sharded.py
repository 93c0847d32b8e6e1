"""Parameters, gradients and optimizer state of which each process has a part (Zhao et al. 2023, "PyTorch
FSDP: Experiences on Scaling Fully Sharded Data Parallel"; here PyTorch's second one, `fully_shard`).

A block's weights are put together as it is used, forward and back, and let go; its gradients are added up
over the processes as they come, and each keeps its own rows. So do the embeddings and what else the root has.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tformer.model import Transformer
from tformer.ranks import BY_ITSELF, Ranks, here, part_of_rows


def is_sharded(model: nn.Module) -> bool:
    """Whether it is one of `shard`'s. What makes them so takes a second to import: it is not asked."""
    return hasattr(model, "set_requires_gradient_sync")


def holders(model: nn.Module, ranks: Ranks) -> Ranks:
    """The processes that have parts of a model: this one alone, unless it is sharded."""
    return ranks if is_sharded(model) else BY_ITSELF


def shard(model: Transformer, ranks: Ranks, device: torch.device) -> None:
    """Leave each process its part of the first one's weights, on `device`; the others' need have no numbers.

    No process but the first ever holds more of them than a block's, or the root's.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks.world,))
    for module in (*model.blocks, model):
        _receive(module, ranks, device)
        fully_shard(module, mesh=mesh)


def _receive(module: nn.Module, ranks: Ranks, device: torch.device) -> None:
    """Give its parameters, those in parts already aside, the first process's numbers. Ties stay."""
    received: dict[Tensor, nn.Parameter] = {}
    for owner in module.modules():
        for name, p in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
            if hasattr(p, "full_tensor"):
                continue
            if p not in received:
                numbers = torch.empty_like(p, device=device) if p.is_meta else p.detach().to(device)
                received[p] = nn.Parameter(ranks.broadcast(numbers))
            setattr(owner, name, received[p])


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """What a process keeps of a whole tensor, one that all of them have: sharded as `like` is."""
    part = torch.zeros_like(like.detach())
    rows = part_of_rows(len(tensor), dist.get_rank(), dist.get_world_size())
    here(part).copy_(tensor[rows])
    return part


def let_go(model: nn.Module) -> None:
    """After a forward pass alone: give up the root's gathered weights, which wait for a backward pass."""
    if is_sharded(model):
        model.reshard()  # type: ignore[operator]


@torch.no_grad()
def clip_gradients(model: nn.Module, limit: float, ranks: Ranks) -> Tensor:
    """Scale the gradients so that the norm of all of them is at most `limit`; returns what it was before.

    The device is not waited for, except where the model is sharded.
    """
    if not is_sharded(model):
        return torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    gradients = [here(p.grad) for p in model.parameters() if p.grad is not None]
    own = torch.nn.utils.get_total_norm(gradients)
    norm = math.sqrt(ranks.sum(own.square()).item())
    if norm > limit:
        torch._foreach_mul_(gradients, limit / norm)
    return torch.tensor(norm, dtype=torch.float64, device=own.device)


Compute = Callable[[list[int], list[Tensor]], list[Tensor]]


def on_whole(parts: Sequence[Tensor], shapes: Sequence[torch.Size], compute: Compute) -> list[Tensor]:
    """The rows here of what `compute` makes of whole matrices; `parts` are the rows here of those.

    Each process puts together some of the matrices, about as many numbers as any other: `compute` is given
    which, and them. What it makes has their shapes, and goes back in parts. Two messages, however many.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    owners = _dealt([shape.numel() for shape in shapes], world)
    order = sorted(range(len(parts)), key=owners.__getitem__)
    own = [i for i in order if owners[i] == rank]
    rows = [[part_of_rows(shapes[i][0], source, world) for i in own] for source in range(world)]
    columns = [shapes[i][1] for i in own]
    sizes = [[(r.stop - r.start) * n for r, n in zip(of, columns, strict=True)] for of in rows]
    sent = [sum(parts[i].numel() for i in order if owners[i] == to) for to in range(world)]
    given = [sum(of) for of in sizes]

    flat = torch.cat([parts[i].reshape(-1) for i in order])
    received = flat.new_empty(sum(given))
    dist.all_to_all_single(received, flat, given, sent)
    pieces = [of.split(n) for of, n in zip(received.split(given), sizes, strict=True)]
    matrices = [torch.cat([of[k] for of in pieces]).view(shapes[i]) for k, i in enumerate(own)]
    made = compute(own, matrices)
    back = [m[r].reshape(-1) for of in rows for m, r in zip(made, of, strict=True)]
    dist.all_to_all_single(flat, torch.cat([flat.new_empty(0), *back]), sent, given)
    returned = dict(zip(order, flat.split([parts[i].numel() for i in order]), strict=True))
    return [returned[i].view_as(part) for i, part in enumerate(parts)]


def _dealt(sizes: Sequence[int], hands: int) -> list[int]:
    """To which hand each goes: the largest first, to the one that has least.

    >>> _dealt([3, 5, 1, 4], 2)
    [1, 0, 0, 1]
    """
    held, to = [0] * hands, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        to[i] = held.index(min(held))
        held[to[i]] += sizes[i]
    return to
