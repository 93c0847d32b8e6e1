"""vocab.json and merges.txt: the ids of transformers' GPT2TokenizerFast, from the two files alone."""

import json
from pathlib import Path

import pytest
import transformers
from tokenizers import ByteLevelBPETokenizer

from tformer.cli import app
from tformer.errors import RequestError
from tformer.text.tokenizer import Tokenizer

TEXT = "Shall I compare thee to a summer's day?\nThou art more lovely; naïve ☂ 12345\n" * 30
ODD = [
    "",
    " ",
    "  two  blanks \n\n and lines\r\n\ttabs",
    "It's we'll they'd I'M",
    "naïve café ☂ 日本語 🤷🏽‍♀️ \u00a0\u2028\ufeff",
    "\x00\x01\x7f",
    "Shall<|endoftext|>I<|endoftext|> compare",
    "<|im_start|>Thou <|im_end|> art [PAD] lovely<extra>more < extra >",
    "#version: 0.2\n# # ##",
]
END = "<|endoftext|>"
BESIDE = {
    "nothing": {},
    "roles": {"tokenizer_config.json": {"bos_token": END, "eos_token": END, "unk_token": END}},
    "another end": {"tokenizer_config.json": {"eos_token": "Shall", "bos_token": None, "unk_token": None}},
    "a pad token": {"special_tokens_map.json": {"eos_token": END, "pad_token": {"content": "[PAD]"}}},
    "added of old": {
        "added_tokens.json": {"<|im_end|>": 301, "<|im_start|>": 300, "<extra>": 302},
        "special_tokens_map.json": {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
    },
    "added of new": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "0": {"content": END, "special": True, "normalized": False, "lstrip": False},
                "300": {"content": "<|im_start|>", "special": True, "normalized": False, "rstrip": True},
                "301": {"content": "<extra>", "special": False, "normalized": True, "single_word": False},
            },
            "eos_token": END,
        }
    },
    "split specials": {"tokenizer_config.json": {"split_special_tokens": True}},
}


def two_files(folder: Path, beside: dict | None = None) -> Path:
    """A directory with the two files of a vocabulary of 300, and others."""
    folder.mkdir()
    made = ByteLevelBPETokenizer()
    made.train_from_iterator([TEXT], 300, special_tokens=[END])
    made.save_model(str(folder))
    for name, values in (beside or {}).items():
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("case", BESIDE)
def test_the_two_files_give_the_ids_of_transformers(tmp_path, case):
    folder = two_files(tmp_path / "old", BESIDE[case])
    theirs = transformers.GPT2TokenizerFast.from_pretrained(folder)
    mine = Tokenizer.load(folder)
    assert mine.kind == "bpe"
    for text in [*ODD, TEXT]:
        assert mine.encode(text) == theirs(text)["input_ids"], text
        if "<|im_start|>" not in text:  # which may take the blank after it
            assert mine.decode(mine.encode(text)) == text
    assert mine.vocab_size == len(theirs)


def test_merges_that_look_like_comments_are_merges(tmp_path):
    folder = two_files(tmp_path / "old")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["##"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text((folder / "merges.txt").read_text() + "# #\n")
    theirs = transformers.GPT2TokenizerFast.from_pretrained(folder)
    mine = Tokenizer.load(folder).encode("## a ##b")
    assert vocabulary["##"] in mine
    assert mine == theirs("## a ##b")["input_ids"]


def test_a_tokenizer_json_beside_them_is_taken(tmp_path):
    folder = two_files(tmp_path / "old")
    (folder / "tokenizer.json").write_text(Tokenizer.train("bpe", [TEXT], 280).to_json())
    assert Tokenizer.load(folder).vocab_size == 280


def test_the_command_takes_such_a_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = two_files(tmp_path / "old")
    Path("day.txt").write_text(TEXT)
    expected = transformers.GPT2TokenizerFast.from_pretrained(folder)(TEXT)["input_ids"]
    app(["tokenize", "day.txt", "--tokenizer", "old"], standalone_mode=False)
    assert [int(i) for i in capsys.readouterr().out.split()] == expected


def changed(name, change):
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


WRONG = {
    "a vocabulary that is none": (changed("vocab.json", lambda t: "[1]"), "vocab.json is no vocabulary"),
    "a vocabulary cut short": (changed("vocab.json", lambda t: t[:99]), "cannot read .*vocab.json"),
    "very deep": (changed("vocab.json", lambda t: '{"a":' * 99999), "cannot read .*vocab.json"),
    "ids that are none": (changed("vocab.json", lambda t: '{"a": "0"}'), "is no vocabulary"),
    "an id that is huge": (
        changed("vocab.json", lambda t: t[:-1] + ', "xyz": 4000000000}'),
        "id of 4,000,000,000",
    ),
    "an id twice": (changed("vocab.json", lambda t: t[:-1] + ', "xyz": 3}'), "an id for two tokens"),
    "bytes that are missing": (
        changed("vocab.json", lambda t: t.replace('"!"', '"!?!"')),
        "256 bytes|does not go",
    ),
    "merges of another": (changed("merges.txt", lambda t: t + "qq zz\n"), "does not go with vocab.json"),
    "a line of three": (
        changed("merges.txt", lambda t: t + "q z y\n"),
        "line .*'q z y'.*expected two tokens",
    ),
    "too many lines": (changed("merges.txt", lambda t: "a b\n" * 9999), "merges.txt has 9,999 lines"),
    "no UTF-8": (lambda folder: (folder / "merges.txt").write_bytes(b"\xff\xfe"), "cannot read .*merges.txt"),
    "a blank in front": (
        lambda folder: (folder / "tokenizer_config.json").write_text('{"add_prefix_space": true}'),
        "changes text before it cuts it",
    ),
    "added ids with a gap": (
        lambda folder: (folder / "added_tokens.json").write_text('{"<x>": 400}'),
        "'<x>' .* has the id 400",
    ),
    "added ids that are none": (
        lambda folder: (folder / "added_tokens.json").write_text('{"<x>": "y"}'),
        "added_tokens.json is no vocabulary",
    ),
    "added of new that are none": (
        lambda folder: (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"x": 1}}'),
        "added_tokens_decoder",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_the_files_is_named(tmp_path, case):
    change, said = WRONG[case]
    folder = two_files(tmp_path / "old")
    change(folder)
    with pytest.raises(RequestError, match=said) as error:
        Tokenizer.load(folder)
    assert len(str(error.value).splitlines()) == 1
