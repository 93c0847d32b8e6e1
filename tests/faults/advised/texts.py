"""What errors of DATA advise: files that are not here, texts, tables."""

from pathlib import Path

from tests.faults.advised.following import (
    FURTHER,
    NEW,
    PASSAGE,
    PLAN,
    REVERSAL,
    TABLE,
    TEXT,
    Followed,
    left_out,
    move,
    of_rows,
    one_of,
    steps,
    write,
)

JSON = of_rows('{"text": "né"}')
QUOTES = "quote a text that has quotes, and double those"


def mended(function: str, data: str, advice: str, wrong: str | bytes, right: str) -> Followed:
    """A table that has a bad line, and has it no longer."""
    line, name = NEW.replace("a.txt", data), data.split()[0]
    return Followed(
        f"text/rows.py {function}", line, advice, line + PLAN, write(name, wrong), write(name, right)
    )


def fetched(corpus: str, line: str, otherwise: str, right: str, text: str) -> Followed:
    """A text that cannot be downloaded, put where it is looked for, or another one in its place."""
    advice = f"put the file at cache/{corpus} by hand, or {otherwise}"
    put = steps(lambda: Path("cache").mkdir(), write(f"cache/{corpus}", text))
    return Followed("text/corpus.py download", line, advice, (right, line), then=put)


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
    fetched(
        "tinyshakespeare.txt",
        NEW.replace("a.txt", "tinyshakespeare"),
        "train on any text with: tformer train FILE",
        NEW,
        TEXT,
    ),
    fetched(
        "lambada_test.jsonl",
        "eval lambada --device cpu --run done",
        "name another with: --data FILE",
        "eval lambada --device cpu --run done --data cache/lambada_test.jsonl",
        PASSAGE,
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
    left_out("training/plan.py plan_training", REVERSAL, "--val-data a.txt", then=PLAN),
    one_of("training/plan.py plan_training", NEW, "--val-data b.txt", "--set data.val_split=lines", PLAN),
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
    mended("_decoded", "t.jsonl", "convert it first", JSON.encode("latin-1"), JSON),
    *(
        mended(function, "t.jsonl", advice, of_rows(wrong), of_rows(right))
        for function, advice, wrong, right in (
            ("_json_lines", "expected an object a line", "To be", '{"text": "To be"}'),
            ("_text_of", "expected an object", '["to be"]', '{"text": "to be"}'),
            ("_text_of", "expected a string", '{"text": 5}', '{"text": "5"}'),
            ("_text_of", "mend it, or leave it out", '{"text": "\\ud83d"}', '{"text": "\\ud83d\\ude00"}'),
        )
    ),
    Followed(
        "text/rows.py _separated",
        NEW.replace("a.txt", "t.csv"),
        "name it: --field COLUMN",
        NEW.replace("a.txt", "t.csv --field 'a row'") + PLAN,
        first=write("t.csv", TABLE),
    ),
    *(
        mended("_separated", f"t.csv --field {field}", advice, TABLE + wrong, TABLE + right)
        for field, advice, wrong, right in (
            ("'a row'", QUOTES, '"he "said" so",1\n', '"he ""said"" so",1\n'),
            ("more", "mend it, or leave it out", "alone\n", "alone,1\n"),
            ("more", "mend it, or leave it out", "alone\n", ""),
        )
    ),
    Followed(
        "text/rows.py _text_of",
        NEW.replace("a.txt", "t.jsonl"),
        "name the field of the text: --field NAME",
        NEW.replace("a.txt", "t.jsonl --field body") + PLAN,
        first=write("t.jsonl", '{"body": "to be or not to be"}\n' * 30),
    ),
]
