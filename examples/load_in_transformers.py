"""A run in transformers, as it lies: usage: python examples/load_in_transformers.py runs/mine "The " """

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

run, prompt = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(run)
tokenizer = AutoTokenizer.from_pretrained(run)
generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
print(generate(prompt, max_new_tokens=40, do_sample=False)[0]["generated_text"])
