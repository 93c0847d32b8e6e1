#!/bin/sh
# lm-evaluation-harness on a run directory, as it is:  lm_eval_run.sh RUN TEXT
# Scores a text with no download: bits per byte, to compare with `tformer eval loss --run RUN --data TEXT`.
# The two differ a little: lm-eval also scores the first token, from a start token, and its windows lie one
# token apart from tformer's. Any task of lm-eval's runs the same way: --tasks lambada_openai,hellaswag.
# Needs: pip install lm-eval transformers accelerate
set -eu
run=${1:?usage: lm_eval_run.sh RUN TEXT} text=${2:?usage: lm_eval_run.sh RUN TEXT}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -c 'import json, sys; print(json.dumps({"text": open(sys.argv[1], encoding="utf-8").read()}))' \
    "$text" > "$folder/text.jsonl"
cat > "$folder/own_text.yaml" <<TASK
task: own_text
dataset_path: json
dataset_kwargs: {data_files: {test: $folder/text.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: bits_per_byte}
  - {metric: byte_perplexity}
TASK

# lm-eval starts a text from the tokenizer's end of text. A run without one (data.end_of_text=false) has only a
# bos_token_id; with one, they are the same.
start=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1] + "/config.json"))["bos_token_id"])' "$run")
HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_DATASETS_CACHE="$folder/cache" python3 -m lm_eval run \
    --model hf --model_args "pretrained=$run,prefix_token_id=$start,dtype=float32" --device cpu \
    --include_path "$folder" --tasks own_text --batch_size 1
