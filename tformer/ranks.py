"""Several processes that train one model, as torchrun starts them: who is who, and what they agree on.

Every collective has a timeout, and a process that is gone ends those that wait for it. What is told is JSON
in a tensor: nothing is pickled. Knows nothing of models.
"""

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from tformer.counted import counted
from tformer.errors import RequestError, TformerError

TIMEOUT = timedelta(minutes=10)  # the first process may save and draw while the others wait
MEETING = 0.02  # seconds between looks at who has come
# In what is said of a peer that is lost.
NETWORK = ("gloo", "NCCL", "Connection", "Socket", "socket", "process group")
MISMATCH = "op.preamble"  # in what gloo says of two processes that are not at the same place: a fault of ours


class PeerGone(TformerError):
    """Another process of the training has ended, or cannot be heard."""

    def __init__(self, why: object):
        line = (str(why).strip().splitlines() or [type(why).__name__])[0]
        super().__init__(
            "another process of this training is gone", line[:200], "what it said says why; --resume goes on"
        )


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0
    world: int = 1
    local: int = 0  # on its machine
    here: int = 1  # how many there are on its machine

    @property
    def is_first(self) -> bool:
        """Whether it is the one that speaks and writes."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    def share(self, n: int) -> slice:
        """Which of n things, a number that the processes divide, are this one's."""
        each = n // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.are_several:
            dist.all_reduce(tensor)
        return tensor

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.sum(torch.tensor(int(here))).item()) if self.are_several else here

    def await_first(self, is_busy: bool = False) -> None:
        """Where the first process says that it is busy the others wait on, until it says that it is not.

        So it may work by itself for longer than the timeout, saying so now and then.
        """
        while self.any(is_busy) and not self.is_first:
            pass

    def meet(self) -> None:
        """Wait until all processes have come here."""
        self.any(False)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The first one's, in place."""
        if self.are_several:
            dist.broadcast(tensor, 0)
        return tensor

    def agree(self, *numbers: float) -> tuple[float, ...]:
        """The first one's numbers."""
        return tuple(self.broadcast(torch.tensor(numbers, dtype=torch.float64)).tolist())

    def tell(self, values: Any = None) -> Any:
        """What the first one says, as JSON has it."""
        data = json.dumps(values).encode()
        length = int(self.broadcast(torch.tensor(len(data))).item())
        told = torch.zeros(length, dtype=torch.uint8)
        if self.is_first:
            told = torch.tensor(list(data), dtype=torch.uint8)
        return json.loads(bytes(self.broadcast(told).tolist()))


BY_ITSELF = Ranks()


# ---------------------------------------------------------------------------- tensors in parts


def part_of_rows(n: int, rank: int, world: int) -> slice:
    """Which of n rows of a sharded tensor a process has: equal parts, the last ones fewer or none.

    >>> [part_of_rows(5, rank, 4) for rank in range(4)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None), slice(5, 5, None)]
    """
    each = -(-n // world)
    return slice(min(rank * each, n), min((rank + 1) * each, n))


@torch.no_grad()
def here(tensor: Tensor) -> Tensor:
    """The rows of a sharded tensor that this process has, not copied; all of any other tensor."""
    own = getattr(tensor, "to_local", None)
    return tensor if own is None else own()


@torch.no_grad()
def put_together(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, put together; any other as it is. All processes call it, in the same order."""
    gathered = getattr(tensor, "full_tensor", None)
    return tensor if gathered is None else gathered()


def ranks_of_torchrun() -> Ranks:
    """By the variables that torchrun sets; alone where it did not start this process."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        return BY_ITSELF
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local, here = os.environ.get("LOCAL_RANK", rank), os.environ.get("LOCAL_WORLD_SIZE", world)
        return Ranks(rank, world, int(local), int(here))
    except ValueError as error:
        raise RequestError(
            "RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE", str(error), "start it with torchrun"
        ) from None


def own_device(name: str, ranks: Ranks) -> str:
    """The device of a process: on a machine with GPUs, the one with its number."""
    if not ranks.are_several or name == "cpu" or not torch.cuda.is_available():
        return name
    if name not in ("auto", "cuda"):
        raise RequestError(f"--device {name} with {ranks.world} processes", "expected auto, cuda or cpu")
    if ranks.here > torch.cuda.device_count():
        raise RequestError(
            f"{ranks.here} processes on this machine",
            counted(torch.cuda.device_count(), "GPU"),
            "lower --nproc-per-node",
        )
    return f"cuda:{ranks.local}"


def _store(ranks: Ranks) -> PrefixStore:
    """Where the processes find each other: torchrun's, with a place for each time that it starts them again.

    It keeps its store from one start to the next, and without a place of their own the new processes would
    look for each other at the addresses of the old ones (seen with PyTorch 2.13, gloo).
    """
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    return PrefixStore(f"tformer/start {start_of(PrefixStore('tformer', store), ranks)}", store)


def start_of(store: Store, ranks: Ranks) -> str:
    """A name that the processes of one start agree on, in a store that has what those before them said.

    Of several machines each counts its own starts, which need not agree. So each process says a name of its
    own, and the first one answers it with its own until all of them have heard that: an answer to a process
    that is gone is heard by nobody.
    """
    own = secrets.token_hex(8)
    if not ranks.is_first:
        store.set(f"{ranks.rank} is", own)
        start = store.get(f"to {own}").decode()
        store.set(f"{start} is known to {ranks.rank}", "")
        return start
    until, waiting = time.monotonic() + TIMEOUT.total_seconds(), set(range(1, ranks.world))
    while waiting:
        for rank in [rank for rank in waiting if store.check([f"{rank} is"])]:
            store.set(f"to {store.get(f'{rank} is').decode()}", own)
            if store.check([f"{own} is known to {rank}"]):
                waiting.remove(rank)
        if time.monotonic() > until:
            raise PeerGone(f"no word of process {min(waiting)} within {TIMEOUT.total_seconds():g} s")
        time.sleep(MEETING)
    return own


@contextmanager
def together(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """The process group, while the block runs. Raises PeerGone where another process is lost."""
    if not ranks.are_several:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend, store=_store(ranks), rank=ranks.rank, world_size=ranks.world, timeout=TIMEOUT
        )
        yield
        dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:  # each backend has its own
        if is_of_a_peer(error):
            raise PeerGone(error) from error
        raise


def is_of_a_peer(error: Exception) -> bool:
    """Whether an error is told because another process is lost; a backend, and the store, has its own."""
    told = str(error)
    if isinstance(error, torch.OutOfMemoryError) or MISMATCH in told:
        return False
    return isinstance(error, dist.DistError) or any(word in told for word in NETWORK)
