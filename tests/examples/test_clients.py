"""The recipes of the guide for other tools run as they stand, on both layouts, where a tool is installed."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tformer.cli import app

EXAMPLES = Path(__file__).parents[2] / "examples"
PAGE = EXAMPLES.joinpath("guide", "clients.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", PAGE, re.M | re.S))
BLOCK, SHELL = (re.compile(rf"^```{kind} by hand\n(.*?)^```", re.M | re.S) for kind in ("python", "sh"))
RECIPES = {name: "\n".join(BLOCK.findall(text)) for name, text in SECTIONS.items()}
LINES = {name: "".join(SHELL.findall(text)) for name, text in SECTIONS.items()}
OF_LINES = {"lm-evaluation-harness": "lm_eval", "mlx-lm": "mlx_lm", "llama.cpp": "llama_cpp"}  # modules
ROWS = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\| .*\|$", PAGE, re.M)[1:]]
LAYOUTS = ("gpt2", "nanochat")
TAKEN = {"equal", "works"}
TEXT = "The mask hides what comes later. A head looks at what came before.\n"


def row_of(heading):
    """The row of the table that leads to a recipe."""
    anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    (row,) = [row for row in ROWS if f"(#{anchor})" in row[0]]
    return row


def test_the_table_says_one_of_a_few_things_of_each_layout():
    assert len(ROWS) > 15
    assert {cell for row in ROWS for cell in row[2:4]} <= TAKEN | {"refused", "unsupported", "not tried"}


def test_every_recipe_is_a_short_program_with_a_row_of_the_table():
    for name, code in RECIPES.items():
        assert row_of(name)
        compile(code, name, "exec")
        assert len(code.splitlines()) <= 20, name


def test_every_recipe_of_the_shell_says_what_it_needs():
    assert {name for name, lines in LINES.items() if lines} == set(OF_LINES)
    assert not any("http" in lines or "lambada" in lines for lines in LINES.values()), "nothing is fetched"


@pytest.fixture(scope="module", params=LAYOUTS)
def place(request, tmp_path_factory):
    """A layout, and a folder with a run of it under the name that the recipes have for it."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "answers.txt").write_text(TEXT * 40)
    options = ["--steps", "2", "--tokenizer", "bpe", "--device", "cpu", "--precision", "fp32"]
    sizes = {"n_layers": 1, "d_model": 32, "n_heads": 2, "n_ctx": 64, "family": request.param}
    for setting in ("data.vocab_size=290", *(f"model.{key}={value}" for key, value in sizes.items())):
        options += ["--set", setting]
    out = str(folder / "runs" / "answers")
    app(["train", str(folder / "answers.txt"), *options, "--out", out], standalone_mode=False)
    torch.set_flush_denormal(False)  # the command sets it, for its process
    return request.param, folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, code in RECIPES.items() if code])
def test_a_recipe_runs(place, name):
    layout, folder = place
    if row_of(name)[2 + LAYOUTS.index(layout)] not in TAKEN:
        pytest.skip("the tool does not take this layout")
    code = RECIPES[name]
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            if importlib.util.find_spec(str(module).partition(".")[0]) is None:
                pytest.skip(f"{module} is not installed")
    (folder / "recipe.py").write_text(code)
    run_in(folder, [sys.executable, "recipe.py"])


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_LINES)
def test_a_recipe_of_the_shell_runs(place, name):
    layout, folder = place
    if row_of(name)[2 + LAYOUTS.index(layout)] not in TAKEN:
        pytest.skip("the tool does not take this layout")
    if importlib.util.find_spec(OF_LINES[name]) is None:
        pytest.skip(f"{OF_LINES[name]} is not installed")
    if not (folder / "examples").exists():
        (folder / "examples").symlink_to(EXAMPLES)
    run_in(folder, ["sh", "-ec", LINES[name]])


def run_in(folder, command):
    """A command, with what is installed beside this Python, and without a network."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "PATH": path}
    done = subprocess.run(command, cwd=folder, env=os.environ | offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
