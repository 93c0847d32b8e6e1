"""The house is as it is drawn: who imports whom, where each kind of thing is kept, how long a file may be."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tformer"
DRAWING = (ROOT / "examples" / "guide" / "architecture.md").read_text(encoding="utf-8")
DRAWING = DRAWING.partition("```text\ntformer/\n")[2].partition("```")[0]

# `Transformer.generate` calls the loop in sample.py, late, so that a notebook has it at hand.
CIRCLE = {("model.py", "sample")}

# A question is found by the name of its folder, and its experiments in it.
BY_NAME = {"answer/__init__.py", "answer/investigate.py"}

# What is still to be mended, by the test that would fail. An entry that is no longer so fails as well.
KNOWN: dict[str, set[object]] = {
    "drawn, not there": set(),
    "imports from below": set(),
    "longer than 400 lines": set(),
    "draws outside show": set(),
    "defined twice": set(),
}


def sources() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def name(file: Path) -> str:
    """A module as this file writes it: its path in the package."""
    return file.relative_to(PACKAGE).as_posix()


def drawn() -> dict[str, list[str]]:
    """The rooms in the order in which they are drawn, each with the files (and folders) drawn in it."""
    rooms: dict[str, list[str]] = {}
    for line in DRAWING.splitlines():
        room = re.match(r"  (\w+)(?:\.py|/) ", line)
        if room:
            rooms[room[1]] = []
        else:
            rooms[list(rooms)[-1]] += line.split()
    return rooms


def imported(file: Path) -> set[tuple[str, ...]]:
    """The modules that a file imports, anywhere in it, split at the dots.

    `from a import b` is (a, b): b may be a module or a name of one. Relative imports are refused by ruff.
    """
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(*(node.module or "").split("."), alias.name) for alias in node.names}
    return found


def rooms_used(file: Path) -> set[str]:
    """The rooms of the package that a file imports from."""
    return {parts[1] for parts in imported(file) if parts[0] == "tformer" and parts[1] in drawn()}


def test_the_rooms_are_those_that_are_drawn():
    there = {p.stem if p.is_file() else p.name for p in (*PACKAGE.glob("*.py"), *PACKAGE.glob("*/"))}
    there -= {"__init__", "__main__", "__pycache__"}
    assert set(drawn()) - there == KNOWN["drawn, not there"], "drawn in architecture.md, but not there"
    assert there - set(drawn()) == set(), "draw it in examples/guide/architecture.md"


@pytest.mark.parametrize(
    "room", [room for room in drawn() if (PACKAGE / room).is_dir() and room != "presets"]
)
def test_the_files_of_a_room_are_drawn_and_import_only_from_those_before(room):
    order = drawn()[room]
    there = {p.stem for p in (PACKAGE / room).glob("*.py")} - {"__init__"}
    there |= {p.name for p in (PACKAGE / room).glob("*/") if (p / "__init__.py").exists()}
    assert sorted(order) == sorted(there), "draw it in examples/guide/architecture.md"
    for i, part in enumerate(order):
        one = PACKAGE / room / f"{part}.py"
        for file in [one] if one.exists() else sorted((PACKAGE / room / part).rglob("*.py")):
            used = {p[2] for p in imported(file) if p[:2] == ("tformer", room) and len(p) > 2}
            assert used & set(order[i + 1 :]) == set(), f"{name(file)} imports from what is drawn after it"


def test_no_files_import_each_other_in_a_circle():
    modules = {("tformer", *p.relative_to(PACKAGE).with_suffix("").parts): p for p in sources()}
    waiting = {
        name(file): {name(modules[q]) for p in imported(file) for q in (p, p[:-1]) if q in modules}
        - {f"{to}.py" for room, to in CIRCLE if room == name(file)}
        for file in modules.values()
    }
    while free := {module for module, needs in waiting.items() if not needs & set(waiting)}:
        waiting = {module: needs for module, needs in waiting.items() if module not in free}
    assert not waiting, "in a circle, or importing one that is"


def test_a_file_imports_only_from_rooms_above_it():
    place = {room: i for i, room in enumerate(drawn())}
    below = {
        (name(file), room)
        for file in sources()
        if (own := file.relative_to(PACKAGE).parts[0].removesuffix(".py")) in place
        for room in rooms_used(file)
        if place[room] > place[own]
    }
    assert below - CIRCLE == KNOWN["imports from below"]
    assert below >= CIRCLE


def test_no_module_is_imported_by_its_name_as_text():
    """What is imported so is seen neither by these tests nor by a type checker."""
    found = {name(p) for p in sources() if "import_module(" in p.read_text(encoding="utf-8")}
    assert found == BY_NAME


def test_no_file_is_longer_than_400_lines():
    long = {name(p) for p in sources() if len(p.read_text(encoding="utf-8").splitlines()) > 400}
    assert long == KNOWN["longer than 400 lines"], "a file that is not read in one sitting is two nouns"


def test_ruff_formats_everything_but_a_dozen_tables_of_numbers():
    skips = [skip for p in sources() for skip in re.findall(r"# fmt: ?(?:skip|off)", p.read_text("utf-8"))]
    assert len(skips) <= 12


def test_only_show_draws():
    draws = {
        name(file)
        for file in sources()
        if file.parent != PACKAGE / "show" and {p[0] for p in imported(file)} & {"rich", "matplotlib"}
    }
    assert draws == KNOWN["draws outside show"], "what a person sees is made in tformer/show/"


def test_only_the_app_prints_errors_and_chooses_the_exit_code():
    for file in sources():
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        texts = [
            node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        prints = any("tformer: error" in text for text in texts)
        ends = calls & {"exit", "sys.exit", "SystemExit"}
        assert name(file) == "cli.py" or not (ends or prints), f"{name(file)}: raise an error of errors.py"


def test_an_init_imports_nothing_so_that_a_module_costs_itself_alone():
    """But answer's, which lists the questions, and the package's own, which finds `load` when asked."""
    for file in sources():
        if file.name == "__init__.py" and file.parent not in (PACKAGE, PACKAGE / "answer"):
            assert not imported(file), name(file)


def test_the_tests_have_the_same_folders():
    folders = {p.parent.relative_to(ROOT / "tests").as_posix() for p in (ROOT / "tests").rglob("test_*.py")}
    rooms = {room for room in drawn() if (PACKAGE / room).is_dir() and room != "presets"}
    assert folders - {"."} == rooms | {"examples", "faults"}


# ---------------------------------------------------------------------------- names

# What every question has, or every command, or page; and what is always called by its module's name.
SEVERAL = {
    "EXAMPLES",
    "EXPERIMENTS",
    "SLUG",
    "CSS",
    "app",
    "command",
    "markdown",  # page.markdown, terminal.markdown
    "table",  # page.table, terminal.table
}


def defined(file: Path) -> set[str]:
    """The public names that a module defines at its top: classes, functions, constants, aliases."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def test_a_public_name_is_defined_once():
    """A name that stands for two things in two files is found twice by whoever looks for one."""
    places: dict[str, set[str]] = {}
    for file in sources():
        for word in defined(file):
            places.setdefault(word, set()).add(name(file))
    again = {word for word, files in places.items() if len(files) > 1 and word not in SEVERAL}
    assert again == KNOWN["defined twice"], "another name, or import the one that there is"
