"""`tformer eval generations`: what a run writes, at several temperatures, measured beside real text."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tformer.commands.evaluation import Outcome, Request
from tformer.commands.options import at_least
from tformer.errors import RequestError

if TYPE_CHECKING:
    from tformer.evals.generations import Written
    from tformer.text.data import Split
    from tformer.text.tokenizer import Tokenizer

TEMPERATURES = [0.5, 0.8, 1.0]
N_PROMPTS, N_SAMPLES = 4, 4  # prompts, and samples of each
VAL_FRACTION = 0.1  # of --data, where the run says none


@dataclass(frozen=True)
class Drawn:
    """A sample, with all that draws it again: `tformer sample PROMPT --temperature T --seed SEED`."""

    place: int  # the same for the samples of all temperatures that are drawn with the same numbers
    prompt: str
    text: str
    temperature: float
    seed: int
    prompt_ids: list[int]
    ids: list[int]


def check_sampling(task: str | None, n: int | None, temperatures: list[float], max_tokens: int) -> None:
    """Raises RequestError for options that are out of range."""
    if task == "generations":
        at_least("-n", n, 1, 1024)
    at_least("--max-tokens", max_tokens, 1)
    for temperature in temperatures:
        at_least("--temperature", temperature, 0)


def generations(request: Request) -> Outcome:
    """Sample; measure what came; measure as much real text in the same way."""
    from tformer.evals.generations import beginnings, compare, continuations, rates, whole
    from tformer.show import generations as render_generations
    from tformer.show.progress import steps_progress

    tokenizer = request.run.tokenizer
    split, on = _texts(request, tokenizer)
    temperatures = list(dict.fromkeys(request.temperatures or TEMPERATURES))
    n = (request.n or N_SAMPLES) if any(temperatures) else 1  # greedy samples are all alike
    some = split.val[:10_000]
    room = request.max_tokens * len(some) // len(tokenizer.encode(some))
    spans = beginnings(split.val, n * (len(request.prompts) or N_PROMPTS), room, request.seed)
    prompts = request.prompts or [split.val[start:end] for start, end in spans[::n]]
    with steps_progress("sampling") as shown:
        drawn = _sample(request, tokenizer, prompts, temperatures, n, shown)
    sizes: list[list[int]] = [[] for _ in spans]
    for sample in drawn:
        sizes[sample.place].append(len(sample.text))
    real = continuations(split.val, spans, [round(sum(s) / len(s)) for s in sizes])
    with steps_progress("scoring") as shown:
        columns = [
            [
                _scored(request, tokenizer, s.prompt, s.text, s.prompt_ids, s.ids)
                for s in drawn
                if s.temperature == temperature
            ]
            for temperature in temperatures
        ]
        unseen = [
            _scored(
                request, tokenizer, w.before, w.text, tokenizer.encode(w.before), tokenizer.encode(w.text)
            )
            for w in real
        ]
    with steps_progress("looking for copies") as shown:
        found, equal = compare(columns, unseen, split.train, split.val, shown)
    result: dict[str, Any] = {
        "source": on,
        "seed": request.seed,
        "max_tokens": request.max_tokens,
        "training_characters": len(split.train),
        "validation_characters": len(split.val),
        "equal_characters": equal,
        "temperatures": [{"temperature": t} | asdict(m) for t, m in zip(temperatures, found, strict=False)],
        "validation": asdict(found[-1]),
        "training": {name: value for name, (value, _) in rates([whole(split.train)]).items()},
        "samples": [
            {"prompt": s.prompt, "text": s.text, "temperature": s.temperature, "seed": s.seed} for s in drawn
        ],
        "validation_samples": [{"prompt": w.before, "text": w.text} for w in real],
    }
    return Outcome(
        result,
        lambda console: render_generations.generations(str(request.run.folder), result, console),
        on=on,
    )


def _texts(request: Request, tokenizer: "Tokenizer") -> "tuple[Split, str]":
    """The text to compare with, in its two parts, and what it is. RequestError where there is none."""
    from tformer.run.data import given_source, recorded_source

    run = request.run
    if run.record.task == "reversal":
        raise RequestError(
            f"{run.folder} is a run on reversal", "its sequences are no text", "name a run on text"
        )
    if request.data:
        source = given_source(request.data, run.record.val_fraction or VAL_FRACTION)
    else:
        source = recorded_source(run.folder, run.record)
    split, names = source.split(tokenizer), " ".join(source.names)
    if not split.train or not split.val:
        raise RequestError(
            f"no text to compare with in {names}",
            f"{len(split.train):,} characters of training text, {len(split.val):,} of validation text",
            "give --data FILE",
        )
    return split, names


def _sample(
    request: Request,
    tokenizer: "Tokenizer",
    prompts: Sequence[str],
    temperatures: Sequence[float],
    n: int,
    shown: Callable[[int, int], None],
) -> list[Drawn]:
    """`n` samples of each prompt at each temperature; all temperatures draw with the same seeds."""
    from tformer.sample import Sampling, continue_text

    start = request.run.start_id
    total = len(temperatures) * len(prompts) * request.max_tokens
    done, drawn = 0, []
    for temperature in temperatures:
        for i, prompt in enumerate(prompts):
            ids = tokenizer.encode(prompt) or [start]
            alike = 1 if temperature == 0 else n
            pieces = 0

            def on_text(_: int, piece: str, done: int = done, alike: int = alike) -> None:
                nonlocal pieces
                pieces += 1
                shown(done + pieces // alike, total)

            for j, sample in enumerate(
                continue_text(
                    request.run.model,
                    tokenizer,
                    ids,
                    alike,
                    request.max_tokens,
                    Sampling(temperature),
                    request.seed + i * n,
                    on_text=on_text,
                )
            ):
                place = i * n + j
                drawn.append(Drawn(place, prompt, sample.text, temperature, sample.seed, ids, sample.ids))
            done += request.max_tokens
            shown(done, total)
    return drawn


def _scored(
    request: Request, tokenizer: "Tokenizer", before: str, text: str, before_ids: list[int], ids: list[int]
) -> "Written":
    """A text with its cost to the model, given what is before it; bits and bytes are of the same ids."""
    import math

    import numpy as np

    from tformer.evals.generations import Written
    from tformer.evals.loss import token_losses

    losses = token_losses(request.run.model, np.array(before_ids + ids), request.precision)
    bits = float(losses[len(before_ids) - 1 :].sum()) / math.log(2)
    return Written(before, text, bits, int(tokenizer.n_bytes[ids].sum()))
