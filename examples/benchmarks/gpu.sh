#!/usr/bin/env bash
# What only a CUDA device can show, in under eight minutes on an H100: the presets for a GPU train, sample, are
# judged, go on on the CPU and come back; a card that is not there and too little memory are said in one line.
#
# usage: examples/benchmarks/gpu.sh [TEXT] > gpu.md
#
# From a checkout, without installing it or a network: Python with PyTorch 2.11 or newer and the other
# packages that tformer needs. TEXT is a file; left out, one is made. Prints a Markdown table; a row that fails
# is named below it, the others still run, and the exit code is 1.
#
# PYTHON=python3        which Python
# DEVICE=cuda           cpu tries the script out
# PRESETS="…"           of those below, or others
# STEPS=300             of each training
# LIMIT=150             seconds for a row; then it has failed
# SETTINGS="…"          options for every training, such as: --set model.n_layers=1 --no-compile
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
steps=${STEPS:-300}
read -ra presets <<<"${PRESETS:-shakespeare-gpu char-12l nanogpt-char-gpu}"
read -ra settings <<<"${SETTINGS:-}"
export LIMIT=${LIMIT:-150} PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export WORK=$work TFORMER_RUNS="$work/runs"
text=$work/text.txt
if [ $# -gt 0 ]; then
  text=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
fi

# `tformer`, with its time and its largest memory written down as it ends, and an end to its time.
cat >"$work/measured.py" <<'PYTHON'
import atexit, json, os, resource, signal, sys, time

began = time.perf_counter()
signal.signal(signal.SIGALRM, lambda number, frame: os._exit(124))
signal.alarm(int(os.environ["LIMIT"]))


def write():
    torch = sys.modules.get("torch")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak = torch.cuda.max_memory_reserved()
    with open(os.path.join(os.environ["WORK"], "measured.json"), "w") as file:
        json.dump({"seconds": time.perf_counter() - began, "peak": peak / 2**30}, file)




def refuse_waits():
    """In ten steps after the first ten, whatever makes Python wait for the card is an error."""
    import itertools

    import torch

    from tformer.training.optim import Optimizers

    update, numbers = Optimizers.step, itertools.count(1)

    def step(*given):
        torch.cuda.set_sync_debug_mode("error" if 10 <= next(numbers) < 20 else "default")
        update(*given)

    Optimizers.step = step


atexit.register(write)
if os.environ.get("REFUSE_WAITS"):
    refuse_waits()
from tformer.cli import main

main()
PYTHON

# One row of the table, and what is to be said below it; exit 1 if the row is not as it should be.
cat >"$work/row.py" <<'PYTHON'
import json, os, re, sys

name, code, expected, needed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]


def read(file, default=""):
    try:
        with open(os.path.join(os.environ["WORK"], file), encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return default


measured = json.loads(read("measured.json") or "{}")
err = read("err")
try:
    found = json.loads(read("out").splitlines()[0])
except (IndexError, ValueError):
    found = {}
rate = found.get("tokens_per_second")
if found.get("steps") and found.get("seconds") and "continuing" not in err:
    rate = found["tokens"] / found["seconds"]
loss = found.get("val_loss", found.get("loss"))


def cell(value, form):
    return "" if value is None else format(value, form)


ended = str(code) if code == expected else f"**{code}**, expected {expected}"
cells = [name, cell(measured.get("seconds"), ".1f"), cell(rate, ",.0f"), cell(loss, ".4f"), ended]
print("| " + " | ".join([*cells, cell(measured.get("peak"), ".2f")]) + " |")

problems = [line for line in err.splitlines() if line.startswith("warning:")]
good = code == expected and "Traceback" not in err and bool(re.search(needed, err, re.MULTILINE))
if not good:
    last = err.strip().splitlines()[-1:] or ["it said nothing"]
    problems.append(("ran longer than its limit: " if code == 124 else "FAILED: ") + last[0])
with open(os.path.join(os.environ["WORK"], "notes"), "a", encoding="utf-8") as notes:
    notes.writelines(f"- {name}: {problem}\n" for problem in problems)
sys.exit(not good)
PYTHON

failed=0
row() { # NAME, the exit code and the words on stderr that are expected, and the arguments of tformer
  local name=$1 expected=$2 needed=$3 code=0
  shift 3
  echo "$name: tformer $*" >&2
  rm -f "$work/measured.json"
  "$python" "$work/measured.py" "$@" >"$work/out" 2>"$work/err" </dev/null || code=$?
  "$python" "$work/row.py" "$name" "$code" "$expected" "$needed" || failed=1
}

"$python" - "$text" "$device" <<'PYTHON'
import datetime, pathlib, platform, random, sys

import torch

import tformer

path, device = pathlib.Path(sys.argv[1]), sys.argv[2]
if not path.exists():  # 3,000 made-up words, the common ones common, a megabyte of them
    draw = random.Random(0)
    letters = "eeeetttaaooiinnsshhrrddlluucmfwygpbvk"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(3000)]
    weights = [1 / (i + 3) for i in range(len(words))]
    lines = (" ".join(draw.choices(words, weights, k=draw.randint(4, 12))) for _ in range(22_000))
    path.write_text(".\n".join(lines) + ".\n", encoding="utf-8")
card = torch.cuda.get_device_name() if device.startswith("cuda") and torch.cuda.is_available() else device
print(
    f"{card}, PyTorch {torch.__version__}, Python {platform.python_version()}, tformer {tformer.__version__}, "
    f"{datetime.date.today()}; {path.name} of {path.stat().st_size:,} bytes\n"
)
print("| step | seconds | tokens/s | loss | exit | peak GiB |\n|---|---|---|---|---|---|")
PYTHON

for preset in "${presets[@]}"; do
  run=$work/runs/$preset
  row "train $preset, $steps steps" 0 "^step" \
    train "$text" --preset "$preset" --steps "$steps" --device "$device" --out "$run" --json \
    ${settings[@]+"${settings[@]}"}
  row "sample $preset" 0 "" \
    sample "" --run "$run" --device "$device" --max-tokens 500 --seed 1 --json
  row "eval loss $preset" 0 "" eval loss --run "$run" --device "$device" --json
  row "eval causality $preset" 0 "" eval causality --run "$run" --device "$device" --positions 16 --json
done

last=$work/runs/${presets[${#presets[@]} - 1]}
row "resume on the CPU" 0 "continuing after step $steps" \
  train "$text" --out "$last" --resume --steps $((steps + 2)) --device cpu --json
row "and back on $device" 0 "continuing after step $((steps + 2))" \
  train "$text" --out "$last" --resume --steps $((steps + 22)) --device "$device" --json
row "a card that is not there" 2 "device cuda:99 is not there" \
  train "$text" --steps 1 --device cuda:99 --out "$work/runs/absent"
if [ "$device" != cpu ]; then
  REFUSE_WAITS=1 row "steps that nothing waits in" 0 "^step" \
    train "$text" --preset nanogpt-char-gpu --steps 25 --set train.eval_every=0 --device "$device" \
    --out "$work/runs/unwaited" --json
  row "a batch that no card can hold" 2 "a step takes at least" \
    train "$text" --preset nanogpt-char-gpu --steps 1 --batch-size 400000 --device "$device" \
    --out "$work/runs/larger"
  # A window of that preset takes 1.2 MB at the very least, and some 20 MB: this is refused by the card alone.
  windows=$("$python" -c 'import sys, torch; print(torch.cuda.mem_get_info(sys.argv[1])[0] // 4_000_000)' "$device")
  row "a batch that this card does not hold" 1 "^tformer: error: out of memory" \
    train "$text" --preset nanogpt-char-gpu --steps 1 --batch-size "$windows" --device "$device" \
    --out "$work/runs/full"
fi

if [ -s "$work/notes" ]; then
  printf '\n'
  cat "$work/notes"
fi
exit "$failed"
