"""What errors of `tokenize`, of packed files and of settings advise."""

import gzip
from pathlib import Path

from tests.faults.advised.following import (
    IDS,
    NEW,
    PLAN,
    SMALL,
    TEXT,
    Followed,
    left_out,
    steps,
    tformer,
    write,
)
from tformer.training.costs import ACCELERATORS

IDS_OF = "tokenize a.txt --tokenizer t.json"
TRAIN = "tokenize --train a.txt --tokenizer char"
FOLDER = f"{IDS_OF} --processes 1"

ROWS = [
    # ------------------------------------------------------------------ tokenize
    *(
        left_out("commands/tokenize.py command", IDS_OF, option, advice)
        for option, advice in (
            ("--processes 2", "leave it out"),
            ("--vocab-size 300", "a trained tokenizer has its size"),
            ("--seed 3", "nothing else is drawn"),
            ("--no-end-of-text", "a trained tokenizer has its rows"),
        )
    ),
    Followed(
        "commands/tokenize.py command",
        "tokenize ids/ --tokenizer t.json",
        "train takes it as it is; tokenize --decode writes its text",
        (IDS, "tokenize --decode ids/"),
    ),
    left_out("commands/tokenize.py command", f"{IDS_OF} --stats", "--out s.npy", "redirect stdout instead"),
    Followed(
        "commands/tokenize.py command",
        f"{IDS_OF} --out new.txt",
        "--out new.npy, or --out new.txt/ for a folder of them",
        (f"{IDS_OF} --out new.npy", f"{FOLDER} --out new.txt/"),
    ),
    Followed(
        "commands/tokenize.py command",
        "tokenize a.txt --tokenizer plain.json --documents line",
        "leave it out, or --documents none",
        ("tokenize a.txt --tokenizer plain.json", "tokenize a.txt --tokenizer plain.json --documents none"),
        first=lambda: tformer(f"{TRAIN} --no-end-of-text --out plain.json"),
    ),
    Followed(
        "commands/tokenize.py _load",
        "tokenize a.txt --tokenizer char --stats",
        "add --train to make one",
        f"{TRAIN} --out new.json",
    ),
    Followed(
        "commands/tokenize_train.py train_tokenizer",
        TRAIN,
        "--out tokenizer.json",
        f"{TRAIN} --out tokenizer.json",
    ),
    Followed(
        "commands/options.py refuse_existing",
        f"{TRAIN} --out t.json",
        "give another name, or --overwrite",
        (f"{TRAIN} --out new.json", f"{TRAIN} --out t.json --overwrite"),
    ),
    Followed(
        "commands/tokenize_shards.py _alone",
        f"{FOLDER} --out b.txt/",
        "give another --out",
        f"{FOLDER} --out new/",
    ),
    Followed(
        "commands/tokenize_shards.py _begun",
        f"{FOLDER} --out box/",
        "give another --out",
        f"{FOLDER} --out new/",
        first=steps(lambda: Path("box").mkdir(), write("box/letter.txt", "Dear")),
    ),
    Followed(
        "text/packed.py read",
        NEW.replace("a.txt", "c.txt.gz"),
        "it is damaged or not whole: fetch it again",
        NEW.replace("a.txt", "c.txt.gz") + PLAN,
        first=write("c.txt.gz", gzip.compress(TEXT.encode())[:60]),
        then=write("c.txt.gz", gzip.compress(TEXT.encode())),
    ),
    # ------------------------------------------------------------------ settings
    Followed(
        "layers.py preset_values",
        f"train a.txt --preset txt {SMALL} --steps 1",
        "did you mean text?",
        f"train a.txt --preset text {SMALL} --steps 1" + PLAN,
    ),
    Followed(
        "layers.py flag_layer",
        f"{NEW} --set model.n_layers",
        "for example --set model.n_layers=6",
        f"{NEW} --set model.n_layers=6" + PLAN,
    ),
    Followed(
        "layers.py flag_layer",
        f"{NEW} --set train.steps=5",
        "leave one out",
        (NEW + PLAN, NEW.replace("--steps 1", "--set train.steps=5") + PLAN),
    ),
    left_out(
        "layers.py merge",
        NEW,
        "--set model.n_layers=0",
        "model.n_layers is: number of transformer blocks",
        PLAN,
    ),
    Followed(
        "layers.py _layer",
        f"{NEW} --set modl.n_layers=2",
        "did you mean model?",
        f"{NEW} --set model.n_layers=2" + PLAN,
    ),
    Followed(
        "layers.py _layer",
        f"{NEW} --set model.n_layer=2",
        "did you mean model.n_layers?",
        f"{NEW} --set model.n_layers=2" + PLAN,
    ),
    Followed(
        "yaml_text.py parse_yaml",
        f"{NEW} --config c.yaml",
        "expected settings under their section, such as train: {steps: 100}",
        NEW.replace("--steps 1", "--config c.yaml") + PLAN,
        first=write("c.yaml", "train: {steps: 100"),
        then=write("c.yaml", "train: {steps: 100}"),
    ),
    # ------------------------------------------------------------------ what it will cost
    Followed(
        "training/estimate.py _planned",
        f"{NEW} --estimate --gpus 1",
        f"name one: {', '.join(ACCELERATORS)}",
        f"{NEW} --estimate --gpus 1 --accelerator h100",
    ),
    Followed(
        "training/costs.py on_accelerator",
        f"{NEW} --estimate --gpus 3 --accelerator h100",
        "--batch-size 3",
        f"{NEW} --estimate --gpus 3 --accelerator h100 --batch-size 3",
    ),
]
