"""The run that the experiments interrupt, damage and starve: about a thousand parameters, six steps."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from tests.faults.kill import run
from tformer.cli import app
from tformer.run.manifest import manifest_hash

ChangeOfState = Callable[[dict[str, Tensor], dict[str, Any]], object]  # of optimizers, and where it stands
TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 10
SETTINGS = {
    "model.n_layers": 1,
    "model.n_heads": 1,
    "model.d_model": 8,
    "model.n_ctx": 8,
    "model.dropout": 0.1,
    "train.warmup_steps": 1,
    "train.log_every": 1,
    "train.eval_every": 2,
    "train.checkpoint_every": 2,
}
TRAIN = ["train", "text.txt", "--out", "run", "--device", "cpu", "--precision", "fp32", "--no-compile"]
TRAIN += ["--tokenizer", "char", "--batch-size", "2", "--steps", "6"]
TRAIN += [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
ANOTHER = [*TRAIN, "--seed", "5"]  # an older run that is overwritten
SAMPLE = ["sample", "--run", "run", "T", "--max-tokens", "2", "--device", "cpu"]
EVAL = ["eval", "loss", "--run", "run", "--device", "cpu", "--json"]


def place(folder: Path) -> Path:
    """A folder with a text."""
    folder.mkdir()
    (folder / "text.txt").write_text(TEXT)
    return folder


def trained(folder: Path, *commands: Sequence[str]) -> Path:
    """A folder with a text, and what these commands leave there."""
    with chdir(place(folder)):
        for words in commands:
            app([*words], standalone_mode=False)
    return folder


def lines_of(folder: Path) -> list[dict[str, object]]:
    """The metrics of a run, but for their times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def sha256(path: Path) -> str:
    """ "" where there is no such file."""
    if not path.exists():
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state(folder: Path) -> tuple[object, ...]:
    """What must not depend on whether it was interrupted: weights, the newest checkpoint, and metrics."""
    newest = max((folder / "checkpoints").iterdir())
    files = [folder / "model.safetensors", *sorted(newest.glob("*.safetensors"))]
    return lines_of(folder), newest.name, [sha256(path) for path in files]


def left_behind(folder: Path) -> list[str]:
    """Temporary files and folders of tformer's."""
    return [str(p.relative_to(folder)) for p in folder.rglob(".t*")]


def checkpoints(run: Path) -> list[Path]:
    """Those that a resumed training would take, the oldest first; by name alone."""
    return sorted((run / "checkpoints").glob("step-*"))


def damaged(run: Path, kept: int = 2) -> list[str]:
    """What is wrong with the newest checkpoints by their own manifests, read here without the package.

    Older ones than those that are kept may be on their way out, and all of a run that gives way to another.
    """
    if (run / ".tformer-run").exists():
        return []
    return [problem for path in checkpoints(run)[-kept:] if (problem := _damage(path))]


def _damage(checkpoint: Path) -> str:
    try:
        files = json.loads((checkpoint / "manifest.json").read_bytes())["files"]
        for name in ("model.safetensors", "optimizer.safetensors"):
            data = (checkpoint / name).read_bytes()
            if (len(data), hashlib.sha256(data).hexdigest()) != (files[name]["bytes"], files[name]["sha256"]):
                return f"{checkpoint.name}/{name} is not what the manifest says"
    except (OSError, ValueError, KeyError) as error:
        return f"{checkpoint.name}: {error!r}"
    return ""


def edited(
    checkpoint: Path,
    change: Callable[[dict[str, Tensor], dict[str, Any]], object] | None = None,
    **values: Any,
) -> None:
    """Another checkpoint, with the hashes that it takes, in the place of one.

    `change` is given the optimizer state and where training stands, `values` those of the manifest that are
    others; what is None is left out.
    """
    manifest = json.loads((checkpoint / "manifest.json").read_text()) | values
    manifest = {key: value for key, value in manifest.items() if value is not None}
    if change:
        path = checkpoint / "optimizer.safetensors"
        tensors = safetensors.torch.load_file(path)
        change(tensors, manifest["state"])
        path.write_bytes(safetensors.torch.save(tensors))
        manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest["sha256"] = manifest_hash(manifest)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def no_pictures() -> None:
    """For a copy of this process whose pictures nobody looks at: they take half of its time."""
    from tformer.show import run_page, training

    def empty(*args: object, **options: object) -> str:
        return "<svg/>"

    training.loss_svg = run_page.run_html = empty


def made(folder: Path) -> tuple[Path, dict[str, tuple[object, ...]]]:
    """A new folder with the older run, and what both runs come to when nothing interrupts them."""
    here, ends = place(folder), {}
    for name, command in (("new", TRAIN), ("old", ANOTHER)):
        shutil.rmtree(here / "run", ignore_errors=True)
        code, said = run(command, here, prepare=no_pictures)
        assert code == 0, said
        ends[name] = state(here / "run")
    return here, ends
