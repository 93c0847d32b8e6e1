"""A model by its name on the Hugging Face Hub, `org/name[@revision]`: its folder in the Hub's own cache.

Fetched with huggingface_hub, which is imported only then: its cache, its progress, its token, and what
HF_ENDPOINT, HF_HUB_OFFLINE and HF_HOME say are as everywhere. Only what a model is made of is asked for, and
the weights last, after `config.json` has said that they can be read. One file after the other, in this
thread: a signal stops it. No torch is imported before something is fetched.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

from tformer.errors import RequestError, TformerError
from tformer.files import read_json
from tformer.run.lacking import ADAPTER, PICKLED, adapter_alone

SHAPE = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
OF_TOKENS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
OF_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")


class _NoConfigError(RequestError):
    """A repository without a config.json."""


@dataclass(frozen=True)
class HubName:
    """`org/name`, and a branch, tag or commit if one is named."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def hub_name(name: str) -> HubName | None:
    """The name on the Hub that is meant; None for anything else.

    A path is meant where the first part is a folder here: `runs/nope` is a run that is not there.
    """
    found = SHAPE.fullmatch(name)
    if found is None or Path(found[1]).exists():
        return None
    return HubName(f"{found[1]}/{found[2]}", found[3])


def of_snapshot(folder: Path) -> tuple[str, str] | None:
    """`org/name` and the commit of a folder in the Hub's cache: `models--org--name/snapshots/COMMIT`."""
    commit, snapshots, repo = folder.name, folder.parent.name, folder.parent.parent.name.split("--")
    if snapshots != "snapshots" or len(repo) != 3 or repo[0] != "models":
        return None
    return "/".join(repo[1:]), commit


def fetch(name: HubName) -> Path:
    """The folder of a model in the Hub's cache, fetched where it is not there yet.

    Without a network, what is in the cache is taken. Raises RequestError where the Hub does not have it, or
    has what cannot be read here, and TformerError where it cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download

    from tformer.run.huggingface import from_hf_config

    try:
        with _explained(name):
            folder = Path(hf_hub_download(name.repo, "config.json", revision=name.revision)).parent
    except _NoConfigError:
        with _explained(name):
            listed = HfApi().model_info(name.repo, revision=name.revision).siblings or []
        if ADAPTER in (file.rfilename for file in listed):
            raise adapter_alone(f"{name} on the Hub", None) from None
        raise
    from_hf_config(read_json(folder / "config.json"), f"{name}: config.json")
    try:
        with _explained(name):
            listed = HfApi().model_info(name.repo, revision=folder.name).siblings or []
    except TformerError as error:
        _check_whole(name, folder, str(error))
        return folder
    there = [file.rfilename for file in listed]
    weights = _matching(there, OF_WEIGHTS)
    if not _matching(weights, ("*.safetensors",)):
        pickled = next((n for n in there if "/" not in n and n.endswith(PICKLED)), None)
        found = f"it has {pickled}, which is pickle and is not read" if pickled else "it has no weights"
        raise RequestError(f"no model.safetensors in {name} on the Hub", found, "save it as safetensors")
    if "model.safetensors" in weights:  # as transformers: shards beside it are not read
        weights = ["model.safetensors"]
    for file in [*_matching(there, OF_TOKENS), *weights]:
        with _explained(name):
            hf_hub_download(name.repo, file, revision=folder.name)
    return folder


def fetched(repo: str, commit: str) -> Path:
    """The folder of what was fetched before; the network is not asked. Raises RequestError if it is gone."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=commit)
    if not isinstance(config, str):
        raise RequestError(
            f"{repo} at {commit[:12]} is not in the Hub's cache any more",
            "the run began from it and has no checkpoint yet",
            f"fetch it again: hf download {repo} --revision {commit}",
        )
    return Path(config).parent


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    """Those at the top of a repository."""
    return [n for n in names if "/" not in n and any(fnmatchcase(n, pattern) for pattern in patterns)]


def _check_whole(name: HubName, folder: Path, why: str) -> None:
    """Nothing says offline which files there are: an index of shards does, or else there is one file."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    shards = read_json(index).get("weight_map") if index.exists() and not whole.exists() else None
    files = sorted({str(shard) for shard in shards.values()}) if isinstance(shards, dict) else [whole.name]
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        raise TformerError(
            f"{name} has not been fetched whole", f"{missing[0]} is not in the Hub's cache; {why}"
        )


@contextmanager
def _explained(name: HubName) -> Iterator[None]:
    """The errors of huggingface_hub as ours."""
    from huggingface_hub import errors as hub

    transport = cast(
        type[Exception], hub.HfHubHTTPError.__bases__[0]
    )  # all errors of its HTTP library are one
    try:
        yield
    except hub.GatedRepoError:
        advice = f"ask for it at huggingface.co/{name.repo}, then: hf auth login"
        raise RequestError(f"{name} is gated on the Hub", "its owners give access", advice) from None
    except hub.RepositoryNotFoundError:
        raise RequestError(
            f"no model {str(name)!r}",
            "it is no run, no path, and the Hub has none of that name, or does not show it to you",
            "look at its spelling; for a private one: hf auth login",
        ) from None
    except hub.RevisionNotFoundError:
        raise RequestError(f"{name.repo} has no revision {name.revision!r} on the Hub") from None
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise _unreachable(name, error) from None
    except hub.EntryNotFoundError:
        raise _NoConfigError(f"{name} has no config.json on the Hub", "", "name a model") from None
    except (transport, OSError) as error:
        raise _unreachable(name, error) from None


def _unreachable(name: HubName, error: Exception) -> TformerError:
    """What huggingface_hub says of a failure, in a line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    found = f"it is no run and no path here; {lines[0].rstrip('.')}"
    advice = "try again; what was fetched is kept"
    return TformerError(f"cannot fetch {name} from the Hub", found, advice)
