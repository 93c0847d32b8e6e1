"""Windows by counting, batches by drawing them twice, the reversal task by arithmetic."""

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tformer.errors import RequestError
from tformer.text import data
from tformer.text.data import (
    Reversal,
    Windows,
    eval_contexts,
    eval_windows,
    load_token_file,
    reversal_alphabet,
    rng,
    split_text,
    write_token_file,
)

SIZES = {"n_ids": st.integers(2, 90), "n_ctx": st.integers(1, 12), "seed": st.integers(0, 2**63 - 1)}


def epoch_of(windows: Windows, epoch: int, batch_size: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of one epoch, window after window; ids are positions."""
    first, last = epoch * windows.per_epoch, (epoch + 1) * windows.per_epoch
    steps = range(first // batch_size, -(-last // batch_size))
    inputs, targets = zip(*(windows.batch(step, batch_size) for step in steps), strict=True)
    here = slice(first - steps[0] * batch_size, last - steps[0] * batch_size)
    return np.concatenate(inputs)[here], np.concatenate(targets)[here]


# ---------------------------------------------------------------------------- windows


@pytest.mark.parametrize("n", [0, 1, 9, 10, 11, 99, 12_345, 5_000_001])
def test_the_text_is_split_at_nine_tenths_of_its_characters(n):
    split = split_text("x" * int(0.9 * n) + "y" * (n - int(0.9 * n)), 0.1)
    assert split.train == "x" * int(0.9 * n) and split.val == "y" * (n - int(0.9 * n))


def test_a_split_counts_characters_and_loses_none():
    split = split_text("é🙂" * 10, 0.25)
    assert len(split.train) == 15 and split.train + split.val == "é🙂" * 10
    assert split_text("abc", 0.0).val == ""


@settings(max_examples=150, deadline=None)
@given(**SIZES, batch_size=st.integers(1, 7), epoch=st.integers(0, 3))
@example(n_ids=13, n_ctx=12, seed=0, batch_size=3, epoch=1)
def test_an_epoch_has_each_position_as_target_at_most_once(n_ids, n_ctx, seed, batch_size, epoch):
    if n_ids <= n_ctx:
        return
    windows = Windows(np.arange(n_ids, dtype=np.uint16), n_ctx, seed)
    inputs, targets = epoch_of(windows, epoch, batch_size)
    assert targets.shape == inputs.shape == (windows.per_epoch, n_ctx)
    assert targets.dtype == inputs.dtype == np.int64
    assert np.unique(targets).size == windows.per_epoch * n_ctx, "a position is a target twice"
    assert (inputs == targets - 1).all() and inputs.min() >= 0 and targets.max() < n_ids
    assert n_ids - 1 - targets.size < 2 * n_ctx, "more is left out than the ends"


@settings(max_examples=100, deadline=None)
@given(**SIZES, data=st.data())
def test_windows_of_an_epoch_start_a_stride_apart(n_ids, n_ctx, seed, data):
    if n_ids <= n_ctx:
        return
    stride = data.draw(st.integers(1, n_ctx))
    windows = Windows(np.arange(n_ids), n_ctx, seed, stride)
    for epoch in range(2):
        inputs, targets = epoch_of(windows, epoch, batch_size=4)
        assert (np.diff(np.sort(inputs[:, 0])) == stride).all()
        assert (np.diff(inputs) == 1).all() and (inputs + 1 == targets).all()
        assert targets.max() < n_ids


@pytest.mark.parametrize("n_ctx,stride", [(1, 0), (4, 0), (7, 0), (7, 3), (12, 0)])
@pytest.mark.parametrize("n_ids", [13, 14, 29, 30, 33])
def test_every_position_but_the_first_is_a_target_in_some_epoch(n_ids, n_ctx, stride):
    windows = Windows(np.arange(n_ids), n_ctx, 0, stride)
    seen = set(np.concatenate([epoch_of(windows, epoch)[1].ravel() for epoch in range(200)]).tolist())
    assert seen == set(range(1, n_ids)), "what an epoch leaves over is reached in others"


def test_epochs_differ_in_order_and_offset():
    windows = Windows(np.arange(991), 10)  # 99 windows fit exactly, and one less at any offset
    orders = [epoch_of(windows, epoch)[0][:, 0] for epoch in range(20)]
    offsets = {int(starts.min()) for starts in orders}
    assert len(offsets) > 5
    assert all((np.sort(starts) != starts).any() for starts in orders), "windows come in the text's order"
    relative = {tuple((starts - starts.min()).tolist()) for starts in orders}
    assert len(relative) == 20, "two epochs have one order"


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(12)), batch_size=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_batch_depends_on_the_seed_and_the_step_alone(order, batch_size, seed):
    ids = np.random.default_rng(0).integers(500, size=57, dtype=np.uint16)
    windows = Windows(ids, 5, seed)  # 10 or 11 windows an epoch: the steps cross many
    drawn = {step: windows.batch(step, batch_size) for step in order}
    for step in range(12):
        fresh = Windows(ids, 5, seed).batch(step, batch_size)
        assert np.array_equal(drawn[step], fresh), f"step {step} depends on what was drawn before it"


def test_what_can_come_out_in_one_way_alone_is_not_drawn(monkeypatch):
    drawn = []
    monkeypatch.setattr(data, "rng", lambda *key: drawn.append(key) or rng(*key))
    inputs, _ = Windows(np.arange(13), 12).batch(0, 128)
    assert (inputs == np.arange(12)).all() and drawn == [], "one window at one offset, 128 times"
    Windows(np.arange(20), 12).batch(0, 128)
    assert len(drawn) == 128, "an offset an epoch; a generator takes longer than a window"


def test_the_order_of_an_epoch_takes_no_more_memory_than_it_must():
    windows = Windows(np.zeros(1_000_001, dtype=np.uint8), 16, stride=1)
    tracemalloc.start()
    for epoch in range(4):
        windows.starts(epoch * windows.per_epoch, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 17 * windows.per_epoch, (
        "four bytes a window for an epoch that is over, twelve for one drawn"
    )


def test_the_windows_of_a_run_do_not_depend_on_the_batch_size():
    ids = np.arange(200)
    one = [row for step in range(60) for row in Windows(ids, 7).batch(step, 1)[0].tolist()]
    six = [row for step in range(10) for row in Windows(ids, 7).batch(step, 6)[0].tolist()]
    assert one == six


def test_another_seed_is_another_order():
    ids = np.arange(1000)
    assert not np.array_equal(Windows(ids, 5, 0).batch(0, 8), Windows(ids, 5, 1).batch(0, 8))


def test_random_streams_are_independent_of_each_other():
    drawn = [
        tuple(rng(*key).integers(2**32, size=4).tolist())
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**62, 0, 0)]
    ]
    assert len(set(drawn)) == 5
    assert rng(3, 1, 4).integers(2**32) == rng(3, 1, 4).integers(2**32)


def test_the_smallest_text_is_one_window():
    inputs, targets = Windows(np.arange(6), 5).batch(17, 3)
    assert inputs.tolist() == [[0, 1, 2, 3, 4]] * 3 and targets.tolist() == [[1, 2, 3, 4, 5]] * 3


@pytest.mark.parametrize("n_ids", [0, 1, 5])
def test_a_text_shorter_than_a_window_is_refused(n_ids):
    with pytest.raises(RequestError, match=rf"{n_ids} tokens? .*at least n_ctx . 1 = 6") as caught:
        Windows(np.arange(n_ids), 5)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_ids_of_either_type_arrive_unchanged(dtype):
    ids = np.full(9, np.iinfo(dtype).max, dtype=dtype)
    inputs, targets = Windows(ids, 4).batch(0, 2)
    assert (inputs == np.iinfo(dtype).max).all() and (targets == np.iinfo(dtype).max).all()
    assert inputs.dtype == targets.dtype == np.int64


@given(n_ids=st.integers(0, 300), n_ctx=st.integers(1, 40))
def test_evaluation_has_every_id_but_the_first_as_target_exactly_once(n_ids, n_ctx):
    windows = eval_windows(n_ids, n_ctx)
    targets = Counter(i + 1 for start, first, end in windows for i in range(first, end))
    assert targets == Counter(range(1, n_ids))
    assert all(start == first and 0 < end - start <= n_ctx for start, first, end in windows)
    assert all(end - start == n_ctx for start, _, end in windows[:-1])


@given(n_ids=st.integers(2, 300), n_ctx=st.integers(2, 40), data=st.data())
def test_windows_that_slide_are_those_of_the_recipe_of_transformers(n_ids, n_ctx, data):
    stride = data.draw(st.integers(1, n_ctx - 1))
    windows, recipe, previous = eval_windows(n_ids, n_ctx, stride), [], 0
    for begin in range(0, n_ids, stride):  # transformers, docs/source/en/perplexity.md
        end = min(begin + n_ctx, n_ids)
        targets = range(max(previous, begin + 1), end)  # the shift leaves the first label out
        recipe += [(target, target - begin) for target in targets]
        previous = end
        if end == n_ids:
            break
    scored = [(i + 1, i + 1 - start) for start, first, end in windows for i in range(first, end)]
    assert scored == recipe
    assert [target for target, _ in scored] == list(range(1, n_ids)), "each but the first once"
    assert eval_contexts(windows).tolist() == [context for _, context in scored]
    assert all(context >= n_ctx - stride for target, context in scored if target >= n_ctx)


# ---------------------------------------------------------------------------- the reversal task


@given(length=st.integers(1, 12), symbols=st.integers(2, 50), step=st.integers(0, 2**40))
def test_the_second_half_is_the_mirror_of_the_first(length, symbols, step):
    task = Reversal(length, symbols)
    for inputs, targets in (task.batch(step, 5), task.fresh(5, step)):
        assert inputs.shape == targets.shape == (5, task.n_ctx) == (5, 2 * length - 1)
        assert np.array_equal(inputs[:, 1:], targets[:, :-1])
        whole = np.concatenate((inputs[:, :1], targets), axis=1)
        assert np.array_equal(whole, whole[:, ::-1])
        assert whole.min() >= 0 and whole.max() < symbols


@pytest.mark.parametrize("stream", ["batch", "fresh"])
def test_first_halves_are_uniform_and_independent(stream):
    task, n = Reversal(10, 26), 20_000
    inputs, _ = task.batch(0, n) if stream == "batch" else task.fresh(n)

    def chi_square(values, cells):
        counts = np.bincount(values, minlength=cells)
        return ((counts - values.size / cells) ** 2 / (values.size / cells)).sum()

    for cells, values in (
        *((26, inputs[:, position]) for position in range(10)),
        *((26 * 26, inputs[:, p] * 26 + inputs[:, p + 1]) for p in range(9)),
        (26 * 26, inputs[:-1, 3] * 26 + inputs[1:, 3]),
    ):
        # chi-square has mean k and variance 2k with k = cells - 1: six deviations either side
        k = cells - 1
        assert abs(chi_square(values, cells) - k) < 6 * math.sqrt(2 * k)


def test_training_never_draws_the_sequences_it_is_judged_on():
    task = Reversal(12, 26)  # 26^12 halves: two equal ones are no accident
    halves = [task.batch(step, 100)[0][:, :12] for step in range(50)]
    halves += [task.fresh(100, index)[0][:, :12] for index in range(50)]
    assert np.unique(np.concatenate(halves), axis=0).shape[0] == 10_000


def test_a_reversal_batch_depends_on_the_seed_and_the_step_alone():
    task = Reversal(4, 9, seed=3)
    drawn = {step: task.batch(step, 6) for step in (5, 0, 5, 2)}
    for step, batch in drawn.items():
        assert np.array_equal(batch, Reversal(4, 9, seed=3).batch(step, 6))
    assert not np.array_equal(drawn[5], drawn[0])
    assert not np.array_equal(drawn[5], Reversal(4, 9, seed=4).batch(5, 6))


@pytest.mark.parametrize("symbols", [2, 26, 62, 63, 1000, 10_000])
def test_every_symbol_has_a_character_of_its_own(symbols):
    alphabet = reversal_alphabet(symbols)
    assert len(alphabet) == len(set(alphabet)) == symbols
    assert all(len(c) == 1 and c.encode() for c in alphabet)
    tokenizer = Reversal(3, symbols).tokenizer()
    assert tokenizer.vocab_size == symbols
    assert tokenizer.encode("".join(alphabet)) == list(range(symbols))
    assert tokenizer.decode(range(symbols)) == "".join(alphabet)


def test_26_symbols_are_the_letters():
    assert "".join(reversal_alphabet(26)) == "abcdefghijklmnopqrstuvwxyz"


# ---------------------------------------------------------------------------- token files


@settings(max_examples=40, deadline=None)
@given(chunks=st.lists(st.lists(st.integers(0, 299), max_size=9), max_size=6), big=st.booleans())
def test_a_token_file_holds_the_ids_and_numpy_reads_it(chunks, big, tmp_path_factory):
    path = tmp_path_factory.mktemp("ids") / "ids.npy"
    vocab_size = 70_000 if big else 300
    ids = [i for chunk in chunks for i in chunk]
    assert write_token_file(path, (np.array(c, dtype=np.int64) for c in chunks), vocab_size) == len(ids)
    for loaded in (np.load(path), load_token_file(path, vocab_size)):
        assert loaded.tolist() == ids and loaded.ndim == 1
        assert loaded.dtype == (np.dtype("<u4") if big else np.dtype("<u2"))


def test_a_token_file_of_many_chunks_has_room_for_its_length(tmp_path):
    path = tmp_path / "ids.npy"
    chunk = np.arange(100_000, dtype=np.uint16) % 500
    assert write_token_file(path, [chunk] * 12, 500) == 1_200_000
    assert np.array_equal(np.load(path), np.tile(chunk, 12))
    assert isinstance(load_token_file(path, 500), np.memmap), "it is read, not mapped"


def test_chunks_that_fail_leave_no_token_file(tmp_path):
    def chunks():
        yield [1, 2]
        raise RequestError("not UTF-8")

    with pytest.raises(RequestError, match="UTF-8"):
        write_token_file(tmp_path / "ids.npy", chunks(), 300)
    assert [*tmp_path.iterdir()] == []


def test_an_id_beyond_the_vocabulary_is_refused(tmp_path):
    np.save(tmp_path / "ids.npy", np.array([0, 300, 5], dtype=np.uint16))
    assert load_token_file(tmp_path / "ids.npy", 301).tolist() == [0, 300, 5]
    with pytest.raises(RequestError, match=r"id 300 \(the tokenizer has 300 ids\)"):
        load_token_file(tmp_path / "ids.npy", 300)


def raw_header(shape: str) -> bytes:
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


BAD_ARRAYS = {
    "signed": np.array([1, 2]),
    "float": np.array([1.0]),
    "bool": np.array([True]),
    "text": np.array(["a"]),
    "two dimensions": np.zeros((2, 3), np.uint16),
    "no dimension": np.array(5, np.uint16),
    "a record": np.zeros(3, [("ids", np.uint16)]),
}
BAD_FILES = {
    "empty": b"",
    "text": b"To be, or not to be",
    "magic alone": b"\x93NUMPY",
    "unknown version": b"\x93NUMPY\x09\x00",
    "broken header": b"\x93NUMPY\x01\x00\x04\x00((((",
    "longer than the file": raw_header("(1000,)"),
    "longer than memory": raw_header(f"({2**70},)"),
    "longer than an address": raw_header(f"({2**62},)"),
    "negative": raw_header("(-1,)"),
    "a zip that is none": b"PK\x03\x04 not a zip",
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_an_array_that_is_no_flat_ids_is_refused(name, tmp_path):
    np.save(tmp_path / "ids.npy", BAD_ARRAYS[name])
    with pytest.raises(RequestError, match=r"ids\.npy"):
        load_token_file(tmp_path / "ids.npy", 300)


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy's, on 2^62 ids
def test_a_damaged_token_file_is_refused(name, tmp_path):
    (tmp_path / "ids.npy").write_bytes(BAD_FILES[name])
    with pytest.raises(RequestError, match=r"cannot read the token file .*ids\.npy"):
        load_token_file(tmp_path / "ids.npy", 300)


def test_a_truncated_token_file_is_refused(tmp_path):
    path = tmp_path / "ids.npy"
    write_token_file(path, [range(100)], 300)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(RequestError, match="cannot read"):
        load_token_file(path, 300)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was run",))

    np.save(tmp_path / "ids.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(RequestError, match="cannot read"):
        load_token_file(tmp_path / "ids.npy", 300)


def test_an_archive_of_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "ids.npz", ids=np.zeros(3, np.uint16))
    with pytest.raises(RequestError, match=r"ids\.npz"):
        load_token_file(tmp_path / "ids.npz", 300)


def test_a_missing_token_file_is_refused(tmp_path):
    with pytest.raises(RequestError, match="cannot read the token file"):
        load_token_file(tmp_path / "ids.npy", 300)
