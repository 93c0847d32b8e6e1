"""What errors of `eval`, `sample` and `answer` advise, and those of the runs and texts that they take."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.advised.following import (
    MEMORY,
    MORE,
    NEW,
    PASSAGE,
    REVERSAL,
    TEXT,
    Followed,
    change,
    left_out,
    move,
    one_of,
    other_weights_in_a_checkpoint,
    steps,
    tformer,
    write,
)

JUDGE = "eval loss --device cpu --run"
LOSS = f"{JUDGE} done"
ATTENTION = "eval attention --device cpu --run done"
SAMPLE = "sample --device cpu --run done --max-tokens 2"
GENERATIONS = "eval generations --device cpu -n 1 --max-tokens 4"
GIVE = "give --data FILE"
OTHER_CHARACTER = "leave it out, or train a word or bpe tokenizer, which take any text"
WEIGHTS = "leave --step out for the weights that it keeps"


COPY, KEPT = "done/checkpoints/step-00000001/model.safetensors", "done/model.safetensors"


def flipped() -> None:
    """A bit of the weights of done."""
    data = bytearray(Path(KEPT).read_bytes())
    data[-1] ^= 1
    Path(KEPT).write_bytes(data)


def trained(line: str) -> Callable[[], object]:
    """A run that is made before."""
    return lambda: tformer(line)


def given(at: str, run: str, data: str = "a.txt", **how: Any) -> Followed:
    """A run without a text to judge it by, and with one."""
    return Followed(at, f"{JUDGE} {run}", GIVE, f"{JUDGE} {run} --data {data}", **how)


ROWS = [
    # ------------------------------------------------------------------ what is asked of a task
    Followed(
        "commands/eval.py eval_loss",
        f"{LOSS} --run base --data a.txt --tokens 5",
        "leave it out, or name one",
        (f"{LOSS} --run base --data a.txt", f"{LOSS} --data a.txt --tokens 5"),
    ),
    Followed(
        "commands/eval.py eval_loss",
        f"{LOSS} --field text",
        "--data FILE",
        f"{LOSS} --field text --data c.jsonl",
        first=write("c.jsonl", PASSAGE * 30),
    ),
    Followed(
        "commands/eval.py _reversal_of",
        "eval reversal --device cpu --run done -n 8",
        "train one with: tformer train reversal",
        (f"{REVERSAL} --out mirror", "eval reversal --device cpu --run mirror -n 8"),
    ),
    Followed(
        "commands/eval.py _ids_to_show",
        f"{ATTENTION} --prompt The --prompt quality",
        "give one",
        f"{ATTENTION} --prompt The",
    ),
    one_of("commands/eval.py _ids_to_show", ATTENTION, "--prompt The", "--data a.txt"),
    Followed(
        "commands/eval.py _ids_to_show",
        ATTENTION,
        "give --prompt TEXT or --data FILE",
        (f"{ATTENTION} --prompt The", f"{ATTENTION} --data a.txt"),
    ),
    left_out("commands/eval_loss.py check_stride", LOSS, "--stride 99", "leave it out for disjoint windows"),
    Followed(
        "commands/tasks.py parse_args",
        "eval causality --device cpu --run done --positions 2 --tokens 9",
        "leave it out, or name one of them",
        ("eval causality --device cpu --run done --positions 2", f"{LOSS} --tokens 9"),
    ),
    Followed(
        "commands/options.py check_overwrite",
        f"{LOSS} --overwrite",
        "say what to replace: --out FILE",
        f"{LOSS} --overwrite --out loss.html",
    ),
    Followed("device.py resolve_device", f"{SAMPLE} The --device cuda:99", "use cpu", f"{SAMPLE} The"),
    left_out("answer/__init__.py find", "answer", "9", "tformer answer lists them"),
    left_out("commands/answer.py command", "answer 1 --prose", "--report a.md", "leave one out"),
    # ------------------------------------------------------------------ what is asked of a sample
    one_of("commands/sample.py command", f"{SAMPLE} The", "--greedy", "--temperature 0.5"),
    left_out("commands/sample.py command", f"{SAMPLE} The", "--keep-stop"),
    one_of("commands/sample.py command", SAMPLE, "The", "--prompt-file a.txt"),
    left_out("commands/sample.py command", f"{SAMPLE} The", "--interactive", "leave one out"),
    Followed(
        "commands/sample.py command",
        f"{SAMPLE} --interactive",
        "give - to read prompts from a pipe",
        f"{SAMPLE} -",
        stdin="The\nquality\n",
    ),
    Followed(
        "commands/sample.py command",
        f"{SAMPLE} The --logprobs 2",
        "give --json as well",
        f"{SAMPLE} The --logprobs 2 --json",
    ),
    Followed(
        "commands/sample.py command",
        f"{SAMPLE} The --null",
        "give - in place of PROMPT",
        f"{SAMPLE} - --null",
        stdin="The\0quality\0",
    ),
    *(
        Followed("text/tokenizer.py __init__", f"{SAMPLE} T\u20ac", OTHER_CHARACTER, right)
        for right in (
            f"{SAMPLE} T",
            (NEW.replace("char", "bpe") + " --out other", f"{SAMPLE} T\u20ac --run other"),
        )
    ),
    # ------------------------------------------------------------------ which run, and which of its weights
    Followed(
        "run/find.py newest_run",
        "sample The --device cpu --max-tokens 2",
        "train one with: tformer train DATA, or name one with --run",
        (NEW, "sample The --device cpu --max-tokens 2", f"{SAMPLE} The"),
    ),
    Followed("run/loaded.py checkpoint_of", f"{LOSS} --step 7", WEIGHTS, LOSS),
    Followed(
        "run/loaded.py _weights_of", f"{LOSS} --step 1", WEIGHTS, LOSS, first=other_weights_in_a_checkpoint
    ),
    # ------------------------------------------------------------------ the text that it is judged by
    given("run/source.py recorded_source", "base"),
    given(
        "run/source.py recorded_source",
        "piped",
        first=trained(NEW.replace("a.txt", "-") + " --out piped"),
        stdin=MORE,
    ),
    given(
        "run/source.py recorded_source",
        "moved",
        "d.txt",
        first=steps(
            write("c.txt", MORE),
            trained(NEW.replace("a.txt", "c.txt") + " --out moved"),
            move("c.txt", "d.txt"),
        ),
    ),
    given("run/record.py check_hash", "own", first=steps(trained(f"{NEW} --out own"), write("a.txt", MORE))),
    given(
        "evals/judged.py _validation_part",
        "whole",
        first=trained(f"{NEW} --set data.val_fraction=0 --out whole"),
    ),
    *(
        given(
            "evals/judged.py _check_same_text",
            "done --run other",
            "b.txt",
            first=trained(f"{new} --out other"),
        )
        for new in (
            NEW.replace("a.txt", "b.txt"),
            f"{NEW} --val-data b.txt",
            f"{NEW} --set data.val_fraction=0.3",
        )
    ),
    Followed(
        "evals/judged.py _check_same_vocabulary",
        f"{LOSS} --run other --data ids.npy",
        "give the text itself as --data FILE",
        f"{LOSS} --run other --data a.txt",
        first=trained(NEW.replace("char", "bpe") + " --out other"),
    ),
    Followed(
        "evals/generations.py text_to_compare",
        f"{GENERATIONS} --run mirror",
        "name a run on text",
        f"{GENERATIONS} --run done",
        first=trained(f"{REVERSAL} --out mirror"),
    ),
    Followed(
        "evals/generations.py _too_little",
        f"{GENERATIONS} --run done --data c.txt",
        "give a longer one: --data FILE",
        f"{GENERATIONS} --run done --data a.txt",
        first=write("c.txt", "q"),
    ),
    Followed(
        "evals/lambada.py encode_passages",
        "eval lambada --device cpu --run done --data c.jsonl",
        "train with a word or bpe tokenizer, which take any text, and a context of a passage's length",
        (NEW.replace("char", "bpe") + " --out other", "eval lambada --device cpu --run other --data c.jsonl"),
        first=write("c.jsonl", '{"text": "Müde bin ÄÖ"}\n'),
    ),
    Followed(
        "evals/lambada.py encode_passages",
        "eval lambada --device cpu --run done --data c.jsonl",
        "give passages whose words have blanks between them",
        "eval lambada --device cpu --run done --data d.jsonl",
        first=write("c.jsonl", '{"text": "mercy"}\n'),
        then=write("d.jsonl", PASSAGE),
    ),
    Followed(
        "training/passages.py read_next_words",
        f"{NEW} --out judged --resume --steps 2",
        "say where they are: --eval-data FILE",
        f"{NEW} --out judged --resume --steps 2 --eval-data d.jsonl",
        first=steps(
            write("c.jsonl", PASSAGE),
            lambda: tformer(f"{NEW} --eval-data c.jsonl --out judged"),
            lambda: shutil.move("c.jsonl", "d.jsonl"),
        ),
    ),
    left_out("training/passages.py read_next_words", REVERSAL, "--eval-data c.jsonl"),
    # ------------------------------------------------------------------ memory
    Followed(
        "free_memory.py refuse_larger_than",
        "sample --device cpu --run base",
        "give a run with a smaller model, or make room",
        SAMPLE,
        first=lambda: MEMORY.update(free=20_000),
    ),
    Followed(
        "free_memory.py refuse_larger_than",
        "sample --device cpu --run base -n 64 --max-tokens 60",
        "lower -n or --max-tokens, or give a shorter prompt or a run with a smaller model",
        (
            "sample --device cpu --run base -n 2 --max-tokens 60",
            "sample --device cpu --run base -n 64 --max-tokens 2",
            "sample --device cpu --run done -n 64 --max-tokens 60",
        ),
        first=lambda: MEMORY.update(free=200_000),
    ),
    Followed(
        "free_memory.py refuse_larger_than",
        "eval loss --device cpu --run base --data a.txt",
        "give a shorter text, or a run with a smaller vocabulary or context",
        "eval loss --device cpu --run base --data c.txt",
        first=lambda: MEMORY.update(free=100_000),
        then=write("c.txt", TEXT[:50]),
    ),
    # ------------------------------------------------------------------ damage
    Followed(
        "run/tensors.py check_seal",
        SAMPLE,
        f"put it back: cp {COPY} {KEPT}",
        SAMPLE,
        first=flipped,
        then=lambda: shutil.copy(COPY, KEPT),
    ),
    Followed(
        "run/tensors.py check_seal",
        SAMPLE,
        "fetch or make it again",
        (f"{NEW} --out done --overwrite", SAMPLE),
        first=steps(flipped, lambda: shutil.rmtree("done/checkpoints")),
    ),
    Followed(
        "run/own_tokenizer.py run_tokenizer",
        SAMPLE,
        "put it back",
        SAMPLE,
        first=steps(
            lambda: shutil.copy("done/tokenizer.json", "own.json"),
            change("done/tokenizer.json", '"T"', '"\u00a7"'),
        ),
        then=move("own.json", "done/tokenizer.json"),
    ),
]
