"""The session of a process that trains with others and is not the first: built of what that one says.

The first one opens the run as ever, and `lead`s; the others `follow`: configuration, record and where
training stands as JSON, weights and optimizer state as tensors. They speak to nobody and write nothing.
"""

from pathlib import Path

import torch

from tformer.config import Config
from tformer.errors import TformerError
from tformer.model import Transformer
from tformer.run.checkpoint import UnwrittenRun
from tformer.run.record import Kept, Record
from tformer.training.compiled import compile_forward
from tformer.training.fit import State
from tformer.training.opening import Prepared
from tformer.training.optim import Optimizers
from tformer.training.session import Session


def lead(session: Session) -> None:
    """Tell the other processes what this one has opened."""
    ranks, optimizers = session.ranks, session.optimizers
    if not ranks.are_several:
        return
    ranks.tell(
        {
            "folder": str(session.run.folder),
            "config": session.config.model_dump(),
            "record": session.record.as_dict(),
            "state": session.state.as_dict(),
            "kept": session.kept.as_dict() if session.kept else None,
            "is_compiled": session.forward is not None,
        }
    )
    for parameter in session.model.parameters():
        ranks.firsts(parameter.detach())
    if session.state.step:
        tensors = optimizers.state_tensors()
        for name in sorted(optimizers.state_shapes()):
            ranks.firsts(tensors[name])


def follow(prepared: Prepared) -> Session:
    """The session that the first process has opened. Raises TformerError where its text is another one."""
    ranks = prepared.ranks
    told = ranks.tell()
    config, record = Config.model_validate(told["config"]), Record.model_validate(told["record"])
    if prepared.data.facts.sha256 != record.data.sha256:
        raise TformerError(
            f"process {ranks.rank} reads another text than the first one",
            f"sha256 {str(prepared.data.facts.sha256)[:12]}…, expected {str(record.data.sha256)[:12]}…",
            "give each machine the same files",
        )
    model = Transformer(config.model).to(prepared.device)
    for parameter in model.parameters():
        ranks.firsts(parameter.detach())
    optimizers = Optimizers(model, config.train, bf16=config.train.precision == "bf16")
    state = State.from_dict(told["state"])
    if state.step:
        of = {name: p for p, name in optimizers.names.items()}
        tensors = {}
        for name, shape in sorted(optimizers.state_shapes().items()):
            on = of[name.rpartition("/")[0]].device
            tensors[name] = ranks.firsts(torch.zeros(shape, device=on))
        optimizers.load_state_tensors(tensors)
    session = Session(
        UnwrittenRun(Path(told["folder"])),
        config,
        prepared.data,
        model,
        optimizers,
        state,
        record,
        kept=Kept.model_validate(told["kept"]) if told["kept"] else None,
        ranks=ranks,
    )
    if told["is_compiled"]:
        session.forward = compile_forward(model, session.data.batches, config.train, state.step)
    return session
