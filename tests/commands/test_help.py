"""The help is good enough to learn from, and `examples/guide/help.md` is it."""

import re
from pathlib import Path

import pytest
import typer.main

from tformer.cli import app

PAGE = (Path(__file__).parents[2] / "examples" / "guide" / "help.md").read_text(encoding="utf-8")
RENEW = "renew it: python examples/help.py > examples/guide/help.md"
CONTEXT = typer.Context(typer.main.get_command(app))


def below(group, path):
    """Every command of a group and of the groups in it, by what is typed to get there."""
    found = {}
    for name, command in group.commands.items():
        found[f"{path} {name}"] = command
        found |= below(command, f"{path} {name}") if hasattr(command, "commands") else {}
    return found


ROOT = typer.main.get_command(app)
COMMANDS = below(ROOT, "tformer")
GROUPS = [command for command in (ROOT, *COMMANDS.values()) if hasattr(command, "commands")]


def words(text):
    """Without boxes and line breaks, which are the terminal's."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def section(path):
    """The part of the page that is a command's help."""
    assert f"## {path} --help" in PAGE, RENEW
    return words(PAGE.partition(f"## {path} --help")[2].partition("\n## ")[0])


def own(command):
    """A command's options and arguments, but for --help."""
    return [p for p in command.get_params(CONTEXT) if p.name != "help"]


def names(command):
    """What its options are called."""
    return {o for p in own(command) for o in (*p.opts, *p.secondary_opts)}


def examples(command):
    """The lines below its help."""
    return [line.strip() for line in command.epilog.splitlines()[2:]]


@pytest.mark.parametrize("path", COMMANDS)
def test_the_page_has_every_option_with_its_help_and_no_other(path):
    shown, command = section(path), COMMANDS[path]
    for parameter in own(command):
        said = words(getattr(parameter, "help", None) or "")
        assert said, f"{parameter.name} of {path} has no help"
        assert said in shown, RENEW
    offered = {name for name in names(command) if name.startswith("--")}
    before_examples = shown.partition(" Examples ")[0]
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", before_examples)) - {"--help"}
    assert offered <= mentioned, RENEW
    known = {name for other in COMMANDS.values() for name in names(other)}
    assert mentioned <= known, RENEW
    assert words((command.help or "").partition("\n\n")[0]) in shown, RENEW


@pytest.mark.parametrize("path", COMMANDS)
def test_every_example_names_options_that_exist(path):
    some = examples(COMMANDS[path])
    assert len(some) >= (3 if path.count(" ") == 1 else 2)
    for example in some:
        assert words(example) in section(path), RENEW
        for name, rest in re.findall(r"tformer (\w+)([^|]*)", example):
            used = f"tformer {name}"
            task = re.match(r"\s*(\w+)", rest)
            if task and f"{used} {task[1]}" in COMMANDS:
                used = f"{used} {task[1]}"
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)) <= names(COMMANDS[used])


def test_a_task_speaks_of_itself_alone():
    """In help that several tasks share, the reader has to look for what is said of theirs."""
    tasks = COMMANDS["tformer eval"].commands
    for name, task in tasks.items():
        for parameter in own(task):
            for other in tasks:
                assert not re.search(rf"\b[Ff]or ({other})\b", parameter.help), f"{name} {parameter.name}"


def test_tasks_agree_on_which_options_take_a_value():
    """Where an option stands before its task, its value must not be taken for the task."""
    kinds = {}
    for task in COMMANDS["tformer eval"].commands.values():
        for parameter in own(task):
            kinds.setdefault(parameter.name, set()).add((tuple(parameter.opts), parameter.is_flag))
    assert all(len(kind) == 1 for kind in kinds.values())


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_the_list_of_commands_says_each_in_one_line(group):
    for command in group.commands.values():
        assert len(command.get_short_help_str(limit=200)) <= 88, command.name
