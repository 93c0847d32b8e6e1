"""Logits to a filtered distribution to an id, over and over, with a KV cache.

`generate` yields ids; `continue_text` turns them into text as it comes, stop strings included. Knows
nothing of files or terminals.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tformer.counted import counted
from tformer.fast.decode import Decoder, can_decode
from tformer.free_memory import amount, free_bytes, refuse_larger_than
from tformer.kv_cache import KVCache
from tformer.loss import check_finite
from tformer.model import Transformer
from tformer.text.tokenizer import Tokenizer

Logits = Float[Tensor, "batch vocab"]
Choose = Callable[[Tensor], Tensor]  # (batch, vocab) logits → (batch,) ids


# ---------------------------------------------------------------------------- filters


def keep_top_k(logits: Logits, k: int) -> Logits:
    """Exactly the `k` largest (all, if there are fewer; the smaller id first among equals)."""
    if k >= logits.shape[-1]:
        return logits
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return logits.scatter(-1, order[..., k:], -torch.inf)


def keep_top_p(logits: Logits, p: float) -> Logits:
    """The smallest set of most probable tokens that has at least probability `p`; never empty.

    Source: Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)
    probabilities = logits.gather(-1, order).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # of all that are more probable
    drop = before >= p
    drop[..., 0] = False
    return logits.masked_fill(drop.gather(-1, order.argsort(-1)), -torch.inf)


def keep_min_p(logits: Logits, p: float) -> Logits:
    """Tokens at least `p` times as probable as the most probable one (Nguyen et al. 2024, "Min-p")."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def penalise(logits: Logits, seen: Bool[Tensor, "batch vocab"], penalty: float) -> Logits:
    """Logits in which ids that were `seen` are less probable: divided by `penalty` above 0, else times it.

    Source: Keskar et al. 2019, "CTRL", section 4.1, with the case below 0 as transformers has it.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


@dataclass(frozen=True)
class Sampling:
    """How an id is drawn: the penalty on repetition, temperature, top-k, top-p and min-p, in that order.

    0 switches top_k and min_p off, 1 switches top_p and the penalty off. Temperature 0 is greedy.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def filter(self, logits: Logits) -> Logits:
        """Logits of the distribution that is drawn from; -inf where a token cannot be drawn."""
        logits = logits.double()
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature  # finite at any temperature
        if self.top_k:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p:
            logits = keep_min_p(logits, self.min_p)
        return logits


def greedy(logits: Logits) -> Int[Tensor, " batch"]:
    """The most probable id of each row, the smallest among equals."""
    return logits.argmax(-1)


class Sampler:
    """Draws an id for each row, each from a generator of its own.

    Row i has seed `seed + i`: but for rounding of the logits, a sample does not depend on how many are
    drawn beside it.
    """

    def __init__(self, sampling: Sampling, seed: int, batch: int):
        self.sampling = sampling
        self.generators = [torch.Generator().manual_seed((seed + i) % 2**63) for i in range(batch)]

    def __call__(self, logits: Logits) -> Int[Tensor, " batch"]:
        if self.sampling.temperature == 0:
            return greedy(logits)
        cumulative = self.sampling.filter(logits.cpu()).softmax(-1).cumsum(-1)
        draws = [torch.rand((), generator=g, dtype=torch.float64) for g in self.generators]
        # The first id whose cumulative probability passes the draw: one of probability 0 never does.
        points = torch.stack(draws)[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, points, right=True)[:, 0].to(logits.device)


# ---------------------------------------------------------------------------- generation


def window_start(n_tokens: int, n_ctx: int) -> int:
    """The first position that the model sees when `n_tokens` are there to predict from.

    Up to n_ctx tokens it sees all. Beyond that it forgets half a context at a time: the window starts
    at the first multiple of n_ctx // 2 that leaves at most n_ctx tokens. So it always sees more than
    n_ctx / 2 - 1 tokens, and a cache is refilled once in n_ctx / 2 tokens instead of at every one.
    """
    if n_tokens <= n_ctx:
        return 0
    half = max(1, n_ctx // 2)
    return -(-(n_tokens - n_ctx) // half) * half


@torch.inference_mode()
def generate(
    model: Transformer,
    ids: Int[Tensor, "batch position"],
    max_tokens: int,
    choose: Choose = greedy,
    cached: bool = True,
    padding: Int[Tensor, " batch"] | None = None,
) -> Iterator[Int[Tensor, " batch"]]:
    """Yield the next id of every row, `max_tokens` times, after at least one id of prompt.

    `padding[b]` ids at the start of row b are not part of its prompt. What the model sees past its
    context is `window_start`'s rule; the cache changes the speed and nothing else. Raises TformerError where
    the logits are not finite.
    """
    assert ids.shape[1] > 0, "generation continues at least one token"
    model.eval()
    pads = [0] * len(ids) if padding is None else padding.tolist()
    cache: KVCache | None = None
    one_more: Callable[[Tensor, KVCache], Tensor] = model  # one token for each row
    starts: list[int] = []
    forgotten = 0  # ids at the start that no window reaches any more
    for done in range(max_tokens):
        # Each row has the window that it would have alone.
        total = forgotten + ids.shape[1]
        now = [pad + window_start(total - pad, model.config.n_ctx) - forgotten for pad in pads]
        if cached and cache is not None and now == starts:
            logits = one_more(ids[:, -1:], cache)
        else:
            starts, first = now, min(now)
            hidden = torch.tensor(starts, device=ids.device) - first
            ragged = hidden if max(starts) > first else None
            room = ids.shape[1] - first + max_tokens - done - 1  # the last one is not looked back from
            cache = KVCache(model.config, len(ids), model.embed.weight, ragged, room)
            one_more = Decoder(model, cache) if can_decode(model, cache) else model
            window = ids[:, first:]
            # Ragged rows need the cache's padding even where the cache itself is not kept.
            if not cached:
                logits = model(window, cache if ragged is not None else None)
            else:
                logits = _filled(model, window, cache)
        last = logits[:, -1]
        check_finite(last, "logits", "chosen")
        column = choose(last)
        yield column
        ids = torch.cat((ids, column[:, None]), dim=1)
        if (first := min(starts)) > model.config.n_ctx:
            ids, starts, forgotten = ids[:, first:], [start - first for start in starts], forgotten + first


def _filled(model: Transformer, ids: Tensor, cache: KVCache) -> Tensor:
    """The logits after the last of `ids`, (batch, 1, vocab); the cache then holds them all.

    Rows that are alike, as those of one prompt are, go through the model once.
    """
    if len(ids) == 1 or cache.padding is not None or not bool((ids == ids[:1]).all()):
        return model.logits(model.hidden(ids, cache)[:, -1:])
    one = KVCache(model.config, 1, model.embed.weight, None, ids.shape[1])
    logits = model.logits(model.hidden(ids[:1], one)[:, -1:])
    cache.repeat(one)
    return logits.expand(len(ids), -1, -1)


def refuse_larger_samples(model: Transformer, n: int, n_prompt: int, max_tokens: int) -> None:
    """Raises RequestError where there is no room for `n` samples of a prompt of so many tokens.

    Counted is what no way of sampling does without: keys and values.
    """
    config, like = model.config, model.embed.weight
    room = min(n_prompt + max_tokens, config.n_ctx)
    cache = 2 * config.n_layers * config.n_kv_heads * config.d_head * n * room * like.itemsize
    each = f"{counted(n, 'sample')} in a context of {counted(room, 'token')}"
    what = f"the keys and values of {each} take at least {amount(cache)}"
    advice = "lower -n or --max-tokens, or give a shorter prompt or a run with a smaller model"
    refuse_larger_than(free_bytes(like.device), cache, what, advice)


class TextStream:
    """Turns the ids of one sample into text that can be shown at once.

    Text that may yet become a stop string, and bytes that may yet become a character, are held back.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        end_ids: Collection[int] = (),
        keep_stop: bool = False,
    ):
        self.tokenizer = tokenizer
        self.keep_stop = keep_stop
        self.end_ids = end_ids
        self.stop = [s for s in stop if s]
        self.decoder = tokenizer.decoder()
        self.ids: list[int] = []
        self.shown: list[str] = []
        self.held = ""
        self.finish_reason = ""

    @property
    def text(self) -> str:
        """All that has come, and before a stop string, or up to its end where that is kept."""
        return "".join(self.shown) + self.held

    def feed(self, i: int) -> str:
        """Take an id; return the text that has become certain. One that ends a text is no part of it."""
        self.ids.append(i)
        if i in self.end_ids:
            self.held += self.decoder.decode(b"", final=True)
            return self._show(len(self.held), "eos")
        self.held += self.decoder.decode(self.tokenizer.token_bytes[i])
        # A stop string may have begun in text that is held back, never before it. The one that is
        # complete first counts, so that it does not matter how the text is cut into tokens.
        found = [(at + len(s), at) for s in self.stop if (at := self.held.find(s)) >= 0]
        if found:
            end, start = min(found)
            self.held = self.held[: end if self.keep_stop else start]
            return self._show(len(self.held), "stop")
        kept = max((_overlap(self.held, s) for s in self.stop), default=0)
        return self._show(len(self.held) - kept)

    def finish(self) -> str:
        """No more ids: return what was held back."""
        if self.finish_reason:
            return ""
        self.held += self.decoder.decode(b"", final=True)
        return self._show(len(self.held), "length")

    def _show(self, end: int, reason: str = "") -> str:
        piece, self.held = self.held[:end], self.held[end:]
        self.shown.append(piece)
        self.finish_reason = reason
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, the whole excluded."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(frozen=True)
class TokenLogprobs:
    """The natural log of a token's probability, and of those of the most probable ones, most probable first.

    By the model alone: before penalty, temperature and filters, over all ids of the tokenizer.
    """

    id: int
    logprob: float
    top: list[tuple[int, float]]


@torch.no_grad()
def token_logprobs(logits: Logits, ids: Int[Tensor, " batch"], k: int) -> list[TokenLogprobs]:
    """Of the id that was chosen in each row, and of the `k` most probable: of equals the smaller id first."""
    logprobs, ids = logits.cpu().double().log_softmax(-1), ids.cpu()  # MPS has no float64
    chosen = logprobs.gather(-1, ids[:, None])[:, 0].tolist()
    order = logprobs.argsort(dim=-1, descending=True, stable=True)[:, :k]
    top = [
        list(zip(some, values, strict=True))
        for some, values in zip(order.tolist(), logprobs.gather(-1, order).tolist(), strict=True)
    ]
    return [TokenLogprobs(*row) for row in zip(ids.tolist(), chosen, top, strict=True)]


@dataclass
class Sample:
    """A finished continuation: its text without the prompt, its ids, and why it ended.

    It ended by `length`, by a `stop` string, or by `eos`: an id that ends a text, the last of the ids then.
    `logprobs` has an entry for each id where they were asked for, and is None elsewhere.
    """

    text: str
    ids: list[int]
    seed: int
    finish_reason: str = field(default="length")
    logprobs: list[TokenLogprobs] | None = None


def continue_text(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    n: int,
    max_tokens: int,
    sampling: Sampling,
    seed: int,
    stop: Sequence[str] = (),
    end_ids: Collection[int] = (),
    on_text: Callable[[int, str], None] = lambda sample, text: None,
    logprobs: int | None = None,
    keep_stop: bool = False,
) -> list[Sample]:
    """`n` continuations of one prompt in one batch; `on_text(i, piece)` as the text of each comes.

    One of `end_ids` ends a continuation, and one of `stop`, which is a part of it only with `keep_stop`.
    `logprobs` is how many of the most probable tokens are told at each place, beside the one that was chosen;
    None: nothing is.
    """
    device = next(model.parameters()).device
    refuse_larger_samples(model, n, len(prompt_ids), max_tokens)
    ids = torch.tensor([list(prompt_ids)] * n, device=device)
    streams = [TextStream(tokenizer, stop, end_ids, keep_stop) for _ in range(n)]
    sampler = Sampler(sampling, seed, n)
    size = tokenizer.vocab_size  # a model may have more rows than there are tokens
    penalty = sampling.repetition_penalty
    seen = torch.zeros((n, model.config.vocab_size), dtype=torch.bool, device=device)
    seen[:, ids[0]] = True
    told: list[list[TokenLogprobs]] = []  # by place, then by sample

    def choose(logits: Tensor) -> Tensor:
        wanted = logits if penalty == 1 else penalise(logits, seen, penalty)
        chosen = sampler(wanted[:, :size])
        if logprobs is not None:
            told.append(token_logprobs(logits[:, :size], chosen, logprobs))
        return chosen

    for column in generate(model, ids, max_tokens, choose):
        if penalty != 1:
            seen[torch.arange(n, device=device), column] = True
        for i, (stream, token) in enumerate(zip(streams, column.tolist(), strict=True)):
            if not stream.finish_reason and (piece := stream.feed(token)):
                on_text(i, piece)
        if all(stream.finish_reason for stream in streams):
            break
    for i, stream in enumerate(streams):
        if piece := stream.finish():
            on_text(i, piece)
    return [
        Sample(
            s.text,
            s.ids,
            seed + i,
            s.finish_reason,
            None if logprobs is None else [place[i] for place in told[: len(s.ids)]],
        )
        for i, s in enumerate(streams)
    ]
