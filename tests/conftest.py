"""The tiny models and runs that the tests share, and where the texts for trying are, if they are there."""

import gc
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("COLUMNS", None)  # pytest-xdist's, not that of whoever reads the output

import hypothesis
import pytest
import torch
from rich.console import Console

from tformer.config import Config, ModelConfig
from tformer.figures import Bars, Heat, Lines
from tformer.model import Transformer
from tformer.run.checkpoint import Run
from tformer.run.record import Record
from tformer.text.tokenizer import Tokenizer

torch.set_num_threads(1)  # tests run side by side
gc.disable()  # while tests are collected: what they import stays
hypothesis.settings.register_profile("tests", deadline=None)  # an example is slow where the machine is busy
hypothesis.settings.load_profile("tests")

TINY = {"vocab_size": 23, "n_ctx": 16, "n_layers": 2, "n_heads": 2, "d_model": 16}
PICTURE = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>\n'
MEMORY = Path("/dev/shm")  # of Linux: a file system on no disk
SHARED = Path(__file__).parents[2] / "shared" / "data"

# A run that is saved pushes a dozen files to the disk, and a test waits for each.
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4e9:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_finish() -> None:
    """Look for garbage among what comes from here on, and not in all that was imported."""
    gc.freeze()
    gc.enable()


def tiny_config(**changes: object) -> ModelConfig:
    """A configuration of a model that a test can afford."""
    return ModelConfig.model_validate(TINY | changes)


def tiny_model(seed: int = 0, std: float = 0.3, **changes: object) -> Transformer:
    """A tiny model in eval mode whose every parameter is random: nothing is hidden by a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(tiny_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std, generator=generator)
    return model.eval()


def save_run(
    folder: Path,
    model: Transformer,
    tokenizer: Tokenizer,
    data: dict[str, object] | None = None,
    record: Record | None = None,
) -> Path:
    """A run directory of this model; `data` are its settings of that name."""
    config = Config().updated("model", **model.config.model_dump()).updated("data", **(data or {}))
    run = Run(folder)
    run.write_identity(config, tokenizer)
    run.write_weights(model)
    run.write_record(config, record or Record())
    run.close()
    return folder


def printed(show: Callable[..., object], *args: object, **options: Any) -> str:
    """What a function that shows something shows, on a console of these options."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=options.pop("encoding", "utf-8"))
    show(*args, Console(file=stream, **options))
    stream.seek(0)
    return stream.read()


FAMILIES = (
    {"family": "gpt2"},
    {"family": "gpt2", "positions": "sinusoidal", "bias": False, "activation": "gelu", "tied": False},
    {"family": "nanochat"},
    {"family": "nanochat", "n_heads": 4, "n_kv_heads": 2, "tied": True, "logit_softcap": 0.0},
)


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """`train` flushes them, for its process; a command that a test runs in its own leaves none changed."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True, scope="module")
def _undrawn(request: pytest.FixtureRequest) -> Iterator[None]:
    """No figure is drawn, nor made, most of a tiny run's time, but where somebody looks at it or its data."""
    drawn, figured = (request.node.get_closest_marker(name) for name in ("drawn", "figured"))
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr("tformer.show.svg.rendered", lambda canvas, kind="svg", **options: PICTURE)
        if not drawn and not figured:
            made = dict.fromkeys((Lines, Bars, Heat), lambda figure: None)
            patch.setattr("tformer.show.svg._DRAW", made)
            patch.setattr("tformer.show.training.loss_svg", lambda metrics, title: PICTURE.decode())
        yield


def needs_nanochat() -> None:
    """Skip where transformers has no nanochat: before version 5, which is tested for gpt2."""
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip(f"transformers {transformers.__version__} has no nanochat")


@pytest.fixture(params=FAMILIES, ids=["gpt2", "gpt2-sinusoidal", "nanochat", "nanochat-gqa"])
def model(request: pytest.FixtureRequest) -> Transformer:
    """One tiny model of each kind."""
    return tiny_model(**request.param)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that transformers saved: GPT-2 of random weights, a BPE tokenizer, passages."""
    from tests.passages import save_theirs

    return save_theirs(tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="session")
def shakespeare() -> str:
    """The complete works, cleaned; skips where the file is not at hand."""
    from tformer.text.corpus import clean_gutenberg

    path = SHARED / "shakespeare-pg100.txt"
    if not path.exists():
        pytest.skip("the complete works are not beside this checkout")
    return clean_gutenberg(path.read_text(encoding="utf-8"))
