"""`tformer` in a copy of this process: its own streams, environment, signals and exit code.

The copy has imported what it needs, which takes a new process most of a test's time. A new process has what
a start is the subject of: imports, the system's encodings, a second interpreter in a shell's line.
"""

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tests.faults.kill import load
from tformer.signals import ENDING

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("TFORMER_")} | {
    "OMP_NUM_THREADS": "1",
    "NO_COLOR": "1",
    "COLUMNS": "100",
}


def start(
    arguments: Sequence[str],
    cwd: Path,
    env: Mapping[str, str] = ENVIRONMENT,
    fresh: bool = False,
    prepare: Callable[[], object] = lambda: None,
    **options: Any,
) -> subprocess.Popen:
    """`tformer ARGUMENTS` with this environment; the options are those of Popen.

    `prepare` is called in the copy first, and may be all. `fresh` is a new process, which starts Python.
    """
    if fresh:
        return subprocess.Popen([sys.executable, "-m", "tformer", *arguments], cwd=cwd, env=env, **options)
    load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12, that the runner has threads
        return subprocess.Popen(
            [sys.executable],  # not what is run
            cwd=cwd,
            preexec_fn=partial(_become, list(arguments), dict(env), prepare),  # which does not come back
            **options,
        )


def run(
    *arguments: str,
    cwd: Path,
    stdin: str | bytes = "",
    check: int | None = None,
    env: Mapping[str, str] | None = None,
    binary: bool = False,
    **how: Any,
) -> subprocess.CompletedProcess:
    """The same, waited for; `check` is the exit code that must come; `env` is added to the environment."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with start(arguments, cwd, ENVIRONMENT | (env or {}), **how, **pipes, text=not binary) as process:
        try:
            out, err = process.communicate(stdin or None, timeout=120)
        except BaseException:
            process.kill()
            raise
    if check is not None:
        assert process.returncode == check, err
    return subprocess.CompletedProcess(["tformer", *arguments], process.returncode, out, err)


def _become(arguments: list[str], env: dict[str, str], prepare: Callable[[], object]) -> NoReturn:
    code = 99
    try:
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the runner's; one of them tells Popen that it has begun
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)  # the runner may be in the background
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python has it, and Popen does not
        os.environ.clear()
        os.environ.update(env)
        sys.argv = ["tformer", *arguments]
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
        from tformer.__main__ import program

        try:
            prepare()
            program()
        except SystemExit as ended:
            code = int(ended.code or 0)
    finally:
        os._exit(code)
