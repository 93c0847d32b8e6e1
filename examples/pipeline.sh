#!/bin/sh
# Prompts in, three continuations of each out: tformer and jq in a pipeline.
# usage: examples/pipeline.sh RUN < prompts.txt > continuations.txt
set -eu
tformer sample - --run "$1" --json -n 3 --max-tokens 60 --temperature 0.8 --stop "
" |
  jq --raw-output ".prompt + .text"
