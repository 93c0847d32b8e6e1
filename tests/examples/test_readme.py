"""The README and the guide are true: commands run, all settings are there, links lead somewhere."""

import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from tformer import __version__
from tformer.config import Config
from tformer.layers import preset_names

ROOT = Path(__file__).parents[2]
PAGES = {  # in the order in which their commands run: the guide works on the README's runs
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "examples" / "guide").glob("*.md")))
}
README, SETTINGS = PAGES["README.md"], PAGES["examples/guide/configuration.md"]
LOG = (ROOT / "examples" / "benchmarks" / "LOG.md").read_text(encoding="utf-8")
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", ".github/CONTRIBUTING.md"))]
DOCUMENTS += sorted((ROOT / "examples").rglob("*.md"))

RUN = "sh"
NOT_RUN = {"sh setup", "sh network", "sh by hand", "python by hand"}  # the last in test_clients.py
SHOWN = {"text", "python"}


# In as many folders, which several workers share: a block belongs to the first of these whose pattern it has.
CHAINS = {
    "the run on reversal": "reversal",
    "names": "names",
    "other runs on the answers": r"--out runs/|runs/patient|--estimate",
    "the run on the answers": "",
}
BEFORE = {"other runs on the answers": "tformer answer all --prose > answers.txt"}


def blocks(language, chain):
    """The fenced blocks of exactly this language, of all pages, that belong to a chain."""
    found = re.findall(rf"^```{language}\n(.*?)^```", "\n".join(PAGES.values()), re.M | re.S)
    return [
        b for b in found if next(name for name, pattern in CHAINS.items() if re.search(pattern, b)) == chain
    ]


@pytest.mark.slow
@pytest.mark.timeout(580)
@pytest.mark.parametrize("chain", CHAINS)
def test_the_commands_that_need_no_network_run(chain, tmp_path):
    """Those of the README and of every page of the guide."""
    script = "\n".join(["set -eo pipefail", BEFORE.get(chain, ""), *blocks(RUN, chain)])
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, args in (("tformer", "-m tformer"), ("python3", "")):
        (binaries / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {args} "$@"\n')
        (binaries / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TFORMER_")} | {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "TFORMER_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=570
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if chain == "the run on reversal":
        assert "abcdefghijjihgfedcba" in done.stdout, "it reverses"
    for code in blocks("python", chain):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    fences = re.findall(r"^```(.*)$", PAGES[page], re.M)
    assert set(fences[::2]) <= {RUN} | NOT_RUN | SHOWN
    assert set(fences[1::2]) <= {""}


def settings_table():
    """The table of settings as the guide has it."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for section, section_field in Config.model_fields.items():
        for key, field in section_field.annotation.model_fields.items():
            choices = typing.get_args(field.annotation)
            parts = [", ".join(f"`{choice}`" for choice in choices), field.description or ""]
            rows.append(f"| `{section}.{key}` | {field.default} | {'; '.join(p for p in parts if p)} |")
    return "\n".join(rows)


def test_the_settings_are_all_there_with_their_defaults():
    table = SETTINGS.partition("## Settings\n\n")[2].partition("\n\n")[0]
    assert table == settings_table(), "renew it: python -m tests.examples.test_readme"


def test_every_preset_is_named():
    for name in preset_names():
        assert f"`{name}`" in SETTINGS


def test_every_variable_of_our_own_is_named_and_no_other():
    package = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tformer").rglob("*.py"))
    used = set(re.findall(r"TFORMER_[A-Z]+", package))
    assert used == set(re.findall(r"^\| `(TFORMER_[A-Z]+)`", SETTINGS, re.M))


def test_the_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 250


def test_every_figure_of_the_readme_is_in_the_log_of_measurements():
    figures = set(re.findall(r"\d+\.\d{2,}", README.replace("Python 3.11", "")))
    assert figures and not figures - set(re.findall(r"\d+\.\d{2,}", LOG))


def test_the_changelog_begins_with_the_version_of_the_package():
    sections = re.findall(
        r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M
    )
    assert sections[0] == __version__
    assert sections == sorted(set(sections), key=lambda v: [int(n) for n in v.split(".")], reverse=True)


def anchors(path):
    """The headings of a Markdown file as GitHub names them in links."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:", target):
            path, _, anchor = target.partition("#")
            there = (document.parent / path).resolve() if path else document
            assert there.exists() and there.is_relative_to(ROOT), target
            assert not anchor or anchor in anchors(there), target
    for path in re.findall(r"`((?:tformer|tests|examples|\.ci|\.github)/[\w./-]*)`", text):
        assert (ROOT / path).exists() or document.name == "CHANGELOG.md", path


if __name__ == "__main__":
    print(settings_table())
