"""Runs on many short texts, through the commands: trained, sampled and judged as documents that end."""

import io
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import transformers

from tests.conftest import save_run, tiny_model
from tformer import load
from tformer.cli import app
from tformer.errors import RequestError
from tformer.evals.loss import token_losses
from tformer.run.record import read_record
from tformer.text.tokenizer import Tokenizer

NAMES = [f"{a}{b}{c}" for a in "abcdefgh" for b in "aeiou" for c in "rst"]  # 120, sorted
STORIES = [f"Once there was a {n}.\n\nIt ran." for n in NAMES[:40]]
SMALL = """--steps 2 --batch-size 2 --device cpu --tokenizer char --set model.n_layers=1 --set model.n_heads=1
    --set model.d_model=8 --set model.n_ctx=32 --set train.precision=fp32"""
QUICK = """--steps 150 --batch-size 16 --lr 0.01 --device cpu --tokenizer char --set model.n_layers=1
    --set model.n_heads=2 --set model.d_model=32 --set model.n_ctx=32 --set train.precision=fp32
    --set model.dropout=0 --set train.eval_every=0"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory with a list, stories in a table, the same in files of other kinds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_RUNS", raising=False)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    Path("names.txt").write_text("\n".join(NAMES) + "\n")
    Path("stories.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in STORIES))
    Path("apart.txt").write_text("\n<|endoftext|>\n".join(STORIES))
    Path("dashes.txt").write_text("\n---\n".join(STORIES))
    Path("flat.txt").write_text("\n\n".join(story.replace("\n\n", " ") for story in STORIES))
    return tmp_path


def tformer(line):
    app(shlex.split(line), standalone_mode=False)


# What is said of it, what is recorded, how many documents, bytes that stand between two of them.
WAYS = {
    "names.txt": ("lines", "line", 120, 1),
    "stories.jsonl": ("files or rows", "file", 40, 0),
    "apart.txt": ("between lines '<|endoftext|>'", "<|endoftext|>", 40, 15),
    "dashes.txt --documents=---": ("between lines '---'", "---", 40, 5),
    "flat.txt --documents paragraph": ("paragraphs", "paragraph", 40, 2),
    "flat.txt --documents line": ("lines", "line", 40, 1),
    "stories.jsonl --documents none": (None, "none", 1, 0),
    "names.txt --documents none": (None, "none", 1, 0),
    "names.txt --documents file": (None, "file", 1, 0),
}


@pytest.mark.parametrize("data", WAYS)
def test_a_text_is_read_as_documents_and_judged_by_all_of_its_bytes(data, capsys):
    what, how, n, between = WAYS[data]
    tformer(f"train {data} {SMALL} --out run")
    said = capsys.readouterr().err
    if what:
        assert f"{n} documents ({what})" in said and "--documents none" in said
        assert f"validation: {n // 10} of {n} documents" in said
    else:
        assert "documents (" not in said
    record, tokenizer = read_record(Path("run")), Tokenizer.load(Path("run"))
    settings = record.settings["data"]
    assert (settings["documents"], record.data.documents) == (how, n)
    assert settings["val_split"] == ("documents" if n > 1 else "end")
    if n > 1:
        total = record.data.train_tokens + record.data.val_tokens
        assert total == record.data.characters + n + 2, "an end after each, and one before each part"
    tformer("eval loss --run run --json")
    judged = json.loads(capsys.readouterr().out)
    assert judged["loss"] == pytest.approx(record.result.val_loss, rel=1e-5)
    assert judged["bits_per_byte"] == pytest.approx(record.result.bits_per_byte, rel=1e-5)
    if n > 1:
        ends = n // 10
        assert judged["tokens"] == record.data.val_tokens - 1
        assert judged["bytes"] == judged["tokens"] - ends + between * ends
    assert tokenizer.end_id == tokenizer.vocab_size - 1


@pytest.mark.parametrize("data", ["names.txt", "stories.jsonl", "few", "names.npy --documents line"])
def test_nothing_is_validated_on_where_nothing_is_kept(data, capsys):
    Path("few").mkdir()
    for i in range(3):
        Path(f"few/{i}.txt").write_text(STORIES[i])
    tformer("tokenize --train names.txt --documents line --tokenizer char --out t.json")
    tformer("tokenize names.txt --documents line --tokenizer t.json --out names.npy")
    tokenizer = SMALL.replace("char", "t.json") if ".npy" in data else SMALL
    tformer(f"train {data} {tokenizer} --set data.val_fraction=0 --out run")
    record = read_record(Path("run"))
    assert record.result.val_loss is None and record.data.val_tokens == 0
    for task in ("loss", "generations"):
        with pytest.raises(RequestError):
            tformer(f"eval {task} --run run")


def test_rows_are_documents_and_no_lines():
    with pytest.raises(RequestError, match=r"data\.documents is line .*stories.jsonl is a table"):
        tformer(f"train stories.jsonl {SMALL} --documents line --out run")
    Path("mixed").mkdir()
    for name in ("stories.jsonl", "names.txt"):
        Path("mixed", name).write_bytes(Path(name).read_bytes())
    tformer(f"train mixed {SMALL} --documents line --out run")
    assert read_record(Path("run")).data.documents == 160


def test_a_text_that_is_given_need_not_have_the_separator(capsys):
    tformer(f"train dashes.txt {SMALL} --documents=--- --val-data flat.txt --out run")
    assert read_record(Path("run")).result.val_loss > 0
    capsys.readouterr()
    tformer("eval loss --run run --data flat.txt --json")
    tformer("eval generations --run run --data flat.txt -n 2 --temperature 1 --max-tokens 3 --json")
    Path("other.txt").write_text("Once\n" * 3 + "a \u20ac " * 50)
    with pytest.raises(RequestError, match=r"at other\.txt, line 4, column 3"):
        tformer("eval generations --run run --data other.txt -n 2 --temperature 1")
    Path("short.txt").write_text("Once there")
    with pytest.raises(RequestError, match=r"too little text to compare with in short.txt \(9 characters"):
        tformer("eval generations --run run --data short.txt -n 2 --temperature 1")


LIST = """--device cpu --set model.n_layers=1 --set model.n_heads=1 --set model.d_model=8 --batch-size 2
    --set train.precision=fp32"""  # in windows of 64: 128 tokens a step, and 433 in the training part


@pytest.mark.parametrize(
    ("steps", "dropout", "said"), [(33, 0.0, "no dropout: in 33 steps"), (35, 0.1, "dropout 0.1")]
)
def test_a_list_that_is_read_often_has_dropout_and_goes_on_with_it(steps, dropout, said, capsys):
    """On both sides of ten passes. What was settled at the beginning holds."""
    tformer(f"train names.txt {LIST} --steps {steps} --out run")
    err = capsys.readouterr().err
    assert said in err and "the list is read" in err and "otherwise: --set model.dropout=" in err

    def settled() -> tuple[float, float]:
        model = json.loads(Path("run/config.json").read_text())
        return read_record(Path("run")).settings["model"]["dropout"], model["resid_pdrop"]

    assert read_record(Path("run")).preset == "list" and settled() == (dropout, dropout)
    assert (read_record(Path("run")).result.passes >= 10) == (dropout > 0)
    for more, preset in {1: "", 60: f"--preset list {LIST}"}.items():
        tformer(f"train names.txt {preset} --steps {steps + more} --resume --out run")
        assert settled() == (dropout, dropout) and "dropout" not in capsys.readouterr().err
    with pytest.raises(RequestError, match=r"model\.dropout is .* in this run \(the command line says 0\.3"):
        tformer(f"train names.txt --preset list {LIST} --set model.dropout=0.3 --resume --out run")


@pytest.mark.parametrize(
    ("data", "given", "dropout"),
    [
        ("names.txt", "--set model.dropout=0.2", 0.2),
        ("names.txt", "--config mine.yaml", 0.3),
        ("names.txt", "--preset list", 0.0),
        ("flat.txt", "--preset list", 0.0),
        ("names.txt", "--preset text", 0.1),
    ],
)
def test_dropout_that_is_given_is_taken_and_other_presets_keep_theirs(data, given, dropout, capsys):
    Path("mine.yaml").write_text("model:\n  dropout: 0.3\n")
    tformer(f"train {data} {LIST} {given} --tokenizer char --set model.n_ctx=32 --steps 2 --out run")
    assert read_record(Path("run")).settings["model"]["dropout"] == dropout
    assert ("dropout" in capsys.readouterr().err) == (dropout == 0)


@pytest.mark.parametrize("name", ["names.txt", "stories.jsonl"])
def test_what_is_piped_is_what_it_is_in_a_file(name, monkeypatch, capsys):
    small = SMALL.replace("--tokenizer char", "") if name == "names.txt" else SMALL
    tformer(f"train {name} {small} --out named")
    assert ("a list: preset list" in capsys.readouterr().err) == (name == "names.txt")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path(name).read_bytes())))
    tformer(f"train - {small} --out piped")
    said = capsys.readouterr().err
    assert ("a list: preset list" if name == "names.txt" else "standard input: JSON lines") in said
    named, piped = (read_record(Path(run)) for run in ("named", "piped"))
    assert (named.preset, named.settings["data"]) == (piped.preset, piped.settings["data"])
    assert Path("named/model.safetensors").read_bytes() == Path("piped/model.safetensors").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path(name).read_bytes())))
    tformer("eval loss --run named --data - --json")
    tformer(f"eval loss --run named --data {name} --json")
    one, other = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (one["loss"], one["tokens"], one["bytes"]) == (other["loss"], other["tokens"], other["bytes"])


def test_the_same_documents_are_the_same_ids_whatever_holds_them():
    tformer(f"train apart.txt {SMALL} --out a")
    tformer(f"train stories.jsonl {SMALL} --out b")
    assert Path("a/tokenizer.json").read_bytes() == Path("b/tokenizer.json").read_bytes()
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()


def test_given_data_is_read_as_the_run_has_read_its_own(capsys):
    tformer(f"train names.txt {SMALL} --out run")
    Path("more.txt").write_text("bad\nfar\n")
    capsys.readouterr()
    tformer("eval loss --run run --data more.txt --json")
    judged = json.loads(capsys.readouterr().out)
    model, tokenizer = load("run")
    end = tokenizer.end_id
    ids = np.array([end, *tokenizer.encode("bad"), end, *tokenizer.encode("far"), end])
    assert judged["loss"] == pytest.approx(float(token_losses(model, ids).mean()), rel=1e-6)
    assert (judged["tokens"], judged["bytes"]) == (8, len("bad\nfar\n"))


def test_fields_of_other_tables_are_named(capsys):
    tformer(f"train stories.jsonl {SMALL} --out run")
    Path("more.csv").write_text("story\nOnce\n")
    with pytest.raises(RequestError, match="no column 'text'"):
        tformer("eval loss --run run --data more.csv")
    with pytest.raises(RequestError, match=r"--field without --data"):
        tformer("eval loss --run run --field story")
    capsys.readouterr()
    tformer("eval loss --run run --data more.csv --field story --json")
    assert json.loads(capsys.readouterr().out)["tokens"] == 4


def test_samples_begin_and_end_as_names_do_and_transformers_ends_there_too(capsys):
    tformer(f"train names.txt {QUICK} --out run")
    capsys.readouterr()
    tformer("sample --run run -n 20 --seed 1")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20 and sum(len(line) == 3 for line in lines) >= 18
    tformer("sample --run run --greedy --json")
    ours = json.loads(capsys.readouterr().out)
    assert ours["finish_reason"] == "eos" and ours["ids"][-1] == Tokenizer.load(Path("run")).end_id
    theirs = transformers.AutoModelForCausalLM.from_pretrained("run")
    tokenizer = transformers.AutoTokenizer.from_pretrained("run")
    start = tokenizer(tokenizer.bos_token, return_tensors="pt")
    found = theirs.generate(**start, do_sample=False, max_new_tokens=30)[0]
    assert found[1:].tolist() == ours["ids"]
    assert tokenizer.decode(found, skip_special_tokens=True) == ours["text"]
    tformer("sample ba --run run -n 2 --seed 1")
    assert [line[:2] for line in capsys.readouterr().out.splitlines()] == ["ba", "ba"]
    tformer("eval generations --run run --temperature 1 -n 60 --json")
    values = json.loads(capsys.readouterr().out)
    (column,), real = values["temperatures"], values["validation"]
    texts = [sample["text"] for sample in values["samples"]]
    ended = [sample["finish_reason"] == "eos" for sample in values["samples"]]
    valid = {text for text, has_end in zip(texts, ended, strict=True) if has_end}
    assert len(texts) == 60 and column["ended"] == sum(ended) / 60 >= 0.9
    assert column["mean_length"] == pytest.approx(np.mean([len(text) for text in texts]))
    assert column["unique"] == pytest.approx(len(valid) / sum(ended))
    val = [s["text"] for s in values["validation_samples"]]
    assert sorted(set(val)) == sorted(val) and len(val) == 12
    train = {*NAMES} - {*val}
    assert column["novel"] == pytest.approx(len(valid - train) / len(valid))
    assert (real["ended"], real["novel"], real["mean_length"]) == (1, 1, 3)
    assert values["training"]["mean_length"] == 3
    tformer("eval generations --run run --prompt b --temperature 0 --json")
    assert json.loads(capsys.readouterr().out)["samples"][0]["prompt"] == "b"
    tformer("eval generations --run run -n 3")
    shown = capsys.readouterr().out
    assert "ended by itself" in shown and "Novel:" in shown


def test_other_samples_are_set_apart_by_a_line(capsys):
    tformer(f"train stories.jsonl {SMALL} --out run")
    capsys.readouterr()
    tformer("sample --run run -n 3 --max-tokens 3")
    assert capsys.readouterr().out.count("---\n") == 2


def test_the_token_in_a_document_is_thirteen_characters():
    Path("sly.jsonl").write_text(json.dumps({"text": "a <|endoftext|> b"}) + "\n" + json.dumps({"text": "c"}))
    for kind in ("char", "bpe", "word"):
        line = f"train sly.jsonl {SMALL} --set data.val_fraction=0 --set data.vocab_size=300 --out {kind}"
        tformer(line.replace("--tokenizer char", f"--tokenizer {kind}").replace("n_ctx=32", "n_ctx=3"))
        record, tokenizer = read_record(Path(kind)), Tokenizer.load(Path(kind))
        ids = tokenizer.encode("a <|endoftext|> b")
        assert tokenizer.end_id not in ids and tokenizer.decode(ids) == "a <|endoftext|> b"
        assert record.data.train_tokens == len(ids) + len(tokenizer.encode("c")) + 3


def test_the_token_inside_lines_is_text_and_said_to_be(capsys):
    Path("inline.txt").write_text("".join(f"<|startoftext|>{story}<|endoftext|>\n" for story in STORIES))
    tformer(f"train inline.txt {SMALL} --out run")
    assert "<|endoftext|> stands 40 times beside other text" in capsys.readouterr().err
    assert read_record(Path("run")).data.documents == 1
    Path("lines.txt").write_text(Path("inline.txt").read_text().replace("<|endoftext|>", "\n<|endoftext|>"))
    tformer(f"train lines.txt {SMALL} --out cut")
    assert "beside other text" not in capsys.readouterr().err
    assert read_record(Path("cut")).data.documents == 40
    tformer(f"train inline.txt {SMALL} --documents none --set data.end_of_text=false --out off")
    assert "beside other text" not in capsys.readouterr().err


def test_a_run_goes_on_with_its_documents_or_not_at_all(capsys):
    tformer(f"train names.txt {SMALL} --out run")
    before = read_record(Path("run"))
    tformer(f"train names.txt {SMALL.replace('--steps 2', '--steps 4')} --resume --out run")
    after = read_record(Path("run"))
    assert after.data == before.data and after.settings["data"] == before.settings["data"]
    tformer("train names.txt --steps 5 --documents line --resume --out run --device cpu")
    for other in ("none", "file"):
        with pytest.raises(RequestError, match=r"data\.documents is 'line' in this run"):
            tformer(f"train names.txt --documents {other} --resume --out run")


def test_a_record_of_another_number_of_documents_is_refused():
    """As of a run of an older version, to which a table was one text."""
    tformer(f"train stories.jsonl {SMALL} --out run")
    path = Path("run/tformer.yaml")
    path.write_text(path.read_text().replace("documents: 40", "documents: 1"))
    with pytest.raises(RequestError, match=r"cut in another way.*40 documents, recorded are 1"):
        tformer("train stories.jsonl --steps 5 --resume --out run")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--set data.end_of_text=false", "data.end_of_text is off"),
        ("--tokenizer none.json", "the tokenizer has no such token"),
    ],
)
def test_documents_without_a_token_are_refused_or_none(line, said):
    Path("none.json").write_text(Tokenizer.train("bpe", NAMES, 300).to_json())
    train = f"train names.txt {SMALL.replace('--tokenizer char', '')} {line} --out run"
    with pytest.raises(RequestError, match=f"{said}.*--documents none"):
        tformer(f"{train} --documents line")
    tformer(train)
    assert read_record(Path("run")).settings["data"]["documents"] == "none"


def test_a_model_that_is_trained_further_ends_documents_with_its_own_token(capsys):
    tokenizer = Tokenizer.train("bpe", NAMES, 300, end_of_text=True)
    save_run(Path("base"), tiny_model(vocab_size=tokenizer.vocab_size, n_ctx=32), tokenizer)
    tformer("train names.txt --init-from base --steps 2 --out run --device cpu")
    assert "120 documents (lines)" in capsys.readouterr().err
    record = read_record(Path("run"))
    assert record.settings["data"]["documents"] == "line"
    ids = [tokenizer.encode(name) for name in NAMES]
    assert record.data.train_tokens + record.data.val_tokens == sum(map(len, ids)) + len(NAMES) + 2


def test_validation_data_is_cut_as_the_text_is():
    Path("val.txt").write_text("bad\nfar\n")
    tformer(f"train names.txt {SMALL} --val-data val.txt --out run")
    record = read_record(Path("run"))
    assert record.data.val_tokens == 9 and record.settings["data"]["val_split"] == "documents"
    assert record.data.train_tokens == 4 * 120 + 1
    tformer(
        f"train names.txt {SMALL.replace('--steps 2', '--steps 4')} --val-data val.txt --resume --out run"
    )
    tformer("eval generations --run run -n 2 --temperature 1")


def test_runs_that_read_a_text_in_other_ways_are_compared_on_given_data_alone(capsys):
    tformer(f"train names.txt {SMALL} --out lines")
    tformer(f"train names.txt {SMALL} --set data.val_split=documents --documents line --seed 2 --out same")
    tformer(f"train names.txt {SMALL} --documents none --out none")
    capsys.readouterr()
    tformer("eval loss --run lines --run same --json")
    assert len({json.loads(line)["bytes"] for line in capsys.readouterr().out.splitlines()}) == 1
    with pytest.raises(RequestError, match="different validation parts"):
        tformer("eval loss --run lines --run none")
    Path("more.txt").write_text("bad\nfar\n")
    tformer("eval loss --run lines --run none --data more.txt --json")
    found = {Path(v["run"]).name: v for v in map(json.loads, capsys.readouterr().out.splitlines())}
    assert (found["lines"]["bytes"], found["none"]["bytes"]) == (8, 7), "the first id is never a target"


def test_a_text_that_is_one_has_no_token_in_it_however_many_files_it_has():
    for name in ("one", "two", "three"):
        Path(f"{name}.txt").write_text(f"{name} file of several lines\nand some words more of it\n" * 9)
    names = "one.txt two.txt three.txt --set data.val_fraction=0"
    ids = {}
    for how in ("none", "file"):
        tformer(f"train {names} {SMALL} --documents {how} --out {how}")
        ids[how] = read_record(Path(how)).data.train_tokens
    text = "".join(Path(f"{name}.txt").read_text() for name in ("one", "two", "three"))
    assert ids == {"none": len(text), "file": len(text) + 4}, "one before the first, one after each"
