#!/usr/bin/env python3
"""A run as a GGUF file for llama.cpp: `python export_gguf.py RUN model.gguf [--f16]`.

Needs `pip install gguf`. For the gpt2 family with a byte-level BPE tokenizer of GPT-2's pattern: llama.cpp
has no other tokenizer of tformer's and no nanochat. Its own converter recognises a tokenizer by hashing
the ids of a fixed text and so refuses every newly trained one; this writes the names it looks up.
"""

import argparse
import json
import sys
from pathlib import Path

import gguf
import numpy as np

from tformer.errors import RequestError
from tformer.model import Transformer
from tformer.run.find import find_run
from tformer.run.huggingface import to_hf
from tformer.run.loaded import LoadedRun, load_run
from tformer.text.engines import byte_symbols
from tformer.text.tokenizer import Tokenizer

REFUSED = {
    "word": "GGUF has no tokenizer whose tokens are whole words and the gaps between them",
    "char": "GGUF has no tokenizer whose tokens are single characters",
}
BLOCK = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
WHOLE = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"}


def check(model: Transformer, tokenizer: Tokenizer) -> dict:
    """The tokenizer's JSON. Raises RequestError, with the reason, for what llama.cpp has not."""
    config, advice = model.config, "--tokenizer bpe"
    if config.family != "gpt2":
        raise RequestError(f"the family is {config.family}", "llama.cpp reads tformer's gpt2", "train a gpt2")
    if config.activation != "gelu_new":
        raise RequestError(f"the activation is {config.activation}", "llama.cpp's gpt2 has gelu_new alone")
    if tokenizer.kind in REFUSED:
        raise RequestError(f"the tokenizer is {tokenizer.kind}", REFUSED[tokenizer.kind], advice)
    values = json.loads(tokenizer.to_json())
    split = values["pre_tokenizer"]
    plain = split["type"] == "ByteLevel" and split.get("use_regex", True) and not split["add_prefix_space"]
    if not plain or values["normalizer"] or values["model"].get("ignore_merges"):
        raise RequestError("the tokenizer splits text in another way than GPT-2's", "", advice)
    return values


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of the gpt2 layout.

    >>> gguf_name("h.3.attn.c_attn.bias"), gguf_name("wte.weight")
    ('blk.3.attn_qkv.bias', 'token_embd.weight')
    """
    module, _, leaf = name.removeprefix("transformer.").rpartition(".")
    if module in WHOLE:
        return f"{WHOLE[module]}.{leaf}"
    _, layer, part = module.split(".", 2)
    return f"blk.{layer}.{BLOCK[part]}.{leaf}"


def write_vocabulary(writer: gguf.GGUFWriter, values: dict, loaded: LoadedRun) -> None:
    """Tokens, their types, the merges, and where a text begins and ends."""
    tokenizer, n = loaded.tokenizer, loaded.model.config.vocab_size
    by_id = {i: token for token, i in tokenizer.engine.get_vocab(with_added_tokens=True).items()}
    special = {token["id"] for token in values["added_tokens"] if token["special"]} | set(loaded.end_ids)
    kinds = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.NORMAL}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id.get(i, f"[unused{i}]") for i in range(n)])
    writer.add_token_types([kinds[i in special] if i in by_id else gguf.TokenType.UNUSED for i in range(n)])
    merges = values["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    # llama.cpp takes id 11 for the end where none is named. No text holds the byte FF, so nothing that a
    # model without an end writes is taken for one.
    never = tokenizer.engine.token_to_id(byte_symbols()[0xFF])
    writer.add_bos_token_id(loaded.start_id)
    writer.add_eos_token_id(next(iter(loaded.end_ids), never))
    writer.add_add_bos_token(False)


def export(run: str, out: Path, half: bool = False) -> None:
    """Write `out`. Raises RequestError for a run that has no GGUF form."""
    if out.exists():
        raise RequestError(f"{out} exists", "", "give another name")
    loaded = load_run(find_run(run))
    model, tokenizer = loaded.model, loaded.tokenizer
    values, c = check(model, tokenizer), model.config
    writer = gguf.GGUFWriter(out, "gpt2")
    writer.add_name(loaded.name)
    writer.add_context_length(c.n_ctx)
    writer.add_embedding_length(c.d_model)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.d_mlp)
    writer.add_head_count(c.n_heads)
    writer.add_layer_norm_eps(c.norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    write_vocabulary(writer, values, loaded)
    for name, tensor in to_hf(c, model.state_dict()).items():
        is_linear = ".h." in f".{name}" and tensor.ndim == 2
        array = (tensor.T.contiguous() if is_linear else tensor).numpy()  # rows are outputs
        is_matrix = array.ndim == 2 and "wpe" not in name
        writer.add_tensor(gguf_name(name), array.astype(np.float16) if half and is_matrix else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", help="a name in runs/, or a path")
    parser.add_argument("out", type=Path)
    parser.add_argument("--f16", action="store_true", help="matrices in half precision")
    given = parser.parse_args()
    try:
        export(given.run, given.out, given.f16)
    except RequestError as error:
        print(f"export_gguf: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
