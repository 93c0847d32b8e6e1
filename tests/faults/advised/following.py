"""A row of the tests of advice, and what its commands are made of."""

import json
import pkgutil
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.conftest import tiny_config
from tformer.cli import app
from tformer.config import Config
from tformer.text.tokenizer import Tokenizer
from tformer.training.memory import USABLE, step_bytes

TEXT = "The quality of mercy is not strain'd,\nIt droppeth as the gentle rain from heaven\n\n" * 12
MORE = TEXT[::-1]  # another text of the same characters
SMALL = """--device cpu --precision fp32 --batch-size 2 --set model.n_layers=1 --set model.d_model=8
    --set model.n_heads=1 --set model.n_ctx=8"""
NEW = f"train a.txt --tokenizer char {SMALL} --steps 1"
FURTHER = "train a.txt --init-from base --device cpu --precision fp32 --batch-size 2 --steps 1"
PLAN = " --estimate"  # everything is read and settled, and nothing trained


@dataclass(frozen=True)
class Followed:
    """A command that is refused in a function of a module, how its line ends, and what that comes to."""

    at: str
    wrong: str
    advice: str  # the end of the line, to the letter
    right: str | tuple[str, ...]  # commands
    first: Callable[[], object] = lambda: None  # what makes it wrong
    then: Callable[[], object] = lambda: None  # what the advice says to do that is no command
    stdin: str = ""


def left_out(at: str, line: str, option: str, advice: str = "leave it out", then: str = "") -> Followed:
    """An option that a command has no use for."""
    return Followed(at, f"{line} {option}", advice, line + then)


def one_of(at: str, line: str, one: str, other: str, then: str = "") -> Followed:
    """Two options that exclude each other."""
    right = tuple(f"{line} {option}{then}" for option in (one, other))
    return Followed(at, f"{line} {one} {other}", "leave one out", right)


def write(name: str, text: str | bytes) -> Callable[[], object]:
    """A file with other content."""
    return lambda: Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())


def move(name: str, to: str) -> Callable[[], object]:
    """A file of another name, as others leave it or the advice wants it."""
    return lambda: shutil.move(name, to)


def change(name: str, old: str, new: str) -> Callable[[], object]:
    """A file with other words in it."""

    def changed() -> None:
        text = Path(name).read_text()
        assert old in text
        Path(name).write_text(text.replace(old, new))

    return changed


def steps(*some: Callable[[], object]) -> Callable[[], object]:
    """One after another."""
    return lambda: [step() for step in some]


def tensors(changed: Callable[[dict], object], name: str = "base/model.safetensors") -> Callable[[], object]:
    """A file of other weights."""

    def write_them() -> None:
        held = load_file(name)
        changed(held)
        save_file(held, name, {"format": "pt"})

    return write_them


def saved_by_transformers(sharded: bool = False) -> None:
    """The model of base, as transformers saves it, in its place."""
    model = transformers.AutoModelForCausalLM.from_pretrained("base")
    Path("base/model.safetensors").unlink()
    model.save_pretrained("base", max_shard_size="10KB" if sharded else "1GB")


def without(name: str) -> None:
    """What lies in a directory but one file, which is kept beside it."""
    shutil.move(f"base/{name}", f"kept-{Path(name).name}")


def gone(name: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """That a file of base is missing, and that it is there again."""
    return lambda: without(name), move(f"kept-{name}", f"base/{name}")


def little_memory() -> None:
    """As much as a step of base with a window of 16 takes, and no more."""
    vocab_size = Tokenizer.load(Path("t.json")).vocab_size
    model = tiny_config(vocab_size=vocab_size, n_ctx=64).model_dump()
    config = Config().updated("model", **model).updated("data", window=16)
    MEMORY.update(free=int(sum(step_bytes(config)) / USABLE) + 1, judging=0)


def lose_a_shard() -> None:
    """One of the files that the index names lies elsewhere."""
    first, *_ = sorted(Path("base").glob("model-*"))
    Path("kept").mkdir()
    shutil.move(first, "kept")


def fetch_it_whole() -> None:
    """What was lost is there again."""
    for path in Path("kept").iterdir():
        shutil.move(path, "base")


def pickled_by_torch() -> None:
    """The weights of base as pickle, with the names that transformers reads."""
    model = transformers.AutoModelForCausalLM.from_pretrained("base")
    torch.save(model.state_dict(), "base/pytorch_model.bin")
    Path("base/model.safetensors").unlink()


def one_tensor_in_two_shards() -> None:
    """Weights in several files of which two have the first one's tensors; `whole` is base as it was."""
    shutil.copytree("base", "whole")
    saved_by_transformers(sharded=True)
    first, second = sorted(Path("base").glob("model-*"))[:2]
    save_file(load_file(second) | load_file(first), second, {"format": "pt"})


def bpe() -> str:
    """A tokenizer of byte pairs, as its file has it."""
    return json.dumps(json.loads(Tokenizer.train("bpe", [TEXT], 262).to_json()))


def other_weights_in_a_checkpoint() -> None:
    """The weights that a checkpoint of done has are not those that its manifest names."""
    (checkpoint,) = Path("done/checkpoints").glob("step-*")
    tensors(lambda held: held["wte.weight"].mul_(2), str(checkpoint / "model.safetensors"))()


MEMORY: dict[str, int] = {}  # what there is, where a row says it
PUT_BACK = (  # what rows may put something else in the place of
    "tformer.run.checkpoint.shutil.disk_usage",
    "tformer.run.checkpoint.write_new",
    "tformer.run.manifest.FORMAT",
    "tformer.run.manifest.check_regular",
    "tformer.run.token_folders.MOST_TO_SCORE",
    "tformer.text.blocks.BLOCK_CHARACTERS",
    "tformer.text.shards.VERIFIED",
    "tformer.text.workers._workers",
    "tformer.training.opening.State",
)
INDEX = "model.safetensors.index.json"
TOKENIZER = "done/tokenizer.json"
ANOTHER = "leave --resume out and give another --out, to start another run"
RESUME = f"{NEW} --out done --resume"
AGAIN = f"{NEW} --out other"
TOKENS = NEW.replace("--tokenizer char", "--tokenizer t.json").replace("a.txt", "ids.npy")
IDS = NEW.replace("--tokenizer char", "").replace("a.txt", "ids/")
REVERSAL = f"train reversal {SMALL} --steps 1".replace("n_ctx=8", "n_ctx=19")
PASSAGE = '{"text": "of mercy"}\n'
TABLE = "a row,more\n" + "of words,1\n" * 30


def table(name: str, text: str) -> tuple[str, Callable[[], object]]:
    """Training on a table, and its text."""
    return NEW.replace("a.txt", name), write(name, text)


def of_rows(line: str) -> str:
    return '{"text": "to be or not to be"}\n' * 30 + line + "\n"


def holder(name: str) -> tuple[Any, str]:
    """What has that name: a module, or another that it imports, and the name in it."""
    module, _, own = name.rpartition(".")
    return pkgutil.resolve_name(module), own


def instead(name: str, value: object) -> None:
    """Something else in the place of what has that name, until the row is done."""
    assert name in PUT_BACK
    setattr(*holder(name), value)


def fails_once(name: str, error: OSError) -> Callable[[], None]:
    """That a function fails when it is next called."""

    def put() -> None:
        real = getattr(*holder(name))

        def fail(*arguments: Any, **options: Any) -> None:
            instead(name, real)
            raise error

        instead(name, fail)

    return put


def tformer(line: str, stdin: str = "") -> None:
    """A command line, in this process."""
    try:
        app(shlex.split(line), standalone_mode=False)
    finally:
        torch.set_flush_denormal(False)
