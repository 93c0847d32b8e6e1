"""tformer beside nanoGPT (and transformers) on this machine: `python peers.py train|sample NANOGPT TEXT`.

NANOGPT is a checkout of nanoGPT, of which only its model.py is used; TEXT a file of about a megabyte, such as
tinyshakespeare. Prints the Markdown table of one kind of work, with the machine's own limit beside it:

    python examples/benchmarks/peers.py train ~/nanoGPT tinyshakespeare.txt > train.md
    python examples/benchmarks/peers.py sample ~/nanoGPT tinyshakespeare.txt > sample.md

Each measurement is a process of its own, the sides take turns (--rounds), every side warms up, and ratios
are of neighbours in time. nanoGPT trains in fp32 and in bf16, eager and compiled, once each; the fastest of
the four takes part in the rounds. Its README's loop is used: AdamW, clipping, windows drawn at random.
Let nothing else run meanwhile.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

PRESETS = ("nanogpt-char-cpu", "nanogpt-char-gpu")
VARIANTS = ("fp32", "bf16", "fp32 compiled", "bf16 compiled")
SAMPLED = "nanogpt-char-gpu"  # whose architecture samples


# ---------------------------------------------------------------------------- one side


def median_step(step, warm_up, steps):
    """Seconds of a step, the median after some that are left out."""
    times = []
    for i in range(warm_up + steps):
        began = time.perf_counter()
        step()
        if i >= warm_up:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def settings_of(preset):
    """The configuration of a preset whose vocabulary is that of TEXT by characters (65 rows)."""
    from tformer.layers import merge, preset_layer

    return merge([preset_layer(preset)]).updated("model", vocab_size=65)


def nanogpt(where, preset):
    """Its model of a preset's sizes."""
    import torch

    sys.path.insert(0, str(where))
    from model import GPT, GPTConfig  # nanoGPT's

    c = settings_of(preset).model
    sizes = {"n_layer": c.n_layers, "n_head": c.n_heads, "n_embd": c.d_model, "block_size": c.n_ctx}
    torch.manual_seed(0)
    return GPT(GPTConfig(**sizes, vocab_size=c.vocab_size, dropout=c.dropout, bias=c.bias))


def nanogpt_trains(where, preset, variant, text, steps):
    """Seconds of a step of nanoGPT."""
    import numpy as np
    import torch

    config = settings_of(preset)
    c, t = config.model, config.train
    characters = {character: i for i, character in enumerate(sorted(set(text)))}
    data = np.array([characters[character] % c.vocab_size for character in text], dtype=np.uint16)
    model = nanogpt(where, preset)
    optimizer = model.configure_optimizers(t.weight_decay, t.lr, (t.beta1, t.beta2), "cpu")
    forward = torch.compile(model) if "compiled" in variant else model
    products = torch.autocast("cpu", torch.bfloat16) if "bf16" in variant else nullcontext()

    def windows():
        starts = torch.randint(len(data) - c.n_ctx, (t.batch_size,))
        rows = [torch.from_numpy(data[i : i + c.n_ctx + 1].astype(np.int64)) for i in starts]
        return torch.stack([row[:-1] for row in rows]), torch.stack([row[1:] for row in rows])

    def step():
        inputs, targets = windows()
        with products:
            _, loss = forward(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), t.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return median_step(step, max(2, steps // 4), steps)


def tformer_trains(preset, file, steps):
    """Seconds of a step of `tformer train`, by the metrics that it writes, after a quarter of the steps."""
    with tempfile.TemporaryDirectory() as folder:
        warm_up = max(2, steps // 4)
        settings = ["train.eval_every=0", "train.checkpoint_every=0", "train.log_every=1"]
        command = [
            sys.executable,
            "-m",
            "tformer",
            "train",
            str(file),
            "--preset",
            preset,
            "--device",
            "cpu",
        ]
        command += ["--steps", str(warm_up + steps), "--out", f"{folder}/run"]
        command += [word for setting in settings for word in ("--set", setting)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        lines = Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    took = [after - before for before, after in itertools.pairwise(seconds)]
    return statistics.median(took[warm_up - 1 :])


def samples(side, where, count, tokens):
    """Seconds of `count` samples of so many tokens; one after another where a side has nothing better."""
    import torch

    from tformer.model import Transformer
    from tformer.run.huggingface import to_hf_config
    from tformer.sample import Sampler, Sampling, generate

    torch.manual_seed(0)
    ours = Transformer(settings_of(SAMPLED).model).eval()
    ours.unembed.weight.data.normal_(std=0.02)
    start = torch.zeros((count, 1), dtype=torch.int64)
    with torch.inference_mode():
        if side == "nanoGPT":
            model = nanogpt(where, SAMPLED).eval()

            def once():
                for row in start:
                    model.generate(row[None], tokens)

        elif side == "transformers":
            from transformers import AutoModelForCausalLM, GPT2Config

            model = AutoModelForCausalLM.from_config(GPT2Config(**to_hf_config(ours.config))).eval()
            how = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": True, "top_k": 0}

            def once():
                model.generate(start, attention_mask=torch.ones_like(start), pad_token_id=0, **how)

        else:

            def once():
                choose = Sampler(Sampling(), 0, count)
                for _ in generate(ours, start, tokens, choose):
                    pass

        return median_step(once, 1, 3)


def products(dtype):
    """FLOP/s of matrix products of 2048 by 2048, the best of ten."""
    import torch

    a = torch.randn(2048, 2048).to(getattr(torch, dtype))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best


# ---------------------------------------------------------------------------- taking turns


def apart(role, **values):
    """What one of the functions above gives, in a process of its own."""
    command = [sys.executable, __file__, "one", json.dumps({"role": role} | values)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def one(role, where="", preset="", variant="", file="", steps=0, side="", count=0, tokens=0, dtype=""):
    """The measurement that `apart` wants."""
    if role == "nanogpt trains":
        return nanogpt_trains(where, preset, variant, Path(file).read_text(encoding="utf-8"), steps)
    if role == "tformer trains":
        return tformer_trains(preset, file, steps)
    return samples(side, where, count, tokens) if role == "samples" else products(dtype)


def spread(ratios):
    """The median of some ratios, and from the smallest to the largest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def train_rows(where, file, presets, rounds, limit, steps):
    """A row for each preset: tokens a second of both sides, the ratio, the share of the machine's limit."""
    from tformer.training.costs import flops_per_token

    yield "| work | nanoGPT at its fastest, tokens/s | tformer, tokens/s | ratio | of the limit in bf16 |"
    yield "|---|---|---|---|---|"
    for preset in presets:
        config = settings_of(preset)
        tokens = config.train.batch_size * config.model.n_ctx
        n = steps or max(4, 200_000 // tokens)
        theirs = {"where": where, "preset": preset, "file": file, "steps": n}
        tried = {variant: apart("nanogpt trains", variant=variant, **theirs) for variant in VARIANTS}
        print(preset, {k: f"{tokens / v:,.0f}" for k, v in tried.items()}, file=sys.stderr)
        best = min(tried, key=lambda variant: tried[variant])
        pairs = [
            (
                apart("nanogpt trains", variant=best, **theirs),
                apart("tformer trains", preset=preset, file=file, steps=n),
            )
            for _ in range(rounds)
        ]
        peer, own = (tokens / statistics.median(side) for side in zip(*pairs, strict=True))
        share = own * flops_per_token(config.model, config.model.n_ctx) / limit
        ratio = spread([a / b for a, b in pairs])
        yield f"| train `{preset}` | {peer:,.0f} ({best}) | {own:,.0f} | {ratio} | {share:.0%} |"


def sample_rows(where, rounds, new):
    """A row for one stream and one for 32."""
    yield "| tokens/s | nanoGPT | transformers | tformer | to nanoGPT | to transformers |"
    yield "|---|---|---|---|---|---|"
    for count in (1, 32):
        sides = ("nanoGPT", "transformers", "tformer")
        turns = [
            # 32 samples of nanoGPT's one after another take 32 times as long as one.
            [
                at_once * new / apart("samples", where=where, side=side, count=at_once, tokens=new)
                for side in sides
                for at_once in [1 if side == "nanoGPT" else count]
            ]
            for _ in range(rounds)
        ]
        rates = " | ".join(f"{statistics.median(side):,.0f}" for side in zip(*turns, strict=True))
        to = [spread([turn[2] / turn[i] for turn in turns]) for i in (0, 1)]
        yield f"| sample, {count} at once | {rates} | {to[0]} | {to[1]} |"


def processor():
    """Its name, where Linux says it."""
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        return names[0].split(":")[1].strip()
    except (OSError, IndexError):
        return platform.processor()


def main():
    """Print a table."""
    if sys.argv[1:2] == ["one"]:
        print(one(**json.loads(sys.argv[2])))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=("train", "sample"))
    parser.add_argument("nanogpt", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="of a training; 0: by its size")
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="that train")
    parser.add_argument("--tokens", type=int, default=255, help="of a sample, after one of prompt")
    given = parser.parse_args()
    where = str(given.nanogpt.resolve())
    fp32, bf16 = (apart("products", dtype=dtype) for dtype in ("float32", "bfloat16"))
    if given.work == "train":
        rows = train_rows(where, str(given.text.resolve()), given.presets, given.rounds, bf16, given.steps)
    else:
        rows = sample_rows(where, given.rounds, given.tokens)
    for row in rows:
        print(row, flush=True)
    import torch

    print(f"\n{processor()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__};", end=" ")
    print(f"matrix products of 2048³: {fp32 / 1e9:,.0f} GFLOP/s in fp32, {bf16 / 1e9:,.0f} in bf16;", end=" ")
    print(f"{given.rounds} rounds, medians, ratios from the smallest to the largest.")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    main()
