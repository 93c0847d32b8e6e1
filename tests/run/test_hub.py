"""Models by name on the Hub, from a server on this machine: what is fetched, refused, recorded, and kept."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from tests.hub_server import TOKEN, Hub, Repository
from tformer import load
from tformer.cli import main
from tformer.run.hub import HubName, hub_name, of_snapshot
from tformer.text.tokenizer import Tokenizer

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 20
SMALL = {"vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
STEPS = ("--steps", 6, "--batch-size", 2, "--device", "cpu", "--precision", "fp32")
NAME = "openai-community/gpt2"


def forget_library():
    """huggingface_hub reads its environment as it is imported: let it be imported again."""
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
    logging.getLogger("huggingface_hub").handlers.clear()  # they write to a stderr of before


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of a small GPT-2 that transformers saved, beside files of the kinds that hubs have."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(Tokenizer.train("bpe", [TEXT], 300).to_json())
    own = {path.name: path.read_bytes() for path in folder.iterdir()}
    others = {
        "README.md": b"# GPT-2",
        "pytorch_model.bin": b"no",
        "onnx/model.safetensors": b"no",
        "tf.h5": b"no",
    }
    return own | others


@pytest.fixture
def hub(tmp_path, monkeypatch, files):
    """The server, and a working directory whose cache is empty."""
    before = {n: module for n, module in sys.modules.items() if n.split(".")[0] == "huggingface_hub"}
    server = Hub()
    server.repositories[NAME] = Repository(dict(files))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_RUNS", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "mine.txt").write_text(TEXT)
    forget_library()
    yield server
    forget_library()
    sys.modules.update(before)
    server.shutdown()
    server.server_close()


@pytest.fixture
def tformer(monkeypatch, capsys):
    """Run the command in this process; gives its exit code, what it wrote and what it said."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["tformer", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code, *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def go_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    forget_library()


@pytest.mark.parametrize(
    "text, meant",
    [
        ("org/name", HubName("org/name")),
        ("openai-community/gpt2@main", HubName("openai-community/gpt2", "main")),
        ("a.b/c_d-e@refs/pr/1", HubName("a.b/c_d-e", "refs/pr/1")),
        ("gpt2", None),
        ("./name", None),
        ("../name", None),
        ("/org/name", None),
        ("a/b/c", None),
        ("org/na me", None),
        ("org/", None),
        ("here/nope", None),
    ],
)
def test_a_name_of_the_hub_is_told_from_a_run_and_a_path(text, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert hub_name(text) == meant


def test_only_what_a_model_is_made_of_is_asked_for_and_the_weights_are_transformers(hub, tformer, files):
    code, out, err = tformer("eval", "loss", "--run", NAME, "--data", "mine.txt", "--json", "--device", "cpu")
    assert code == 0, err
    assert json.loads(out)["run"].endswith("snapshots/" + "1" * 40)
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"}
    assert hub.files_asked == wanted
    folder = next(Path("home/hub").glob("models--*/snapshots/*"))
    assert of_snapshot(folder) == (NAME, "1" * 40)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder.resolve())
    model, tokenizer = load(NAME)
    window = torch.tensor([tokenizer.encode(TEXT)[:32]])
    assert torch.allclose(model(window), theirs(window).logits, atol=1e-5)
    assert not list(folder.glob("evals.jsonl")), "nothing is written into the cache"


def test_nothing_is_fetched_twice_and_offline_the_cache_is_taken(hub, tformer, monkeypatch):
    assert tformer("sample", "To", "--run", NAME, "--max-tokens", 2, "--device", "cpu")[0] == 0
    hub.asked.clear()
    code, online, _ = tformer("sample", "To", "--run", NAME, "--max-tokens", 2, "--greedy", "--device", "cpu")
    assert code == 0 and not [path for path in hub.asked if path.startswith("GET /files")]
    go_offline(monkeypatch)
    hub.asked.clear()
    code, offline, err = tformer(
        "sample", "To", "--run", NAME, "--max-tokens", 2, "--greedy", "--device", "cpu"
    )
    assert code == 0, err
    assert offline == online and hub.asked == []


def test_where_the_hub_is_down_the_cache_is_taken_and_without_one_it_is_said(hub, tformer, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub tries again for half a minute
    hub.broken = 503
    code, out, err = tformer("sample", "To", "--run", NAME, "--max-tokens", 2)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"tformer: error: cannot fetch {NAME} from the Hub (")
    assert "it is no run and no path here; " in err and "; try again" in err
    hub.broken = None
    assert tformer("sample", "To", "--run", NAME, "--max-tokens", 2)[0] == 0
    hub.broken = 503
    assert tformer("sample", "To", "--run", NAME, "--max-tokens", 2)[0] == 0


def test_a_model_that_was_not_fetched_whole_is_not_taken_offline(hub, tformer, monkeypatch):
    from huggingface_hub import hf_hub_download

    hf_hub_download(NAME, "config.json")
    go_offline(monkeypatch)
    code, _, err = tformer("sample", "To", "--run", NAME)
    assert code == 1 and "has not been fetched whole (model.safetensors is not in the Hub's cache" in err


def test_a_connection_that_breaks_off_goes_on_where_it_was(hub, tformer):
    hub.repositories[NAME].cut_once = True
    code, _, err = tformer("sample", "To", "--run", NAME, "--max-tokens", 2)
    if code:  # huggingface_hub before version 1 leaves the second try to the user
        assert code == 1 and err.splitlines()[-1].startswith(
            f"tformer: error: cannot fetch {NAME} from the Hub ("
        )
        code, _, err = tformer("sample", "To", "--run", NAME, "--max-tokens", 2)
    assert code == 0, err
    sent = [path for path in hub.asked if path.startswith("GET /files")]
    assert len(sent) == 2, "asked again once"


def test_sharded_weights_are_fetched_by_their_index(hub, tformer, tmp_path):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    shards = {path.name: path.read_bytes() for path in (tmp_path / "sharded").iterdir()}
    assert len([name for name in shards if name.endswith(".safetensors")]) > 1
    tokenizer = hub.repositories[NAME].files["tokenizer.json"]
    hub.repositories["a/sharded"] = Repository(shards | {"tokenizer.json": tokenizer})
    code, _, err = tformer("sample", "To", "--run", "a/sharded", "--max-tokens", 2)
    assert code == 0, err
    assert {name for name in hub.files_asked if name.endswith("safetensors")} == {
        name for name in shards if name.endswith(".safetensors")
    }


REFUSED = {
    "a name that nobody has": ("no/body", "no model 'no/body' (it is no run, no path, and the Hub has none"),
    "a private one": ("my/private", "no model 'my/private' (it is no run, no path, and the Hub has none"),
    "a gated one": ("my/gated", "my/gated is gated on the Hub (its owners give access)"),
    "a revision that is not there": (f"{NAME}@v9", "openai-community/gpt2 has no revision 'v9' on the Hub"),
    "pickled weights alone": ("my/pickled", "(it has pytorch_model.bin, which is pickle and is not read)"),
    "no weights": ("my/empty", "no model.safetensors in my/empty on the Hub (it has no weights)"),
    "no config": ("my/dataset", "my/dataset has no config.json on the Hub"),
    "an adapter": ("my/lora", "my/lora on the Hub is an adapter, a change to the weights of another model"),
    "another architecture": ("my/llama", "my/llama: config.json"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_before_its_weights_are_fetched(hub, tformer, files, case):
    name, said = REFUSED[case]
    config = {"config.json": files["config.json"]}
    llama = {"config.json": json.dumps({"model_type": "llama", "hidden_size": 8}).encode()}
    hub.repositories |= {
        "my/private": Repository(dict(files), private=True),
        "my/gated": Repository(dict(files), gated=True),
        "my/pickled": Repository(config | {"pytorch_model.bin": b"no"}),
        "my/empty": Repository(config),
        "my/dataset": Repository({"data.csv": b"a,b"}),
        "my/lora": Repository({"adapter_config.json": b"{}", "adapter_model.safetensors": b"no"}),
        "my/llama": Repository(llama | {"model.safetensors": b"gigabytes"}),
    }
    for command in (("sample", "To", "--run", name), ("train", "mine.txt", "--init-from", name, *STEPS)):
        code, out, err = tformer(*command)
        assert (code, out) == (2, "") and said in err
        assert len(err.splitlines()) == 1 and "bug" not in err
    assert not [path for path in hub.asked if path.startswith("GET /files")]


def test_a_token_opens_what_is_private(hub, tformer, files, monkeypatch):
    hub.repositories["my/private"] = Repository(dict(files), private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    forget_library()
    code, _, err = tformer("sample", "To", "--run", "my/private", "--max-tokens", 2)
    assert code == 0, err


def test_a_run_by_name_records_its_commit_and_goes_on_without_the_network(hub, tformer, monkeypatch):
    arguments = ("train", "mine.txt", "--init-from", f"{NAME}@main", "--out", "tuned", *STEPS)
    code, _, err = tformer(*arguments, "--set", "train.checkpoint_every=2")
    assert code == 0, err
    assert f"beginning from {NAME}" in err
    origin = yaml.safe_load(Path("tuned/tformer.yaml").read_text())["record"]["init_from"]
    assert (origin["source"], origin["revision"], origin["commit"]) == (NAME, "main", "1" * 40)
    weights = Path("tuned/model.safetensors").read_bytes()

    for path in Path("tuned/checkpoints").glob("step-*6"):
        shutil.rmtree(path)
    go_offline(monkeypatch)
    hub.asked.clear()
    code, _, err = tformer(*arguments, "--resume")
    assert code == 0 and "continuing after step 4" in err, err
    assert hub.asked == [] and Path("tuned/model.safetensors").read_bytes() == weights

    shutil.rmtree("tuned/checkpoints")  # as if killed before its first: it begins again, from the cache
    code, _, err = tformer(*arguments, "--resume")
    assert code == 0, err
    assert hub.asked == [] and Path("tuned/model.safetensors").read_bytes() == weights

    code, _, err = tformer("train", "mine.txt", "--init-from", f"{NAME}@v2", "--out", "tuned", "--resume")
    assert code == 2 and "did not begin from" in err


def test_what_a_run_began_from_is_gone_from_the_cache(hub, tformer, monkeypatch):
    arguments = ("train", "mine.txt", "--init-from", NAME, "--out", "tuned", *STEPS)
    assert tformer(*arguments)[0] == 0
    shutil.rmtree("tuned/checkpoints")
    shutil.rmtree("home")
    go_offline(monkeypatch)
    code, _, err = tformer(*arguments, "--resume")
    assert code == 2 and f"hf download {NAME} --revision {'1' * 40}" in err


def test_what_is_advised_of_the_hub_is_enough(hub, tformer, files, monkeypatch):
    """Each line that says what to do is followed, and the same command, or the one it names, goes through."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub tries again for half a minute
    config = {"config.json": files["config.json"]}
    hub.repositories |= {
        "my/private": Repository(dict(files), private=True),
        "my/gated": Repository(dict(files), gated=True),
        "my/pickled": Repository(config | {"pytorch_model.bin": b"no"}),
        "my/dataset": Repository({"data.csv": b"a,b"}),
    }

    def sampled(name):
        return tformer("sample", "To", "--run", name, "--max-tokens", 2)

    def refused(name, advice):
        code, _, err = sampled(name)
        assert code in (1, 2) and err.rstrip().endswith(f"; {advice}"), err

    refused("openai-comunity/gpt2", "look at its spelling; for a private one: hf auth login")
    assert sampled(NAME)[0] == 0
    refused("my/private", "look at its spelling; for a private one: hf auth login")
    refused("my/gated", "ask for it at huggingface.co/my/gated, then: hf auth login")
    Path("home").mkdir(exist_ok=True)
    Path("home/token").write_text(TOKEN)  # where hf auth login keeps it
    forget_library()
    assert sampled("my/private")[0] == sampled("my/gated")[0] == 0
    refused("my/dataset", "name a model")
    refused("my/pickled", "save it as safetensors")
    hub.repositories["my/pickled"] = Repository(dict(files))
    assert sampled("my/pickled")[0] == 0

    hub.repositories["my/whole"] = Repository(dict(files))
    hub.broken = 503
    refused("my/whole", "try again; what was fetched is kept")
    hub.broken = None
    assert sampled("my/whole")[0] == 0

    arguments = ("train", "mine.txt", "--init-from", NAME, "--out", "tuned", *STEPS)
    assert tformer(*arguments)[0] == 0
    shutil.rmtree("tuned/checkpoints")
    shutil.rmtree("home/hub")
    code, _, err = tformer(*arguments, "--resume")
    command = err.rstrip().rpartition("fetch it again: ")[2].split()
    assert code == 2 and command[:2] == ["hf", "download"], err
    subprocess.run(
        [Path(sys.executable).with_name("hf"), *command[1:]], check=True, capture_output=True, timeout=100
    )
    code, _, err = tformer(*arguments, "--resume")
    assert code == 0, err


@pytest.mark.slow
def test_an_interrupted_training_by_name_goes_on_offline(hub):
    """A real process, a real signal, and then no network."""
    command = [sys.executable, "-m", "tformer", "train", "mine.txt", "--init-from", NAME, "--out", "tuned"]
    command += ["--batch-size", "2", "--device", "cpu"]
    with subprocess.Popen([*command, "--steps", "100000"], stderr=subprocess.PIPE, text=True) as process:
        lines = []
        while not lines or (lines[-1] and not lines[-1].startswith("step ")):
            lines.append(process.stderr.readline())
        assert lines[-1], lines
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    after = max(int(path.name.removeprefix("step-")) for path in Path("tuned/checkpoints").glob("step-*"))
    hub.asked.clear()
    done = subprocess.run(
        [*command, "--resume", "--steps", str(after + 20)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=120,
    )
    assert done.returncode == 0 and "continuing after step" in done.stderr, done.stderr
    assert hub.asked == []


def test_a_model_of_the_hub_may_have_its_tokenizer_in_two_files(hub, tformer, files, tmp_path):
    Tokenizer.load(_written(tmp_path, files)).engine.model.save(str(tmp_path))
    parts = {name: (tmp_path / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    rest = {name: data for name, data in files.items() if name != "tokenizer.json"}
    hub.repositories["my/old"] = Repository(rest | parts)
    code, _, err = tformer("train", "mine.txt", "--init-from", "my/old", "--out", "tuned", *STEPS)
    assert code == 0, err
    whole = Tokenizer.load(tmp_path / "tokenizer.json")
    assert Tokenizer.load(Path("tuned")).encode(TEXT) == whole.encode(TEXT)


def _written(folder, files):
    (folder / "tokenizer.json").write_bytes(files["tokenizer.json"])
    return folder / "tokenizer.json"
