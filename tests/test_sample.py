"""From logits to an id, from ids to text: filters, draws, the window, the stream."""

import math
import time
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import tiny_model
from tformer.kv_cache import KVCache
from tformer.sample import (
    Sampler,
    Sampling,
    TextStream,
    continue_text,
    generate,
    greedy,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    window_start,
)
from tformer.text.engines import word_engine
from tformer.text.tokenizer import Tokenizer

INF = math.inf
# Ties, tokens that are already out, one token alone; some token can always be drawn.
LOGITS = st.lists(
    st.one_of(st.sampled_from([-INF, -1.0, 0.0, 2.0]), st.floats(-30, 30)), min_size=1, max_size=12
).filter(lambda row: max(row) > -INF)
FRACTIONS = st.one_of(st.sampled_from([1e-12, 0.5, 1.0]), st.floats(1e-9, 1.0))


def row_of(logits: list[float]) -> torch.Tensor:
    return torch.tensor([logits], dtype=torch.float64)


def ranked(logits: list[float]) -> list[int]:
    """Ids, the most probable first, the smaller first among equals."""
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


def probabilities(logits: list[float]) -> list[float]:
    powers = [math.exp(x - max(logits)) for x in logits]
    return [p / math.fsum(powers) for p in powers]


# ---------------------------------------------------------------------------- filters


@given(logits=LOGITS, k=st.integers(1, 15))
def test_top_k_keeps_exactly_the_k_largest(logits, k):
    kept = ranked(logits)[:k]
    expected = [x if i in kept else -INF for i, x in enumerate(logits)]
    assert keep_top_k(row_of(logits), k)[0].tolist() == expected


@pytest.mark.parametrize(("p", "n"), [(0.0, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_top_p_of_four_equal_tokens_needs_no_rounding(p, n):
    assert keep_top_p(row_of([3.0] * 4), p)[0].tolist() == [3.0] * n + [-INF] * (4 - n)


@given(logits=LOGITS, p=FRACTIONS)
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    found = keep_top_p(row_of(logits), p)[0].tolist()
    order, mass = ranked(logits), probabilities(logits)
    kept = [i for i in order if found[i] > -INF]
    assert kept == order[: len(kept)] and kept, "a beginning of the ranking, the top token at least"
    assert all(found[i] == logits[i] for i in kept)
    assert math.fsum(mass[i] for i in kept) >= p - 1e-12, "it reaches p"
    assert math.fsum(mass[i] for i in kept[:-1]) < p + 1e-12, "and would not with one fewer"


@given(logits=LOGITS, p=FRACTIONS)
def test_min_p_keeps_exactly_the_tokens_that_are_probable_enough(logits, p):
    found = keep_min_p(row_of(logits), p)[0].tolist()
    for before, after in zip(logits, found, strict=True):
        ratio = math.exp(before - max(logits))
        if ratio > p * (1 + 1e-9) or before == max(logits):
            assert after == before
        elif ratio < p * (1 - 1e-9):
            assert after == -INF
        else:
            assert after in (before, -INF)


@given(
    logits=LOGITS,
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 15),
    top_p=FRACTIONS,
    min_p=st.floats(0, 1),
)
def test_filters_follow_each_other_and_never_raise_a_token(logits, temperature, top_k, top_p, min_p):
    found = Sampling(temperature, top_k, top_p, min_p).filter(row_of(logits))
    scaled = (row_of(logits) - max(logits)) / temperature
    expected = scaled
    expected = keep_top_k(expected, top_k) if top_k else expected
    expected = keep_top_p(expected, top_p) if top_p < 1 else expected
    expected = keep_min_p(expected, min_p) if min_p else expected
    assert torch.equal(found > -INF, expected > -INF)
    assert (torch.isclose(found, scaled, rtol=1e-9) | (found == -INF)).all()
    assert found.softmax(-1).sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("sampling", "mass", "kept"),
    [
        # What top-k leaves is renormalised before top-p: 0.5 of 0.9 is enough for 0.55.
        (Sampling(top_k=3, top_p=0.55), [0.5, 0.25, 0.15, 0.1], [0]),
        # top-p comes before min-p: 0.5 of 1 is too little for 0.6, of 0.8 it would be enough.
        (Sampling(top_p=0.6, min_p=0.5), [0.5, 0.3, 0.1, 0.1], [0, 1]),
        # The temperature comes first: at 2, nine to one is three to one.
        (Sampling(temperature=2.0, min_p=0.3), [0.9, 0.1], [0, 1]),
        (Sampling(temperature=2.0, top_p=0.8), [0.9, 0.1], [0, 1]),
        (Sampling(), [0.9, 0.1, 0.0], [0, 1]),
    ],
)
def test_the_order_is_temperature_top_k_top_p_min_p(sampling, mass, kept):
    found = sampling.filter(row_of(mass).log())[0]
    assert found.isfinite().nonzero().flatten().tolist() == kept


@given(logits=LOGITS, temperature=st.sampled_from([1e-6, 1e-100, 1e-320]))
def test_the_smallest_temperature_still_gives_a_distribution(logits, temperature):
    filtered = Sampling(temperature).filter(row_of(logits))
    assert not filtered.isnan().any()
    (drawn,) = Sampler(Sampling(temperature), 0, 1)(row_of(logits)).tolist()
    assert logits[drawn] >= max(logits) - 1e-3


# ---------------------------------------------------------------------------- draws


@given(logits=LOGITS)
def test_greedy_takes_the_most_probable_id_and_the_smallest_among_equals(logits):
    logits = torch.tensor(logits).float().tolist()
    expected = ranked(logits)[0]
    assert greedy(torch.tensor([logits])).tolist() == [expected]
    assert Sampler(Sampling(temperature=0.0), 0, 1)(torch.tensor([logits])).tolist() == [expected]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.5), Sampling(temperature=1.7, top_k=4, top_p=0.9, min_p=0.05)],
    ids=str,
)
def test_ids_are_drawn_as_often_as_the_filtered_softmax_says(sampling):
    n = 8000
    row = row_of([1.0, -INF, 0.5, 0.0, 2.0, -3.0, 2.0])
    drawn = Sampler(sampling, 0, n)(row.expand(n, -1))
    counts = drawn.bincount(minlength=7).double()
    expected = sampling.filter(row).softmax(-1)[0] * n
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected).square() / expected)[possible].sum().item()
    assert chi_square < 25, "6 degrees of freedom at most: less than one time in 3,000"


@given(logits=LOGITS, seed=st.integers(0, 2**63 - 1))
def test_a_token_of_probability_zero_is_never_drawn(logits, seed):
    drawn = Sampler(Sampling(), seed, 5)(row_of(logits).expand(5, -1))
    assert all(logits[i] > -INF for i in drawn.tolist())


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_nor_by_the_smallest_or_the_largest_draw(draw, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.tensor(draw, dtype=torch.float64))
    row = row_of([-INF, 0.3, 0.1, -INF])
    assert Sampler(Sampling(), 0, 1)(row).tolist() == [1 if draw == 0 else 2]


@settings(max_examples=20)
@given(seed=st.integers(0, 2**63 - 10), batch=st.integers(2, 6))
def test_a_row_depends_on_its_own_seed_alone(seed, batch):
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(5, batch, 50, generator=generator)
    together = Sampler(Sampling(), seed, batch)
    found = torch.stack([together(logits) for logits in steps])
    for i in range(batch):
        alone = Sampler(Sampling(), seed + i, 1)
        assert [alone(logits[i : i + 1]).item() for logits in steps] == found[:, i].tolist()
    assert len(set(map(tuple, found.T.tolist()))) > 1


# ---------------------------------------------------------------------------- the window


@given(n_ctx=st.integers(1, 40))
def test_the_window_moves_forward_by_half_a_context_and_never_overflows(n_ctx):
    starts = [window_start(n, n_ctx) for n in range(1, 6 * n_ctx + 2)]
    assert starts[:n_ctx] == [0] * n_ctx, "while everything fits, everything is seen"
    assert starts == sorted(starts)
    for n, start in enumerate(starts, 1):
        assert 1 <= n - start <= n_ctx
        assert n <= n_ctx or n - start > n_ctx / 2 - 1
    moves = sum(a != b for a, b in pairwise(starts))
    assert moves <= 5 * n_ctx / max(1, n_ctx // 2) + 1, "a cache is refilled only so often"


def by_hand(model, prompt: torch.Tensor, n: int) -> list[int]:
    """Greedy continuation of one prompt of shape (position,), every step from scratch."""
    ids = prompt
    with torch.no_grad():
        for _ in range(n):
            seen = ids[window_start(len(ids), model.config.n_ctx) :]
            ids = torch.cat((ids, model(seen[None])[0, -1].argmax()[None]))
    return ids[len(prompt) :].tolist()


@pytest.mark.parametrize("n_prompt", [1, 5, 16, 17, 37])
def test_generation_within_and_beyond_the_context_is_step_by_step_prediction(model, n_prompt):
    prompts = torch.randint(23, (2, n_prompt), generator=torch.Generator().manual_seed(n_prompt))
    wanted = [by_hand(model, prompt, 30) for prompt in prompts]
    for cached in (True, False):
        columns = list(generate(model, prompts, 30, cached=cached))
        assert torch.stack(columns, 1).tolist() == wanted, f"cached: {cached}"


@pytest.mark.parametrize(
    ("lengths", "n"),
    [((3, 7, 1, 7), 9), ((3, 7, 1), 30), ((5, 20, 16), 20)],
    ids=["within the context", "beyond it", "a prompt longer than it"],
)
def test_padded_prompts_continue_as_they_would_alone(model, lengths, n):
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(23, (length,), generator=generator) for length in lengths]
    padding = torch.tensor([max(lengths) - length for length in lengths])
    batch = torch.stack([F.pad(p, (max(lengths) - len(p), 0)) for p in prompts])
    wanted = [by_hand(model, prompt, n) for prompt in prompts]
    for cached in (True, False):
        columns = list(generate(model, batch, n, cached=cached, padding=padding))
        assert torch.stack(columns, 1).tolist() == wanted, f"cached: {cached}"


def test_the_cache_is_refilled_once_in_half_a_context():
    model = tiny_model()
    widths = []
    model.embed.register_forward_hook(lambda module, args, output: widths.append(args[0].shape[1]))
    list(generate(model, torch.zeros(1, 4, dtype=torch.long), 45))
    assert sum(width > 1 for width in widths) <= 1 + math.ceil((4 + 45 - 16) / 8)


def test_rows_that_are_alike_are_read_once_and_only_the_last_position_has_logits():
    model = tiny_model()
    shapes, unembedded = [], []
    model.embed.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape)))
    model.unembed.register_forward_hook(lambda module, args, output: unembedded.append(output.shape[-2]))
    alike, unlike = torch.arange(5).repeat(3, 1), torch.arange(15).view(3, 5)
    for ids, first in ((alike, (1, 5)), (unlike, (3, 5))):
        shapes.clear()
        unembedded.clear()
        columns = list(generate(model, ids, 4))
        assert shapes[0] == first and (3, 1) in shapes and set(unembedded) == {1}
        assert torch.stack(columns, 1).tolist() == [by_hand(model, row, 4) for row in ids]


def test_no_tokens_are_generated_where_none_are_asked_for():
    model = tiny_model()
    ids = torch.randint(23, (2, 5))
    assert list(generate(model, ids, 0)) == []
    assert torch.equal(model.generate(ids, 0), ids)


def test_model_generate_gives_prompt_and_continuation(model):
    ids = torch.randint(23, (3, 5))
    found = model.generate(ids, max_tokens=20)
    assert found.shape == (3, 25) and found.dtype == torch.int64
    assert found.tolist() == [row.tolist() + by_hand(model, row, 20) for row in ids]


# ---------------------------------------------------------------------------- text

CHUNKS = [a + b + c for a in ("", "a", "b", "c") for b in ("", "a", "b", "c") for c in "abc"]
AB = Tokenizer(word_engine(sorted(set(CHUNKS)), 1000))  # ids 0 … 255 are the bytes


def ids_of(chunks: list[str]) -> list[int]:
    return [AB.token_bytes.index(chunk.encode()) for chunk in chunks]


def streamed(ids: list[int], stop=(), keep_stop=False) -> tuple[TextStream, list[str]]:
    stream, pieces = TextStream(AB, stop, keep_stop=keep_stop), []
    for i in ids:
        if not stream.finish_reason:
            pieces.append(stream.feed(i))
    return stream, [*pieces, stream.finish()]


@settings(max_examples=300)
@given(chunks=st.lists(st.sampled_from(CHUNKS), max_size=8), stop=st.text("abc", min_size=1, max_size=5))
def test_text_ends_before_the_stop_string_or_with_it_however_tokens_split_it(chunks, stop):
    whole = "".join(chunks)
    stream, pieces = streamed(ids_of(chunks), [stop])
    assert stream.text == whole.split(stop)[0]
    assert "".join(pieces) == stream.text, (
        "what was shown is never taken back, what was held comes at the end"
    )
    assert stream.finish_reason == ("stop" if stop in whole else "length")
    kept, pieces = streamed(ids_of(chunks), [stop], keep_stop=True)
    assert "".join(pieces) == kept.text == stream.text + stop * (stop in whole)
    assert (kept.ids, kept.finish_reason) == (stream.ids, stream.finish_reason)


@settings(max_examples=300)
@given(
    chunks=st.lists(st.sampled_from(CHUNKS), max_size=8),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=2, max_size=3),
)
@example(chunks=["abc"], stops=["abc", "b"])  # at once or letter by letter: "b" is complete first
def test_the_first_of_several_stop_strings_to_be_complete_ends_the_text(chunks, stops):
    whole = "".join(chunks)
    stream, pieces = streamed(ids_of(chunks), stops)
    ends = [(whole.find(s) + len(s), whole.find(s)) for s in stops if s in whole]
    assert stream.text == (whole[: min(ends)[1]] if ends else whole)
    assert "".join(pieces) == stream.text
    assert stream.finish_reason == ("stop" if ends else "length")


def test_what_may_yet_become_a_stop_string_is_held_back_and_no_more():
    stream = TextStream(AB, ["abab"])
    assert [stream.feed(i) for i in ids_of(["ca", "b", "a", "c", "ab"])] == ["c", "", "", "abac", ""]
    assert (stream.finish(), stream.text, stream.finish_reason) == ("ab", "cabacab", "length")
    assert stream.finish() == ""


def test_an_empty_stop_string_stops_nothing():
    stream, _ = streamed(ids_of(["ab", "c"]), [""])
    assert (stream.text, stream.finish_reason) == ("abc", "length")


@settings(max_examples=60)
@given(text=st.text(max_size=8))
def test_characters_come_whole_from_the_bytes_of_their_tokens(text):
    stream = TextStream(AB)
    pieces = [stream.feed(byte) for byte in text.encode()]
    assert all(len(piece) <= 1 for piece in pieces), "a character with its last byte, nothing before"
    assert "".join(pieces) == text == stream.text
    assert stream.finish() == ""


def test_a_character_cut_short_at_the_end_is_shown_as_such():
    stream = TextStream(AB)
    assert [stream.feed(byte) for byte in "é€".encode()[:-1]] == ["", "é", "", ""]
    assert (stream.finish(), stream.text) == ("\ufffd", "é\ufffd")


def test_a_stop_string_may_be_of_several_bytes():
    stream, pieces = streamed(list("a€b€€c".encode()), ["€€"])
    assert (stream.text, "".join(pieces), stream.finish_reason) == ("a€b", "a€b", "stop")


@pytest.mark.parametrize("family", ["gpt2", "nanochat"])
def test_samples_drawn_together_are_those_drawn_alone(family):
    model = tiny_model(family=family, vocab_size=AB.vocab_size)
    sampling, prompt, shown = Sampling(temperature=0.9, top_k=40), ids_of(["ab", "c"]), {}

    def show(i, piece):
        shown[i] = shown.get(i, "") + piece

    together = continue_text(model, AB, prompt, 4, 30, sampling, seed=11, stop=["ca"], on_text=show)
    for i, sample in enumerate(together):
        assert continue_text(model, AB, prompt, 1, 30, sampling, seed=11 + i, stop=["ca"]) == [sample]
        assert sample.seed == 11 + i
        assert shown.get(i, "") == sample.text
        assert "ca" not in sample.text
    assert len({sample.text for sample in together}) == 4


def test_a_sample_ends_at_its_stop_string_and_the_others_go_on():
    model = tiny_model(vocab_size=AB.vocab_size, std=0.05)  # nearly uniform: bytes of every kind
    (whole,) = continue_text(model, AB, [0], 1, 30, Sampling(), seed=0)
    assert (len(whole.ids), whole.finish_reason) == (30, "length")
    stop = AB.text_of(next(i for i in whole.ids[5:] if 32 < i < 127 or i > 255))
    first, second = continue_text(model, AB, [0], 2, 30, Sampling(), seed=0, stop=[stop])
    assert (first.text, first.finish_reason) == (whole.text.split(stop)[0], "stop")
    assert first.ids == whole.ids[: len(first.ids)] and len(first.ids) < 30
    assert len(second.ids) == 30 or second.finish_reason == "stop"


def test_a_continuation_of_no_tokens_is_empty():
    (sample,) = continue_text(tiny_model(vocab_size=AB.vocab_size), AB, [0], 1, 0, Sampling(), seed=0)
    assert (sample.text, sample.ids, sample.finish_reason) == ("", [], "length")


@pytest.mark.parametrize(("n_prompt", "n", "room"), [(3, 1, 3), (3, 5, 7), (3, 40, 16), (40, 2, 16)])
def test_the_cache_has_room_for_what_is_asked_and_never_for_more_than_the_context(
    monkeypatch, n_prompt, n, room
):
    found = []
    made = KVCache.__init__
    monkeypatch.setattr(
        KVCache, "__init__", lambda self, *args: (made(self, *args), found.append(self.keys.shape[3]))[0]
    )
    model = tiny_model()
    assert len(list(generate(model, torch.zeros(2, n_prompt, dtype=torch.long), n))) == n
    assert max(found) == room


def test_a_long_text_comes_in_time_that_grows_with_its_length_alone():
    seconds = []
    (token,) = ids_of(["abc"])
    for n in (12_000, 48_000):
        start = time.process_time()
        stream = TextStream(AB, ["€€"])
        for i in [*"🙂".encode(), *[token] * n]:
            stream.feed(i)
        seconds.append(time.process_time() - start)
        assert stream.text == "🙂" + "abc" * n
    assert seconds[1] < 8 * seconds[0], "quadratic: sixteen times"
