"""Every option of every command, and every value of every setting, through a real run of a tiny model.

A path that no test runs is broken: the lists of what there is come from the Typer app and from the settings'
own types, and an option or a value that no run here uses fails by its name. What a run takes comes from its
command line; what it does is looked at, so far as a tiny run can show it.
"""

import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import typer.main
import yaml

from tests.conftest import PICTURE
from tformer import load
from tformer.answer import investigate
from tformer.cli import app
from tformer.config import Config
from tformer.errors import TformerError
from tformer.layers import preset_names
from tformer.sample import Sampling, continue_text
from tformer.yaml_text import parse_yaml

pytestmark = pytest.mark.drawn

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 12
TINY = {
    "model": {"n_layers": 1, "n_heads": 2, "d_model": 16, "n_ctx": 16},
    "train": {"steps": 3, "batch_size": 4, "precision": "fp32", "compile": "off"},
}
REVERSAL = (
    "--steps 80 --lr 0.01 --set data.reversal_length=3 --set data.reversal_symbols=4 --set model.n_ctx=5"
)
CHEAP = {"shapes", "kin", "jacobian", "prefixes", "sum"}  # experiments of a second; the others have tests


@dataclass(frozen=True)
class Done:
    """What a command said and left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The first line of stdout."""
        return json.loads(self.out.splitlines()[0])


def recorded(run: str, key: str) -> Any:
    """A setting, as the run's record has it."""
    section, _, name = key.partition(".")
    return yaml.safe_load(Path(run, "tformer.yaml").read_text())[section][name]


def metrics(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def size(path: str) -> int:
    return Path(path).stat().st_size


# ---------------------------------------------------------------------------- the runs

TRAIN = "train hamlet.txt --config tiny.yaml"
GIVEN = (
    "--out t --tokenizer char --batch-size 2 --lr 0.02 --patience 7 --seed 5 --set train.log_every=1 "
    "--eval-data passages.jsonl --val-data hamlet.txt"
)
ONE_WAY, THE_OTHER = "--precision fp32 --device auto", "--precision bf16 --device cpu"  # of an evaluation
SAMPLE = "sample To --run runs/text --max-tokens 9 --json"
Step = tuple[str, Callable[[Done], object]]  # a command line, and what shows that its options did something
ALONE: list[Step] = [
    ("--version", lambda d: d.out.startswith("tformer ")),
    ("--debug answer", lambda d: "q-k-v" in d.out),
    (
        "train hamlet.txt --init-from runs/text --out i --steps 2 --device cpu",
        lambda d: "beginning from" in d.err,
    ),
    (f"{TRAIN} --out m --minutes 1", lambda d: "1 minute: 2 steps" in d.err),
    (
        f"{TRAIN} --estimate --json",
        lambda d: d.json["here"]["seconds"] > 0 and not Path("runs/hamlet").exists(),
    ),
    (
        f"{TRAIN} --estimate --gpus 2 --accelerator h100",
        lambda d: "h100, sharded" in d.out and "compute-optimal" in d.out,
    ),
    (
        "train rows.csv --field verse --documents file --config tiny.yaml --tokenizer char --out f",
        lambda d: recorded("f", "data.field") == "verse" and load("f")[1].encode("To"),
    ),
    (
        f"{TRAIN} --out s --shard",  # tests/training/test_sharded.py has several processes
        lambda d: recorded("s", "train.shard") is True and "this process is alone" in d.err,
    ),
    (f"{TRAIN} --out n --no-shard", lambda d: recorded("n", "train.shard") is False),
    (f"{TRAIN} --out c --compile", lambda d: recorded("c", "train.compile") == "on" and "compiling" in d.err),
    (
        "train hamlet.txt --preset nanogpt-char-cpu --config tiny.yaml --out p",
        lambda d: recorded("p", "train.beta2") == 0.99 and recorded("p", "model.n_layers") == 1,
    ),
    *[
        (
            f"{TRAIN} --preset {name} --set train.micro_batch_size=2 --out p-{name}",
            lambda d: "step 3/3" in d.err,
        )
        for name in preset_names()
        if name not in ("nanogpt-char-cpu", "reversal")
    ],
    (
        f"train reversal --preset reversal --config tiny.yaml {REVERSAL} --out p-reversal",
        lambda d: "step 80/80" in d.err,
    ),
    ("eval --run runs/text --device auto --precision fp32 --json", lambda d: d.json["loss"] > 0),
    ("eval --run runs/text --data rows.csv --field verse --json", lambda d: d.json["bytes"] > 900),
    ("eval --run runs/reversal --precision bf16 --device cpu --json", lambda d: d.json["chance"] == 0.25),
    ("eval -n 40 --seed 2 --run runs/reversal --json", lambda d: d.json["positions"][0]["n"] == 40),
    (
        f"eval reversal --run runs/reversal -n 50 --seed 3 {ONE_WAY} --json",
        lambda d: d.json["positions"][0]["n"] == 50,
    ),
    (f"eval reversal --run runs/reversal --step 80 {THE_OTHER}", lambda d: "passed" in d.out),
    (
        f"eval lambada --run runs/text --step 3 --data passages.jsonl --limit 1 {ONE_WAY} --json",
        lambda d: d.json["n"] == 1 and d.json["step"] == 3,
    ),
    (f"eval lambada --run runs/text --data passages.jsonl {THE_OTHER}", lambda d: "2 of passages" in d.out),
    (
        f"eval causality --run runs/text --positions 3 --seed 2 {ONE_WAY} --json",
        lambda d: d.json["passed"] and len(d.json["positions"]) == 3,
    ),
    (
        f"eval causality --run runs/text --step 3 {THE_OTHER} --json",
        lambda d: d.json["precision"] == "bf16" and d.json["step"] == 3,
    ),
    (
        "eval attention --run runs/text --step 3 --prompt 'To be' --device auto --json",
        lambda d: "".join(d.json["tokens"]) == "To be" and d.json["step"] == 3,
    ),
    (
        "eval attention --run runs/reversal -n 20 --seed 2 --device cpu --json",
        lambda d: d.json["mirror"]["n"] == 20,
    ),
    (
        "eval generations --run runs/text --prompt To -n 2 --temperature 0.7 --max-tokens 6 --seed 1 "
        f"{ONE_WAY} --json",
        lambda d: [s["temperature"] for s in d.json["samples"]] == [0.7, 0.7],
    ),
    (
        f"eval generations --run runs/text --step 3 --data hamlet.txt --max-tokens 6 -n 1 {THE_OTHER}",
        lambda d: "hamlet.txt" in d.out and "at step 3" in d.out,
    ),
    (
        f"{SAMPLE} -n 2 --temperature 0.9 --seed 4 --device cpu",
        lambda d: len(d.out.splitlines()) == 2 and len(d.json["ids"]) == 9 and d.json["seed"] == 4,
    ),
    (f"{SAMPLE} --top-k 1 --seed 1 --device auto", lambda d: d.json["ids"] == greedy()),
    (f"{SAMPLE} --top-p 0 --seed 1", lambda d: d.json["ids"] == greedy()),
    (f"{SAMPLE} --min-p 1 --seed 1", lambda d: d.json["ids"] == greedy()),
    (f"{SAMPLE} --greedy", lambda d: d.json["ids"] == greedy()),
    (f"{SAMPLE} --greedy --step 3", lambda d: "weights are those of step 3" in d.err),
    (f"{SAMPLE} --greedy --stop e", lambda d: "e" not in d.json["text"]),
    (
        f"{SAMPLE} --stop g --keep-stop --max-tokens 900 --temperature 3 --seed 1",
        lambda d: (
            d.json["text"].endswith("g")
            and d.json["text"].count("g") == 1
            and d.json["finish_reason"] == "stop"
        ),
    ),
    (f"{SAMPLE} --greedy --repetition-penalty 9", lambda d: len(set(d.json["ids"])) > len(set(greedy()))),
    (
        "sample --prompt-file hamlet.txt --run runs/text --max-tokens 1 --json",
        lambda d: d.json["prompt"].count("\n") > 1,
    ),
    (f"{SAMPLE} --greedy --precision fp32", lambda d: d.json["ids"] == greedy()),
    (f"{SAMPLE} --greedy --precision bf16", lambda d: d.json["ids"][:4] == greedy()[:4]),
    (f"{SAMPLE} --greedy --logprobs 2", lambda d: [t["id"] for t in d.json["logprobs"]] == greedy()),
    ("sample - --null --run runs/text --max-tokens 1", lambda d: d.out == ""),
    ("sample - -0 --run runs/text --max-tokens 1", lambda d: d.out == ""),
    ("answer q-k-v --quick --seed 2 --json", lambda d: d.json["budget"] == "quick" and d.json["seed"] == 2),
    *[
        (f"answer {slug} --prose", lambda d: len(d.out) > 1000)
        for slug in ("rnn-vs-transformer", "dense-layers", "skip-connections", "all")
    ],
]
TOGETHER: dict[str, list[Step]] = {  # each after the one before
    "a run": [
        (
            f"{TRAIN} {GIVEN} --steps 4 --device cpu --precision fp32 --no-compile --json",
            lambda d: (
                d.json["run"] == "t"
                and d.json["steps"] == 4
                and d.json["tokens"] == 4 * 2 * 16
                and metrics("t")[-1]["next_word_loss"] > 0
                and len(metrics("t")) == 4
                and [recorded("t", f"train.{k}") for k in ("lr", "patience", "seed")] == [0.02, 7, 5]
            ),
        ),
        (
            f"{TRAIN} {GIVEN} --steps 6 --resume",
            lambda d: "continuing after step 4" in d.err and len(metrics("t")) == 6,
        ),
        (
            f"{TRAIN} --out t --overwrite --device auto --tokenizer word --precision auto --no-compile",
            lambda d: recorded("t", "train.seed") == 0 and "word vocabulary" in d.err,
        ),
    ],
    "losses": [
        (
            f"{TRAIN} --out b --tokenizer bpe --set data.vocab_size=300 --precision bf16",
            lambda d: "bpe vocabulary of 300" in d.err and recorded("b", "train.precision") == "bf16",
        ),
        (
            "eval loss --run runs/text --run b --step 3 --device cpu --json",
            lambda d: d.out.count('"step": 3') == 2,
        ),
        ("eval loss --run b --data hamlet.txt --precision bf16 --json", lambda d: d.json["bytes"] > 900),
        (
            "eval loss --run runs/text --data rows.csv --field verse --tokens 5 --out l.html --json",
            lambda d: len(d.json["text"]) == 5 and size("l.html"),
        ),
        ("eval loss --run runs/text --out l.html --overwrite --precision fp32", lambda d: size("l.html")),
        ("eval loss --run runs/text --device auto --stride 4 --json", lambda d: d.json["stride"] == 4),
    ],
    "losses without a task": [
        (
            "eval --run runs/text --data hamlet.txt --tokens 5 --out n.html --json",
            lambda d: len(d.json["text"]) == 5 and d.json["bytes"] > 900 and size("n.html"),
        ),
        (
            "eval --run runs/text --step 3 --stride 9 --out n.html --overwrite",
            lambda d: "9 tokens apart" in d.out and "at step 3" in d.out and "wrote n.html" in d.err,
        ),
    ],
    "attention": [
        ("eval attention --run runs/text --data hamlet.txt --out h.svg", lambda d: size("h.svg")),
        (
            "eval attention --run runs/text --prompt 'To be' --out h.svg --overwrite",
            lambda d: "wrote h.svg" in d.err,
        ),
    ],
    "tokenizers": [
        (
            "tokenize --train hamlet.txt --tokenizer bpe --vocab-size 270 --seed 3 --end-of-text "
            "--out k.json",
            lambda d: "270 ids" in d.err,
        ),
        (
            "tokenize hamlet.txt --train --tokenizer char --no-end-of-text --out k.json --overwrite --json",
            lambda d: d.json["kind"] == "char",
        ),
        ("tokenize - --tokenizer k.json --show < To be", lambda d: len(d.out.splitlines()) >= 5),
        ("tokenize hamlet.txt --tokenizer k.json --stats --json", lambda d: d.json["unknown"] == 0),
        (
            "tokenize rows.csv --field verse --tokenizer k.json --stats --json",
            lambda d: d.json["characters"] == len(TEXT),
        ),
        (
            "tokenize rows.csv --field verse --documents file --tokenizer runs/text --stats --json",
            lambda d: d.json["documents"] == 24,
        ),
        ("tokenize hamlet.txt --tokenizer k.json --out k.npy", lambda d: size("k.npy") > 500),
        ("tokenize k.npy --tokenizer k.json --decode", lambda d: d.out == TEXT),
        (
            "tokenize rows.csv --field verse --tokenizer runs/text --out ids/ --processes 1 --json",
            lambda d: d.json["documents"] == 24 and size("ids/ids-00000.npy") > 500,
        ),
        ("tokenize ids/ --decode", lambda d: d.out.strip() == TEXT.strip()),
        (
            "train ids/ --config tiny.yaml --out from-ids",
            lambda d: recorded("from-ids", "data.val_split") == "documents" and "24 documents" in d.err,
        ),
    ],
    "reports": [
        ("answer heads --full --run runs/text --report a.md", lambda d: size("a.md")),
        ("answer causal-mask --report a.md --overwrite", lambda d: "causal mask" in Path("a.md").read_text()),
    ],
}
STORIES = TOGETHER | {line: [(line, shows)] for line, shows in ALONE}
LINES = [line for steps in STORIES.values() for line, _ in steps]

# What no run here can show, and where it is shown instead; a first word left empty is any command.
ELSEWHERE = {
    ("sample", "--interactive"): "tests/commands/test_sample.py, on a terminal",
    ("", "--install-completion"): "Typer's own; it would write into the shell's settings",
    ("", "--show-completion"): "Typer's own; it asks which shell is above the process",
    ("", "--device", "cuda"): "examples/benchmarks/gpu.sh",
    ("", "--device", "mps"): "tests/test_apple.py",
}


def greedy() -> list[int]:
    """The ids that the greedy sample of this place has."""
    model, tokenizer = load("runs/text")
    return continue_text(model, tokenizer, tokenizer.encode("To"), 1, 9, Sampling(0.0), 0)[0].ids


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, passages, settings, and a run on each task."""
    folder = tmp_path_factory.mktemp("options")
    (folder / "hamlet.txt").write_text(TEXT)
    lines = [json.dumps({"text": text}) for text in ("To be, or not to be", "that is the question")]
    (folder / "passages.jsonl").write_text("\n".join(lines))
    (folder / "rows.csv").write_text("verse\n" + "".join(f'"{line}"\n' for line in TEXT.splitlines()))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (f"{TRAIN} --out runs/text", f"train reversal --config tiny.yaml {REVERSAL}"):
            app(shlex.split(line), standalone_mode=False)
    return folder


@pytest.fixture
def run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Done]:
    """Runs a command line in that folder, in this process."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("TFORMER_DEVICE", "cpu")
    monkeypatch.setenv("TFORMER_DEBUG", "")  # --debug sets it
    # A compiler takes half a minute, minutes as many: tests/training/test_compiled.py, test_budget.py.
    monkeypatch.setattr(torch, "compile", lambda model: lambda ids: model(ids))
    monkeypatch.setattr("tformer.training.budget.steps_within", lambda seconds, costs, train: 2)
    every = investigate.experiments_of
    monkeypatch.setattr(
        investigate, "experiments_of", lambda question: tuple(e for e in every(question) if e.slug in CHEAP)
    )

    def run(line: str) -> Done:
        words, _, typed = line.partition(" < ")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
        capsys.readouterr()
        if words.startswith("train") and GIVEN not in words:  # that one is drawn for all
            monkeypatch.setattr("tformer.show.svg.rendered", lambda canvas, kind="svg", **options: PICTURE)
        try:
            code = app(shlex.split(words), standalone_mode=False) or 0
        except TformerError as error:
            code, said = error.exit_code, str(error)
            return Done(code, "", said)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


@pytest.mark.parametrize("story", STORIES)
def test_each_command_ends_well_and_shows_what_it_was_asked(run: Callable[[str], Done], story: str) -> None:
    for line, shows in STORIES[story]:
        done = run(line)
        assert done.code == 0, (line, done.err)
        assert shows(done), (line, done.out, done.err)


# ---------------------------------------------------------------------------- nothing without a run


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group, below this one and it itself."""
    yield path, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from walk(sub, (*path, name))


def parameters(command: Any) -> list[Any]:
    """What a command takes, but for --help; a group may take what a command of its own does."""
    return [p for p in command.get_params(typer.Context(command)) if p.name != "help"]


def offered() -> set[tuple[str, ...]]:
    """(command, option) of every spelling, and (command, option, value) of every value that is completed."""
    found: set[tuple[str, ...]] = set()
    for path, command in walk(typer.main.get_command(app)):
        for parameter in parameters(command):
            spellings = (*parameter.opts, *parameter.secondary_opts)
            found |= {(" ".join(path), spelling) for spelling in spellings}
            values = [item.value for item in parameter.shell_complete(None, "")]
            found |= {(" ".join(path), spellings[0], value) for value in values}
    return found


def used(line: str) -> Iterator[tuple[str, ...]]:
    """The same, of what a command line uses."""
    command, path = typer.main.get_command(app), ()
    words = iter(shlex.split(line.partition(" < ")[0]))
    for word in words:
        if word in getattr(command, "commands", {}):
            command, path = command.commands[word], (*path, word)
            continue
        own = parameters(command)
        options = {s: p for p in own for s in (*p.opts, *p.secondary_opts) if s.startswith("-")}
        if word.startswith("-") and word != "-":
            yield " ".join(path), word
            if word in options and not options[word].is_flag:
                yield " ".join(path), options[word].opts[0], next(words)
        else:
            argument = next(p for p in own if p.param_type_name == "argument")
            yield " ".join(path), argument.name
            yield " ".join(path), argument.name, word


def elsewhere(key: tuple[str, ...]) -> bool:
    return key in ELSEWHERE or ("", *key[1:]) in ELSEWHERE


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A working directory without runs: completion offers them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("nowhere"))
        yield


def test_every_option_and_every_value_that_is_completed_has_a_run(nowhere: None) -> None:
    covered = {key for line in LINES for key in used(line)}
    missing = sorted(key for key in offered() - covered if not elsewhere(key))
    assert not missing, f"give each a run in STORIES, or a place in ELSEWHERE: {missing}"


def test_no_run_or_exception_is_of_an_option_that_is_gone(nowhere: None) -> None:
    there = offered()
    stale = {key for line in LINES for key in used(line) if len(key) == 2} - there
    assert not stale, f"these are no options any more: {sorted(stale)}"
    gone = [key for key in ELSEWHERE if not any(key in (k, ("", *k[1:])) for k in there)]
    assert not gone, f"nothing to except: {gone}"


# ---------------------------------------------------------------------------- settings

# Each a run on the text, or on reversal: settings that differ from the defaults, packed together.
PACKED = {
    "gpt2": """
        model.family=gpt2 model.positions=sinusoidal model.activation=gelu model.bias=false model.tied=false
        model.dropout=0.1 model.n_ctx=12 model.n_layers=2 model.n_heads=1 model.d_model=8 model.d_mlp=24
        model.norm_eps=1e-4
        data.task=text data.tokenizer=word data.vocab_size=300 data.val_fraction=0.2 data.val_split=lines
        data.stride=5 data.window=9 data.end_of_text=false data.field=verse
        train.seed=1 train.steps=4 train.batch_size=4 train.micro_batch_size=2 train.optimizer=adamw
        train.lr=2e-3 train.lr_final=0.2 train.warmup_steps=1 train.decay=cosine train.decay_fraction=0.5
        train.beta1=0.8 train.beta2=0.95 train.eps=1e-7 train.weight_decay=0.01 train.grad_clip=0.5
        train.eval_every=2 train.checkpoint_every=1 train.log_every=1 train.keep=last
        train.keep_checkpoints=3 train.patience=9 train.precision=fp32 train.compile=off
        train.kernels=blocks train.recompute=true train.shard=true""",
    "nanochat": """
        model.family=nanochat model.positions=rotary model.activation=relu2 model.n_heads=2 model.n_kv_heads=1
        model.rope_theta=500.0 model.logit_softcap=3.0 model.qk_norm=true model.tied=true model.vocab_size=40
        data.documents=line data.val_split=documents data.tokenizer=char
        train.optimizer=muon train.momentum=0.9 train.decay=linear train.keep=best
        train.precision=bf16 train.compile=on train.kernels=sdpa
        train.recompute=true""",
    "bare": """
        model.positions=none model.activation=relu model.bias=true model.qk_norm=false data.tokenizer=bpe
        data.val_split=files data.documents=paragraph
        train.precision=auto train.compile=auto train.kernels=auto train.recompute=false
        train.shard=false""",
    "learned": """model.positions=learned model.activation=gelu_new data.tokenizer=runs/text
        data.end_of_text=true data.val_split=end data.documents=none train.kernels=reference""",
    "reversal": """data.task=reversal data.reversal_length=3 data.reversal_symbols=4 model.n_ctx=5
        data.val_split=auto""",
}
SETTINGS: dict[str, dict[str, Any]] = {
    name: {key: parse_yaml(value, key) for key, _, value in (s.partition("=") for s in packed.split())}
    for name, packed in PACKED.items()
}
# What a directory's config.json must then say, under the names of its family.
IN_CONFIG_JSON = {
    "gpt2": """
        n_positions=12 n_layer=2 n_head=1 n_embd=8 n_inner=24 layer_norm_epsilon=1e-4 resid_pdrop=0.1
        tie_word_embeddings=false""",
    "nanochat": """
        num_key_value_heads=1 final_logit_softcapping=3.0 hidden_act=relu2 vocab_size=40
        tie_word_embeddings=true""",
}


def wanted() -> Iterator[tuple[str, Any]]:
    """Every setting with each value that must be run; None for a number or a text: any but the default."""
    for section, holder in Config.model_fields.items():
        for name, field in holder.annotation.model_fields.items():  # type: ignore[union-attr]
            key = f"{section}.{name}"
            if get_origin(field.annotation) is Literal:
                yield from ((key, value) for value in get_args(field.annotation))
            elif field.annotation is bool:
                yield from ((key, value) for value in (True, False))
            else:
                yield key, None


def default_of(key: str) -> Any:
    section, _, name = key.partition(".")
    return Config.model_fields[section].annotation.model_fields[name].default  # type: ignore[union-attr]


def test_every_setting_has_a_run_with_every_value_that_it_can_have() -> None:
    given = [(key, value) for settings in SETTINGS.values() for key, value in settings.items()]
    missing = [
        key if value is None else f"{key}={value}"
        for key, value in wanted()
        if not any(k == key and (v != default_of(key) if value is None else v == value) for k, v in given)
    ]
    assert not missing, f"give each a run in SETTINGS: {missing}"
    assert {key for key, _ in given} <= {key for key, _ in wanted()}, "a setting that is gone"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_with_these_settings_trains_is_evaluated_and_sampled(
    run: Callable[[str], Done], name: str
) -> None:
    settings, folder = SETTINGS[name], f"runs/{name}-set"
    data = {"reversal": "reversal", "bare": "hamlet.txt hamlet.txt"}.get(name, "hamlet.txt")
    given = " ".join(f"--set {setting}" for setting in PACKED[name].split())
    trained = run(f"train {data} --config tiny.yaml --out {folder} {given} --json")
    assert trained.json["steps"] == settings.get("train.steps", 3), trained.err
    for key, value in settings.items():
        settled = value == "auto"  # recorded as what it came to
        assert settled == (recorded(folder, key) != value), key
    config = json.loads(Path(folder, "config.json").read_text())
    for setting in IN_CONFIG_JSON.get(name, "").split():
        key, _, value = setting.partition("=")
        assert config[key] == parse_yaml(value, key), key
    unlearned = name == "reversal"  # in three steps
    assert run(f"eval --run {folder} --json").code == (1 if unlearned else 0)
    assert run(f"sample --run {folder} --max-tokens 20 --seed 1").out
    if settings.get("train.keep_checkpoints"):
        assert len(list(Path(folder, "checkpoints").iterdir())) == settings["train.keep_checkpoints"]
