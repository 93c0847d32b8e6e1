"""What a command imports before it does anything: help without torch, tokenizing without it, no compiler."""

import resource
import subprocess
import sys

import pytest

from tests.command import ENVIRONMENT
from tests.command import run as tformer
from tests.commands.conftest import TEXT


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], ["eval", "loss", "--help"]]
    + [[c, "--help"] for c in ("tokenize", "train", "eval", "sample", "answer")],
)
def test_help_answers_without_torch(tmp_path, args):
    code = (
        "import sys, tformer.cli\n"
        f"sys.argv = ['tformer', *{args!r}]\n"
        "try: tformer.cli.main()\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'tokenizers'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_help_is_quick(tmp_path):
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        tformer("--help", cwd=tmp_path, check=0)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.4, "seconds of a processor; other tests run beside this one"


def test_importing_the_package_imports_no_torch():
    code = "import sys, tformer; assert 'torch' not in sys.modules; tformer.load"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tokenize_needs_no_torch(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    tformer("tokenize", "--train", "a.txt", "--tokenizer", "char", "--out", "t.json", cwd=tmp_path, check=0)
    code = (
        "import sys, tformer.cli\n"
        "sys.argv = ['tformer', 'tokenize', 'a.txt', '--tokenizer', 't.json', '--stats']\n"
        "try: tformer.cli.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=ENVIRONMENT)


def test_training_imports_no_compiler(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT * 40)
    small = ["--preset", "list", "--documents", "none", "--steps", "1", "--device", "cpu"]
    args = ["train", "a.txt", *small, "--set", "model.n_ctx=8", "--set"]
    code = (
        "import sys, tformer.cli\n"
        "for optimizer in ('adamw', 'muon'):\n"
        f"    sys.argv = ['tformer', *{args!r}, 'train.optimizer=' + optimizer, '--out', optimizer]\n"
        "    try: tformer.cli.main()\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "    assert 'torch.optim' in sys.modules and 'torch._dynamo' not in sys.modules, optimizer\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=ENVIRONMENT)
    assert (tmp_path / "adamw").is_dir() and (tmp_path / "muon").is_dir()


def test_sampling_imports_no_more_than_it_needs(place):
    code = (
        "import sys, tformer.cli\n"
        "sys.argv = ['tformer', 'sample', 'To', '--max-tokens', '1', '--device', 'cpu']\n"
        "try: tformer.cli.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "dear = {'torch._dynamo', 'rich.markdown', 'matplotlib', 'transformers', 'tformer.show.loss'}\n"
        "assert 'torch' in sys.modules and not dear & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=place, check=True, env=ENVIRONMENT)
