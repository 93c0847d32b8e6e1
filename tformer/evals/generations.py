"""What a run writes at several temperatures, measured beside as much real text of the same lengths.

It is sampled here, and scored by the run itself; the measures are those of `writing.py`. Knows nothing of
terminals.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from tformer.errors import RequestError
from tformer.evals.loss import token_losses
from tformer.evals.writing import Measures, Written, beginnings, compare, continuations, rates, whole
from tformer.progress import Progress
from tformer.run.loaded import LoadedRun
from tformer.run.record import VAL_FRACTION
from tformer.run.source import given_source, recorded_source
from tformer.sample import Sampling, continue_text
from tformer.text.data import Split
from tformer.text.tokenizer import encode_prompt

TEMPERATURES = (0.5, 0.8, 1.0)
N_PROMPTS = 4
SAMPLES, DOCUMENTS = 4, 100  # samples of each prompt, and of documents from their beginning
Stage = Callable[[str], AbstractContextManager[Progress]]  # shows work of that name


@dataclass(frozen=True)
class Draws:
    """What is sampled: at `TEMPERATURES` and from beginnings of lines, where none are given."""

    temperatures: Sequence[float] = ()
    prompts: Sequence[str] = ()
    n: int | None = None  # samples of each prompt, 4 or of documents 100; a greedy one is drawn once
    max_tokens: int = 200
    seed: int = 1


@dataclass(frozen=True)
class Drawn:
    """A sample, with all that draws it again: `tformer sample PROMPT --temperature T --seed SEED`."""

    prompt: str
    text: str
    temperature: float
    seed: int
    finish_reason: str = "length"


@dataclass(frozen=True)
class _Placed:
    """A sample and its ids; `place` is that of all samples that are drawn with the same numbers."""

    drawn: Drawn
    place: int
    prompt_ids: list[int]
    ids: list[int]


class TextToCompare(NamedTuple):
    """A text in its two parts, and where it is from."""

    split: Split
    source: str


@dataclass(frozen=True)
class Generations:
    """Samples measured beside as much validation text, and what of that is measured of the training text.

    `columns` has the measures of the samples at each temperature; `continuations` are the text's own, by
    their prompts; `equal_characters` is how much of each text overlaps are compared in.
    """

    source: str
    seed: int
    max_tokens: int
    training_characters: int
    validation_characters: int
    equal_characters: int
    columns: dict[float, Measures]
    validation: Measures
    training: dict[str, float | None]
    samples: list[Drawn]
    continuations: list[tuple[str, str]]

    def as_dict(self) -> dict[str, Any]:
        """As `--json` has it, and `evals.jsonl`."""
        return {
            "source": self.source,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "training_characters": self.training_characters,
            "validation_characters": self.validation_characters,
            "equal_characters": self.equal_characters,
            "temperatures": [{"temperature": t} | asdict(measures) for t, measures in self.columns.items()],
            "validation": asdict(self.validation),
            "training": self.training,
            "samples": [asdict(sample) for sample in self.samples],
            "validation_samples": [{"prompt": prompt, "text": text} for prompt, text in self.continuations],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Generations":
        """What `as_dict` gave. Raises RequestError where that was another version's."""
        names = ("source", "seed", "max_tokens", "training_characters", "validation_characters")
        try:
            return cls(
                **{name: values[name] for name in (*names, "equal_characters", "training")},
                columns={
                    float(column["temperature"]): _measures(column) for column in values["temperatures"]
                },
                validation=_measures(values["validation"]),
                samples=[Drawn(**sample) for sample in values["samples"]],
                continuations=[(s["prompt"], s["text"]) for s in values["validation_samples"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError("not what `eval generations` of this version finds", str(error)) from None


def _measures(values: Mapping[str, Any]) -> Measures:
    named = {field.name: values[field.name] for field in fields(Measures) if field.name in values}
    return Measures(**named)


def generations(
    run: LoadedRun, text: TextToCompare, draws: Draws, precision: str, stage: Stage
) -> Generations:
    """Sample; measure what came; measure as much of the validation text in the same way."""
    split, tokenizer = text.split, run.tokenizer
    temperatures = list(dict.fromkeys(draws.temperatures or TEMPERATURES))
    whole_ones = bool(split.val_documents)  # documents
    n = (
        (draws.n or (DOCUMENTS if whole_ones and not draws.prompts else SAMPLES)) if any(temperatures) else 1
    )  # greedy ones are alike
    spans = [] if whole_ones else _spans(run, split, n, draws)
    prompts = draws.prompts or [split.val[start:end] for start, end in spans[::n]] or [""]
    with stage("sampling") as progress:
        placed = _sample(run, prompts, temperatures, n, draws, progress)
    sizes: list[list[int]] = [[] for _ in spans]
    for one in placed if spans else ():
        sizes[one.place].append(len(one.drawn.text))
    real = (
        _some_documents(split.val_documents, n * len(prompts), draws.seed)
        if whole_ones
        else continuations(split.val, spans, [round(sum(s) / len(s)) for s in sizes])
    )
    with stage("scoring"):
        columns = [
            [
                _costed(run, _written(p.drawn, split), p.prompt_ids, p.ids, precision)
                for p in placed
                if p.drawn.temperature == temperature
            ]
            for temperature in temperatures
        ]
        end = [tokenizer.end_id] if whole_ones and tokenizer.end_id is not None else []
        unseen = []
        for w in real:
            before_ids, ids = end + _encoded(run, w.before), _encoded(run, w.text) + end
            if len(before_ids) + len(ids) < 2:  # nothing to predict from
                raise _too_little(text)
            unseen.append(_costed(run, w, before_ids, ids, precision))
    known = frozenset(split.train_documents)
    with stage("looking for copies") as progress:
        compared = compare(columns, unseen, split.train, split.val, progress, known)
    training = {name: ratio.value for name, ratio in rates([whole(split.train)]).items()}
    if split.train_documents:
        training["mean_length"] = sum(map(len, split.train_documents)) / len(split.train_documents)
    return Generations(
        source=text.source,
        seed=draws.seed,
        max_tokens=draws.max_tokens,
        training_characters=len(split.train),
        validation_characters=len(split.val),
        equal_characters=compared.equal_characters,
        columns=dict(zip(temperatures, compared.columns, strict=True)),
        validation=compared.unseen,
        training=training,
        samples=[one.drawn for one in placed],
        continuations=[(w.before, w.text) for w in real],
    )


def _spans(run: LoadedRun, split: Split, n: int, draws: Draws) -> list[tuple[int, int]]:
    """Where `n` prompts stand in the validation text, for each that is given or for the usual number."""
    some = split.val[:10_000]
    room = draws.max_tokens * len(some) // len(_encoded(run, some))
    return beginnings(split.val, n * (len(draws.prompts) or N_PROMPTS), room, draws.seed)


def _encoded(run: LoadedRun, text: str) -> list[int]:
    """The ids of a part of the text to compare with."""
    return encode_prompt(run.tokenizer, text, "the text to compare with")


def _some_documents(texts: Sequence[str], n: int, seed: int) -> list[Written]:
    """As many of the validation text as are sampled, or all."""
    chosen = np.random.default_rng(seed).permutation(len(texts))[:n]
    return [Written("", texts[i], ended=True) for i in chosen]


def _written(drawn: Drawn, split: Split) -> Written:
    """A sample as it is measured: of a run on documents it has an end, or it has none."""
    return Written(
        drawn.prompt, drawn.text, ended=drawn.finish_reason == "eos" if split.val_documents else None
    )


def text_to_compare(run: LoadedRun, data: Sequence[str]) -> TextToCompare:
    """`data`, or what the run was trained on. RequestError where there is no text, or too little."""
    if run.record.task == "reversal":
        raise RequestError(
            f"{run.folder} is a run on reversal", "its sequences are no text", "name a run on text"
        )
    if data:
        source = given_source(
            data, run.record.val_fraction or VAL_FRACTION, run.record.reading, run.record.val_split
        )
    else:
        source = recorded_source(run.folder, run.record)
    split, names = source.split(run.tokenizer), " ".join(source.names)
    text = TextToCompare(split, names)
    if not split.train or not split.val:
        raise _too_little(text)
    return text


def _too_little(text: TextToCompare) -> RequestError:
    split = text.split
    return RequestError(
        f"too little text to compare with in {text.source}",
        f"{len(split.train):,} characters of training text, {len(split.val):,} of validation text",
        "give a longer one: --data FILE",
    )


def _sample(
    run: LoadedRun,
    prompts: Sequence[str],
    temperatures: Sequence[float],
    n: int,
    draws: Draws,
    progress: Progress,
) -> list[_Placed]:
    """`n` samples of each prompt at each temperature; all temperatures draw with the same seeds."""
    total = len(temperatures) * len(prompts) * draws.max_tokens
    done, placed = 0, []
    for temperature in temperatures:
        for i, prompt in enumerate(prompts):
            ids = encode_prompt(run.tokenizer, prompt) or [run.start_id]
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
                draws.max_tokens,
                Sampling(temperature),
                draws.seed + i * n,
                end_ids=run.end_ids,
                on_text=on_text,
            )
            placed += [
                _Placed(Drawn(prompt, s.text, temperature, s.seed, s.finish_reason), i * n + j, ids, s.ids)
                for j, s in enumerate(samples)
            ]
            done += draws.max_tokens
            progress(done, total)
    return placed


def _costed(
    run: LoadedRun, written: Written, before_ids: list[int], ids: list[int], precision: str
) -> Written:
    """A text with its cost to the model, given what is before it; bits and bytes are of the same ids."""
    losses = token_losses(run.model, np.array(before_ids + ids), precision)
    bits = float(losses[len(before_ids) - 1 :].sum()) / math.log(2)
    return replace(written, bits=bits, bytes=int(run.n_bytes[ids].sum()))
