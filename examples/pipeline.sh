#!/bin/sh
# Prompts in, JSON lines out: three continuations of each line of prompts.txt, kept with their seeds.
# usage: examples/pipeline.sh RUN < prompts.txt > samples.jsonl
set -eu
tformer sample - --run "$1" --json -n 3 --max-tokens 60 --temperature 0.8 --stop "
"
