"""Initialisations of the gpt2 family, side by side: `python initialisation.py FILE [SEED …]`.

Trains the preset nanogpt-char-cpu on a text from each initialisation and prints the validation loss at
the end. The last row is what `Transformer.init_weights` does.
"""

import math
import sys
from pathlib import Path

import torch

from tformer.device import decide_precision
from tformer.evals.loss import text_loss
from tformer.layers import merge, preset_layer
from tformer.model import Transformer
from tformer.text.data import Windows, split_text
from tformer.text.tokenizer import Tokenizer
from tformer.training.fit import Learner, State, fit
from tformer.training.optim import Optimizers


@torch.no_grad()
def initialise(model: Transformer, kind: str) -> None:
    """Draw the weights of the blocks again, as `kind` says; embeddings stay normal(0, 0.02)."""
    c = model.config
    for name, parameter in model.named_parameters():
        if not name.startswith("blocks.") or parameter.ndim == 1 or kind == "fan-in, branches zero":
            continue
        std = 0.02 * math.sqrt(768 / c.d_model) if kind == "GPT-2 by width" else 0.02
        if name.endswith(("attn.out.weight", "mlp.down.weight")):
            std /= math.sqrt(2 * c.n_layers)
        parameter.normal_(std=std)


def main() -> None:
    """Train from each initialisation with each seed."""
    split = split_text(Path(sys.argv[1]).read_text(encoding="utf-8"), 0.1)
    tokenizer = Tokenizer.train("char", [split.train, split.val])
    ids, val_ids = tokenizer.encode_array([split.train]), tokenizer.encode_array([split.val])
    config = merge([preset_layer("nanogpt-char-cpu")]).updated("model", vocab_size=tokenizer.vocab_size)
    precision = decide_precision("auto", torch.device("cpu"))
    config = config.updated("train", precision=precision)
    for kind in ("GPT-2", "GPT-2 by width", "fan-in, branches zero"):
        for seed in map(int, sys.argv[2:] or ["0"]):
            torch.manual_seed(seed)
            model = Transformer(config.model)
            initialise(model, kind)
            windows = Windows(ids, config.model.n_ctx, seed)
            optimizers = Optimizers(model, config.train)
            for _ in fit(Learner(model, optimizers), windows, config.train, State()):
                pass
            result = text_loss(model, val_ids, tokenizer.n_bytes)
            print(f"{kind:24} seed {seed}  validation {result.loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
