"""Only show/ writes HTML; and there, a page needs no terminal."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tformer"
WRITES_HTML = {"markdown_it", "html"}


def imported(path):
    """The modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_show_writes_html():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "show":
            seen = {name.partition(".")[0] for name in imported(path)} & WRITES_HTML
            assert not seen, f"{path.relative_to(PACKAGE)} imports {seen}"


def uses(name, seen=()):
    """Whether a module of show/, or one that it imports from there, imports rich."""
    modules = set(imported(PACKAGE / "show" / f"{name}.py"))
    others = {m.split(".")[2] for m in modules if m.startswith("tformer.show.")} - {name, *seen}
    return any(m.partition(".")[0] == "rich" for m in modules) or any(
        uses(other, (*seen, name)) for other in others if (PACKAGE / "show" / f"{other}.py").exists()
    )


@pytest.mark.parametrize("name", ["page", "loss_page", "run_page", "answer_page", "svg", "words", "colours"])
def test_a_page_needs_no_terminal(name):
    assert not uses(name)
    assert uses("loss"), "or this says nothing"
