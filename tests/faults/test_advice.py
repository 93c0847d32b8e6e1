"""What an error advises is done here, and is enough.

A row makes something wrong, takes the advice from the line that says so, and does that: the same command
then goes through. Every error of the package that advises something has a row, or is said to be followed
elsewhere.
"""

import ast
import io
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tformer as package
from tests.conftest import save_run, tiny_model
from tests.faults.advised import checkpoints, ids, models, runs, texts, tokenizing, using
from tests.faults.advised.following import MEMORY, NEW, PUT_BACK, TEXT, holder, tformer
from tformer.errors import TformerError
from tformer.text.shard_writer import DIFFERENT
from tformer.text.tokenizer import Tokenizer

TESTS, PACKAGE = Path(__file__).parents[1], Path(package.__file__).parent
OF = (checkpoints, ids, models, runs, texts, tokenizing, using)
ROWS = [row for rows in OF for row in rows.ROWS]
ERRORS = ("RequestError", "TformerError", "OtherRunError", "_NoConfigError", "super().__init__")


def advised() -> list[tuple[str, str]]:
    """Each error of the package that advises something: its place, and a pattern of what it advises."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        for function, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            if ast.unparse(call.func) in ERRORS and len(call.args) > 2:
                found.append((f"{module} {function}", pattern(call.args[2])))
    return found


def calls(node: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Each call in a program, with the function that it is in."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield function, child
        yield from calls(child, child.name if isinstance(child, ast.FunctionDef) else function)


def pattern(advice: ast.expr) -> str:
    """Of an advice: what stands there to the letter, and anything where it is put together."""
    if isinstance(advice, ast.Constant):
        return re.escape(advice.value)
    if isinstance(advice, ast.JoinedStr):
        return "".join(pattern(part) for part in advice.values)
    return ".+"


MERGE = "AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(NEW)"
ELSEWHERE = {  # by the test that follows them: where they are given, and an advice as it may be
    ("test_files.py", "test_a_writer_that_fails_leaves_what_was_there_and_nothing_else"): [
        ("files.py cannot_write", "what was there is unharmed"),
    ],
    ("run/test_hub.py", "test_what_is_advised_of_the_hub_is_enough"): [
        ("run/hub.py _explained", "look at its spelling; for a private one: hf auth login"),
        ("run/hub.py _explained", "ask for it at huggingface.co/my/gated, then: hf auth login"),
        ("run/hub.py _explained", "name a model"),
        ("run/hub.py _unreachable", "try again; what was fetched is kept"),
        ("run/hub.py fetch", "save it as safetensors"),
        ("run/hub.py fetched", "fetch it again: hf download org/name --revision 1"),
    ],
    (
        "text/test_plain.py",
        "test_what_is_packed_or_in_another_encoding_is_read_by_the_line_that_the_error_gives",
    ): [
        ("text/plain.py _not_utf8", "if it is in another encoding, convert it: iconv"),
        ("text/plain.py refuse_other_than_text", "make text of it: zcat poem.gz > poem.txt"),
    ],
    ("text/test_plain.py", "test_standard_input_is_read_through_the_filter_that_the_error_gives"): [
        ("text/plain.py refuse_other_than_text", "save it as a file, and then: unzip -p FILE > TEXT.txt"),
    ],
    ("training/test_ranks.py", "test_what_several_are_told_to_do_instead_is_enough"): [
        ("commands/train.py command", "--gpus N plans for them"),
        ("training/plan.py _check_ranks", "--batch-size 8"),
        ("training/plan.py plan_training", "save it as a file"),
        ("training/plan.py _check_ranks", "say how many --steps"),
        ("ranks.py own_device", "lower --nproc-per-node"),
    ],
    ("training/test_ranks.py", "test_a_restart_goes_on_from_the_last_checkpoint"): [
        ("ranks.py __init__", "what it said says why; --resume goes on"),
    ],
    ("training/test_ranks.py", "test_two_processes_train_what_one_trains"): [
        ("ranks.py ranks_of_torchrun", "start it with torchrun"),
        ("training/following.py follow", "train with --no-compile"),
    ],
    ("training/test_ranks.py", "test_processes_with_other_texts_are_told_to_have_the_same"): [
        ("training/following.py follow", "give each machine the same files"),
    ],
    (
        "training/test_budget.py",
        "test_too_short_a_time_is_refused_with_one_that_is_enough_and_nothing_is_written",
    ): [
        ("training/budget.py choose_steps", "give at least --minutes 0.5, or a smaller model"),
    ],
    (
        "commands/test_usage_errors.py",
        "test_a_setting_that_is_given_as_an_option_is_told_as_one_that_works",
    ): [
        ("commands/train.py parse_args", "--set data.vocab_size=512"),
    ],
    ("run/test_pretrained.py", "test_reversal_goes_on_with_the_same_task_alone"): [
        (
            "run/data.py prepare_data",
            "data.reversal_symbols and data.reversal_length must be those it was trained with",
        ),
    ],
    ("examples/test_clients.py", "test_a_recipe_runs"): [
        ("run/lacking.py adapter_alone", f"merge it, with peft: {MERGE}"),
    ],
    ("commands/test_tokenize_shards.py", "test_one_process_at_a_time_writes_a_folder"): [
        ("commands/tokenize_shards.py _alone", "wait for it"),
    ],
    ("commands/test_tokenize_shards.py", "test_a_text_that_was_changed_in_place_is_found_by_its_bytes"): [
        ("text/shard_writer.py _check_same", DIFFERENT),
    ],
    ("commands/test_tokenize_shards.py", "test_standard_input_goes_on_when_it_is_given_again"): [
        ("text/shard_writer.py remaining", DIFFERENT),
    ],
    ("training/test_estimate.py", "test_what_has_no_room_is_refused_with_what_to_lower_and_that_is_enough"): [
        ("training/estimate.py _check_memory", "set train.micro_batch_size to 8 or less"),
        ("training/estimate.py _planned", "give more --gpus, or a smaller data.window or model"),
        ("training/estimate.py _planned", "give a smaller model"),
    ],
    (
        "training/test_estimate.py",
        "test_what_the_disk_has_no_room_for_is_refused_and_fewer_checkpoints_fit",
    ): [
        (
            "training/estimate.py _check_disk",
            "make room, lower train.keep_checkpoints, or give another --out",
        ),
    ],
    ("text/test_rows.py", "test_zstd_is_unpacked_or_what_does_it_is_named"): [
        ("text/packed.py _zstd", "pip install 'tformer[zstd]', or unpack it: zstd -d a.zst"),
    ],
    ("text/test_rows.py", "test_a_parquet_table_is_read_or_what_reads_it_is_named"): [
        ("text/rows.py _parquet", "pip install 'tformer[parquet]'"),
        ("text/rows.py _parquet", "unpack it: a table is packed inside"),
        ("text/rows.py _parquet", "name it: --field COLUMN"),
    ],
    ("faults/test_one_state.py", "test_a_run_that_is_held_up_on_its_way_is_said"): [
        ("run/loaded.py load_run", "try again in a moment"),
    ],
    ("faults/test_changed.py", "test_a_training_that_diverged_goes_on_with_the_rate_that_is_advised"): [
        ("training/fit.py __init__", "go on with --resume and a lower rate (--lr 0.0017), …"),
    ],
    ("faults/test_changed.py", "test_a_training_without_memory_goes_on_as_it_is_told"): [
        ("training/memory.py out_of_memory", "go on with --resume --set train.micro_batch_size=1, …"),
    ],
}


# ---------------------------------------------------------------------------- following


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with texts, ids of them, a model to train further and a run that is done."""
    folder = tmp_path_factory.mktemp("advice")
    (folder / "a.txt").write_text(TEXT)
    (folder / "b.txt").write_text(TEXT[::2])
    tokenizer = Tokenizer.train("char", [TEXT + "#<|endoftext|>"], end_of_text=True)
    (folder / "t.json").write_text(tokenizer.to_json())
    save_run(folder / "base", tiny_model(std=0.05, vocab_size=tokenizer.vocab_size, n_ctx=64), tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tformer(f"{NEW} --out done")
        tformer("tokenize a.txt --tokenizer t.json --out ids.npy")
        tformer("tokenize a.txt --tokenizer t.json --documents paragraph --processes 1 --out ids/")
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of that to work in."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_RUNS", raising=False)
    monkeypatch.setenv("TFORMER_CACHE", "cache")
    monkeypatch.setattr("tformer.text.corpus._fetch", out_of_reach)
    monkeypatch.setattr("tformer.text.corpus.time", SimpleNamespace(sleep=lambda seconds: None))
    for name in PUT_BACK:
        where, own = holder(name)
        monkeypatch.setattr(where, own, getattr(where, own))
    MEMORY.clear()
    for module in ("training.opening", "training.completed", "run.loaded", "sample", "evals.loss"):
        monkeypatch.setattr(f"tformer.{module}.free_bytes", lambda *_: MEMORY.get("free"))
    monkeypatch.setattr("tformer.training.memory.judging_bytes", lambda vocab_size: MEMORY.get("judging", 0))
    monkeypatch.setattr("tformer.training.estimate.MEASURED", 1e-3)  # that it measures is enough here


def out_of_reach(*arguments: object) -> bytes:
    """No download is made."""
    raise OSError("no network")


@pytest.fixture
def made_at(monkeypatch):
    """Where errors are made, by module and function, as they are."""
    places: list[str] = []
    plain = TformerError.__init__

    def noted(self: TformerError, *args: Any, **kwargs: Any) -> None:
        code = sys._getframe(1).f_code
        with_path = Path(code.co_filename)
        if with_path.is_relative_to(PACKAGE):
            places.append(f"{with_path.relative_to(PACKAGE).as_posix()} {code.co_name}")
        plain(self, *args, **kwargs)

    monkeypatch.setattr(TformerError, "__init__", noted)
    return places


class Terminal(io.StringIO):
    """Standard input that is a person's."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.at.split()[-1]}: {row.advice[:30]}")
def test_what_an_error_advises_is_enough(place, made_at, monkeypatch, row):
    given = Terminal() if row.stdin == "tty" else io.TextIOWrapper(io.BytesIO(row.stdin.encode()))
    monkeypatch.setattr(sys, "stdin", given)
    row.first()
    made_at.clear()
    with pytest.raises(TformerError) as refused:
        tformer(row.wrong)
    assert str(refused.value).endswith(f"; {row.advice}"), refused.value
    assert row.at in made_at
    row.then()
    for line in [row.right] if isinstance(row.right, str) else row.right:
        tformer(line)


def test_every_advice_of_an_error_is_followed():
    followed = {(row.at, row.advice) for row in ROWS}
    elsewhere = {one for several in ELSEWHERE.values() for one in several}
    used = set()
    for place, said in advised():
        by = {
            (at, advice) for at, advice in followed | elsewhere if at == place and re.fullmatch(said, advice)
        }
        assert by, f"no row follows what {place} advises: {said}"
        used |= by if not by & followed else set()
    assert used == elsewhere, "followed here, or not advised any more"


@pytest.mark.parametrize("file, name", ELSEWHERE)
def test_what_is_followed_elsewhere_is_a_test(file, name):
    assert f"\ndef {name}(" in (TESTS / file).read_text(encoding="utf-8")
