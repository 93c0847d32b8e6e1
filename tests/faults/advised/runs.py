"""What errors of the command and of a run that goes on advise."""

import shutil
from pathlib import Path

from tests.faults.advised.following import (
    AGAIN,
    ANOTHER,
    FURTHER,
    NEW,
    PLAN,
    RESUME,
    REVERSAL,
    SMALL,
    TOKENIZER,
    Followed,
    change,
    left_out,
    move,
    one_of,
    steps,
    tformer,
    write,
)

ROWS = [
    # ------------------------------------------------------------------ the command
    Followed(
        "commands/train.py command", "train", "try: tformer train reversal", REVERSAL + PLAN, stdin="tty"
    ),
    Followed(
        "commands/train.py command",
        "train --resume --out done",
        "name that of the run again",
        RESUME + PLAN,
        stdin="tty",
    ),
    Followed(
        "commands/train.py command",
        FURTHER.replace("a.txt", ""),
        "name a text to train it on",
        FURTHER + PLAN,
        stdin="tty",
    ),
    Followed("commands/train.py command", "train reversal a.txt", "give it alone", REVERSAL + PLAN),
    Followed(
        "commands/train.py command",
        f"{NEW} --overwrite",
        "say which run to replace: --out DIR",
        f"{NEW} --overwrite --out done",
    ),
    one_of("commands/train.py command", f"{NEW} --out done", "--resume", "--overwrite", PLAN),
    Followed(
        "commands/train.py command",
        f"{NEW} --gpus 1 --accelerator h100",
        "add --estimate",
        f"{NEW} --gpus 1 --accelerator h100 --estimate",
    ),
    Followed(
        "commands/train.py command",
        f"train a.txt {SMALL} --minutes 1 --estimate",
        "leave --minutes out: say how many --steps",
        f"train a.txt {SMALL} --steps 1 --estimate",
    ),
    left_out("commands/train.py check_minutes", NEW, "--minutes 1", "leave one out", PLAN),
    # ------------------------------------------------------------------ a run that goes on
    Followed(
        "training/plan.py plan_training",
        f"{RESUME} --val-data b.txt",
        f"leave it out, or {ANOTHER}",
        (RESUME + PLAN, f"{AGAIN} --val-data b.txt" + PLAN),
    ),
    Followed(
        "training/plan.py _folder",
        f"{NEW} --resume",
        "leave --resume out to start one, or say which: --out DIR",
        (NEW + PLAN, RESUME + PLAN),
    ),
    Followed(
        "training/plan.py _check_folder",
        f"{NEW} --out done",
        "--overwrite, --resume, or another --out",
        (f"{NEW} --out done --overwrite" + PLAN, RESUME + PLAN, AGAIN + PLAN),
    ),
    Followed(
        "training/plan.py _check_folder",
        f"{NEW} --out box --overwrite",
        "give another --out",
        f"{NEW} --out other --overwrite" + PLAN,
        first=steps(lambda: Path("box").mkdir(), write("box/letter.txt", "Dear")),
    ),
    Followed(
        "training/plan.py _check_minutes",
        f"train a.txt --tokenizer char {SMALL} --minutes 1 --out done --resume",
        "leave it out to continue; --steps N gives it more",
        (f"train a.txt --tokenizer char {SMALL} --out done --resume" + PLAN, f"{RESUME} --steps 3" + PLAN),
    ),
    Followed(
        "training/settings.py other_run",
        f"{RESUME} --seed 5",
        f"leave it out to continue, or {ANOTHER}",
        (RESUME + PLAN, f"{AGAIN} --seed 5" + PLAN),
    ),
    Followed(
        "training/settings.py other_run",
        f"{RESUME} --seed 5 --set train.beta1=0.5",
        f"leave them out and put the rest back to continue, or {ANOTHER}",
        (RESUME + PLAN, f"{AGAIN} --seed 5 --set train.beta1=0.5" + PLAN),
        first=steps(lambda: shutil.copy("a.txt", "kept.txt"), write("a.txt", "Another text.\n" * 80)),
        then=move("kept.txt", "a.txt"),
    ),
    Followed(
        "training/changed.py refuse_unused_rate",
        f"{RESUME} --lr 0.5",
        "give it more --steps, or leave --lr out",
        (RESUME.replace("--steps 1", "--steps 3") + " --lr 0.5", RESUME.replace("--steps 1", "")),
    ),
    one_of("training/settings.py decide", NEW, "--set train.kernels=blocks", "--compile", PLAN),
    Followed(
        "training/opening.py _own_tokenizer",
        RESUME,
        f"put it back, or {ANOTHER}",
        (RESUME + PLAN, AGAIN + PLAN),
        first=steps(
            lambda: shutil.copy("done/tokenizer.json", "own.json"), lambda: shutil.copy("t.json", TOKENIZER)
        ),
        then=move("own.json", "done/tokenizer.json"),
    ),
    Followed(
        "training/opening.py build_session",
        RESUME,
        "give more, or leave --steps out",
        (RESUME.replace("--steps 1", "--steps 3"), RESUME.replace("--steps 1", "")),
        first=lambda: tformer(f"{RESUME} --steps 2"),
    ),
    Followed(
        "run/data.py prepare_data",
        RESUME,
        ANOTHER,
        AGAIN + PLAN,
        first=change("done/tformer.yaml", "documents: 1", "documents: 7"),
    ),
]
