"""What errors of `eval`, `sample` and `answer` advise, and those of the runs and texts that they take."""

import shutil

from tests.faults.advised.following import (
    MORE,
    NEW,
    REVERSAL,
    Followed,
    move,
    other_weights_in_a_checkpoint,
    steps,
    tformer,
    write,
)

LOSS = "eval loss --device cpu --run done"
ATTENTION = "eval attention --device cpu --run done"
SAMPLE = "sample --device cpu --run done --max-tokens 2"
GENERATIONS = "eval generations --device cpu -n 1 --max-tokens 4"
GIVE = "give --data FILE"
PASSAGE = '{"text": "of mercy"}\n'
WEIGHTS = "leave --step out for the weights that it keeps"


def trained(line: str, *first):
    """A run that is made before."""
    return steps(*first, lambda: tformer(line))


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
    Followed(
        "commands/eval.py _ids_to_show",
        f"{ATTENTION} --prompt The --data a.txt",
        "leave one out",
        (f"{ATTENTION} --prompt The", f"{ATTENTION} --data a.txt"),
    ),
    Followed(
        "commands/eval.py _ids_to_show",
        ATTENTION,
        "give --prompt TEXT or --data FILE",
        (f"{ATTENTION} --prompt The", f"{ATTENTION} --data a.txt"),
    ),
    Followed(
        "commands/eval_loss.py check_stride", f"{LOSS} --stride 99", "leave it out for disjoint windows", LOSS
    ),
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
    Followed("answer/__init__.py find", "answer 9", "tformer answer lists them", "answer"),
    Followed(
        "commands/answer.py command", "answer 1 --prose --report a.md", "leave one out", "answer 1 --prose"
    ),
    # ------------------------------------------------------------------ what is asked of a sample
    Followed(
        "commands/sample.py command",
        f"{SAMPLE} The --greedy --temperature 0.5",
        "leave one out",
        (f"{SAMPLE} The --greedy", f"{SAMPLE} The --temperature 0.5"),
    ),
    Followed("commands/sample.py command", f"{SAMPLE} The --keep-stop", "leave it out", f"{SAMPLE} The"),
    Followed(
        "commands/sample.py command",
        f"{SAMPLE} The --prompt-file a.txt",
        "leave one out",
        (f"{SAMPLE} The", f"{SAMPLE} --prompt-file a.txt"),
    ),
    Followed("commands/sample.py command", f"{SAMPLE} The --interactive", "leave one out", f"{SAMPLE} The"),
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
    Followed(
        "run/source.py recorded_source",
        "eval loss --device cpu --run base",
        GIVE,
        "eval loss --device cpu --run base --data a.txt",
    ),
    Followed(
        "run/source.py recorded_source",
        "eval loss --device cpu --run piped",
        GIVE,
        "eval loss --device cpu --run piped --data a.txt",
        first=trained(NEW.replace("a.txt", "-") + " --out piped"),
        stdin=MORE,
    ),
    Followed(
        "run/source.py recorded_source",
        "eval loss --device cpu --run moved",
        GIVE,
        "eval loss --device cpu --run moved --data d.txt",
        first=steps(
            write("c.txt", MORE),
            lambda: tformer(NEW.replace("a.txt", "c.txt") + " --out moved"),
            move("c.txt", "d.txt"),
        ),
    ),
    Followed(
        "evals/judged.py _validation_part",
        "eval loss --device cpu --run whole",
        GIVE,
        "eval loss --device cpu --run whole --data a.txt",
        first=trained(f"{NEW} --set data.val_fraction=0 --out whole"),
    ),
    Followed(
        "evals/judged.py _check_same_text",
        f"{LOSS} --run other",
        GIVE,
        f"{LOSS} --run other --data b.txt",
        first=trained(NEW.replace("a.txt", "b.txt") + " --out other"),
    ),
    Followed(
        "evals/judged.py _check_same_text",
        f"{LOSS} --run other",
        GIVE,
        f"{LOSS} --run other --data b.txt",
        first=trained(f"{NEW} --val-data b.txt --out other"),
    ),
    Followed(
        "evals/judged.py _check_same_text",
        f"{LOSS} --run other",
        GIVE,
        f"{LOSS} --run other --data b.txt",
        first=trained(f"{NEW} --set data.val_fraction=0.3 --out other"),
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
    Followed(
        "training/passages.py read_next_words",
        f"{REVERSAL} --eval-data c.jsonl",
        "leave it out",
        REVERSAL,
        first=write("c.jsonl", PASSAGE),
    ),
]
