"""How other tools are to use a directory: its tokens and generation, beside the architecture.

The roles of tokens and a length for generation: those of a vocabulary made here, or all that the directory
says which a run began from. A part of `config.json`, `generation_config.json`, `tokenizer_config.json`, and a
chat template.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tformer.config import ModelConfig
from tformer.errors import RequestError
from tformer.files import read_json, read_whole, write_file, write_json
from tformer.run.huggingface import READ_SINCE, to_hf_config
from tformer.text.tokenizer import Tokenizer, token_text

ROLES = ("bos", "eos", "pad", "unk")
OF_CONFIG = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id")
OF_TASKS = "task_specific_params"
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
# What another tool says of its own files, which are not those that are written.
NOT_CARRIED = (
    "auto_map",
    "backend",
    "is_local",
    "local_files_only",
    "name_or_path",
    "tokenizer_file",
    "vocab_file",
)
TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Usage:
    """The values by file: `config` is a part of config.json, `template` a chat template in its own file."""

    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    template: str | None = None

    def write(self, folder: Path, model: ModelConfig) -> None:
        """The files, with the architecture."""
        version = {"transformers_version": READ_SINCE[model.family]}
        write_json(folder / "tokenizer_config.json", self.tokenizer)
        write_json(folder / "generation_config.json", self.generation | version)
        write_json(folder / "config.json", to_hf_config(model, self.config))
        if self.template is not None:
            write_file(folder / TEMPLATE, self.template.encode())


def own_usage(model: ModelConfig, tokenizer: Tokenizer) -> Usage:
    """Those of a vocabulary made here: its one special token has every role.

    Without that token, an empty prompt starts at a line end and nothing ends a text. Generation is given half
    a context where no length is asked for: transformers would otherwise take 256 tokens, past the end of a
    small context. In transformers the token's text is the token, as it is in GPT-2's tokenizer: fine-tuning
    tools append it to each example.
    """
    end = tokenizer.end_id
    ids = {
        "bos_token_id": tokenizer.start_id if end is None else end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    names = {f"{role}_token": tokenizer.engine.id_to_token(end) for role in ROLES} if end is not None else {}
    length = {"do_sample": True, "max_new_tokens": max(1, model.n_ctx // 2)}
    tasks = {OF_TASKS: {"text-generation": length}} if model.family == "gpt2" else {}
    return Usage(
        config=ids | tasks,
        generation=ids | length,
        tokenizer=_every_tokenizer(model) | names,
    )


def read_usage(folder: Path, model: ModelConfig, tokenizer: Tokenizer) -> Usage:
    """All that a directory says, for a model that began from it; what it leaves out is as of our own."""
    config = _read(folder / "config.json")
    own = own_usage(model, tokenizer)
    says = {key: config[key] for key in OF_CONFIG if key in config}
    says = says or {key: own.config[key] for key in OF_CONFIG if key in own.config}
    generation = _read(folder / "generation_config.json") or own.generation | says
    tokens = _read(folder / "tokenizer_config.json")
    tokens = {key: value for key, value in tokens.items() if key not in NOT_CARRIED}
    roles = _roles(folder, config, tokenizer)
    if config.get("resid_pdrop") == model.dropout:  # it is what the three were taken for
        says |= {key: config[key] for key in DROPOUTS if key in config}
    if tasks := config.get(OF_TASKS, own.config.get(OF_TASKS)):
        says |= {OF_TASKS: tasks}
    return Usage(
        config=says,
        generation={key: value for key, value in generation.items() if key != "transformers_version"},
        tokenizer=roles | tokens | _every_tokenizer(model, tokens),
        template=_template(folder / TEMPLATE),
    )


def _template(path: Path) -> str | None:
    """Raises RequestError for one that cannot be carried on."""
    try:
        return read_whole(path) if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read {path}", str(error)) from None


def _roles(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokens of the roles where no tokenizer_config.json names them, as in directories of old."""
    named = _read(folder / "special_tokens_map.json")
    roles = {}
    for role in ROLES:
        found, i = token_text(named.get(f"{role}_token")), config.get(f"{role}_token_id")
        if found is None and type(i) is int and 0 <= i < tokenizer.vocab_size:
            found = tokenizer.engine.id_to_token(i)
        if found is not None:
            roles[f"{role}_token"] = found
    return roles


def _every_tokenizer(model: ModelConfig, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """The class that is right for every tokenizer.json, nothing cleaned up; and what a model is given.

    In transformers 4 that class gives token types as well, of which GPT-2 adds the embeddings of tokens.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": (known or {}).get("model_max_length", model.n_ctx),
    }


def end_ids(folder: Path) -> tuple[int, ...]:
    """The ids that end a text: of generation_config.json, or of config.json; none where neither names any."""
    for name in ("generation_config.json", "config.json"):
        found = _read(folder / name).get("eos_token_id")
        ids = found if isinstance(found, list) else [found]
        if ids := [i for i in ids if type(i) is int and i >= 0]:
            return tuple(ids)
    return ()


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
