"""`tformer eval loss` as its users meet it: one run, several runs, coloured tokens, and what is refused."""

import hashlib
import io
import json
import math

import numpy as np
import pytest
from safetensors.torch import save_file

from tests.conftest import tiny_model
from tests.show.test_page import check
from tformer.cli import app
from tformer.errors import RequestError
from tformer.evals.loss import token_losses
from tformer.run.huggingface import to_hf, to_hf_config
from tformer.run.loaded import load
from tformer.text.data import split_text, token_hash, write_token_file
from tformer.text.tokenizer import Tokenizer

pytestmark = pytest.mark.figured

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 10


def write_run(folder, kind, text, seed, fraction=0.5, vocabulary=300, ids=None, **changes):
    """A run directory of random weights that says it was trained on `text`, or on a token file `ids`."""
    tokenizer = Tokenizer.train(kind, [TEXT], vocabulary)
    model = tiny_model(seed, std=0.1, vocab_size=tokenizer.vocab_size, **changes)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_hf_config(model.config)))
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    tensors = to_hf(model.config, dict(model.named_parameters(remove_duplicate=False)))
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    if text is not None:
        digest = token_hash(np.load(ids)) if ids else hashlib.sha256(text.read_bytes()).hexdigest()
        record = {
            "data": {"task": "text", "val_fraction": fraction},
            "record": {
                "data": {"source": [str(ids or text)], "sha256": digest},
                "result": {"tokens": 900, "steps": 30, "kept_step": 20},
            },
        }
        (folder / "tformer.yaml").write_text(json.dumps(record))  # which YAML is, too
        lines = [{"step": step, "tokens": 30 * step, "loss": 3.0, "lr": 0.1} for step in (10, 20, 30)]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def command(task=None, **options):
    """`tformer eval` with these options, in this process."""
    arguments = ["eval"] + ([task] if task else [])
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            arguments += ["-n" if name == "n" else f"--{name}"] + ([] if one is True else [str(one)])
    app(arguments, standalone_mode=False)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a text and runs on it, and one of another tool's directories."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "other.txt").write_text(TEXT + "!")
    text = tmp_path / "text.txt"
    write_run(tmp_path / "runs/char", "char", text, seed=0)
    write_run(tmp_path / "runs/wide", "char", text, seed=1, n_ctx=32)
    write_run(tmp_path / "runs/bpe", "bpe", text, seed=2)
    write_run(tmp_path / "runs/quarter", "char", text, seed=0, fraction=0.25)
    write_run(tmp_path / "runs/elsewhere", "char", tmp_path / "other.txt", seed=0)
    write_run(tmp_path / "foreign", "char", None, seed=3)
    return tmp_path


def objects(capsys):
    """What `--json` printed, a line each."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# ---------------------------------------------------------------------------- one run


def test_one_run_keeps_its_object_and_says_how_sure_it_is(place, capsys):
    command("loss", run=["char"], json=True)
    (values,) = objects(capsys)
    assert {"run", "loss", "perplexity", "bits_per_byte", "tokens", "bytes"} < set(values)
    model, tokenizer = load("char")
    ids = tokenizer.encode_array([split_text(TEXT, 0.5).val])
    losses = token_losses(model, ids)
    assert values["loss"] == pytest.approx(losses.mean())
    assert values["tokens"] == values["bytes"] == len(ids) - 1
    windows = [losses[i : i + 16] for i in range(0, len(losses), 16)]
    off = sum((w.sum() - losses.mean() * len(w)) ** 2 for w in windows)
    stderr = math.sqrt(len(windows) / (len(windows) - 1) * off) / len(losses)
    assert values["loss_stderr"] == pytest.approx(stderr)
    assert values["bits_per_byte_stderr"] == pytest.approx(stderr / math.log(2))
    assert values["parameters"] == model.n_parameters
    assert values["tokens_seen"] == 600, "of the step whose weights were kept"
    assert values["tokens_per_second"] > 0


def test_a_foreign_directory_has_seen_nobody_knows_what(place, capsys):
    command("loss", run=["foreign"], data=["text.txt"], json=True)
    (values,) = objects(capsys)
    assert values["tokens_seen"] is None
    assert not (place / "foreign/evals.jsonl").exists()


def test_a_pipe_gets_a_table_of_positions_and_no_colours(place, capsys):
    command("loss", run=["char"])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "9–16" in shown and "█" in shown and " ± " in shown


def test_tokens_are_shown_and_told_but_not_kept(place, capsys):
    command("loss", run=["char"], tokens=50)
    assert "The first 50 of" in capsys.readouterr().out
    command("loss", run=["char"], tokens=50, json=True)
    (values,) = objects(capsys)
    model, tokenizer = load("char")
    ids = tokenizer.encode_array([split_text(TEXT, 0.5).val])
    assert "".join(t["token"] for t in values["text"]) == tokenizer.decode(ids[1:51])
    assert sum(t["loss"] for t in values["text"]) == pytest.approx(token_losses(model, ids)[:50].sum())
    assert values["hardest"][0]["loss"] >= values["hardest"][-1]["loss"] > values["easiest"][0]["loss"]
    for line in (place / "runs/char/evals.jsonl").read_text().splitlines():
        assert "hardest" not in json.loads(line)["result"]


def test_windows_that_slide_give_more_context_and_are_kept_with_the_result(place, capsys):
    command("loss", run=["wide"], json=True)
    command("loss", run=["wide"], stride=32, json=True)
    command("loss", run=["wide"], stride=8, tokens=40, out=place / "loss.html", json=True)
    disjoint, widest, sliding = objects(capsys)
    timed = {"tokens_per_second"}
    assert {k: disjoint[k] for k in disjoint.keys() - timed} == {k: widest[k] for k in widest.keys() - timed}
    model, tokenizer = load("wide")
    ids = tokenizer.encode_array([split_text(TEXT, 0.5).val])
    losses = token_losses(model, ids, stride=8)
    assert sliding["loss"] == pytest.approx(losses.mean()) != disjoint["loss"]
    assert sliding["bits_per_byte"] == pytest.approx(losses.sum() / math.log(2) / (len(ids) - 1))
    assert (sliding["tokens"], sliding["bytes"]) == (disjoint["tokens"], disjoint["bytes"])
    assert [t["context"] for t in sliding["text"]] == [*range(1, 32), *range(24, 32), 24]
    assert "8 tokens apart: after the first of them a token has at least 24 before" in (
        (place / "loss.html").read_text()
    )
    with pytest.raises(RequestError, match="exists"):
        command("loss", run=["wide"], stride=8, out=place / "loss.html")
    command("loss", run=["wide"], stride=8, out=place / "loss.html", overwrite=True)
    assert "8 tokens apart" in capsys.readouterr().out
    kept = [json.loads(line) for line in (place / "runs/wide/evals.jsonl").read_text().splitlines()]
    assert [line["result"]["stride"] for line in kept] == [32, 32, 8, 8]


def test_several_runs_slide_together(place, capsys):
    command("loss", run=["char", "wide"], stride=16, json=True)
    together = {v["run"]: v for v in objects(capsys)}
    command("loss", run=["char"], json=True)
    command("loss", run=["wide"], stride=16, json=True)
    for alone in objects(capsys):
        assert together[alone["run"]]["loss"] == alone["loss"]
    command("loss", run=["char", "bpe"], stride=4)
    assert "4 tokens apart: after the first of them a token has at least 12" in capsys.readouterr().out


def test_the_page_of_one_run_is_written_once(place, capsys):
    command("loss", run=["char"], out=place / "loss.html")
    text = (place / "loss.html").read_text()
    check(text)
    assert "The first 300 of" in text and text.count("<svg") == 1
    with pytest.raises(RequestError, match="exists"):
        command("loss", run=["char"], out=place / "loss.html")


# ---------------------------------------------------------------------------- several runs


def test_several_runs_are_sorted_by_bits_per_byte_and_agree_with_each_alone(place, capsys):
    names = ["wide", "bpe", "char"]
    alone = {}
    for name in names:
        command("loss", run=[name], json=True)
        alone[f"runs/{name}"] = objects(capsys)[0]
    command("loss", run=names, json=True)
    together = objects(capsys)
    assert [v["bits_per_byte"] for v in together] == sorted(v["bits_per_byte"] for v in alone.values())
    for values in together:
        for key in ("loss", "bits_per_byte", "bits_per_byte_stderr", "tokens", "bytes", "parameters"):
            assert values[key] == alone[values["run"]][key]
    best, *others = together
    assert best["difference_to_best"] is None
    for values in others:  # over the same bytes but for the first token's
        gap = values["bits_per_byte"] - best["bits_per_byte"]
        assert values["difference_to_best"] == pytest.approx(gap, abs=0.05)
        assert values["difference_to_best_stderr"] > 0
    for name in names:
        assert (place / f"runs/{name}/report.html").exists()
        kept = [json.loads(line) for line in (place / f"runs/{name}/evals.jsonl").read_text().splitlines()]
        assert [line["on"] for line in kept] == ["its validation part"] * 2


def test_the_table_warns_where_tokens_differ(place, capsys):
    command(None, run=["char", "bpe"])
    shown = capsys.readouterr().out
    assert "do not compare; bits per byte do" in shown
    rows = [line.split() for line in shown.splitlines() if line.startswith(("char ", "bpe "))]
    assert len(rows) == 2 and "best" in rows[0] and any(cell.startswith("+") for cell in rows[1])
    command("loss", run=["char", "wide"])
    assert "do not compare" not in capsys.readouterr().out


def test_runs_of_anywhere_compare_on_one_file(place, capsys):
    command("loss", run=["char", "elsewhere", "foreign"], data=["text.txt"], json=True)
    together = objects(capsys)
    assert {v["run"] for v in together} == {"runs/char", "runs/elsewhere", "foreign"}
    twins = {v["run"]: v for v in together}
    assert twins["runs/char"]["loss"] == twins["runs/elsewhere"]["loss"], "the same weights"
    assert {v["tokens"] for v in together} == {len(TEXT) - 1}


def test_a_run_that_was_trained_on_the_text_is_named(place, capsys):
    said = "was trained on this very text"
    command("loss", run=["char", "elsewhere"], data=["text.txt"])
    warned = [line for line in capsys.readouterr().err.splitlines() if said in line]
    assert len(warned) == 1 and "runs/char" in warned[0]
    command("loss", run=["char"], data=["text.txt"])
    assert said in " ".join(capsys.readouterr().err.split())
    command("loss", run=["char"])  # its validation part, which it has not seen
    (place / "part.txt").write_text(TEXT[:300])
    command("loss", run=["char"], data=["part.txt"])
    assert said not in " ".join(capsys.readouterr().err.split())


def test_a_token_file_that_a_run_was_trained_on_is_named(place, capsys):
    said = "was trained on this very text"
    _, tokenizer = load("char")
    for name, text in (("mine", TEXT), ("other", TEXT[1:])):
        write_token_file(place / f"{name}.npy", [np.array(tokenizer.encode(text))], tokenizer.vocab_size)
    write_run(place / "runs/ids", "char", place / "text.txt", seed=0, ids=place / "mine.npy")
    command("loss", run=["ids", "char"], data=["mine.npy"])
    warned = [line for line in capsys.readouterr().err.splitlines() if said in line]
    assert len(warned) == 1 and "runs/ids" in warned[0]
    command("loss", run=["ids"])  # its validation part, which it has not seen
    command("loss", run=["ids"], data=["other.npy"])
    assert said not in capsys.readouterr().err


@pytest.mark.parametrize("columns", [20, 60, 100])
def test_a_pipe_gets_every_run_with_its_name_in_one_line(place, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    command("loss", run=["char", "wide", "bpe"])
    shown = capsys.readouterr().out.splitlines()
    head = next(line for line in shown if line.startswith("run"))
    assert head.split()[-1] == "tokens/s"
    rows = shown[shown.index(head) + 1 :][:3]
    assert {row.split()[0] for row in rows} == {"char", "wide", "bpe"}
    assert all(len(row) == len(head) and row.count(" ± ") >= 2 for row in rows)


def test_a_run_that_is_here_has_a_name(place, capsys, monkeypatch):
    monkeypatch.chdir(place / "runs/char")
    command("loss", run=["."], out=place / "here.html")
    assert "<title>.: loss on a text</title>" in (place / "here.html").read_text()
    assert "<h1>char</h1>" in (place / "runs/char/report.html").read_text()
    command("loss", run=[".", "../wide"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.count(" ± ") > 1]
    assert {".", "wide"} <= {row.split()[0] for row in rows}


def test_a_comparison_has_a_page(place, capsys):
    command("loss", run=["char", "bpe"], out=place / "runs.html")
    text = (place / "runs.html").read_text()
    check(text)
    assert "difference to best" in text and "bits per byte" in text and "<svg" in text


def test_a_token_file_is_for_runs_of_one_tokenizer(place, capsys):
    _, tokenizer = load("char")
    write_token_file(place / "ids.npy", [np.array(tokenizer.encode(TEXT))], tokenizer.vocab_size)
    command("loss", run=["char", "wide"], data=["ids.npy"], json=True)
    assert len(objects(capsys)) == 2
    with pytest.raises(RequestError, match="other tokens to"):
        command("loss", run=["char", "bpe"], data=["ids.npy"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "loss", "run": ["char", "elsewhere"]}, "different data .*give --data FILE"),
        ({"task": "loss", "run": ["char", "quarter"]}, "val_fraction 0.5 and 0.25"),
        ({"task": "loss", "run": ["char", "foreign"]}, "does not say what it was trained on.*--data"),
        ({"task": "loss", "run": ["char", "runs/char"]}, "given twice"),
        ({"task": "causality", "run": ["char", "wide"]}, "expected one for causality"),
        ({"task": "loss", "run": ["char", "wide"], "tokens": 9}, "one run"),
        ({"task": "causality", "run": ["char"], "tokens": 9}, "--tokens with eval causality .it is for loss"),
        ({"task": "loss", "run": ["char"], "tokens": 0}, "--tokens 0"),
        ({"task": "loss", "run": ["char"], "stride": 0}, "--stride 0 .expected 1 or more"),
        (
            {"task": "loss", "run": ["wide", "char"], "stride": 17},
            "--stride 17 is more than the window of runs/char .expected 1 to 16.; leave it out",
        ),
        ({"task": "causality", "run": ["char"], "stride": 4}, "--stride with eval causality .it is for loss"),
        ({"task": "loss", "run": ["char"], "n": 5}, "-n with eval loss"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(place, options, said):
    with pytest.raises(RequestError, match=said):
        command(**options)
    assert not list(place.glob("runs/*/evals.jsonl"))


def test_out_takes_what_its_task_writes(place):
    for task, name in (("loss", "a.svg"), ("attention", "a.html"), ("causality", "a.html"), (None, "a.png")):
        with pytest.raises(RequestError, match="--out"):
            command(task, run=["char"], out=place / name)


def test_a_run_whose_text_was_moved_says_what_to_do(place):
    (place / "text.txt").unlink()
    for options in ({"run": ["char"]}, {"run": ["char", "wide"]}, {"task": "generations", "run": ["char"]}):
        with pytest.raises(RequestError, match=r"text\.txt, which is not there any more; give --data FILE"):
            command(**options)


def test_a_text_that_a_run_cannot_read_names_the_run(place):
    (place / "euro.txt").write_text(TEXT + "€")
    with pytest.raises(RequestError, match=r"runs/char cannot read this text: character '€'"):
        command("loss", run=["bpe", "char"], data=["euro.txt"])


# ---------------------------------------------------------------------------- several texts


@pytest.mark.parametrize("ending", ["txt", "npy"])
def test_several_texts_have_a_row_each_and_one_of_all(place, capsys, ending):
    texts = {"a": TEXT[:300], "b": TEXT[300:700]}
    tokenizer = Tokenizer.load(place / "runs/char")
    for name, text in texts.items():
        (place / f"{name}.txt").write_text(text)
        write_token_file(place / f"{name}.npy", [tokenizer.encode(text)], tokenizer.vocab_size)
    names = [f"{name}.{ending}" for name in texts]
    alone = []
    for name in names:
        command("loss", run=["char"], data=[name], json=True)
        alone += objects(capsys)
    command("loss", run=["char"], data=names, json=True)
    (both,) = objects(capsys)
    assert [part["data"] for part in both["parts"]] == names
    for part, one in zip(both["parts"], alone, strict=True):
        figures = (
            "loss",
            "loss_stderr",
            "perplexity",
            "bits_per_byte",
            "bits_per_byte_stderr",
            "tokens",
            "bytes",
        )
        assert {name: part[name] for name in figures} == {name: one[name] for name in figures}
    model, _ = load("char")
    losses = token_losses(model, np.array(tokenizer.encode("".join(texts.values()))))
    assert both["loss"] == pytest.approx(losses.mean()) and both["tokens"] == len(losses)
    last = json.loads((place / "runs/char/evals.jsonl").read_text().splitlines()[-1])
    assert last["result"]["parts"] == both["parts"] and "parts" not in alone[0]
    assert all(name in (place / "runs/char/report.html").read_text() for name in names)
    command("loss", run=["char"], data=names)
    shown = capsys.readouterr().out
    assert all(
        f"in {name}" in shown and f"{part['loss']:.2f}" in shown
        for name, part in zip(names, both["parts"], strict=True)
    )
    command("loss", run=["char", "wide"], data=names, json=True)
    assert [len(values["parts"]) for values in objects(capsys)] == [2, 2]
    command("loss", run=["char", "wide"], data=names, out=place / "page.html")
    assert "in a." in capsys.readouterr().out and "in b." in (place / "page.html").read_text()


def test_standard_input_among_several_is_read_once(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT[:200].encode())))
    (place / "b.txt").write_text(TEXT[200:400])
    command("loss", run=["char"], data=["-", "b.txt"], json=True)
    (values,) = objects(capsys)
    assert values["tokens"] == 399 and "parts" not in values
