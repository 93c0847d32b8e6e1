#!/bin/sh
# Fine-tune a GPT-2 directory on a text of one's own; the result is such a directory again.
# usage: examples/fine_tune.sh DIR FILE [STEPS]
# DIR is what transformers' save_pretrained wrote, or what `hf download gpt2 --local-dir gpt2` fetched.
set -eu
tformer eval loss --run "$1" --data "$2"
tformer train "$2" --init-from "$1" ${3:+--steps "$3"} --out runs/fine-tuned
tformer eval loss --run runs/fine-tuned --data "$2"
