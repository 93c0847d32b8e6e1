"""`data.val_split`: a run on lines or files drawn from its text, judged on the same ones ever after."""

import json
import shlex
from pathlib import Path

import pytest

from tformer import load
from tformer.answer import lab
from tformer.cli import app
from tformer.errors import RequestError
from tformer.evals.loss import token_losses
from tformer.run.kept_ids import key_of
from tformer.run.loaded import load_run
from tformer.run.record import read_record
from tformer.text.corpus import load_corpus
from tformer.text.split import kept_apart
from tformer.text.tokenizer import Tokenizer

NAMES = "".join(f"{a}{b}{c}\n" for a in "abcdefgh" for b in "aeiou" for c in "rst")
SMALL = """--steps 2 --batch-size 2 --device cpu --tokenizer char --set model.n_layers=1 --set model.n_heads=1
    --set model.d_model=8 --set model.n_ctx=8 --set train.precision=fp32"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a sorted list, and the same as files of a letter each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_RUNS", raising=False)
    Path("names.txt").write_text(NAMES)
    Path("letters").mkdir()
    for letter in "abcdefgh":
        Path(f"letters/{letter}.txt").write_text("".join(f"{n}\n" for n in NAMES.split() if n[0] == letter))
    return tmp_path


def tformer(line):
    if line.startswith("train names.txt"):
        line += " --documents none"  # it is a list, and would be documents
    app(shlex.split(line), standalone_mode=False)


@pytest.mark.parametrize(
    ("data", "how"), [("names.txt", "lines"), ("letters", "lines"), ("letters", "files")]
)
def test_a_run_is_judged_on_what_it_was_not_trained_on(place, capsys, data, how):
    tformer(f"train {data} {SMALL} --set data.val_split={how} --seed 3 --out run")
    assert f"{how}, " in capsys.readouterr().err
    record, text = read_record(Path("run")), kept_apart(load_corpus([data]), how, 0.1)
    assert text.cut >= 0.875 * len(text.text)
    tokenizer = load("run")[1]
    train_ids, val_ids = (
        tokenizer.encode_array([part]) for part in (text.text[: text.cut], text.text[text.cut :])
    )
    ends = [0, 0]  # of a text that is one, with no token in it
    if data == "letters":  # before the first document, between all, and after the last
        n_train = sum(end <= text.cut for end in text.ends)
        ends = [n_train + 1, len(text.ends) - n_train + 1]
    assert record.data.train_tokens == len(train_ids) + ends[0]
    assert record.data.val_tokens == len(val_ids) + ends[1]
    assert record.data.documents == (8 if data == "letters" else 1)
    tformer("eval loss --run run --json")
    values = json.loads(capsys.readouterr().out)
    assert values["loss"] == pytest.approx(record.result.val_loss, rel=1e-5)
    if data == "names.txt":
        losses = token_losses(load("run")[0], val_ids)
        assert values["loss"] == pytest.approx(float(losses.mean()), rel=1e-6)
        read = lab._validation_ids(load_run(Path("run")), tokenizer)
        assert tokenizer.decode(read.tolist()) == text.text[text.cut :]
    tformer("eval generations --run run -n 1 --max-tokens 4 --temperature 1 --json")
    found = json.loads(capsys.readouterr().out)
    assert found["validation_characters"] == len(text.text) - text.cut


def test_it_is_the_same_part_whatever_the_seed_so_that_runs_compare(place, capsys):
    for seed in (1, 2):
        tformer(f"train names.txt {SMALL} --set data.val_split=lines --seed {seed} --out run{seed}")
    tformer(f"train names.txt {SMALL} --out end")
    capsys.readouterr()
    tformer("eval loss --run run1 --run run2 --json")
    assert len({json.loads(line)["bytes"] for line in capsys.readouterr().out.splitlines()}) == 1
    with pytest.raises(RequestError, match=r"different validation parts .data.val_split lines and end"):
        tformer("eval loss --run run1 --run end")


def test_ids_that_are_kept_are_of_the_part(place, capsys, monkeypatch):
    monkeypatch.setattr("tformer.run.kept_ids.LONG", 1)
    text, keys = load_corpus(["letters"]), set()
    tokenizer = Tokenizer.train("char", [NAMES], 0)
    for how in ("end", "lines", "files"):
        keys.add(key_of(tokenizer, kept_apart(text, how, 0.125), 0, 420, True))
    assert len(keys) == 3
    for how in ("end", "lines"):
        tformer(f"train names.txt {SMALL} --set data.val_split={how} --out {how}")
        capsys.readouterr()
        tformer(f"eval loss --run {how} --json")
        loss = json.loads(capsys.readouterr().out)["loss"]
        assert loss == pytest.approx(read_record(Path(how)).result.val_loss, rel=1e-5)


def test_a_run_goes_on_with_its_part_or_not_at_all(place):
    tformer(f"train names.txt {SMALL} --set data.val_split=lines --out run")
    before = read_record(Path("run")).data
    tformer(f"train names.txt {SMALL} --steps 4 --resume --out run".replace("--steps 2", ""))
    assert read_record(Path("run")).data == before
    with pytest.raises(RequestError, match="val_split"):
        tformer(f"train names.txt {SMALL} --set data.val_split=end --resume --out run")


def test_what_says_it_twice_or_cannot_be_divided_is_refused(place):
    lines, files = "--set data.val_split=lines", "--set data.val_split=files"
    with pytest.raises(RequestError, match=r"--val-data and data.val_split=lines both say"):
        tformer(f"train names.txt {SMALL} {lines} --val-data letters --out run")
    with pytest.raises(RequestError, match=r"names.txt is one file.; data.val_split=lines, or end"):
        tformer(f"train names.txt {SMALL} {files} --out run")
    tformer("tokenize --train names.txt --tokenizer char --out t.json")
    tformer("tokenize names.txt --tokenizer t.json --out ids.npy")
    with pytest.raises(RequestError, match=r"ids.npy holds ids.; data.val_split=end, or --val"):
        tformer(f"train ids.npy {SMALL.replace('char', 't.json')} {lines} --out run")
    assert not Path("run").exists()
