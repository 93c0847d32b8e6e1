"""The help is good enough to learn from, and `examples/guide/help.md` is it."""

import re
from pathlib import Path

import pytest
import typer.main

from tformer.cli import app
from tformer.commands import answer, eval, sample, tokenize, train

PAGE = (Path(__file__).parents[2] / "examples" / "guide" / "help.md").read_text(encoding="utf-8")
GROUP = typer.main.get_command(app)
MODULES = {"tokenize": tokenize, "train": train, "eval": eval, "sample": sample, "answer": answer}
RENEW = "renew it: python examples/help.py > examples/guide/help.md"


def words(text):
    """Without boxes and line breaks, which are the terminal's."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def section(command):
    """The part of the page that is a command's help."""
    return words(PAGE.partition(f"## tformer {command} --help")[2].partition("\n## ")[0])


def own(command):
    """A command's options and arguments, but for --help."""
    return [p for p in GROUP.commands[command].params if p.name != "help"]


@pytest.mark.parametrize("command", MODULES)
def test_the_page_has_every_option_with_its_help_and_no_other(command):
    shown = section(command)
    for parameter in own(command):
        said = words(getattr(parameter, "help", None) or "")
        assert said, f"{parameter.name} of {command} has no help"
        assert said in shown, RENEW
    offered = {o for p in own(command) for o in (*p.opts, *p.secondary_opts) if o.startswith("--")}
    before_examples = shown.partition(" Examples ")[0]
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", before_examples)) - {"--help"}
    assert offered <= mentioned, RENEW
    known = {o for c in MODULES for p in own(c) for o in (*p.opts, *p.secondary_opts)}
    assert mentioned <= known, RENEW
    assert words((GROUP.commands[command].help or "").partition("\n\n")[0]) in shown, RENEW


@pytest.mark.parametrize("command", MODULES)
def test_every_example_names_options_that_exist(command):
    examples = MODULES[command].EXAMPLES
    assert len(examples) >= 3
    for example in examples:
        assert words(example) in section(command), RENEW
        for name, rest in re.findall(r"tformer (\w+)([^|]*)", example):
            offered = {o for p in own(name) for o in (*p.opts, *p.secondary_opts)}
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)) <= offered


def test_the_list_of_commands_says_each_in_one_line():
    for command in GROUP.commands.values():
        assert len(command.get_short_help_str(limit=200)) <= 88, command.name
