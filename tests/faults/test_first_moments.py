"""A directory that a process left in its first moments is taken up by the same command."""

import shutil

import pytest
import yaml

from tests.faults.kill import run
from tests.faults.test_kills import pytestmark
from tests.faults.tiny import SAMPLE, TRAIN, place

__all__ = ["pytestmark"]


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_what_a_killed_process_left_does_not_make_a_folder_foreign(option, tmp_path):
    folder = place(tmp_path / "here")
    (folder / "run").mkdir()
    (folder / "run" / ".tmp-1-tformer.yaml").write_text("model:")
    code, said = run([*TRAIN, option], folder)
    assert code == 0, said
    assert not list((folder / "run").glob(".t*"))


def test_a_foreign_folder_is_refused_and_left_as_it_is(tmp_path):
    folder = place(tmp_path / "here")
    (folder / "run").mkdir()
    for name in (".tmp-1-tformer.yaml", "letter.txt"):
        (folder / "run" / name).write_text("mine")
    for option in ("--resume", "--overwrite"):
        code, said = run([*TRAIN, option], folder)
        assert code == 2 and "it is not empty, and not a run" in said
    assert sorted(p.name for p in (folder / "run").iterdir()) == [".tmp-1-tformer.yaml", "letter.txt"]


def test_a_run_that_was_killed_before_it_had_a_tokenizer_makes_it_again(tmp_path):
    folder = place(tmp_path / "here")
    code, said = run(TRAIN, folder)
    assert code == 0, said
    record = yaml.safe_load((folder / "run" / "tformer.yaml").read_text())
    del record["record"]["result"]
    shutil.rmtree(folder / "run")
    (folder / "run").mkdir()
    (folder / "run" / "tformer.yaml").write_text(yaml.safe_dump(record))  # all that there was time for
    code, said = run([*TRAIN, "--resume"], folder)
    assert code == 0, said
    code, said = run(SAMPLE, folder)
    assert code == 0, said
