"""Several processes with a part of the model each train what one trains, and leave the same run."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp  # had by the copies of this process

from tests.conftest import tiny_model
from tests.training.test_noted import TEXT, config
from tests.training.test_ranks import TINY, alone, finished, side_by_side, start
from tformer import load
from tformer.config import Config
from tformer.fast.dropout import MaskedDropout
from tformer.ranks import Ranks, here, part_of_rows, put_together, ranks_of_torchrun, together
from tformer.run.checkpoint import open_run
from tformer.run.data import prepare_data
from tformer.text.data import Windows
from tformer.training.fit import Learner, State, fit
from tformer.training.following import follow, lead
from tformer.training.opening import Prepared, open_session
from tformer.training.optim import Muon, Optimizers
from tformer.training.settings import decide
from tformer.training.sharded import shard

CPU = torch.device("cpu")
# Rows that neither two nor four processes divide, and an evaluation of an odd number of groups.
UNEVEN = shlex.split("--shard --set model.n_layers=2 --set model.d_model=18")
UNEVEN += shlex.split("--set train.decay_fraction=0 --set train.eval_every=3")
MUON = ("--set", "train.optimizer=muon")


def lines(run: Path) -> list[dict[str, object]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def check_same_lines(run: Path, other: Path) -> None:
    """Losses, norms of gradients, evaluations: all that is noted of a run, but for rounding."""
    ours, theirs = lines(run), lines(other)
    assert len(ours) == len(theirs)
    for mine, expected in zip(ours, theirs, strict=True):
        positions = zip(mine.pop("by_position", ()), expected.pop("by_position", ()), strict=True)
        for (last, loss), wanted in positions:
            assert [last, loss] == pytest.approx(wanted, abs=2e-4)
        assert mine.pop("sample", "") == expected.pop("sample", "")
        assert mine == pytest.approx(expected, rel=1e-5)


def test_two_processes_with_a_part_each_train_what_one_trains(tmp_path):
    words = (*UNEVEN, *MUON, "--steps", 6, "--set", "train.micro_batch_size=2")
    code, out, err = side_by_side(tmp_path, 2, *words, "--out", "run")
    assert code == 0, err
    assert len(out.splitlines()) == 1, "the first process alone speaks"
    alone(tmp_path, *words)
    check_same_lines(tmp_path / "run", tmp_path / "alone")
    ours, theirs = (load(tmp_path / name)[0].state_dict() for name in ("run", "alone"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


def go_on(folder: Path, processes: int, *words: object) -> None:
    given = (*words, "--out", "run", "--resume", "--set", "train.checkpoint_every=3")
    code, _, err = side_by_side(folder, processes, *given)
    assert code == 0 and (folder / "run" / "checkpoints").exists(), err


@pytest.mark.parametrize("optimizer", [pytest.param("adamw", marks=pytest.mark.slow), "muon"])
def test_a_checkpoint_goes_on_in_parts_and_whole(tmp_path, optimizer):
    words = (*UNEVEN, "--set", f"train.optimizer={optimizer}", "--set", "train.recompute=true")
    (tmp_path / "whole").mkdir()
    alone(tmp_path / "whole", *words, "--steps", 9)
    alone(tmp_path, *words, "--steps", 3)
    (tmp_path / "alone").rename(tmp_path / "run")
    go_on(tmp_path, 2, *words, "--steps", 6)
    (tmp_path / "run").rename(tmp_path / "alone")
    alone(tmp_path, *words, "--steps", 9, "--resume")
    check_same_lines(tmp_path / "alone", tmp_path / "whole" / "alone")


@pytest.mark.slow
def test_a_checkpoint_of_two_goes_on_in_four_and_then_in_two_that_have_all(tmp_path):
    words = (*UNEVEN, *MUON)
    alone(tmp_path, *words, "--steps", 9)
    for processes, steps, how in ((2, 3, "--shard"), (4, 6, "--shard"), (2, 9, "--no-shard")):
        go_on(tmp_path, processes, *words, how, "--steps", steps)
    check_same_lines(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        pytest.param("", marks=pytest.mark.exhaustive),
        "--set train.recompute=true",
        pytest.param("--set model.dropout=0.2", marks=pytest.mark.exhaustive),
    ],
)
def test_blocks_are_compiled_by_themselves(tmp_path, more):
    words = (*UNEVEN, *MUON, "--steps", 4, "--set", "train.kernels=reference", *shlex.split(more))
    losses = []
    for name, how in (("run", "--no-compile"), ("compiled", "--compile")):
        code, _, err = finished(start(tmp_path, 2, *words, how, "--out", name), within=200)
        assert code == 0 and ("compiling the model" in err) == (name == "compiled"), err
        assert "torch.compile failed" not in err
        losses.append([line["loss"] for line in lines(tmp_path / name)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2 if "dropout" in more else 1e-5)


@pytest.mark.slow
def test_bf16_and_a_model_to_begin_from(tmp_path):
    words = (*UNEVEN, "--steps", 4, "--precision", "bf16", "--set", "model.dropout=0.2")
    alone(tmp_path, "--steps", 2)
    for name, how in (("parts", "--shard"), ("all", "--no-shard")):
        code, _, err = side_by_side(tmp_path, 2, *words, how, "--out", name)
        assert code == 0, err
        begun = (*TINY[:2], "--steps", 3, "--init-from", "alone", how, "--out", f"more-{name}")
        code, _, err = side_by_side(tmp_path, 2, *begun)
        assert code == 0 and "beginning from" in err, err
    for prefix, rel in (("", 1e-2), ("more-", 1e-5)):
        ours, theirs = (
            [v for line in lines(tmp_path / f"{prefix}{n}") for k, v in line.items() if "loss" in k]
            for n in ("parts", "all")
        )
        assert ours == pytest.approx(theirs, rel=rel)


def test_a_beginning_that_nothing_beats_is_kept_by_all_in_parts(tmp_path):
    """Each evaluation is worse than that of the weights to begin from, and none of them is written."""
    alone(tmp_path, "--steps", 40)
    worse = ("--init-from", "alone", "--shard", "--lr", 1, "--steps", 3, "--set", "train.eval_every=1")
    code, _, err = side_by_side(tmp_path, 2, *worse, "--set", "train.warmup_steps=0", "--out", "run")
    assert code == 0, err
    judged = [line["val_loss"] for line in lines(tmp_path / "run") if "val_loss" in line]
    assert len(judged) == 4 and min(judged) == judged[0]
    ours, theirs = (load(tmp_path / name)[0].state_dict() for name in ("run", "alone"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--no-shard", "--shard"])
def test_patience_with_weights_to_begin_from_goes_on_in_another_number_of_processes(tmp_path, how):
    """Nothing beats the beginning: the second evaluation ends it, by one process after the first by two."""
    alone(tmp_path, "--steps", 40)
    (tmp_path / "alone").rename(tmp_path / "begun")
    words = ["--init-from", tmp_path / "begun", "--patience", 2, "--lr", 1, "--set", "train.eval_every=1"]
    words += ["--set", "train.warmup_steps=0", "--set", "train.decay_fraction=0"]
    alone(tmp_path, *words, "--steps", 9)
    assert [line["step"] for line in lines(tmp_path / "alone")] == [0, 1, 2]
    (tmp_path / "alone").rename(tmp_path / "whole")
    code, _, err = side_by_side(tmp_path, 2, *words, how, "--steps", 1, "--out", "alone")
    assert code == 0, err
    alone(tmp_path, *words, "--steps", 9, "--resume")
    check_same_lines(tmp_path / "alone", tmp_path / "whole")


def tell_of_parts() -> NoReturn:
    """Train two steps as one of several processes, and leave what it has and sends in a file."""
    sent = []

    def counted(scatter):
        def count(*args, **kwargs):
            sent.append(1)
            return scatter(*args, **kwargs)

        return count

    for name in ("reduce_scatter_tensor", "reduce_scatter_single"):  # until PyTorch 2.12, and since
        if hasattr(dist, name):
            setattr(dist, name, counted(getattr(dist, name)))

    def numbers(tensors):
        return sum(here(t).numel() for t in tensors if t.ndim)

    ranks = ranks_of_torchrun()
    with together(ranks, CPU):
        model = tiny_model(seed=ranks.rank, std=0.05)
        own = [p.detach().clone() for p in model.parameters()]
        shard(model, ranks, CPU)
        are = [torch.equal(put_together(p), q) for p, q in zip(model.parameters(), own, strict=True)]
        told = {"is_firsts": all(are), "weights": numbers(model.parameters())}
        settings = {"steps": 2, "batch_size": 8, "micro_batch_size": 1, "optimizer": "muon"}
        train = Config.model_validate({"train": settings}).train
        optimizers = Optimizers(model, train)
        step = optimizers.step

        def look(lr):
            told["gradients"] = numbers(p.grad for p in model.parameters())
            step(lr)

        optimizers.step = look
        ids = torch.arange(200).remainder(model.config.vocab_size).numpy()
        list(fit(Learner(model, optimizers, ranks=ranks), Windows(ids, model.config.n_ctx), train, State()))
        told |= {"state": numbers(optimizers.state_tensors().values()), "sent": len(sent)}
        told |= {"parameters": model.n_parameters, "layers": model.config.n_layers}
        muon = sum(numbers(o.params) for o in optimizers.all if isinstance(o, Muon))
        told["expected state"] = 2 * told["weights"] - muon
        Path(f"told-{ranks.rank}.json").write_text(json.dumps(told))
    sys.exit()


def test_each_process_has_its_part_and_gradients_are_sent_once_a_step(tmp_path):
    code, _, err = side_by_side(tmp_path, 2, prepare=tell_of_parts)
    assert code == 0, err
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["is_firsts"] for one in told] == [True, False], "the first one's weights count"
    n = told[0]["parameters"]
    for what in ("weights", "gradients"):
        assert sum(one[what] for one in told) == n
        assert max(one[what] for one in told) < 0.6 * n
    for one in told:
        assert one["state"] == one["expected state"]
        assert one["sent"] == 2 * (one["layers"] + 1), "once a step for each block and the root"


def test_rows_are_all_there_once():
    for n in range(9):
        for world in (1, 2, 3, 4):
            rows = [row for rank in range(world) for row in range(n)[part_of_rows(n, rank, world)]]
            assert rows == list(range(n))


class Told(Ranks):
    """The first process, and another that is told what it said."""

    said: object = None

    def tell(self, values=None):
        if self.is_first:
            Told.said = json.loads(json.dumps(values))
        return Told.said

    def broadcast(self, tensor):
        return tensor


def test_those_that_follow_compute_as_the_first_one_does(tmp_path):
    """The kernels, and what is computed again, of a process that has all of the model."""
    (tmp_path / "text.txt").write_text(TEXT)
    wanted: Config = config(recompute=True, kernels="blocks")
    data = prepare_data(wanted, [str(tmp_path / "text.txt")], None)
    wanted = decide(wanted, CPU, data.tokenizer.vocab_size)
    prepared = Prepared(wanted, data, CPU, ranks=Told(0, 2))
    with open_run(tmp_path / "run") as run:
        first = lead(open_session(run, prepared), CPU)
        other = follow(replace(prepared, ranks=Told(1, 2, 1)))
    for session in (first, other):
        block = session.model.blocks[0]
        assert block.fast is not None and isinstance(block.drop, MaskedDropout)
        assert "forward" in vars(block), "computed again"
