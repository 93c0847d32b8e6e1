"""Opening a training, in a straight line: request → plan → what it is made of → session.

    plan = plan_training(request)         folder, preset, configuration; no text is read
    prepared = prepare(plan, progress)    text, decisions, passages; nothing is written
    with locked(plan) as run:             the directory, for this process alone
        session = open_session(run, prepared)

Everything that can be refused is refused before anything is written. What a person should be told comes back
in `Plan.notes` and `Session.warnings`.
"""

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from tformer.config import Config
from tformer.counted import counted
from tformer.errors import RequestError
from tformer.fast.kernels import put_parts
from tformer.free_memory import free_bytes
from tformer.model import Transformer
from tformer.progress import DownloadProgress, Progress, silent
from tformer.ranks import BY_ITSELF, Ranks
from tformer.run.checkpoint import Run
from tformer.run.data import Data, prepare_data
from tformer.run.kept_ids import KeptIds
from tformer.run.manifest import Checkpoint
from tformer.run.own_tokenizer import other_tokenizer
from tformer.run.pretrained import Pretrained, origin_folder, read_origin
from tformer.run.record import ANOTHER_RUN, Kept, Record, TokenizerFacts, weights_hash
from tformer.run.swap import CHECKPOINTS
from tformer.run.tensors import check_seal
from tformer.text.tokenizer import Tokenizer
from tformer.training.budget import TimeLimit, choose_steps
from tformer.training.changed import (
    changed_settings,
    environment,
    other_text,
    rate_again,
    refuse_unused_rate,
    told_of_settings,
    with_changes,
    with_session,
)
from tformer.training.compiled import CompileError, compile_blocks, compile_forward
from tformer.training.completed import completed, completing
from tformer.training.fit import State, is_exhausted
from tformer.training.memory import refuse_larger
from tformer.training.noted import loss_by_position, sampled_line
from tformer.training.optim import Optimizers
from tformer.training.passages import NextWords, read_next_words
from tformer.training.plan import Plan
from tformer.training.session import Note, Session, owner_of
from tformer.training.settings import decide

SHARE_OF_BYTES = 0.9  # of the tokens of a text that words suit: blanks are bytes too, and make it 0.5 to 0.8

# ---------------------------------------------------------------------------- what it is made of


@dataclass(frozen=True)
class Prepared:
    """All that a session is built from, read and settled; nothing of it is written yet."""

    config: Config
    data: Data
    device: torch.device
    pretrained: Pretrained | None = None
    preset: str | None = None  # to be recorded of a run that begins
    words: NextWords | None = None
    at_evaluation: tuple[Note, ...] = ()
    limit: TimeLimit | None = None  # its steps are still to be found
    overwrite: bool = False
    ranks: Ranks = BY_ITSELF

    @property
    def shards(self) -> bool:
        """Whether several processes have a part of the model each."""
        return self.config.train.shard and self.ranks.are_several


def prepare(
    plan: Plan, progress: DownloadProgress = lambda done, total: None, encoding: Progress = silent
) -> Prepared:
    """Read the text and the passages of --eval-data, and settle what `auto` leaves open.

    `progress(bytes done, bytes in all)` as a text is downloaded, `encoding` of characters as they become ids.
    Raises RequestError for what cannot be read, or is not what the run began with.
    """
    request, recorded = plan.request, plan.recorded
    own = _own_tokenizer(plan.folder, recorded, request.sources) if plan.resuming else None
    if plan.pretrained:
        own = plan.pretrained.tokenizer
    val_sources = request.val_data or recorded.data.val_source
    data = prepare_data(
        plan.config,
        list(request.sources),
        own,
        recorded.data,
        progress,
        val_sources,
        completing(plan),
        KeptIds(plan.folder / CHECKPOINTS),
        encoding,
    )
    config, notes = completed(plan, decide(data.config, plan.device, data.tokenizer.vocab_size), data)
    data = replace(data, notes=data.notes + notes)
    words = read_next_words(request.eval_data, recorded, config, data)
    limit = None
    if request.minutes is not None and not plan.resuming:
        limit = TimeLimit(request.minutes, request.began)
    return Prepared(
        config,
        data,
        plan.device,
        plan.pretrained,
        preset=None if plan.resuming or plan.by_recipe or plan.by_time else plan.preset,
        words=words,
        at_evaluation=(sampled_line, loss_by_position, *([words.score] if words else [])),
        limit=limit,
        overwrite=request.overwrite,
        ranks=request.ranks,
    )


def _own_tokenizer(folder: Path, recorded: Record, sources: Sequence[str]) -> Tokenizer | None:
    """That of a run that goes on; None for one that was killed before it had any: it is made again."""
    if (folder / "tokenizer.json").exists() or any((folder / "checkpoints").glob("step-*")):
        tokenizer = Tokenizer.load(folder)
        if differs := other_tokenizer(folder, recorded):
            raise RequestError(
                f"{folder / 'tokenizer.json'} is not the one that this run was trained with",
                "; ".join([differs, *other_text(recorded, sources)]),
                f"put it back, or {ANOTHER_RUN}",
            )
        return tokenizer
    origin = recorded.init_from
    return Tokenizer.load(origin_folder(origin)) if origin else None


# ---------------------------------------------------------------------------- the session


def open_session(run: Run, prepared: Prepared, drawing: float = 0.0) -> Session:
    """A session that is ready to train, and the first files of its run written.

    `drawing` is how many seconds pictures will take at the end; a time limit leaves room for them.
    """
    session = build_session(run, prepared)
    if prepared.limit:
        session = session.within(*choose_steps(session, prepared.limit, drawing))
    session.begin(prepared.overwrite)
    return session


def build_session(run: Run, prepared: Prepared) -> Session:
    """Build model and optimizers, and take up the newest whole checkpoint if the run has one.

    Without one, the weights are those that the run begins from, if any. Raises RequestError where there is
    no room for it, and where the run has more steps already than it is to have.
    """
    config, device = prepared.config, prepared.device
    ranks = prepared.ranks
    refuse_larger(config, free_bytes(device, ranks.here), ranks.world if prepared.shards else 1)
    torch.manual_seed(config.train.seed)
    model = Transformer(config.model)
    record = _record(run, prepared)
    owner = owner_of(config, record)
    checkpoint, problems = (None, []) if prepared.overwrite else run.read_checkpoint(model, owner)
    weights = _weights(checkpoint, prepared.pretrained, record)
    if weights is not None:
        model.load_state_dict(weights)
    if not prepared.shards:  # that is done a block at a time
        model.to(device)
    put_parts(model, config.train, device)
    optimizers = Optimizers(model, config.train)
    if checkpoint:
        optimizers.load_state_tensors(checkpoint.optimizer)
    state = State.from_dict(checkpoint.state) if checkpoint else State()
    if state.step > config.train.steps:
        raise RequestError(
            f"train.steps {config.train.steps}",
            f"{run.folder} has {counted(state.step, 'step')} already",
            "give more, or leave --steps out",
        )
    skipped = prepared.words.passages.skipped if prepared.words else {}
    changed: list[str] = []
    was = changed_settings(_changeable_before(checkpoint, run.record()), config) if checkpoint else {}
    refuse_unused_rate(was, config, state.step)
    if not (prepared.overwrite or run.record().is_empty or state.step == config.train.steps):
        record, changed = with_session(record, environment(device, ranks.world), state.step)
        record = with_changes(record, was, state.step)
    warnings = [f"passed over {counted(n, 'passage')} of --eval-data: {why}" for why, n in skipped.items()]
    warnings += _bytes_of_words(prepared.data)
    warnings += _unvalidated(prepared.data, config)
    warnings += [f"passed over a checkpoint: {problem}" for problem in problems]
    warnings += _damaged(run) if checkpoint else []
    warnings += changed
    if checkpoint and not is_exhausted(state, config.train):
        warnings += rate_again(was, config, state.step)
    session = Session(
        run,
        config,
        prepared.data,
        model,
        optimizers,
        state,
        record,
        tuple(warnings),
        prepared.at_evaluation,
        kept=_kept(run, checkpoint, state) if checkpoint else None,
        changes=told_of_settings(was, config, state.step),
        ranks=prepared.ranks,
    )
    return _compiled(session, device) if is_to_compile(config, state) else session


def is_to_compile(config: Config, state: State) -> bool:
    """Whether there are steps to be taken by what a compiler makes."""
    return config.train.compile == "on" and state.step < config.train.steps


def _record(run: Run, prepared: Prepared) -> Record:
    """What the run says of itself so far, or of a run that begins what it meets: versions, device, data."""
    known = Record() if prepared.overwrite else run.record()
    # A run that goes on is not at its end until it gets there.
    record = (
        known.without("result")
        if known.as_dict()
        else new_record(prepared.data, prepared.device, prepared.ranks.world)
    )
    if prepared.overwrite:  # the card of the run that gives way, unless a person has edited it
        with suppress(RequestError):
            if card := run.record().card:
                record = record.updated(card=card)
    if record.id is None:
        record = record.updated(id=secrets.token_hex(8))
    if record.tokenizer is None or not (run.folder / "tokenizer.json").exists():  # it was made again
        record = record.updated(tokenizer=tokenizer_facts(prepared.data.tokenizer))
    if own := prepared.data.facts.val_source:  # where it lies now
        record = record.updated(data=record.data.model_copy(update={"val_source": own}))
    if prepared.pretrained:
        record = record.updated(init_from=prepared.pretrained.origin)
    if prepared.preset:
        record = record.updated(preset=prepared.preset)
    if prepared.words:
        record = record.updated(eval_data=prepared.words.record)
    return record


def _changeable_before(checkpoint: Checkpoint, record: Record) -> dict[str, Any]:
    """The settings that may change as a checkpoint was trained with; of an older version, as recorded."""
    said = checkpoint.manifest.get("may_change")
    return said if isinstance(said, dict) else record.settings.get("train", {})


def _bytes_of_words(data: Data) -> list[str]:
    """A warning where words do not suit the text: few that repeat, or none with a gap between them."""
    if data.tokenizer.kind != "word" or data.val_ids is None:
        return []
    share = float((data.val_ids < 256).mean())  # the rows of a word vocabulary before its words
    if share < SHARE_OF_BYTES:
        return []
    return [
        f"{share:.0%} of the validation tokens are single bytes, of words that the vocabulary lacks: "
        "--tokenizer bpe suits this text better"
    ]


def _unvalidated(data: Data, config: Config) -> list[str]:
    """A warning where the end of the text is kept for validation, and nothing can be predicted in it."""
    if data.val_ids is not None or data.reversal or not config.data.val_fraction:
        return []
    n = counted(data.facts.val_tokens or 0, "token")
    found = f"the validation part has {n}, and none of them a target"
    return [f"no validation: {found}; give more text, or --val-data FILE"]


def new_record(data: Data, device: torch.device, world: int = 1) -> Record:
    """What a run meets as it begins: versions, device, data."""
    return Record(**environment(device, world), data=data.facts, tokenizer=tokenizer_facts(data.tokenizer))


def tokenizer_facts(tokenizer: Tokenizer) -> TokenizerFacts:
    """What `tformer.yaml` keeps of a tokenizer."""
    return TokenizerFacts(
        kind=tokenizer.kind,
        size=tokenizer.vocab_size,
        sha256=hashlib.sha256(tokenizer.to_json().encode()).hexdigest(),
    )


def _weights(
    checkpoint: Checkpoint | None, pretrained: Pretrained | None, record: Record
) -> dict[str, Tensor] | None:
    """Those to go on from; None where a run begins from random ones."""
    if checkpoint:
        return checkpoint.model
    if pretrained is None and record.init_from:  # it was killed before it saved any
        pretrained = read_origin(record.init_from)
    return pretrained.state if pretrained else None


def _kept(run: Run, checkpoint: Checkpoint, state: State) -> Kept | None:
    """Which weights the run keeps, by the checkpoint; None where no file has them."""
    is_there = (run.folder / "model.safetensors").exists()
    here, said = weights_hash(run.folder) if is_there else None, checkpoint.manifest.get("kept")
    if said is None and here:  # of an older version: the checkpoint's own, or the best so far
        own = here == checkpoint.manifest["files"]["model.safetensors"]["sha256"]
        step = state.step if own else state.best_step
        line = next((m for m in run.read_metrics() if m.get("step") == step), None)
        if line is None or not step:
            return None
        said = {"step": step, "sha256": here, **{k: line.get(k) for k in ("val_loss", "bits_per_byte")}}
    try:
        kept = Kept.model_validate(said)
    except ValidationError:
        return None
    return kept if kept.sha256 == here or run.has_copy(kept) else None


def _damaged(run: Run) -> list[str]:
    """A warning where the weights that a run has are not those that were written; they will be again."""
    path = run.folder / "model.safetensors"
    try:
        check_seal(path)
    except RequestError:
        return [f"{path} was damaged, and is written again"]
    except OSError:  # it is not there
        pass
    return []


def _compiled(session: Session, device: torch.device) -> Session:
    """The session with its forward compiled; where that fails, without, and with a warning of it.

    Of a model that is to be sharded the blocks are, by themselves and later: the compiler is tried on one.
    """
    train, record = session.config.train, session.record.without("compile_failed")
    batches, step, ranks = session.data.batches, session.state.step, session.ranks
    forward = None
    try:
        if train.shard and ranks.are_several:
            with torch.random.fork_rng([]):
                one = Transformer(session.config.updated("model", n_layers=1).model).to(device)
            put_parts(one, train, device)
            compile_forward(one, batches, train, step, ranks, compile_blocks)
        else:
            forward = compile_forward(session.model, batches, train, step, ranks)
    except CompileError as error:
        warning = f"torch.compile failed, training goes on without it: {error}"
        return replace(
            session,
            config=session.config.updated("train", compile="off"),
            record=record.updated(compile_failed=str(error)),
            warnings=(*session.warnings, warning),
        )
    return replace(session, forward=forward, record=record)
