"""The weights that `eval attention` shows are the model's own, and the heads that it names carry the task."""

import pytest
import torch

from tests.conftest import tiny_model
from tests.evals.test_reversal import TASK
from tests.evals.test_reversal import trained as reversing
from tformer.config import Config
from tformer.evals.attention import attention_weights, mirror, mirrored
from tformer.run.checkpoint import Run
from tformer.text.data import Reversal
from tformer.text.tokenizer import Tokenizer
from tformer.watch import attention_calls

ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def trained():
    """A small model that reverses."""
    return reversing()


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


# ---------------------------------------------------------------------------- the command
