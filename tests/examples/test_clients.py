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

PAGE = Path(__file__).parents[2].joinpath("examples", "guide", "clients.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", PAGE, re.M | re.S))
BLOCK = re.compile(r"^```python by hand\n(.*?)^```", re.M | re.S)
RECIPES = {name: "\n".join(BLOCK.findall(text)) for name, text in SECTIONS.items()}
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
    assert {cell for row in ROWS for cell in row[2:4]} <= TAKEN | {"refused", "not there", "not tried"}


def test_every_recipe_is_a_short_program_with_a_row_of_the_table():
    for name, code in RECIPES.items():
        assert row_of(name)
        compile(code, name, "exec")
        assert len(code.splitlines()) <= 20, name


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
    offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    command = [sys.executable, folder / "recipe.py"]
    command[1].write_text(code)
    done = subprocess.run(command, cwd=folder, env=os.environ | offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
