"""The session of a process that trains with others and is not the first: built of what that one says.

The first one opens the run as ever, and `lead`s; the others `follow`: configuration, record and where
training stands as JSON, weights and optimizer state as tensors. They speak to nobody and write nothing.
"""

from dataclasses import replace
from pathlib import Path

import torch

from tformer.config import Config
from tformer.errors import TformerError
from tformer.fast.kernels import put_parts
from tformer.model import Transformer
from tformer.run.checkpoint import UnwrittenRun
from tformer.run.data import Data
from tformer.run.huggingface import without_weights
from tformer.run.record import Kept, Record
from tformer.training.compiled import CompileError, compile_blocks, compile_forward
from tformer.training.fit import State
from tformer.training.opening import Prepared, is_to_compile, tokenizer_facts
from tformer.training.optim import Optimizers
from tformer.training.session import Session
from tformer.training.sharded import shard


def lead(session: Session, device: torch.device) -> Session:
    """Tell the other processes what this one has opened; a sharded one is another from then on."""
    ranks, optimizers = session.ranks, session.optimizers
    if not ranks.are_several:
        return session
    ranks.tell(
        {
            "folder": str(session.run.folder),
            "config": session.config.model_dump(),
            "record": session.record.as_dict(),
            "reads": _reads(session.data),
            "state": session.state.as_dict(),
            "kept": session.kept.as_dict() if session.kept else None,
        }
    )
    if session.config.train.shard:
        return _in_parts(session, device)
    for parameter in session.model.parameters():
        ranks.broadcast(parameter.detach())
    if session.state.step:
        tensors = optimizers.state_tensors()
        for name in sorted(optimizers.state_shapes()):
            ranks.broadcast(tensors[name])
    return session


def _in_parts(session: Session, device: torch.device) -> Session:
    """The session with what the first process has of model and optimizers, a part in each."""
    model, ranks, train = session.model, session.ranks, session.config.train
    before = session.optimizers.state_tensors()
    if is_to_compile(session.config, session.state):
        compile_blocks(model)
    shard(model, ranks, device)
    optimizers = Optimizers(model, train)
    if session.state.step:
        optimizers.receive(before, ranks)
    return replace(session, optimizers=optimizers)


def _reads(data: Data) -> dict[str, str | None]:
    """What all processes must have read alike, as sha256."""
    facts, tokenizer = data.facts, tokenizer_facts(data.tokenizer)
    return {"text": facts.sha256, "validation text": facts.val_sha256, "tokenizer": tokenizer.sha256}


def follow(prepared: Prepared) -> Session:
    """The session that the first process has opened.

    Raises TformerError where this one reads something else than it, and where it cannot compile the model.
    """
    ranks = prepared.ranks
    told = ranks.tell()
    config, record = Config.model_validate(told["config"]), Record.model_validate(told["record"])
    for what, sha256 in _reads(prepared.data).items():
        if sha256 != told["reads"][what]:
            raise TformerError(
                f"process {ranks.rank} reads another {what} than the first one",
                f"sha256 {str(sha256)[:12]}…, expected {str(told['reads'][what])[:12]}…",
                "give each machine the same files",
            )
    shards, device = config.train.shard, prepared.device
    model = without_weights(config.model) if shards else Transformer(config.model).to(device)
    put_parts(model, config.train, device)
    if not shards:
        for parameter in model.parameters():
            ranks.broadcast(parameter.detach())
    optimizers = Optimizers(model, config.train)
    state = State.from_dict(told["state"])
    if state.step and not shards:
        of = {name: p for p, name in optimizers.names.items()}
        tensors = {}
        for name, shape in sorted(optimizers.state_shapes().items()):
            on = of[name.rpartition("/")[0]].device
            tensors[name] = ranks.broadcast(torch.zeros(shape, device=on))
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
    if shards:
        return _in_parts(session, device)
    if is_to_compile(config, state):
        try:
            session.forward = compile_forward(model, session.data.batches, config.train, state.step, ranks)
        except CompileError as error:
            what = f"process {ranks.rank} cannot compile the model, which the first one could"
            raise TformerError(what, str(error), "train with --no-compile") from error
    return session
