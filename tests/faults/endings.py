"""A command that is told to end at every so manyth moment of its life, each time in a copy of its process.

A moment is an import, or a call of a function. What a copy does is written down: the signal that it got, the
code that it ended with, and what it said after that. Nothing that a copy may still write is shared: it has a
folder of its own.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 20  # seconds after which a copy is killed

TOLD = """
import json, os, runpy, shutil, signal, sys

SIGNALS, PATIENCE, EVERY, LOG, KIND = {signals!r}, {patience}, {every}, {log!r}, {kind!r}
moments = 0


def moment(what):
    global moments
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ours yet
        return
    moments += 1
    if moments % EVERY:
        return
    number = SIGNALS[moments // EVERY % len(SIGNALS)]
    said = LOG + ".said"
    child = os.fork()
    if child == 0:
        if KIND == "call":
            sys.setprofile(None)
        else:
            sys.meta_path.remove(watching)
        here = os.getcwd() + ".copy"
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(os.getcwd(), here)
        os.chdir(here)
        to = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(to, 2)
        signal.alarm(PATIENCE)
        os.kill(os.getpid(), number)
        return
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(said, errors="replace") as file, open(LOG, "a") as log:
        print(json.dumps([moments, what, number, code, file.read()]), file=log)


class Watching:
    def find_spec(self, name, path=None, target=None):
        moment(name)


def called(frame, event, argument):
    if event == "call":
        moment(frame.f_code.co_qualname + " in " + frame.f_code.co_filename)


watching = Watching()
sys.argv = ["tformer", *{arguments!r}]
if KIND == "call":
    sys.setprofile(called)
else:
    sys.meta_path.insert(0, watching)
runpy.run_module("tformer", run_name="__main__")
"""


@dataclass(frozen=True)
class Ending:
    """How a copy ended."""

    moment: int
    what: str
    signal: int
    code: int  # negative where a signal of the system's ended it
    said: str

    def is_silent(self) -> bool:
        """As the contract has it: 128 + the signal, and not a word."""
        return self.code == 128 + self.signal and not self.said

    def is_told_that_it_is_finished(self) -> bool:
        """Of a training whose steps are taken: it draws and saves what is left, and then says so."""
        last = self.said.rstrip().rpartition("\n")[2]
        return self.code == 128 + self.signal and last.endswith("is finished: there is nothing to resume")


def endings(arguments: list[str], cwd: Path, kind: str, every: int = 1) -> list[Ending]:
    """What becomes of the copies of `tformer ARGUMENTS` that are told to end, at imports or at calls."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TFORMER_")}
    with TemporaryDirectory() as folder:
        log = Path(folder, "log")
        values = {"signals": [int(n) for n in SIGNALS], "patience": PATIENCE, "every": every}
        code = TOLD.format(**values, log=str(log), kind=kind, arguments=arguments)
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=cwd,
            env=clean | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=True,
            preexec_fn=_reset,
        )
        return [Ending(*json.loads(line)) for line in log.read_text().splitlines()]


def _reset() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
