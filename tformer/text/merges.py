"""`vocab.json` and `merges.txt`: GPT-2's byte-level BPE in directories older than tokenizer.json.

The same ids as transformers' GPT2TokenizerFast: the merges, and the tokens that the files beside them add.
What is read may come from anyone: sizes are bounded, and what is wrong is named.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from tformer.errors import RequestError
from tformer.files import read_json, read_whole
from tformer.text.engines import END_OF_TEXT

VOCABULARY, MERGES = "vocab.json", "merges.txt"
LARGEST = 1 << 25  # of either file; GPT-2's have one megabyte and half of one
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def has_tokenizer(folder: Path) -> bool:
    """Whether a directory has a tokenizer.json, or the two files that were one before."""
    return os.path.isfile(folder / "tokenizer.json") or has_merges(folder)


def has_merges(folder: Path) -> bool:
    """Whether a directory has both files."""
    return all(os.path.isfile(folder / name) for name in (VOCABULARY, MERGES))


def in_place_of_tokenizer(folder: Path) -> str:
    """What a directory without one has of another kind, or half of; empty where there is nothing."""
    found = [
        name
        for name in (VOCABULARY, MERGES, "vocab.txt", "tokenizer.model", "spiece.model")
        if os.path.exists(folder / name)
    ]
    if not found:
        return ""
    half = {VOCABULARY: MERGES, MERGES: VOCABULARY}.get(found[0])
    return (
        f"found {found[0]} without {half}"
        if half
        else f"found {found[0]}, which is another kind and is not read"
    )


def merges_engine(folder: Path) -> Engine:
    """The engine that the two files describe. Raises RequestError for what they do not, naming the file."""
    says = _object(folder / "tokenizer_config.json")
    vocabulary = _vocabulary(folder / VOCABULARY)
    merges = _merges(folder / MERGES, len(vocabulary))
    try:
        model = models.BPE(vocab=vocabulary, merges=merges)
    except Exception as error:  # the engine's own kinds
        why = f"{str(error).splitlines()[0][:200]}; {VOCABULARY} is of another tokenizer, or is not whole"
        raise RequestError(f"{folder / MERGES} does not go with {VOCABULARY}", why) from None
    engine = Engine(model)
    prefix = says.get("add_prefix_space") is True  # which is refused, where kinds are told apart
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=True)
    engine.decoder = decoders.ByteLevel()
    for token, i in _added(folder, says, vocabulary):
        (engine.add_special_tokens if token.special else engine.add_tokens)([token])
        if i is not None and engine.token_to_id(token.content) != i:
            raise RequestError(
                f"the added token {token.content!r} in {folder} has the id {i}",
                f"after those of {VOCABULARY} and before it comes {engine.token_to_id(token.content)}",
            )
    return engine


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        values = json.loads(read_whole(path, LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"cannot read {path}", str(error).splitlines()[0]) from None
    if not isinstance(values, dict) or not all(type(i) is int and 0 <= i < 1 << 32 for i in values.values()):
        raise RequestError(f"{path} is no vocabulary", "expected an object of tokens, each with its id")
    return values


def _merges(path: Path, size: int) -> list[tuple[str, str]]:
    try:
        text = read_whole(path, LARGEST)
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path}", str(error).splitlines()[0]) from None
    if (n := text.count("\n")) > 10 * size + 2:
        raise RequestError(f"{path} has {n:,} lines", f"{VOCABULARY} has {size:,} tokens alone")
    merges = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#version"):
            continue
        left, blank, right = line.strip().partition(" ")
        if not blank or " " in right:
            raise RequestError(f"{path}, line {number}: {line[:40]!r}", "expected two tokens and a blank")
        merges.append((left, right))
    return merges


def _added(
    folder: Path, says: dict[str, Any], vocabulary: dict[str, int]
) -> Iterator[tuple[AddedToken, int | None]]:
    """The tokens that texts are searched for before they are cut, with the id that a file gives them.

    Those of tokenizer_config.json, or else of added_tokens.json; and those that have a role.
    """
    roles = {} if "added_tokens_decoder" in says else _object(folder / "special_tokens_map.json")
    special = _of_roles({**says, **roles})
    if "added_tokens_decoder" in says:
        found = says["added_tokens_decoder"]
        if not isinstance(found, dict) or not all(i.isdecimal() and len(i) < 10 for i in found):
            raise RequestError(
                f"{folder / 'tokenizer_config.json'}: added_tokens_decoder", "expected an id each"
            )
        by_id = {int(i): _token(value) for i, value in found.items()}
    else:
        listed = _object(folder / "added_tokens.json")
        if not all(type(i) is int for i in listed.values()):
            raise RequestError(
                f"{folder / 'added_tokens.json'} is no vocabulary", "expected an id for each token"
            )
        by_id = {
            i: special.get(text) or AddedToken(text, normalized=True, special=False)
            for text, i in listed.items()
        }
    done = set()
    for i, token in sorted(by_id.items(), key=lambda pair: pair[0]):
        if token is not None and token.content:
            done.add(token.content)
            yield token, i
    named = says.keys() | roles.keys()
    if END_OF_TEXT in vocabulary and not named.issuperset(SPECIAL[:3]):  # GPT-2's own, where nothing is named
        special.setdefault(END_OF_TEXT, AddedToken(END_OF_TEXT, normalized=False, special=True))
    for text, token in special.items():
        if text not in done:
            yield token, vocabulary.get(text)


def _of_roles(values: dict[str, Any]) -> dict[str, AddedToken]:
    named = [values.get(role) for role in SPECIAL]
    for key in LISTS:
        more = values.get(key)
        named += more if isinstance(more, list) else []
    tokens = [token for token in map(_token, named) if token is not None and token.content]
    for token in tokens:
        token.special = True
    return {token.content: token for token in tokens}


def _token(value: object) -> AddedToken | None:
    """A token as files name one: its text, which is special, or an object that says what it is."""
    if isinstance(value, str):
        return AddedToken(value, normalized=False, special=True)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return None
    return AddedToken(value["content"], **{key: value[key] is True for key in FLAGS if key in value})


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
