"""A training that is open: it takes steps, measures, saves, and at its end says how it went.

Knows nothing of terminals, pictures or command lines; `opening` builds it.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tformer.config import Config
from tformer.errors import TformerError, asked_for, lacks_memory
from tformer.evals.loss import LossResult, batch_loss, text_loss
from tformer.model import Transformer
from tformer.ranks import BY_ITSELF, Ranks
from tformer.run.card import keep_card
from tformer.run.checkpoint import Run
from tformer.run.data import Data
from tformer.run.huggingface import load_model, without_weights
from tformer.run.manifest import Owner
from tformer.run.pretrained import origin_folder
from tformer.run.record import Kept, Record, Result, TimeBudget
from tformer.run.tensors import give_tensors, whole_tensors
from tformer.run.usage import Usage, read_usage
from tformer.training.expected import expectation
from tformer.training.fit import DivergedError, Learner, State, StepDone, Validate, fit, is_due, nonfinite
from tformer.training.memory import out_of_memory
from tformer.training.optim import Optimizers
from tformer.training.settings import MAY_CHANGE, kept_settings
from tformer.training.sharded import holders, is_sharded, let_go

Recount = Callable[["Session"], TimeBudget | None]

STATES = 3  # a checkpoint holds weights and up to two moments of each
VALIDATION = 1 << 32  # which fresh reversal sequences are judged on while training

Note = Callable[["Session"], dict[str, Any]]  # gives entries of a line of metrics.jsonl


@dataclass
class Session:
    """A training that is open: everything built, ready to train from `state`.

    Only its own methods change it; who wants another one makes a copy (`dataclasses.replace`).
    """

    run: Run
    config: Config
    data: Data
    model: Transformer
    optimizers: Optimizers
    state: State
    record: Record
    warnings: tuple[str, ...] = ()  # what a person should know of how it began
    at_evaluation: tuple[Note, ...] = ()  # what else is measured where it is evaluated
    forward: Callable[[Tensor], Tensor] | None = None  # stands in for the model's own: a compiled one
    last_validation: LossResult | None = None  # by the last validation, on text
    learner: Learner | None = None  # once it trains
    saved: int = 0  # the step of the last checkpoint
    booked: int = 0  # the step of which line and weights are written
    last_step: StepDone | None = None
    kept: Kept | None = None  # what lies in model.safetensors
    ranks: Ranks = BY_ITSELF  # of several processes, which one this is
    recount: Recount | None = None  # after a step, how many there are to be, where that has changed
    changes: tuple[str, ...] = ()  # settings that were others, and what they mean for the bits

    def within(self, budget: TimeBudget, recount: Recount | None = None) -> "Session":
        """A copy that takes the steps that a time has room for, and records how they were found.

        `recount` may find others as they are taken, where this process is alone.
        """
        copy = replace(self, recount=None if self.ranks.are_several else recount)
        copy._take(budget)
        return copy

    def _take(self, budget: TimeBudget) -> None:
        self.config = self.config.updated("train", steps=budget.steps)
        self.record = self.record.updated(budget=budget)

    @property
    def owner(self) -> Owner:
        """Whose its checkpoints are."""
        return owner_of(self.config, self.record)

    def begin(self, overwrite: bool = False) -> None:
        """Write what a run has before its first step; `overwrite`: instead of the run that is there.

        That one stays until the new one has weights. Of a run that goes on, metrics past its step are
        dropped: they are written again.
        """
        fresh = self.run.record().is_empty
        if self.state.step < self.config.train.steps:
            self.check_room(overwrite or fresh)
        if overwrite or fresh:
            self.run.build()
        if fresh or overwrite or not (self.run.here / "tokenizer.json").exists():
            self.run.write_identity(self.config, self.data.tokenizer, self.usage())
        self.run.rewind_metrics(self.state.step or -1)  # the start is judged again as well
        if self.state.step and self.kept:  # what lies there may be of a step that is yet to come again
            self.run.put_back(self.kept)
        elif self.state.step:
            self.keep_weights()
        self.run.write_record(self.config, self.record)
        if fresh:
            self.run.take_place()

    def usage(self) -> Usage | None:
        """What the directory that the run began from says of its tokens; None where it began from none."""
        origin = self.record.init_from
        return read_usage(origin_folder(origin), self.config.model, self.data.tokenizer) if origin else None

    def check_room(self, begins: bool) -> None:
        """Raise TformerError where there is no room for what is saved first.

        That is two checkpoints (one, where the run has some already) and the weights beside them.
        """
        weights = self._weights_bytes
        self.run.check_room(weights + (1 if self.state.step else 2) * STATES * weights, begins)

    @property
    def _weights_bytes(self) -> int:
        return sum(4 * p.numel() for p in self.model.parameters())  # float32, whatever it trains in

    def validate(self) -> tuple[float, float]:
        """Loss in nats a token and bits per byte on the whole validation part."""
        n_bytes = self.data.n_bytes
        precision = self.config.train.precision
        if self.data.reversal:
            inputs, targets = self.data.reversal.fresh(512, index=VALIDATION)
            judged = batch_loss(self.model, inputs, targets, n_bytes, precision)
            let_go(self.model)
            loss, bits_per_byte = self.ranks.agree(*judged)
            return loss, bits_per_byte
        assert self.data.val_ids is not None
        result = text_loss(self.model, self.data.val_ids, n_bytes, precision, ranks=self.ranks)
        let_go(self.model)
        self.last_validation = result
        loss, bits_per_byte = self.ranks.agree(result.loss, result.bits_per_byte)
        return loss, bits_per_byte

    @property
    def validator(self) -> Validate | None:
        """None where there is nothing to validate on."""
        return self.validate if self.data.reversal or self.data.val_ids is not None else None

    def notes(self) -> dict[str, Any]:
        """What else is measured where it is evaluated, as a line of metrics has it."""
        entries: dict[str, Any] = {}  # of a process that follows, which has nothing to measure, none
        seen = replace(self, model=self._whole_model()) if is_sharded(self.model) else self
        for measured in self.at_evaluation:
            entries |= measured(seen)
        self.ranks.await_first()
        return entries

    def _whole_model(self) -> Transformer:
        """A copy of a sharded model for the first process, which samples alone; the others give theirs."""
        weights = dict(self.model.named_parameters())
        if not self.ranks.is_first:
            give_tensors(weights)
            return self.model
        copy = without_weights(self.model.config)
        copy.load_state_dict(whole_tensors(weights), assign=True, strict=False)
        if copy.config.tied:
            copy.unembed.weight = copy.embed.weight
        return copy.to(next(self.model.parameters()).device).eval()

    def train(self, stop: Callable[[], bool] = lambda: False) -> Iterator[StepDone]:
        """Train to the end or until `stop()`, writing metrics, weights and checkpoints as it goes."""
        learner = self.learner = Learner(self.model, self.optimizers, self._forward(), ranks=self.ranks)
        self.saved = self.state.step
        if self.state.step == 0 and self.record.init_from and self.validator:
            self.judge_start()
        for done in self._steps(learner):
            state, config = done.state, self.config.train
            self.state = state
            if is_due(state.step, config):
                self._check(self.model.state_dict())  # a sample of it would end with another error
                done = replace(done, noted=self.notes())
            ended = state.step == config.steps or done.stops_early
            self.last_step = done
            self.keep_books(done)
            if ended or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
                self.save()
            yield done
            if not ended and self.ranks.any(stop()):
                break
        if self.state.step > self.saved:
            self.save()

    def _steps(self, learner: Learner) -> Iterator[StepDone]:
        """The steps to the end. Once their number may become another, and is recorded."""
        steps = fit(learner, self.data.batches, self.config.train, self.state, self.validator)
        while done := next(steps, None):
            yield done
            if self.recount and (budget := self.recount(self)):
                self.recount = None
                self._take(budget)
                self.run.write_record(self.config, self.record)
                steps = fit(learner, self.data.batches, self.config.train, self.state, self.validator)

    def _forward(self) -> Callable[[Tensor], Tensor] | None:
        """What stands in for the model's own forward: of several processes, one that adds gradients up."""
        if not self.ranks.are_several or is_sharded(self.model):
            return self.forward
        inner = self.model if self.forward is None else self.forward
        assert isinstance(inner, nn.Module)
        with (
            warnings.catch_warnings()
        ):  # 2.13 has another name for broadcast_buffers, and 2.11 that one alone
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(inner, broadcast_buffers=False, gradient_as_bucket_view=True)

    def keep_books(self, done: StepDone) -> None:
        """Write the line of a step, if it has one, and its weights, if they are the best."""
        config, step = self.config.train, done.state.step
        ended = step == config.steps or done.stops_early
        if step % config.log_every == 0 or done.val_loss is not None or done.noted or ended:
            self.run.log(metrics_line(done))
        if config.keep == "best" and self.is_better(done):
            self.keep_weights()
        self.booked = step

    def judge_start(self) -> None:
        """Judge the weights that the run begins from as any others: they are kept if nothing beats them."""
        val_loss, bits_per_byte = self.validate()
        if not math.isfinite(val_loss):
            raise TformerError(
                f"the validation loss of the weights to begin from is {val_loss}",
                "training could not mend it",
                "give another --init-from"
                + ", or --precision fp32" * (self.config.train.precision == "bf16"),
            )
        self.state = replace(self.state, best_val_loss=val_loss, best_step=0)
        line = {"step": 0, "tokens": 0, "seconds": 0.0, "val_loss": val_loss, "bits_per_byte": bits_per_byte}
        self.run.log(line | self.notes())
        self.keep_weights((val_loss, bits_per_byte))

    @contextmanager
    def rescued(self) -> Iterator[None]:
        """Save before an error of any kind leaves the block, if that is worth it.

        It is not where training diverged, nor in the middle of an update. Nor of a sharded model, of which
        the others have parts, and go on meanwhile. A lack of memory leaves it as a TformerError that says
        what takes less.
        """
        try:
            yield
        except DivergedError:
            raise
        except BaseException as error:
            whole = self.learner.whole if self.learner else None
            judging = whole is not None and whole.step > self.state.step
            if whole and whole.step > self.saved and not is_sharded(self.model):
                if judging:  # its evaluation came to nothing
                    self.state = whole
                with suppress(Exception):  # what ended it is the news
                    self._book_again()
                    self.save()
            if lacks_memory(error):
                asked, is_there = asked_for(error), self.run.is_in_place
                raise out_of_memory(self.config, asked, self.ranks.world, is_there, judging) from error
            raise

    def _book_again(self) -> None:
        """What could not be written of the last step, or by half: without it the step is not worth saving."""
        done = self.last_step
        if done and done.state.step == self.state.step > self.booked:
            self.run.rewind_metrics(done.state.step - 1)
            self.keep_books(done)

    def is_better(self, done: StepDone) -> bool:
        """Whether an evaluation is better than that of the weights that are kept, if they had any."""
        if done.val_loss is None:
            return False
        known = self.kept.val_loss if self.kept else None
        return known is None or done.val_loss < known

    def keep_weights(self, judged: tuple[float | None, float | None] | None = None) -> None:
        """Write the weights of this step as those of the run, and remember how they were judged.

        Left out, that is what the last step, or its line, says.
        """
        step, done = self.state.step, self.last_step
        self._check(self.model.state_dict())
        sha256 = self.run.write_weights(self.model)
        if done and done.state.step == step:
            judged = done.val_loss, done.bits_per_byte
        elif judged is None:
            lines = [line for line in self.run.read_metrics() if line.get("step") == step]
            judged = (lines[-1].get("val_loss"), lines[-1].get("bits_per_byte")) if lines else (None, None)
        self.kept = Kept(step=step, sha256=sha256, val_loss=judged[0], bits_per_byte=judged[1])

    def kept_model(self) -> Transformer:
        """The model with the weights that are kept, which may be those of an earlier step."""
        if is_sharded(self.model) or (self.kept and self.kept.step != self.state.step):
            return load_model(self.run.folder, next(self.model.parameters()).device)
        return self.model

    def save(self) -> None:
        """Write the weights where the last ones are those that are kept, and a checkpoint."""
        train, optimizer = self.config.train, self.optimizers.state_tensors()
        self._check(self.model.state_dict() | optimizer)
        if train.keep == "last" or self.state.best_val_loss == math.inf:  # nothing was judged
            self.keep_weights()
        identity = {
            "owner": self.owner.as_dict(),
            "may_change": {name: getattr(train, name) for name in MAY_CHANGE},
            "kept": self.kept.as_dict() if self.kept else None,
            "seed": train.seed,
            "versions": self.record.versions,
            "data": self.data.facts.as_dict(),
        }
        self.run.write_checkpoint(
            self.model,
            optimizer,
            self.state.as_dict(),
            train.keep_checkpoints,
            identity,
        )
        self.saved = self.state.step
        if self.data.kept and self.ranks.is_first:
            self.data.kept.write(self.run.checkpoints, (STATES + 1) * self._weights_bytes)

    def _check(self, tensors: dict[str, Tensor]) -> None:
        """Raise DivergedError before numbers that are not finite are written over ones that are."""
        if self.learner:
            self.learner.wait()
        if name := nonfinite(tensors, holders(self.model, self.ranks)):
            found = f"{name} holds numbers that are not finite; it is not saved"
            raise DivergedError(f"at step {self.state.step}", found, self.config.train)

    def summary(self) -> dict[str, Any]:
        """The result of a run: the last loss, and the validation loss of the weights that are kept."""
        metrics, kept = self.run.read_metrics(), self.kept
        start = next((line for line in metrics if line.get("step") == 0), {})
        before = {f"{key}_before": start[key] for key in ("val_loss", "bits_per_byte") if key in start}
        return {
            "run": str(self.run.folder),
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "seconds": round(self.state.seconds, 3),
            "loss": metrics[-1].get("loss") if metrics else None,
            "val_loss": kept.val_loss if kept else None,
            "bits_per_byte": kept.bits_per_byte if kept else None,
            "parameters": self.model.n_parameters,
            "kept_step": kept.step if kept else self.state.step,
            "passes": self.passes,
            **before,
        }

    @property
    def passes(self) -> float | None:
        """How often the run has read its training text; None on reversal, which is never the same twice."""
        n = self.data.facts.train_tokens
        return round(self.state.tokens / n, 3) if n else None

    def finish(self) -> dict[str, Any]:
        """Record that the run came to its end, and how."""
        if self.kept is None:
            self.keep_weights()
        if self.kept and self.kept.val_loss is None and self.validator:
            loss, bits_per_byte = replace(self, model=self.kept_model(), ranks=BY_ITSELF).validate()
            if not math.isfinite(loss):
                raise DivergedError(f"at step {self.kept.step}", f"validation loss {loss}", self.config.train)
            self.kept = self.kept.model_copy(update={"val_loss": loss, "bits_per_byte": bits_per_byte})
        result = self.summary()
        result |= expectation(self.config, self.record, result).as_dict()
        told = {key: value for key, value in result.items() if key != "run"}
        record = self.record.updated(result=Result.model_validate(told))
        self.record = keep_card(self.run.folder, self.config, record)
        self.run.write_record(self.config, self.record)
        return result


def owner_of(config: Config, record: Record) -> Owner:
    """Whose the checkpoints of a run are."""
    tokenizer = record.tokenizer.sha256 if record.tokenizer else None
    return Owner(record.id, tokenizer, record.data.sha256, kept_settings(config))


def metrics_line(done: StepDone) -> dict[str, Any]:
    """A step as `metrics.jsonl` has it."""
    line: dict[str, Any] = {
        "step": done.state.step,
        "tokens": done.state.tokens,
        "seconds": round(done.state.seconds, 3),
        "loss": done.loss,
        "lr": done.lr,
        "grad_norm": done.grad_norm,
    }
    if done.val_loss is not None:
        line |= {"val_loss": done.val_loss, "bits_per_byte": done.bits_per_byte}
    return line | done.noted
