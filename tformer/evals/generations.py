"""What a run writes at several temperatures, measured beside as much real text of the same lengths.

It is sampled here, and scored by the run itself; the measures are those of `writing.py`. Knows nothing of
terminals.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tformer.errors import RequestError
from tformer.evals.loss import Progress, token_losses
from tformer.evals.writing import Written, beginnings, compare, continuations, rates, whole
from tformer.run.data import ANOTHER_TEXT, given_source, recorded_source
from tformer.run.loaded import LoadedRun
from tformer.run.record import VAL_FRACTION
from tformer.sample import Sampling, continue_text
from tformer.text.data import Split

TEMPERATURES = (0.5, 0.8, 1.0)
N_PROMPTS = 4
Stage = Callable[[str], AbstractContextManager[Progress]]  # shows work of that name


@dataclass(frozen=True)
class Plan:
    """What is sampled: at `TEMPERATURES` and from beginnings of lines, where none are given."""

    temperatures: Sequence[float] = ()
    prompts: Sequence[str] = ()
    n: int = 4  # samples of each prompt; a greedy one is drawn once
    max_tokens: int = 200
    seed: int = 1


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


def generations(run: LoadedRun, split: Split, plan: Plan, precision: str, stage: Stage) -> dict[str, Any]:
    """Sample; measure what came; measure as much of the validation text in the same way. As JSON has it."""
    tokenizer = run.tokenizer
    temperatures = list(dict.fromkeys(plan.temperatures or TEMPERATURES))
    n = plan.n if any(temperatures) else 1  # greedy samples are all alike
    some = split.val[:10_000]
    room = plan.max_tokens * len(some) // len(tokenizer.encode(some))
    spans = beginnings(split.val, n * (len(plan.prompts) or N_PROMPTS), room, plan.seed)
    prompts = plan.prompts or [split.val[start:end] for start, end in spans[::n]]
    with stage("sampling") as progress:
        drawn = _sample(run, prompts, temperatures, n, plan, progress)
    sizes: list[list[int]] = [[] for _ in spans]
    for sample in drawn:
        sizes[sample.place].append(len(sample.text))
    real = continuations(split.val, spans, [round(sum(s) / len(s)) for s in sizes])
    with stage("scoring"):
        columns = [
            [
                _scored(run, s.prompt, s.text, s.prompt_ids, s.ids, precision)
                for s in drawn
                if s.temperature == temperature
            ]
            for temperature in temperatures
        ]
        unseen = [
            _scored(run, w.before, w.text, tokenizer.encode(w.before), tokenizer.encode(w.text), precision)
            for w in real
        ]
    with stage("looking for copies") as progress:
        found, equal = compare(columns, unseen, split.train, split.val, progress)
    return {
        "seed": plan.seed,
        "max_tokens": plan.max_tokens,
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


def split_to_compare(run: LoadedRun, data: Sequence[str]) -> tuple[Split, str]:
    """The text to compare with, in its two parts, and what it is. RequestError where there is none."""
    if run.record.task == "reversal":
        raise RequestError(
            f"{run.folder} is a run on reversal", "its sequences are no text", "name a run on text"
        )
    if data:
        source = given_source(data, run.record.val_fraction or VAL_FRACTION)
    else:
        source = recorded_source(run.folder, run.record)
    split, names = source.split(run.tokenizer), " ".join(source.names)
    if not split.train or not split.val:
        raise RequestError(
            f"no text to compare with in {names}",
            f"{len(split.train):,} characters of training text, {len(split.val):,} of validation text",
            ANOTHER_TEXT,
        )
    return split, names


def _sample(
    run: LoadedRun,
    prompts: Sequence[str],
    temperatures: Sequence[float],
    n: int,
    plan: Plan,
    progress: Progress,
) -> list[Drawn]:
    """`n` samples of each prompt at each temperature; all temperatures draw with the same seeds."""
    total = len(temperatures) * len(prompts) * plan.max_tokens
    done, drawn = 0, []
    for temperature in temperatures:
        for i, prompt in enumerate(prompts):
            ids = run.tokenizer.encode(prompt) or [run.start_id]
            alike = 1 if temperature == 0 else n
            pieces = 0

            def on_text(_: int, piece: str, done: int = done, alike: int = alike) -> None:
                nonlocal pieces
                pieces += 1
                progress(done + pieces // alike, total)

            samples = continue_text(
                run.model,
                run.tokenizer,
                ids,
                alike,
                plan.max_tokens,
                Sampling(temperature),
                plan.seed + i * n,
                on_text=on_text,
            )
            drawn += [
                Drawn(i * n + j, prompt, s.text, temperature, s.seed, ids, s.ids)
                for j, s in enumerate(samples)
            ]
            done += plan.max_tokens
            progress(done, total)
    return drawn


def _scored(
    run: LoadedRun, before: str, text: str, before_ids: list[int], ids: list[int], precision: str
) -> Written:
    """A text with its cost to the model, given what is before it; bits and bytes are of the same ids."""
    losses = token_losses(run.model, np.array(before_ids + ids), precision)
    bits = float(losses[len(before_ids) - 1 :].sum()) / math.log(2)
    return Written(before, text, bits, int(run.tokenizer.n_bytes[ids].sum()))
