"""What errors of ids advise: token files, and folders of them."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from tests.faults.advised.following import (
    FURTHER,
    IDS,
    PLAN,
    TEXT,
    TOKENS,
    Followed,
    instead,
    left_out,
    move,
    tformer,
    write,
)
from tformer.errors import RequestError
from tformer.text.shard_writer import DIFFERENT
from tformer.text.shards import DAMAGED_IDS
from tformer.text.tokenizer import Tokenizer

TOKENIZE = "tokenize {} --tokenizer t.json --documents paragraph --processes 1 --out {}/"


def with_the_last_id() -> None:
    """Ids of which one is in the larger of two vocabularies alone."""
    last = Tokenizer.load(Path("t.json")).vocab_size - 1
    np.save("ids.npy", np.append(np.load("ids.npy"), np.uint16(last)))


def ends_that_fall() -> None:
    """Documents that end before they begin, in a folder that is too large to be verified whole."""
    ends = np.lib.format.open_memmap("ids/ends-00000.npy", mode="r+")
    ends[:] = ends[::-1].copy()
    instead("tformer.text.shards.VERIFIED", 10)


def index_with(**changes: object) -> None:
    """Other values in the index of ids."""
    path = Path("ids/index.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def emptied() -> None:
    """An index that says that it is whole and has nothing."""
    none = {"blocks": 0, "tokens": 0, "documents": 0, "bytes": 0, "characters": 0, "text_sha256": None}
    index_with(shards=[], read=none)


def other_ids(changed: int) -> bytes:
    """The file of ids with other ones."""
    ids = np.load("ids/ids-00000.npy")
    ids[:] = changed
    np.save("other.npy", ids)
    return Path("other.npy").read_bytes()


def unverified(ids: bytes) -> None:
    """Other ids in a folder that is too large to be verified whole."""
    Path("ids/ids-00000.npy").write_bytes(ids)
    instead("tformer.text.shards.VERIFIED", 10)


def ends_outside() -> None:
    """Documents that end after all ids, in such a folder."""
    ends = np.lib.format.open_memmap("ids/ends-00000.npy", mode="r+")
    ends[:] = 1 << 30
    instead("tformer.text.shards.VERIFIED", 10)


def ended_early() -> None:
    """A folder that was begun, and stopped at a character that the vocabulary lacks."""
    Path("late.txt").write_text(TEXT + "\u00a7")
    with suppress(RequestError):
        tformer(TOKENIZE.format("late.txt", "more"))


def workers_that_end() -> None:
    """Processes that encode, and are killed before they do; a text that is worth several."""

    @contextmanager
    def killed(folder: Path, processes: int) -> Iterator[list[Connection]]:
        pipes = [Pipe() for _ in range(processes)]
        for _, theirs in pipes:
            theirs.close()
        yield [own for own, _ in pipes]

    instead("tformer.text.workers._workers", killed)
    instead("tformer.text.blocks.BLOCK_CHARACTERS", 90)


def damaged(at: str, first: Callable[[], object], advice: str = DAMAGED_IDS, train: str = IDS) -> Followed:
    """A folder of ids with damage, which goes with what is written over it, or beside it."""
    into = TOKENIZE.format("a.txt", "more")
    right = (f"{TOKENIZE.format('a.txt', 'ids')} --overwrite", train + PLAN)
    return Followed(at, train, advice, (*right, into, train.replace("ids/", "more/") + PLAN), first)


ROWS = [
    Followed(
        "run/data.py _token_file_data",
        f"{TOKENS} --set data.val_split=lines",
        "data.val_split=end, or --val-data FILE",
        (
            f"{TOKENS} --set data.val_split=end" + PLAN,
            f"{TOKENS} --val-data b.txt" + PLAN,
        ),
    ),
    Followed(
        "run/data.py _token_file_data",
        TOKENS.replace("--tokenizer t.json", ""),
        "--tokenizer tokenizer.json",
        TOKENS.replace("t.json", "tokenizer.json") + PLAN,
        then=move("t.json", "tokenizer.json"),
    ),
    Followed(
        "run/data.py _token_file_data",
        f"{TOKENS} --set data.val_split=documents",
        "data.val_split=end",
        f"{TOKENS} --set data.val_split=end" + PLAN,
        first=lambda: np.save("ids.npy", np.load("ids.npy")[:100]),
    ),
    Followed(
        "text/data.py load_token_file",
        TOKENS.replace("t.json", "done"),
        "use its own",
        TOKENS + PLAN,
        first=with_the_last_id,
    ),
    Followed(
        "run/data.py _token_folder_data",
        f"{IDS} --documents line",
        "leave it out, or tokenize the text again",
        (
            IDS + PLAN,
            "tokenize a.txt --tokenizer t.json --documents line --processes 1 --out ids/ --overwrite",
            f"{IDS} --documents line" + PLAN,
        ),
    ),
    left_out("run/token_folders.py check_kind", IDS, "--tokenizer bpe", then=PLAN),
    Followed(
        "run/token_folders.py check_tokenizer",
        FURTHER.replace("a.txt", "ids/").replace("base", "done"),
        "tokenize the text again with --tokenizer RUN",
        (
            "tokenize a.txt --tokenizer done --processes 1 --out more/",
            FURTHER.replace("a.txt", "more/").replace("base", "done") + PLAN,
        ),
    ),
    Followed(
        "run/token_folders.py way",
        f"{IDS} --set data.val_split=lines",
        "data.val_split=end, or --val-data FILE",
        (
            f"{IDS} --set data.val_split=end" + PLAN,
            f"{IDS} --val-data b.txt" + PLAN,
        ),
    ),
    Followed(
        "run/token_folders.py way",
        IDS.replace("ids/", "one/") + " --set data.val_split=documents",
        "data.val_split=end",
        IDS.replace("ids/", "one/") + " --set data.val_split=end" + PLAN,
        first=lambda: tformer("tokenize a.txt --tokenizer t.json --documents file --processes 1 --out one/"),
    ),
    Followed(
        "run/token_folders.py _spans",
        f"{IDS} --set data.val_split=documents",
        "tokenize it again",
        (
            TOKENIZE.format("a.txt", "ids") + " --overwrite",
            f"{IDS} --set data.val_split=documents" + PLAN,
        ),
        first=ends_that_fall,
    ),
    Followed(
        "run/token_folders.py check_size",
        "eval loss --run base --data ids/ --device cpu",
        "give one of its files: --data ids/ids-00000.npy",
        "eval loss --run base --data ids/ids-00000.npy --device cpu",
        first=lambda: instead("tformer.run.token_folders.MOST_TO_SCORE", 10),
    ),
    Followed(
        "text/blocks.py blocks",
        "tokenize a.txt --tokenizer t.json --documents '###' --processes 1 --out more/",
        "see --documents",
        TOKENIZE.format("a.txt", "more"),
    ),
    Followed(
        "text/blocks.py _pieces",
        "tokenize late.txt --tokenizer t.json --processes 1 --out more/",
        "say what one is: --documents '<|endoftext|>', or --documents file",
        tuple(
            f"tokenize late.txt --tokenizer t.json --documents '{how}' --processes 1 --out {folder}/"
            for how, folder in (("<|endoftext|>", "more"), ("file", "others"))
        ),
        first=lambda: write("late.txt", TEXT.replace("\n\n", "\n") * 1200 + "<|endoftext|>\n" + TEXT)(),
    ),
    # ------------------------------------------------------------------ folders of ids that are damaged
    damaged("text/shards.py read_index", lambda: index_with(format="another")),
    damaged("text/shards.py read_index", lambda: index_with(read=3)),
    damaged("text/shards.py map_array", lambda: Path("ids/ids-00000.npy").unlink()),
    damaged("text/shards.py open_token_folder", emptied),
    damaged("text/shards.py verify", lambda: Path("ids/ids-00000.npy").write_bytes(other_ids(0))),
    damaged("text/shards.py _checked", lambda: unverified(other_ids(60_000))),
    damaged(
        "text/shards.py tokenizer",
        lambda: shutil.copy("done/tokenizer.json", "ids/tokenizer.json"),
        f"put it back, or {DAMAGED_IDS}",
    ),
    Followed(
        "text/shards.py tokenizer",
        IDS,
        f"put it back, or {DAMAGED_IDS}",
        IDS + PLAN,
        first=lambda: shutil.copy("done/tokenizer.json", "ids/tokenizer.json"),
        then=lambda: shutil.copy("t.json", "ids/tokenizer.json"),
    ),
    damaged(
        "text/shards.py ends",
        ends_outside,
        train=f"{IDS} --set data.val_split=documents",
    ),
    # ------------------------------------------------------------------ folders of ids that are begun
    Followed(
        "text/shards.py open_token_folder",
        IDS.replace("ids/", "more/"),
        "go on with the same tformer tokenize … --out that began it",
        (TOKENIZE.format("late.txt", "more"), IDS.replace("ids/", "more/") + PLAN),
        first=ended_early,
        then=write("late.txt", TEXT + ",,"),
    ),
    Followed(
        "text/shard_writer.py checked_same",
        TOKENIZE.format("b.txt", "ids"),
        DIFFERENT,
        (TOKENIZE.format("b.txt", "more"), TOKENIZE.format("b.txt", "ids") + " --overwrite"),
    ),
    Followed(
        "text/workers.py encoded",
        "tokenize a.txt --tokenizer t.json --documents paragraph --processes 2 --out more/",
        "memory may be short: give fewer --processes",
        TOKENIZE.format("a.txt", "more"),
        first=workers_that_end,
    ),
]
