"""Question 6: the scores of heads are what is counted by hand, and a forbidden look has no weight."""

import numpy as np
import pytest
import torch

from tests.answer.subjects import random_model
from tformer.answer.q6_heads import looks
from tformer.answer.tasks import Repeats
from tformer.evals.attention import attention_weights


def test_scores_of_heads_that_look_at_one_place_only():
    """By hand: a b a b a."""
    ids = torch.tensor([[0, 1, 0, 1, 0]])
    before = torch.zeros(5, 5)
    before[range(1, 5), range(4)] = 1
    before[0, 0] = 1
    after = torch.zeros(5, 5)  # what followed the last copy: t - 1 at period 2
    after[range(2, 5), range(1, 4)] = 1
    after[:2, 0] = 1
    scores = looks.head_scores(torch.stack((before, after))[None, None], ids)
    assert [s.previous for s in scores] == [1, 1]
    assert [s.repeated for s in scores] == [1, 1]
    assert scores[0].first == pytest.approx(1 / 4)
    ids = torch.tensor([[0, 1, 2, 0, 1, 2]])
    uniform = looks.looking_everywhere(ids)
    assert uniform.previous == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6]))
    assert uniform.repeated == pytest.approx(np.mean([1 / 4, 1 / 5, 1 / 6]))


def test_the_targets_of_repeats_are_what_followed_last_time():
    task = Repeats(9, 15, (3, 6), seed=2)
    ids, known = task.fresh_and_known(50)
    repeated = looks.looks_of(ids[:, :-1]).repeated
    for b in range(50):
        for t in torch.nonzero(known[b])[:, 0].tolist():
            places = torch.nonzero(repeated[b, t])[:, 0]
            assert set(ids[b, places].tolist()) == {int(ids[b, t + 1])}
        assert not repeated[b][~known[b]].any()


@pytest.mark.parametrize("distance", [1, 2])
def test_a_closed_path_has_weight_zero_and_the_rest_still_sums_to_one(distance):
    model, ids = random_model(), torch.randint(13, (2, 20))
    with looks.not_looking_back_by(model, distance, [0]):
        weights = attention_weights(model, ids)
    q = torch.arange(distance, 20)
    assert (weights[0][:, :, q, q - distance] == 0).all()
    assert (weights[1][:, :, q, q - distance] > 0).all(), "other layers see as before"
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4, 20))
    assert (attention_weights(model, ids)[0][:, :, q, q - distance] > 0).all(), "it is open again"


def test_two_paths_can_be_closed_at_once():
    model, ids = random_model(), torch.randint(13, (2, 20))
    with looks.not_looking_back_by(model, 1, [0]), looks.not_looking_back_by(model, 2, [0]):
        weights = attention_weights(model, ids)[0]
    q = torch.arange(2, 20)
    assert (weights[:, :, q, q - 1] == 0).all() and (weights[:, :, q, q - 2] == 0).all()
