"""What training is worth: figures that a change must not lose. It trains a preset to its end: exhaustive."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.conftest import SHARED

TEXT = SHARED / "tinyshakespeare.txt"


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.skipif(not TEXT.exists(), reason="the benchmark text is not beside this checkout")
def test_the_small_character_configuration_ends_below_its_peer_as_transformers_judges_too(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def tformer(*args):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TFORMER_")}
        done = subprocess.run(
            [sys.executable, "-m", "tformer", *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment | {"OMP_NUM_THREADS": "1"},
            timeout=800,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    trained = tformer("train", str(TEXT), "--preset", "nanogpt-char-cpu", "--out", "run", "--json")
    assert trained["steps"] == 2000
    assert trained["val_loss"] <= 1.89, "nanoGPT's own figure is 1.886"
    judged = tformer("eval", "loss", "--run", "run", "--json")
    assert judged["loss"] == pytest.approx(trained["val_loss"], abs=5e-3)

    text = TEXT.read_text(encoding="utf-8")
    ids = np.array(AutoTokenizer.from_pretrained(tmp_path / "run")(text[int(0.9 * len(text)) :])["input_ids"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, 64):
            window = torch.from_numpy(ids[start : start + 65])[None]
            logits = model(window[:, :-1]).logits
            total += torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
    assert total / (len(ids) - 1) == pytest.approx(judged["loss"], abs=1e-4)
    assert total / math.log(2) / (len(ids) - 1) == pytest.approx(judged["bits_per_byte"], abs=1e-4)
