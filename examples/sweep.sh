#!/bin/sh
# The same text at several learning rates; the best validation loss last.
# usage: examples/sweep.sh FILE [STEPS]
set -eu
for lr in 1e-3 3e-3 1e-2; do
  tformer train "$1" --steps "${2:-300}" --lr "$lr" --json
done | python3 -c '
import json, sys
for r in sorted(map(json.loads, sys.stdin), key=lambda r: -r["val_loss"]):
    print("%.4f  %.4f bits per byte  %s" % (r["val_loss"], r["bits_per_byte"], r["run"]))'
