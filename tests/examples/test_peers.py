"""examples/benchmarks/peers.py, with something in nanoGPT's place: its tables have their rows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "benchmarks" / "peers.py"

# What the script uses of nanoGPT's model.py, in a few lines of our own.
PEER = """
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        assert (config.vocab_size, config.bias) == (65, False)
        self.config, self.table = config, nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, inputs, targets):
        assert inputs.shape == targets.shape and inputs.shape[1] == self.config.block_size
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        logits = self.table(inputs)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        assert (weight_decay, learning_rate, betas, device_type) == (0.1, 1e-3, (0.9, 0.99), "cpu")
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)

    def generate(self, ids, max_new_tokens):
        assert ids.shape == (1, 1) and max_new_tokens == 9
        return ids
"""
RATIO = r"\d+\.\d\d \(\d+\.\d\d–\d+\.\d\d\)"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "model.py").write_text(PEER)
    words = "".join(chr(32 + i % 65) + " be or not to be\n" for i in range(2000))
    (tmp_path / "text.txt").write_text("".join(sorted(set(words))[:65]) + words)
    return tmp_path


def table(place, work, *more):
    command = [sys.executable, SCRIPT, work, place / "peer", place / "text.txt", "--rounds", "1", *more]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # two threads beside other tests wait for each other
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.exhaustive  # it compiles two models
def test_the_table_of_training_has_a_row_a_preset_and_the_machines_limit(place):
    *rows, blank, machine = table(place, "train", "--steps", "1", "--presets", "nanogpt-char-cpu")
    found = [
        re.fullmatch(r"\| train `(\S+)` \| [\d,]+ \((.+)\) \| [\d,]+ \| (.+) \| \d+% \|", r) for r in rows[2:]
    ]
    assert [match[1] for match in found] == ["nanogpt-char-cpu"]
    assert all(match[2] in ("fp32", "bf16", "fp32 compiled", "bf16 compiled") for match in found)
    assert all(re.fullmatch(RATIO, match[3]) for match in found)
    assert blank == "" and re.search(r"[\d,]+ GFLOP/s in fp32, [\d,]+ in bf16", machine)


@pytest.mark.slow
def test_the_table_of_sampling_has_one_stream_and_many(place):
    *rows, _, machine = table(place, "sample", "--tokens", "9")
    cells = rf"\| sample, (\d+) at once \| [\d,]+ \| [\d,]+ \| [\d,]+ \| {RATIO} \| {RATIO} \|"
    assert [re.fullmatch(cells, row)[1] for row in rows[2:]] == ["1", "32"] and "1 rounds" in machine
