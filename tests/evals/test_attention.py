"""The weights that `eval attention` shows are the model's own, and the heads that it names carry the task."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.conftest import tiny_model
from tests.evals.test_loss import TASK, train_on
from tformer.cli import app
from tformer.config import Config
from tformer.errors import RequestError
from tformer.evals.attention import attention_weights, mirror, mirrored
from tformer.run.checkpoint import Run
from tformer.run.record import Record
from tformer.show import terminal
from tformer.show.svg import attention_picture, pooled
from tformer.text.data import Reversal
from tformer.text.tokenizer import Tokenizer
from tformer.watch import attention_calls

ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def trained():
    """A small model that reverses."""
    return train_on(TASK)


@pytest.mark.parametrize("length", [1, 2, 3, 10])
def test_the_mirrored_source_holds_the_token_that_the_query_predicts(length):
    sequence = Reversal(length, 50).sequences(3, 0, 0)
    inputs, targets = sequence[:, :-1], sequence[:, 1:]
    pairs = mirrored(length)
    assert [query for query, _ in pairs] == list(range(length - 1, 2 * length - 1)), "the second half's"
    for query, source in pairs:
        assert 0 <= source <= query, "it has been seen"
        assert (inputs[:, source] == targets[:, query]).all()


def test_every_row_of_weights_sums_to_one_and_nothing_is_above_the_diagonal(model):
    weights = attention_weights(model, torch.randint(23, (3, 11)))
    assert weights.shape == (2, 3, model.config.n_heads, 11, 11)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, model.config.n_heads, 11), atol=1e-5)
    assert (weights.triu(1) == 0).all()


def test_recording_changes_no_logit_and_ends_with_its_block(model):
    ids = torch.randint(23, (2, 9))
    before = model(ids)
    weights = attention_weights(model, ids)
    with attention_calls(model) as calls:
        assert torch.equal(model(ids), before)
    assert torch.equal(model(ids), before)
    assert len(calls) == model.config.n_layers, "once for each layer, and no more after the block"
    assert torch.equal(torch.stack([call.weights for call in calls]), weights)


def test_weights_equal_transformers(tmp_path, model):
    transformers = pytest.importorskip("transformers")
    run = Run(tmp_path)
    tokenizer = Tokenizer.train("char", ["abcdefghijklmnopqrstuvw"])
    run.write_identity(Config().updated("model", **model.config.model_dump()), tokenizer)
    run.write_weights(model)
    run.close()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = torch.randint(23, (2, 12))
    expected = torch.stack(theirs(ids, output_attentions=True).attentions)
    assert torch.allclose(attention_weights(model, ids), expected, atol=1e-5)


def test_a_trained_reversal_has_a_head_on_the_anti_diagonal(trained):
    found = mirror(trained, TASK, n=100)
    best = found.heads[0]
    assert best.share > 0.5, "the reversal has to be carried by some head"
    assert best in found.carriers and found.uniform < 0.3
    ids = torch.from_numpy(TASK.fresh(1)[0].copy())
    weights = attention_weights(trained, ids)[best.layer - 1, 0, best.head - 1]
    for query, source in mirrored(TASK.length):
        assert weights[query].argmax() == source, "the anti-diagonal is there to see"


def test_a_head_that_looks_everywhere_alike_has_the_uniform_share():
    blind = tiny_model(vocab_size=8, n_ctx=7, std=0.0)
    found = mirror(blind, TASK, n=10)
    assert [head.share for head in found.heads] == pytest.approx([found.uniform] * 4)
    assert found.uniform == pytest.approx((1 / 4 + 1 / 5 + 1 / 6 + 1 / 7) / 4)
    assert not found.carriers


# ---------------------------------------------------------------------------- pictures


def test_pooling_keeps_the_largest_weight_of_each_cell():
    weights = np.zeros((100, 100))
    weights[99, 3] = 0.7
    small = pooled(weights, 32)
    assert small.shape == (25, 25) and small[24, 0] == 0.7
    assert pooled(np.eye(32), 32).shape == (32, 32)


@pytest.mark.parametrize(("kind", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_picture_is_what_its_name_says_and_the_same_each_time(kind, begins):
    weights = np.tril(np.full((2, 3, 4, 4), 0.25))
    tokens = ["a", "\n", "$x$", "\u6f22"]
    pictures = [attention_picture(weights, tokens, "run", kind) for _ in range(2)]
    assert pictures[0].startswith(begins)
    assert pictures[0] == pictures[1]


def drawn(maps, **console):
    """What the maps look like."""
    file = io.StringIO()
    terminal.attention_maps(maps, Console(file=file, width=40, **console))
    return file.getvalue()


def test_without_a_terminal_the_maps_are_ascii_characters():
    text = drawn([("1.1", np.eye(3)), ("1.2", np.eye(3)[::-1])])
    assert text.isascii() and ESCAPE not in text
    assert "@      @" in text, "side by side"


def test_on_a_terminal_the_maps_are_coloured_blocks_and_without_colour_shades(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = drawn([("1.1", np.eye(3))], force_terminal=True, color_system="truecolor")
    assert "▀" in coloured and ESCAPE in coloured
    plain = drawn([("1.1", np.eye(3))], force_terminal=True, color_system=None)
    assert "█" in plain and ESCAPE not in plain


def test_heads_that_do_not_fit_are_counted():
    text = drawn([(f"{i}.1", np.eye(50)) for i in range(20)])
    assert "4 more heads" in text
    assert max(map(len, text.splitlines()[:-2])) <= 40


# ---------------------------------------------------------------------------- the command


@pytest.fixture
def runs(tmp_path, monkeypatch, trained):
    """A reversal run and a text run."""
    monkeypatch.chdir(tmp_path)
    data = {"task": "reversal", "reversal_length": 4, "reversal_symbols": 8}
    text = tiny_model(vocab_size=23)
    for name, model, tokenizer, settings in (
        ("reversal", trained, TASK.tokenizer(), data),
        ("text", text, Tokenizer.train("char", ["abcdefghijklmnopqrstuvw"]), {}),
    ):
        config = Config().updated("model", **model.config.model_dump()).updated("data", **settings)
        run = Run(tmp_path / "runs" / name)
        run.write_identity(config, tokenizer)
        run.write_weights(model)
        run.write_record(config, Record())
        run.close()
    return tmp_path


def attention(*args):
    """`tformer eval attention`, in this process."""
    app(["eval", "attention", "--device", "cpu", *args], standalone_mode=False)


def test_the_command_names_the_heads_that_carry_the_reversal(runs, capsys):
    attention("--run", "reversal", "-n", "50", "--json", "--out", "heads.svg")
    result = json.loads(capsys.readouterr().out)
    best = result["mirror"]["heads"][0]
    assert [best["layer"], best["head"]] in result["mirror"]["carriers"]
    weights = np.array(result["weights"])
    assert weights.shape == (2, 2, 7, 7) and weights.sum(-1) == pytest.approx(1, abs=1e-4)
    assert len(result["tokens"]) == len(result["ids"]) == 7
    assert (runs / "heads.svg").read_bytes().startswith(b"<?xml")
    attention("--run", "reversal", "-n", "50")
    assert f"carried by {best['layer']}.{best['head']}" in capsys.readouterr().out


def test_a_text_is_shown_from_its_beginning(runs, capsys):
    attention("--run", "text", "--prompt", "abcabc" * 10, "--json")
    streams = capsys.readouterr()
    result = json.loads(streams.out)
    assert "".join(result["tokens"]) == ("abcabc" * 10)[:16]
    assert "first 16 tokens" in streams.err
    assert result["mirror"] is None
    (runs / "a.txt").write_text("abc")
    attention("--run", "text", "--data", "a.txt")
    assert "abc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--run", "text"), "--prompt TEXT"),
        (("--run", "text", "--prompt", ""), "empty"),
        (("--run", "text", "--prompt", "a", "--data", "b"), "leave one out"),
        (("--run", "reversal", "--out", "heads.jpg"), ".svg or .png"),
        (("--run", "reversal", "--out", "there.svg"), "there.svg exists"),
    ],
)
def test_what_cannot_be_shown_is_refused(runs, args, named):
    (runs / "there.svg").write_text("")
    with pytest.raises(RequestError, match=named):
        attention(*args)
