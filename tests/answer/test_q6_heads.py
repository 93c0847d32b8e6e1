"""Question 6: each claim of `tformer answer heads` holds for the model and fails for a broken one."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tformer.answer.claims import QUICK, Budget
from tformer.answer.lab import Subject, accuracies, build, halves, tiny, train
from tformer.answer.q6_heads import heads, lookups, repeats
from tformer.answer.q6_heads.experiments import EXPERIMENTS
from tformer.evals.attention import attention_weights
from tformer.text.data import Reversal


def claims(finding):
    return {claim.claim: claim.passed for claim in finding.claims}


def subject(model, task=None, text=None):
    return Subject(None, model, None, task, text)


def random_model(**changes):
    made = build(tiny(**({"vocab_size": 13, "n_ctx": 20, "d_model": 32} | changes)), 0)
    with torch.no_grad():
        for block in made.blocks:
            block.attn.out.weight.normal_(std=0.2)
            block.mlp.down.weight.normal_(std=0.1)
    return made.eval()


@pytest.fixture(scope="module")
def reverser():
    """One block of two heads that reverses."""
    task = Reversal(4, 6, seed=1)
    made = build(tiny(vocab_size=6, n_ctx=task.n_ctx, n_layers=1, n_heads=2, d_model=32), 0)
    train(made, task, 120, 0, batch_size=32, lr=6e-3)
    assert halves(accuracies(made, task), task)[1] > 0.95
    return made, task


# ---------------------------------------------------------------------------- a sum over heads


class Bent(nn.Linear):
    """An output projection that is not linear."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


@pytest.mark.parametrize("family", ["gpt2", "nanochat"])
def test_heads_add_up(family):
    model = random_model(family=family, n_kv_heads=2 if family == "nanochat" else 0)
    found = heads.show_sum([heads.measure_sum(QUICK, 0, subject(model))])
    assert list(claims(found).values()) == [True]


def test_heads_behind_a_bent_projection_do_not_add_up():
    model = random_model()
    for block in model.blocks:
        bent = Bent(32, 32)
        bent.load_state_dict(block.attn.out.state_dict())
        block.attn.out = bent
    found = heads.show_sum([heads.measure_sum(QUICK, 0, subject(model))])
    assert list(claims(found).values()) == [False]


# ---------------------------------------------------------------------------- removing heads


def test_a_head_without_output_is_one_whose_projection_is_zero():
    model, ids = random_model(), torch.randint(13, (3, 20))
    with torch.inference_mode(), lookups.without_heads(model, [(1, 2)]):
        removed = model(ids)
    usual = model(ids)
    with torch.no_grad():
        model.blocks[1].attn.out.weight[:, 16:24] = 0  # d_head 8
        torch.testing.assert_close(removed, model(ids))
    assert not torch.allclose(usual, removed)


def test_mean_ablation_leaves_one_sequence_alone_and_is_undone():
    model, ids = random_model(), torch.randint(13, (1, 20))
    usual = model(ids)
    with lookups.without_heads(model, [(0, 0), (1, 3)], mean=True):
        torch.testing.assert_close(model(ids), usual)
    with lookups.without_heads(model, [(0, 0)]):
        assert not torch.allclose(model(ids), usual)
    assert torch.equal(model(ids), usual)


@pytest.mark.parametrize("distance", [1, 2])
def test_a_closed_path_has_weight_zero_and_the_rest_still_sums_to_one(distance):
    model, ids = random_model(), torch.randint(13, (2, 20))
    with lookups.not_looking_back_by(model, distance, [0]):
        weights = attention_weights(model, ids)
    q = torch.arange(distance, 20)
    assert (weights[0][:, :, q, q - distance] == 0).all()
    assert (weights[1][:, :, q, q - distance] > 0).all(), "other layers see as before"
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4, 20))
    assert (attention_weights(model, ids)[0][:, :, q, q - distance] > 0).all(), "it is open again"


# ---------------------------------------------------------------------------- scores


def test_scores_of_heads_that_look_at_one_place_only():
    """By hand: a b a b a."""
    ids = torch.tensor([[0, 1, 0, 1, 0]])
    before = torch.zeros(5, 5)
    before[range(1, 5), range(4)] = 1
    before[0, 0] = 1
    after = torch.zeros(5, 5)  # what followed the last copy: t - 1 at period 2
    after[range(2, 5), range(1, 4)] = 1
    after[:2, 0] = 1
    scores = lookups.head_scores(torch.stack((before, after))[None, None], ids)
    assert [s.previous for s in scores] == [1, 1]
    assert [s.repeated for s in scores] == [1, 1]
    assert scores[0].first == pytest.approx(1 / 4)
    ids = torch.tensor([[0, 1, 2, 0, 1, 2]])
    uniform = lookups.looking_everywhere(ids)
    assert uniform.previous == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6]))
    assert uniform.repeated == pytest.approx(np.mean([1 / 4, 1 / 5, 1 / 6]))


def test_the_targets_of_repeats_are_what_followed_last_time():
    task = lookups.Repeats(9, 15, (3, 6), seed=2)
    ids, known = task.fresh(50)
    target = lookups.targets_of(ids[:, :-1])[1]
    for b in range(50):
        for t in torch.nonzero(known[b])[:, 0].tolist():
            places = torch.nonzero(target[b, t])[:, 0]
            assert set(ids[b, places].tolist()) == {int(ids[b, t + 1])}
        assert not target[b][~known[b]].any()


def test_places_asks_for_the_symbols_at_its_distances():
    task = lookups.Places(4, 8, (1, 2, 4))
    inputs, targets = task.fresh(20)
    for t in range(4, 8):
        expected = 16 * inputs[:, t - 1] + 4 * inputs[:, t - 2] + inputs[:, t - 4]
        assert (targets[:, t] == expected).all()
    assert task.outcomes == 64


# ---------------------------------------------------------------------------- the mirror


def test_the_mirror_is_found_on_a_run_that_reverses(reverser):
    model, task = reverser
    evidence = heads.measure_mirror(QUICK, 0, subject(model, task))
    assert not evidence.own
    assert list(claims(heads.show_mirror([evidence])).values())[:2] == [True, True]


def test_a_run_that_does_not_reverse_is_reported_without_a_claim():
    task = Reversal(4, 6)
    model = build(tiny(vocab_size=6, n_ctx=task.n_ctx), 0)
    found = heads.show_mirror([heads.measure_mirror(QUICK, 0, subject(model, task))])
    assert not found.claims and "does not reverse" in found.said


def test_heads_that_do_not_look_at_the_mirror_fail_the_claims(reverser, monkeypatch):
    """The shares of a uniform head in place of the measured ones: then nobody looks there."""
    model, task = reverser
    real = heads.mirror

    def blind(*args, **settings):
        found = real(*args, **settings)
        blurred = [type(h)(h.layer, h.head, found.uniform, h.by_query) for h in found.heads]
        return type(found)(blurred, found.uniform, found.n)

    monkeypatch.setattr(heads, "mirror", blind)
    found = heads.show_mirror([heads.measure_mirror(QUICK, 0, subject(model, task))])
    assert list(claims(found).values()) == [False, False, False]


# ---------------------------------------------------------------------------- repeats


def test_without_a_previous_token_head_the_claims_fail(monkeypatch):
    """Nobody in the first block may look one back, in training either: the path cannot form."""

    def build_blind(config, seed):
        model = build(config, seed)
        attn = model.blocks[0].attn
        attend = attn.attend

        def attend_elsewhere(q, k, v, mask):
            n = mask.shape[-1]
            return attend(q, k, v, mask & ~torch.eye(n, dtype=torch.bool).roll(-1, 1).tril())

        attn.attend = attend_elsewhere
        return model

    monkeypatch.setattr(repeats, "build", build_blind)
    monkeypatch.setattr(repeats, "train", lambda m, task, steps, seed, **s: train(m, task, 60, seed, **s))
    found = claims(repeats.show_repeats([repeats.measure_repeats(QUICK, 0, None)]))
    assert found["A head of the first block looks mostly at the token before"] is False
    assert found["The second needs the first: without the look 1 back accuracy is lost"] is False


def test_untrained_models_have_neither_head(monkeypatch):
    monkeypatch.setattr(repeats, "train", lambda *args, **settings: None)
    found = claims(repeats.show_repeats([repeats.measure_repeats(QUICK, 0, None)]))
    assert sum(found.values()) == 1, "only that nothing is lost by closing another path"


def test_a_path_of_the_wrong_distance_is_found(monkeypatch):
    """Closing every path at once must not pass as closing that one."""
    monkeypatch.setattr(repeats, "_trained", cache(repeats._trained))
    assert all(claims(repeats.show_repeats([repeats.measure_repeats(QUICK, 7, None)])).values())
    close = repeats.not_looking_back_by
    monkeypatch.setattr(
        repeats, "not_looking_back_by", lambda model, distance, layers: close(model, 1, layers)
    )
    found = claims(repeats.show_repeats([repeats.measure_repeats(QUICK, 7, None)]))
    assert found.pop("It is that path: without the look 2 back accuracy stays") is False
    assert all(found.values()), found


def test_a_foreign_run_is_scored_and_nothing_claimed():
    model = random_model()
    text = np.arange(200) % 13
    for given in (None, text):
        evidence = [repeats.measure_repeats(QUICK, s, subject(model, text=given)) for s in (0, 1)]
        found = repeats.show_repeats(evidence)
        assert not found.claims and len(found.tables[0].rows) == 12
    assert repeats.too_short(subject(random_model(n_ctx=5)))
    assert repeats.too_short(subject(random_model(n_ctx=6))) is None


# ---------------------------------------------------------------------------- one head or several


def test_no_head_count_changes_the_parameters():
    assert len({build(tiny(vocab_size=8, n_ctx=4, n_heads=n), 0).n_parameters for n in (1, 2, 4, 8)}) == 1


def test_where_all_have_one_head_the_claims_fail(monkeypatch):
    """Every model gets one head, whatever it is called: no gain, no place with most of a head's weight."""
    monkeypatch.setattr(heads, "N_HEADS", (1, 4))
    monkeypatch.setattr(heads, "tiny", lambda **changes: tiny(**(changes | {"n_heads": 1})))
    monkeypatch.setattr(heads, "train", lambda m, task, steps, seed, **s: train(m, task, 60, seed, **s))
    found = list(claims(heads.show_several([heads.measure_several(QUICK, 0, None)])).values())
    assert found[:2] == [False, False]


def test_untrained_heads_do_not_reverse(monkeypatch):
    monkeypatch.setattr(heads, "train", lambda *args, **settings: None)
    found = claims(heads.show_several([heads.measure_several(QUICK, 0, None)]))
    assert not any(found.values())


@pytest.mark.parametrize(
    "experiment", [e for e in EXPERIMENTS if e.slug in ("mirror", "several")], ids=lambda e: e.slug
)
def test_the_claims_hold_for_what_is_trained_here(experiment):
    """The experiment as it is, with one seed; those of sums and repeats are tried above."""
    found = claims(experiment.show([experiment.measure(Budget(), 7, None)]))
    assert found and all(found.values()), found
