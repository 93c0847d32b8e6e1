"""What errors of DATA advise: texts, tables, ids."""

from pathlib import Path

import numpy as np

from tests.faults.advised.following import (
    FURTHER,
    IDS,
    MEMORY,
    NEW,
    PLAN,
    REVERSAL,
    TABLE,
    TEXT,
    TOKENS,
    Followed,
    move,
    of_rows,
    steps,
    tformer,
    write,
)
from tformer.text.tokenizer import Tokenizer


def with_the_last_id() -> None:
    """Ids of which one is in the larger of two vocabularies alone."""
    last = Tokenizer.load(Path("t.json")).vocab_size - 1
    np.save("ids.npy", np.append(np.load("ids.npy"), np.uint16(last)))


def ends_that_fall() -> None:
    """Documents that end before they begin, in a folder that is too large to be verified whole."""
    ends = np.lib.format.open_memmap("ids/ends-00000.npy", mode="r+")
    ends[:] = ends[::-1].copy()
    MEMORY.update(verified=10)


ROWS = [
    # ------------------------------------------------------------------ files that are not here
    Followed(
        "files.py check_pointer",
        FURTHER,
        "fetch it: git -C base lfs pull",
        FURTHER + PLAN,
        first=steps(
            move("base/model.safetensors", "fetched"),
            write("base/model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ),
        then=move("fetched", "base/model.safetensors"),
    ),
    Followed(
        "files.py refuse_address",
        NEW.replace("a.txt", "s3://here/c.txt"),
        "fetch it into a file first",
        NEW.replace("a.txt", "c.txt") + PLAN,
        then=write("c.txt", TEXT),
    ),
    Followed(
        "files.py refuse_address",
        f"{NEW} --val-data https://here/c.txt",
        "fetch it into a file first: curl -L -o FILE https://here/c.txt",
        f"{NEW} --val-data c.txt" + PLAN,
        then=write("c.txt", TEXT),
    ),
    Followed(
        "text/plain.py read_folder",
        NEW.replace("a.txt", "f"),
        "name the files themselves, which may end in anything",
        NEW.replace("a.txt", "f/b.log") + PLAN,
        first=steps(lambda: Path("f").mkdir(), write("f/b.log", TEXT)),
    ),
    # ------------------------------------------------------------------ the text
    Followed(
        "training/plan.py plan_training",
        f"{NEW} --set data.task=reversal",
        "they must agree",
        (NEW + PLAN, REVERSAL + PLAN),
    ),
    Followed(
        "training/plan.py plan_training", f"{REVERSAL} --val-data a.txt", "leave it out", REVERSAL + PLAN
    ),
    Followed(
        "training/plan.py plan_training",
        f"{NEW} --val-data b.txt --set data.val_split=lines",
        "leave one out",
        (f"{NEW} --val-data b.txt" + PLAN, f"{NEW} --set data.val_split=lines" + PLAN),
    ),
    Followed(
        "run/data.py prepare_data",
        REVERSAL.replace("n_ctx=19", "n_ctx=9"),
        "set model.n_ctx or data.reversal_length",
        (REVERSAL + PLAN, REVERSAL.replace("n_ctx=19", "n_ctx=9") + " --set data.reversal_length=5" + PLAN),
    ),
    Followed(
        "run/data.py prepare_data",
        NEW.replace("a.txt", "t.csv --field more") + " --documents line",
        "leave it out",
        NEW.replace("a.txt", "t.csv --field 'a row'") + PLAN,
        first=write("t.csv", TABLE),
    ),
    Followed(
        "run/data.py _documents",
        f"{NEW} --set data.end_of_text=false --documents line",
        "--documents none",
        f"{NEW} --set data.end_of_text=false --documents none" + PLAN,
    ),
    Followed(
        "run/data.py _validated",
        f"{NEW} --val-data -",
        "save it as a file first",
        f"{NEW} --val-data saved.txt" + PLAN,
        then=write("saved.txt", TEXT),
        stdin=TEXT,
    ),
    Followed(
        "run/data.py _validated",
        f"{NEW} --val-data nowhere.txt",
        "say where the validation text is: --val-data FILE",
        f"{NEW} --val-data b.txt" + PLAN,
    ),
    Followed(
        "run/data.py _windows_data",
        f"{FURTHER} --set data.window=60",
        "give more text or set a smaller data.window",
        f"{FURTHER} --set data.window=20" + PLAN,
        first=write("a.txt", TEXT[:50]),
    ),
    Followed(
        "run/data.py _windows_data",
        NEW,
        "give more text or set a smaller model.n_ctx",
        (f"{NEW} --set model.n_ctx=3" + PLAN,),
        first=write("a.txt", TEXT[:8]),
    ),
    Followed(
        "run/data.py _windows_data",
        FURTHER,
        "give more",
        FURTHER + PLAN,
        first=write("a.txt", "T"),
        then=write("a.txt", "The quality of mercy"),
    ),
    Followed(
        "text/split.py kept_apart",
        f"{NEW} --set data.val_split=files",
        "data.val_split=lines, or end",
        (f"{NEW} --set data.val_split=lines" + PLAN, f"{NEW} --set data.val_split=end" + PLAN),
    ),
    Followed(
        "text/split.py kept_apart",
        f"{NEW} --set data.val_split=lines",
        "data.val_split=end",
        f"{NEW} --set data.val_split=end" + PLAN,
        first=write("a.txt", "a text of one line " * 20),
    ),
    # ------------------------------------------------------------------ tables
    Followed(
        "text/rows.py _decoded",
        NEW.replace("a.txt", "t.jsonl"),
        "convert it first",
        NEW.replace("a.txt", "t.jsonl") + PLAN,
        first=write("t.jsonl", of_rows('{"text": "né"}').encode("latin-1")),
        then=write("t.jsonl", of_rows('{"text": "né"}')),
    ),
    Followed(
        "text/rows.py _json_lines",
        NEW.replace("a.txt", "t.jsonl"),
        "expected an object a line",
        NEW.replace("a.txt", "t.jsonl") + PLAN,
        first=write("t.jsonl", of_rows("To be, or not to be")),
        then=write("t.jsonl", of_rows('{"text": "To be, or not to be"}')),
    ),
    Followed(
        "text/rows.py _separated",
        NEW.replace("a.txt", "t.csv"),
        "name it: --field COLUMN",
        NEW.replace("a.txt", "t.csv --field 'a row'") + PLAN,
        first=write("t.csv", TABLE),
    ),
    Followed(
        "text/rows.py _separated",
        NEW.replace("a.txt", "t.csv --field 'a row'"),
        "quote a text that has quotes, and double those",
        NEW.replace("a.txt", "t.csv --field 'a row'") + PLAN,
        first=write("t.csv", TABLE + '"he "said" so",1\n'),
        then=write("t.csv", TABLE + '"he ""said"" so",1\n'),
    ),
    *(
        Followed(
            "text/rows.py _separated",
            NEW.replace("a.txt", "t.csv --field more"),
            "mend it, or leave it out",
            NEW.replace("a.txt", "t.csv --field more") + PLAN,
            first=write("t.csv", TABLE + "alone\n"),
            then=write("t.csv", mended),
        )
        for mended in (TABLE, TABLE + "alone,1\n")
    ),
    *(
        Followed(
            "text/rows.py _text_of",
            NEW.replace("a.txt", "t.jsonl"),
            advice,
            NEW.replace("a.txt", "t.jsonl") + PLAN,
            first=write("t.jsonl", of_rows(wrong)),
            then=write("t.jsonl", of_rows(mended)),
        )
        for advice, wrong, mended in (
            ("expected an object", '["to be"]', '{"text": "to be"}'),
            ("expected a string", '{"text": 5}', '{"text": "5"}'),
            ("mend it, or leave it out", '{"text": "\\ud83d"}', '{"text": "\\ud83d\\ude00"}'),
        )
    ),
    Followed(
        "text/rows.py _text_of",
        NEW.replace("a.txt", "t.jsonl"),
        "name the field of the text: --field NAME",
        NEW.replace("a.txt", "t.jsonl --field body") + PLAN,
        first=write("t.jsonl", '{"body": "to be or not to be"}\n' * 30),
    ),
    # ------------------------------------------------------------------ ids
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
    Followed("run/token_folders.py check_kind", f"{IDS} --tokenizer bpe", "leave it out", IDS + PLAN),
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
            "tokenize a.txt --tokenizer t.json --documents paragraph --processes 1 --out ids/ --overwrite",
            f"{IDS} --set data.val_split=documents" + PLAN,
        ),
        first=ends_that_fall,
    ),
    Followed(
        "run/token_folders.py check_size",
        "eval loss --run base --data ids/ --device cpu",
        "give one of its files: --data ids/ids-00000.npy",
        "eval loss --run base --data ids/ids-00000.npy --device cpu",
        first=lambda: MEMORY.update(most=10),
    ),
    Followed(
        "text/blocks.py blocks",
        "tokenize a.txt --tokenizer t.json --documents '###' --processes 1 --out more/",
        "see --documents",
        "tokenize a.txt --tokenizer t.json --documents paragraph --processes 1 --out more/",
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
]
