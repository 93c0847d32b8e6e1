"""A training run from configuration to finished directory: data, model, decisions, checkpoints.

Puts the rooms together; knows nothing of terminals or command lines.
"""

import hashlib
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from tformer import __version__
from tformer.config import Config, Layer, merge
from tformer.device import decide_compile, decide_precision
from tformer.errors import RequestError
from tformer.evals.loss import LossResult, batch_loss, text_loss
from tformer.model import Transformer
from tformer.run.checkpoint import Run
from tformer.run.data import Data
from tformer.run.pretrained import Pretrained, read_pretrained
from tformer.run.record import Record, Result, TokenizerFacts
from tformer.show.svg import loss_svg
from tformer.training.compiled import CompileError, compile_forward
from tformer.training.expected import expectation
from tformer.training.fit import Report, State, Validate, fit, is_due
from tformer.training.optim import Optimizers

# On --resume these may change: neither weights nor optimizer state depend on them.
MAY_CHANGE = ("steps", "eval_every", "checkpoint_every", "log_every", "keep", "keep_checkpoints", "patience")
# What leaves a setting open: it was settled when the run began.
SETTLED = {"vocab_size": 0, "n_kv_heads": 0, "d_mlp": 0, "precision": "auto", "compile": "auto"}
VALIDATION = 1 << 32  # which fresh reversal sequences are judged on while training


# ---------------------------------------------------------------------------- configuration


def resume_config(recorded: Record, explicit: Sequence[Layer]) -> Config:
    """The configuration of a run that goes on: its own, with what may change taken from `explicit`.

    A run whose compiler failed may be told to compile: it tries again. Raises RequestError for a setting that
    asks for another run.
    """
    own = {section: dict(recorded.settings.get(section, {})) for section in Config.model_fields}
    asked = {  # of several that say something, the last one counts
        (section, name): (value, layer.source)
        for layer in explicit
        for section, values in layer.values.items()
        for name, value in values.items()
    }
    for (section, name), (value, source) in asked.items():
        before = own[section].get(name)
        again = name == "compile" and value == "on" and recorded.compile_failed is not None
        if section == "train" and (name in MAY_CHANGE or again):
            own[section][name] = value
        elif value != before and (name not in SETTLED or value != SETTLED[name]):
            raise RequestError(
                f"{section}.{name} is {before!r} in this run",
                f"{source} says {value!r}",
                "leave it out to continue, or leave --resume out to start another run",
            )
    return merge([Layer("tformer.yaml", own)])


def decide(config: Config, device: torch.device, vocab_size: int) -> Config:
    """Everything that `auto` leaves open, settled once: it is recorded, and obeyed on resume."""
    model_vocab = config.model.vocab_size or vocab_size
    if model_vocab < vocab_size:
        raise RequestError(f"model.vocab_size {model_vocab}", f"the tokenizer has {vocab_size} ids")
    config = config.updated("model", vocab_size=model_vocab)
    return config.updated(
        "train",
        precision=decide_precision(config.train.precision, device),
        compile="on" if decide_compile(config.train.compile, device) else "off",
    )


def new_record(data: Data, device: torch.device) -> Record:
    """What a run met: versions, device, data."""
    tokenizer = data.tokenizer
    return Record(
        versions={
            "tformer": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        device=str(device),
        threads=torch.get_num_threads(),
        data=data.facts,
        tokenizer=TokenizerFacts(
            kind=tokenizer.kind,
            size=tokenizer.vocab_size,
            sha256=hashlib.sha256(tokenizer.to_json().encode()).hexdigest(),
        ),
    )


# ---------------------------------------------------------------------------- the run


@dataclass
class Session:
    """One process's part of a run: everything built, ready to train from `state`."""

    run: Run
    config: Config
    data: Data
    model: Transformer
    optimizers: Optimizers
    state: State
    record: Record
    problems: list[str] = field(default_factory=list)  # checkpoints that were passed over
    warnings: list[str] = field(default_factory=list)  # what a person should know of how it trains
    forward: Callable[..., Any] | None = None
    judged: LossResult | None = None  # by the last validation, on text
    # What else is measured at an evaluation; each gives entries of metrics.jsonl.
    at_evaluation: list[Callable[["Session"], dict[str, Any]]] = field(default_factory=list)

    def validate(self) -> tuple[float, float]:
        """Loss in nats a token and bits per byte on the whole validation part."""
        n_bytes = self.data.tokenizer.n_bytes
        precision = self.config.train.precision
        if self.data.reversal:
            inputs, targets = self.data.reversal.fresh(512, index=VALIDATION)
            return batch_loss(self.model, inputs, targets, n_bytes, precision)
        assert self.data.val_ids is not None
        result = self.judged = text_loss(self.model, self.data.val_ids, n_bytes, precision)
        return result.loss, result.bits_per_byte

    @property
    def validator(self) -> Validate | None:
        """None where there is nothing to validate on."""
        return self.validate if self.data.reversal or self.data.val_ids is not None else None


def open_session(
    run: Run,
    config: Config,
    data: Data,
    device: torch.device,
    pretrained: Pretrained | None = None,
    settle: Callable[["Session"], None] = lambda session: None,
    anew: bool = False,
) -> Session:
    """Build model and optimizers, and take up the newest whole checkpoint if the run has one.

    Without one, the weights are those of `pretrained` if the run begins from a directory. `settle` may
    change configuration and record by what it measures, before anything is written; then, `anew`, what an
    earlier run left there is removed.
    """
    torch.manual_seed(config.train.seed)
    model = Transformer(config.model)
    known = Record() if anew else run.record()
    record = known.without("result") if known.as_dict() else new_record(data, device)
    checkpoint, problems = (None, []) if anew else run.read_checkpoint(model)
    if pretrained:
        record = record.updated(init_from=pretrained.origin)
    elif not checkpoint and (origin := record.init_from):  # it was killed before it saved any
        pretrained = read_pretrained(origin.source, origin.sha256)
    if checkpoint:
        model.load_state_dict(checkpoint.model)
    elif pretrained:
        model.load_state_dict(pretrained.state)
    model.to(device)
    optimizers = Optimizers(model, config.train, bf16=config.train.precision == "bf16")
    if checkpoint:
        optimizers.load_state_tensors(checkpoint.optimizer)
    state = checkpoint.state if checkpoint else State()
    if state.step > config.train.steps:
        raise RequestError(
            f"train.steps {config.train.steps}",
            f"{run.folder} has {state.step} steps already",
            "give more, or leave --steps out",
        )
    session = Session(run, config, data, model, optimizers, state, record, problems)
    if config.train.compile == "on" and state.step < config.train.steps:
        _compile(session)
    settle(session)
    if anew:
        run.clear()
    run.write_record(session.config, session.record)  # first: from here on, the folder is known for a run
    run.write_identity(session.config, data.tokenizer)
    run.rewind_metrics(state.step)
    return session


def _compile(session: Session) -> None:
    """Compile the forward; where that fails, say so, record it and train without."""
    session.record = session.record.without("compile_failed")
    train, step = session.config.train, session.state.step
    try:
        session.forward = compile_forward(session.model, session.data.batches, train, step)
    except CompileError as error:
        session.record = session.record.updated(compile_failed=str(error))
        session.config = session.config.updated("train", compile="off")
        session.warnings.append(f"torch.compile failed, training goes on without it: {error}")


def train_session(session: Session, stop: Callable[[], bool] = lambda: False) -> Iterator[Report]:
    """Train to the end or until `stop()`, writing metrics, weights, checkpoints and at last the picture."""
    config, run = session.config.train, session.run
    facts = session.data.facts.as_dict()
    identity = {"seed": config.seed, "versions": session.record.versions, "data": facts}
    began = saved = session.state.step

    def save() -> None:
        nonlocal saved
        run.write_checkpoint(
            session.model, session.optimizers, session.state, config.keep_checkpoints, identity
        )
        saved = session.state.step
        if config.keep == "last" or session.state.best_step == 0:  # nothing better was judged
            run.write_weights(session.model)

    reports = fit(
        session.model,
        session.optimizers,
        session.data.batches,
        config,
        session.state,
        config.precision,
        session.validator,
        session.forward,
    )
    for report in reports:
        state = session.state = report.state
        if is_due(state.step, config):
            report = replace(
                report, noted={k: v for f in session.at_evaluation for k, v in f(session).items()}
            )
        ended = state.step == config.steps or report.stops_early
        if state.step % config.log_every == 0 or report.val_loss is not None or report.noted or ended:
            run.log(metrics_line(report))
        if report.is_best and config.keep == "best":
            run.write_weights(session.model)
        if ended or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
            save()
        yield report
        if not ended and stop():
            break
    if session.state.step > saved:
        save()
    if session.state.step > began:
        run.write_text("loss.svg", loss_svg(run.read_metrics(), run.folder.name))


def metrics_line(report: Report) -> dict[str, Any]:
    """A report as `metrics.jsonl` has it."""
    line: dict[str, Any] = {
        "step": report.state.step,
        "tokens": report.state.tokens,
        "seconds": round(report.state.seconds, 3),
        "loss": report.loss,
        "lr": report.lr,
        "grad_norm": report.grad_norm,
    }
    if report.val_loss is not None:
        line |= {"val_loss": report.val_loss, "bits_per_byte": report.bits_per_byte}
    return line | report.noted


def summary(session: Session) -> dict[str, Any]:
    """The result of a run: the last loss, and the validation loss of the weights that are kept."""
    metrics = session.run.read_metrics()
    evaluated = [m for m in metrics if m.get("val_loss") is not None]
    kept = None
    if evaluated:
        best = session.config.train.keep == "best"
        kept = min(evaluated, key=lambda m: m["val_loss"]) if best else evaluated[-1]
    return {
        "run": str(session.run.folder),
        "steps": session.state.step,
        "tokens": session.state.tokens,
        "seconds": round(session.state.seconds, 3),
        "loss": metrics[-1]["loss"] if metrics else None,
        "val_loss": kept["val_loss"] if kept else None,
        "bits_per_byte": kept["bits_per_byte"] if kept else None,
        "parameters": session.model.n_parameters,
        "kept_step": kept["step"] if kept else session.state.step,
    }


def finish(session: Session) -> dict[str, Any]:
    """Record that the run came to its end, and how."""
    if not (session.run.folder / "model.safetensors").exists():
        session.run.write_weights(session.model)
    result = summary(session)
    result |= expectation(session.config, session.record, result).as_dict()
    kept = {key: value for key, value in result.items() if key != "run"}
    session.record = session.record.updated(result=Result.model_validate(kept))
    session.run.write_record(session.config, session.record)
    return result
