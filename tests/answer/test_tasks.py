"""The toy tasks: what is judged is never what was learned, and no two draws share a stream."""

import numpy as np
import pytest

from tformer.answer.tasks import Noise, Places, Previous, Recall, Repeats, Stream
from tformer.text import data


def test_no_stream_of_a_task_is_one_of_the_texts():
    texts = {value for name, value in vars(data).items() if name.startswith("STREAM_")}
    assert texts and not texts & set(Stream)


@pytest.mark.parametrize(
    "task", [Previous(5, 1), Recall(4, seed=1), Repeats(6, 9, (3, 4), 1), Places(4, 6, (1, 2), 1)]
)
def test_a_batch_is_its_seed_and_step_and_nothing_fresh_is_a_batch(task):
    first = task.batch(0, 20)
    assert all(np.array_equal(a, b) for a, b in zip(first, task.batch(0, 20), strict=True))
    others = (
        task.batch(1, 20),
        task.fresh(20),
        task.fresh(20, 1),
        type(task)(**vars(task) | {"seed": 2}).batch(0, 20),
    )
    assert all(not np.array_equal(first[0], inputs) for inputs, _ in others)
    assert all(inputs.shape == targets.shape == first[0].shape for inputs, targets in others)


def test_noise_is_shifted_by_one():
    inputs, targets = Noise(7, 5).batch(3, 4)
    assert inputs.shape == (4, 7) and np.array_equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.max() < 5
