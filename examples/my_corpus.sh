#!/bin/sh
# A corpus of one's own, from text to a model that writes like it.
# usage: examples/my_corpus.sh FILE [STEPS]
set -eu
tformer train "$1" --tokenizer bpe --steps "${2:-1000}" --out runs/mine
tformer eval --run mine
tformer sample "The " --run mine --max-tokens 100 --temperature 0.8 --seed 1
