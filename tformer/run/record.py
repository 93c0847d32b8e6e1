"""What a run says of itself, as types: `tformer.yaml`, and the lines of `evals.jsonl`.

Reading is tolerant: a directory that another tool wrote has an empty record, one of an older version lacks
fields, and one of a newer version has more, which are kept. A field of another type than the one that is
written here is damage, and is named. Imports no torch.
"""

import datetime
import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tformer.config import Config, DataConfig
from tformer.errors import RequestError
from tformer.files import append_line, check_regular, read_whole
from tformer.text.documents import TextReading
from tformer.yaml_text import dump_yaml, parse_yaml

NAME = "tformer.yaml"
FIELD: str = DataConfig.model_fields["field"].default
VAL_FRACTION: float = DataConfig.model_fields["val_fraction"].default
ANOTHER_RUN = "leave --resume out and give another --out, to start another run"


class Part(BaseModel):
    """Frozen; what it does not know is kept and written again."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def as_dict(self) -> dict[str, Any]:
        """As the file has it: what was never given is left out."""
        return self.model_dump(exclude_unset=True)


class DataFacts(Part):
    """Where the data came from, and how much of it there was."""

    source: list[str] = []
    sha256: str | None = None  # of the text or of the ids
    characters: int | None = None
    documents: int | None = None  # None for ids, and for a run of an older version
    train_tokens: int | None = None
    val_tokens: int | None = None
    val_source: list[str] = []  # of --val-data; empty where a part of the text is kept for validation
    val_sha256: str | None = None


class TokenizerFacts(Part):
    """Which tokenizer a run has: word, char or bpe, how many ids, and the sha256 of its file."""

    kind: str | None = None
    size: int | None = None
    sha256: str | None = None


class Origin(Part):
    """What a run began from: a directory or a name on the Hub, and the sha256 of its weights, by file."""

    source: str
    revision: str | None = None  # of the Hub, as it was asked for
    commit: str | None = None  # of the Hub; None for a directory
    sha256: dict[str, str] = {}


class Passages(Part):
    """The file of `--eval-data`, and how many passages of it are scored."""

    source: str
    sha256: str | None = None
    passages: int | None = None


class TimeBudget(Part):
    """What `--minutes` was turned into, and the measurements by which it was."""

    minutes: float
    steps: int
    seconds_before: float
    seconds_per_step: float
    seconds_per_evaluation: float


class Kept(Part):
    """Which weights model.safetensors holds: of which step, and their loss where that was measured."""

    step: int
    sha256: str
    val_loss: float | None = None  # nats per token
    bits_per_byte: float | None = None


class Result(Part):
    """How a run ended. Losses are nats per token; `val_loss` is that of the weights of `kept_step`."""

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    loss: float | None = None
    val_loss: float | None = None
    bits_per_byte: float | None = None
    parameters: int | None = None
    kept_step: int | None = None
    passes: float | None = None  # over the training text
    val_loss_before: float | None = None  # of the weights that a model trained further began from
    bits_per_byte_before: float | None = None


class Continued(Part):
    """Where a run went on in another environment than before, and in which."""

    after_step: int
    versions: dict[str, Any] = {}
    device: str | None = None
    threads: int | None = None
    processes: int | None = None


class Changed(Part):
    """After which step other settings of `train` held, and what they were up to it."""

    after_step: int
    was: dict[str, Any] = {}


class Record(Part):
    """`tformer.yaml`: the settings of a run as they were written, and what it met.

    `settings` are the sections `model`, `data` and `train`; everything else stands under `record` in the
    file. All fields are empty for a directory that is no run of tformer's.
    """

    settings: dict[str, dict[str, Any]] = Field(default={}, exclude=True)
    id: str | None = None  # random: whose a checkpoint is
    versions: dict[str, Any] = {}
    device: str | None = None
    threads: int | None = None
    processes: int | None = None  # that train together
    data: DataFacts = DataFacts()
    tokenizer: TokenizerFacts | None = None
    init_from: Origin | None = None
    preset: str | None = None
    eval_data: Passages | None = None
    compile_failed: str | None = None  # why torch.compile could not be used
    budget: TimeBudget | None = None
    sessions: list[Continued] = []  # those that were not as the one before them; the first is above
    changed: list[Changed] = []  # settings that were others at first
    result: Result | None = None
    card: str | None = None  # sha256 of the README.md that was written

    @property
    def is_empty(self) -> bool:
        """Whether the directory says nothing: another tool wrote it."""
        return not self.settings and not self.model_fields_set - {"settings"}

    @property
    def task(self) -> str:
        """`text` or `reversal`."""
        return str(self.settings.get("data", {}).get("task", "text"))

    @property
    def val_fraction(self) -> float:
        """What was kept of the text for validation, as a share of its characters."""
        return float(self.settings.get("data", {}).get("val_fraction", VAL_FRACTION))

    @property
    def val_split(self) -> str:
        """What that is: the end of the text, or lines, documents or files of it."""
        return str(self.settings.get("data", {}).get("val_split", "end"))

    @property
    def end_of_text(self) -> bool:
        """Whether a token stands between its documents."""
        return self.settings.get("data", {}).get("end_of_text") is True

    @property
    def reading(self) -> TextReading:
        """How its files were read: where the texts of a table stand, and what a document is."""
        data = self.settings.get("data", {})
        return TextReading(str(data.get("field", FIELD)), str(data.get("documents", "none")))

    @property
    def is_finished(self) -> bool:
        """Whether training came to its end."""
        return self.result is not None

    def updated(self, **changes: Any) -> "Record":
        """A copy with some fields replaced."""
        return self.model_copy(update=changes)

    def without(self, *names: str) -> "Record":
        """A copy in which some fields were never given."""
        facts = {name: getattr(self, name) for name in self.model_fields_set - set(names)}
        return Record(**facts, **(self.model_extra or {}))

    def as_yaml(self) -> str:
        """The file as it is read."""
        return dump_yaml(self.settings | {"record": self.as_dict()})


SECTIONS = tuple(Config.model_fields)


def read_record(folder: Path) -> Record:
    """The record of a run; an empty one for a directory that another tool wrote.

    Raises RequestError where the file cannot be read or is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return Record()
    try:
        text = read_whole(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read {path}", str(error)) from None
    return record_of(parse_yaml(text, str(path)), path)


def record_of(values: Any, path: Path | str) -> Record:
    """The record that a parsed `tformer.yaml` is. Raises RequestError, naming `path`, where it is none."""
    shaped = isinstance(values, dict) and all(
        isinstance(values.get(section) or {}, dict) for section in (*SECTIONS, "record")
    )
    if not shaped:
        expected = ", ".join(SECTIONS)
        raise RequestError(f"{path} is damaged", f"expected the sections {expected} and record")
    settings = {section: values.get(section) or {} for section in SECTIONS if section in values}
    fraction = settings.get("data", {}).get("val_fraction", VAL_FRACTION)
    if not _is_number(fraction) or fraction >= 1 or fraction < 0:
        found = f"data.val_fraction: expected a number from 0 to 1, found {fraction!r}"[:200]
        raise RequestError(f"{path} is damaged", found)
    if "data" in settings:  # of a run of before there was the setting
        data = {"end_of_text": False} | {k: v for k, v in settings["data"].items() if v != "auto"}
        documents = "file" if data["end_of_text"] is True else "none"
        settings["data"] = {"documents": documents, "val_split": "end"} | data
    if "train" in settings:
        settings["train"] = {"kernels": "reference"} | settings["train"]
    try:
        return Record.model_validate((values.get("record") or {}) | {"settings": settings})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("record", *first["loc"])))
        found = repr(first["input"])[:80]
        raise RequestError(f"{path} is damaged", f"{key}: {first['msg'].lower()}, found {found}") from None


# ---------------------------------------------------------------------------- lines


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none where there is no file. A line cut short is passed over.

    Raises RequestError for a pipe or a device of that name.
    """
    lines = []
    check_regular(path)
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, RecursionError):
                lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


NUMBERS = (
    "tokens",
    "seconds",
    "loss",
    "lr",
    "grad_norm",
    "val_loss",
    "bits_per_byte",
    "next_word_loss",
)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`. One without a step, or with a word for a number, is passed over."""
    return [line for line in read_lines(path) if _is_metrics(line)]


def _is_metrics(line: dict[str, Any]) -> bool:
    step, positions = line.get("step"), line.get("by_position", [])
    return (
        isinstance(step, int)
        and _is_number(step)
        and all(_is_number(line[name]) for name in NUMBERS if name in line)
        and isinstance(line.get("sample", ""), str)
        and isinstance(positions, list)
        and all(isinstance(p, list) and len(p) == 2 and all(map(_is_number, p)) for p in positions)
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63  # a larger one is no float either
    return isinstance(value, float) and math.isfinite(value)


class Evaluation(Part):
    """A line of `evals.jsonl`: what a task of `tformer eval` found.

    `on` says in words what it was measured on; `weights` is the sha256 of the model.safetensors that was
    judged, `step` that of its checkpoint where `--step` chose one; `result` is what `--json` prints.
    """

    task: str
    on: str = ""
    when: str = ""
    weights: str | None = None
    step: int | None = None
    result: dict[str, Any] = {}


def read_evaluations(folder: Path) -> list[Evaluation]:
    """What `tformer eval` found of a run, the oldest first; lines that are none are passed over."""
    found = []
    for line in read_lines(folder / "evals.jsonl"):
        with suppress(ValidationError):
            found.append(Evaluation.model_validate(line))
    return found


def keep_evaluation(
    folder: Path,
    task: str,
    result: dict[str, Any],
    on: str = "",
    weights: str | None = None,
    step: int | None = None,
) -> None:
    """Add what an evaluation found to `evals.jsonl` of a run. Nothing is kept in a foreign directory.

    `weights` is the sha256 of those that were judged, those that lie there if left out; `step` that of the
    checkpoint that they are of.
    """
    if (folder / NAME).exists():
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        weights = weights or weights_hash(folder)
        of_step = {} if step is None else {"step": step}
        line = Evaluation(task=task, on=on, when=now, weights=weights, **of_step, result=result)
        append_line(folder / "evals.jsonl", line.as_dict())


def weights_hash(folder: Path) -> str:
    """sha256 of `model.safetensors`."""
    check_regular(path := folder / "model.safetensors")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(found: str, expected: str | None, advice: str) -> None:
    """Raises RequestError where data is not what a run recorded; nothing recorded, nothing to check."""
    if expected and found != expected:
        raise RequestError(
            "the data of this run has changed", f"sha256 {found[:12]}…, recorded is {expected[:12]}…", advice
        )
