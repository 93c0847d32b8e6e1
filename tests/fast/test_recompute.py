"""Activations that are computed again are the ones that would have been kept, and take less memory."""

import copy
import json
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import tiny_config
from tformer.cli import app
from tformer.config import Config
from tformer.fast.kernels import attach, dropout_streams
from tformer.fast.recompute import recompute_blocks
from tformer.kv_cache import KVCache
from tformer.loss import cross_entropy
from tformer.model import Transformer
from tformer.training.memory import step_bytes

CPU = torch.device("cpu")
TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 20
TINY = [
    "--steps",
    "4",
    "--device",
    "cpu",
    "--batch-size",
    "4",
    "--set",
    "train.log_every=1",
    "--tokenizer",
    "char",
]
for setting in ("n_layers=2", "n_heads=2", "d_model=16", "n_ctx=16", "dropout=0.2"):
    TINY += ["--set", f"model.{setting}"]


def model_with(kernels: str, **settings: object) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(tiny_config(n_layers=3, dropout=0.3, **settings))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    attach(model, kernels, CPU)
    return model.train()


def gradients(model: Transformer) -> list[torch.Tensor]:
    torch.manual_seed(2)
    for masks in dropout_streams(model):
        masks.begin(3)
    ids = torch.arange(2 * model.config.n_ctx).view(2, -1) % model.config.vocab_size
    for _ in range(2):  # two groups of windows: the second's numbers follow the first's
        cross_entropy(model(ids), ids).sum().backward()
    after = [masks.bits.random_raw() for masks in dropout_streams(model)]
    return [*(p.grad for p in model.parameters()), torch.rand(3), torch.tensor(after, dtype=torch.float64)]


@pytest.mark.parametrize("kernels", ["blocks", "sdpa", "reference"])
@pytest.mark.parametrize("family", ["gpt2", "nanochat"])
def test_the_gradients_are_the_same_to_the_bit_and_so_are_the_numbers_after(kernels, family):
    plain, again = (model_with(kernels, family=family) for _ in range(2))
    recompute_blocks(again, dropout_streams(again))
    for mine, theirs in zip(gradients(again), gradients(plain), strict=True):
        assert torch.equal(mine, theirs)


def kept(model: Transformer) -> int:
    """Elements that a pass forward keeps for the way back, outside of what is computed again."""
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    ids = torch.zeros((2, model.config.n_ctx), dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        cross_entropy(model(ids), ids).sum()
    return sum(sizes)


def test_blocks_keep_nothing_of_their_insides():
    again = model_with("reference")
    whole = kept(again)
    recompute_blocks(again, [])
    assert kept(again) < whole / 3


def test_each_block_goes_forward_twice_in_a_step_and_once_without_gradients():
    model = model_with("blocks")
    passes: list[object] = []
    for block in model.blocks:
        inside = block.fast
        block.fast = lambda *given, inside=inside: (passes.append(given), inside(*given))[1]
    recompute_blocks(model, dropout_streams(model))
    ids = torch.zeros((1, 4), dtype=torch.int64)
    model(ids).sum().backward()
    assert len(passes) == 2 * 3
    with torch.no_grad():
        model(ids)
    assert len(passes) == 3 * 3


def test_what_fills_a_cache_is_left_alone():
    model = model_with("reference").eval()
    ids = torch.arange(6)[None] % model.config.vocab_size
    expected = copy.deepcopy(model)(ids)
    recompute_blocks(model, [])
    cache = KVCache(model.config, 1, model.embed.weight)
    parts = [model(part, cache) for part in ids.split(3, dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), expected, atol=1e-5)


def test_the_count_of_memory_knows_of_it():
    sizes = {"n_layers": 8, "n_heads": 2, "d_model": 64, "n_ctx": 64, "vocab_size": 50}
    plain = Config.model_validate({"model": sizes})
    again = plain.updated("train", recompute=True)
    assert step_bytes(again)[0] == step_bytes(plain)[0]
    deeper = again.updated("model", n_layers=9)
    assert step_bytes(deeper)[1] - step_bytes(again)[1] == 64 * 64 * 4, "a block's input more"
    assert step_bytes(again)[1] < 0.3 * step_bytes(plain)[1]


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_run_has_the_same_losses_and_may_go_on_either_way(tmp_path, monkeypatch, backend):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hamlet.txt").write_text(TEXT)

    def losses(run: str, *words: str) -> list[float]:
        done = CliRunner().invoke(app, ["train", "hamlet.txt", *TINY, "--out", run, *words])
        assert done.exit_code == 0, done.output
        return [
            json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        ]

    on = ("--set", "train.recompute=true")
    plain = losses("plain")
    assert losses("again", *on) == plain
    assert losses("compiled", *on, "--compile", "--set", "model.dropout=0") == pytest.approx(
        losses("eager", "--set", "model.dropout=0"), abs=1e-4
    )
    longer = losses("plain", "--resume", "--steps", "6", *on)
    assert longer[:4] == plain and longer == losses("again", "--resume", "--steps", "6")
