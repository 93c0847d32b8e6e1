"""The README is true: its commands run, its settings are all of them."""

import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from tformer.config import Config, preset_names

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(*languages):
    """The fenced blocks of exactly these languages."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", README, re.M | re.S)


@pytest.mark.timeout(580)
@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_commands_that_need_no_network_run(tmp_path, all_of_them):
    script = "\n".join(["set -eo pipefail", *blocks(*(["sh", "sh slow"] if all_of_them else ["sh"]))])
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, args in (("tformer", "-m tformer"), ("python3", "")):
        (binaries / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {args} "$@"\n')
        (binaries / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TFORMER_")} | {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "TFORMER_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=570
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "abcdefghijjihgfedcba" in done.stdout, "the run on reversal reverses"
    for code in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr[-3000:]


def settings_table():
    """The table of settings as the README has it."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for section, section_field in Config.model_fields.items():
        for key, field in section_field.annotation.model_fields.items():
            choices = typing.get_args(field.annotation)
            parts = [", ".join(f"`{choice}`" for choice in choices), field.description or ""]
            rows.append(f"| `{section}.{key}` | {field.default} | {'; '.join(p for p in parts if p)} |")
    return "\n".join(rows)


def test_the_settings_are_all_there_with_their_defaults():
    assert settings_table() in README


def test_every_preset_is_named():
    for name in preset_names():
        assert f"`{name}`" in README
