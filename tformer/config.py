"""Every setting, documented where it is declared, in the sections `model`, `data` and `train`."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_POSITIONS = 2**22
MOST_WINDOWS = 2**20  # of an optimizer step
MOST_STEPS = 10**9  # and whatever else is counted in them


class Section(BaseModel):
    """Immutable, strictly typed, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Family:
    """An architecture with a Hugging Face layout: what is fixed in it, and what may be set beside that."""

    norm: Literal["layer", "rms"]  # LayerNorm, or RMSNorm without weights
    norm_embed: bool  # whether embeddings are normed before the first block
    embed_std: float  # of the embedding at its start, and of learned positions
    unembed_std: float  # of the unembedding, and of a table that is both
    defaults: dict[str, Any]  # of settings
    layout: dict[str, tuple[Any, ...]]  # of settings, the values that the layout can express


FAMILIES = {
    "gpt2": Family(
        norm="layer",
        norm_embed=False,
        embed_std=0.02,
        unembed_std=0.02,
        defaults={
            "positions": "learned",
            "activation": "gelu_new",
            "bias": True,
            "tied": True,
            "norm_eps": 1e-5,
        },
        layout={
            "positions": ("learned", "sinusoidal", "none"),
            "logit_softcap": (0.0,),
            "qk_norm": (False,),
        },
    ),
    "nanochat": Family(
        norm="rms",
        norm_embed=True,
        embed_std=1.0,  # the norm follows
        unembed_std=0.001,  # the first guess is uniform
        defaults={
            "positions": "rotary",
            "activation": "relu2",
            "bias": False,
            "tied": False,
            "norm_eps": 1e-6,
            "logit_softcap": 15.0,
            "qk_norm": True,
        },
        layout={"positions": ("rotary",), "bias": (False,), "qk_norm": (True,)},
    ),
}


class ModelConfig(Section):
    """The architecture. A value that is left out is the family's own."""

    family: Literal["gpt2", "nanochat"] = Field(
        "gpt2", description="architecture and its Hugging Face layout"
    )
    vocab_size: int = Field(0, ge=0, le=2**24, description="rows of the embedding; 0: the tokenizer's size")
    n_ctx: int = Field(256, ge=1, le=MOST_POSITIONS, description="context length, in tokens")
    n_layers: int = Field(4, ge=1, le=1000, description="number of transformer blocks")
    n_heads: int = Field(4, ge=1, le=1024, description="query heads; must divide d_model")
    n_kv_heads: int = Field(
        0, ge=0, le=1024, description="key and value heads; must divide n_heads; 0: n_heads"
    )
    d_model: int = Field(128, ge=1, le=2**17, description="width of the residual stream")
    d_mlp: int = Field(0, ge=0, le=2**20, description="hidden width of the MLP; 0: 4 · d_model")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="on embeddings, attention weights and residual branches"
    )
    positions: Literal["learned", "sinusoidal", "rotary", "none"] = Field(
        "learned", description="position encoding; nanochat: rotary only; gpt2: the others"
    )
    activation: Literal["gelu_new", "gelu", "relu", "relu2"] = Field(
        "gelu_new", description="of the MLP; gelu_new: tanh approximation, gelu: exact (erf); nanochat: relu2"
    )
    bias: bool = Field(True, description="biases in linear layers and LayerNorms; nanochat: False")
    tied: bool = Field(
        True, description="share one matrix between embedding and unembedding; nanochat: False"
    )
    norm_eps: float = Field(
        1e-5, gt=0, description="epsilon of the norms, added to the variance; nanochat: 1e-6"
    )
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary frequencies")
    logit_softcap: float = Field(0.0, ge=0, description="c in c · tanh(logits / c); 0: off; nanochat: 15")
    qk_norm: bool = Field(False, description="RMSNorm on queries and keys after rotation; nanochat: True")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        family = FAMILIES.get(str(values.get("family", "gpt2")))
        values = (family.defaults if family else {}) | values
        for key, source, factor in (("n_kv_heads", "n_heads", 1), ("d_mlp", "d_model", 4)):
            size = values.get(source, cls.model_fields[source].default)
            if type(values.get(key, 0)) is int and values.get(key, 0) == 0 and type(size) is int:
                values = values | {key: factor * size}
        return values

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        for key, allowed in FAMILIES[self.family].layout.items():
            if getattr(self, key) not in allowed:
                raise ValueError(
                    f"{key} {getattr(self, key)!r} has no place in the {self.family} layout "
                    f"(it has {' or '.join(map(str, allowed))})"
                )
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads {self.n_heads} must divide d_model {self.d_model}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads {self.n_kv_heads} must divide n_heads {self.n_heads}")
        if self.family == "gpt2" and self.n_kv_heads != self.n_heads:
            raise ValueError("the gpt2 layout has as many key heads as query heads (n_kv_heads 0)")
        if self.positions == "rotary" and self.d_head % 2:
            raise ValueError(f"rotary positions need an even d_model / n_heads, found {self.d_head}")
        return self

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    @property
    def norm(self) -> Literal["layer", "rms"]:
        """LayerNorm, or RMSNorm without weights: the family's."""
        return FAMILIES[self.family].norm

    @property
    def norm_embed(self) -> bool:
        """Whether the embeddings are normed before the first block: the family's."""
        return FAMILIES[self.family].norm_embed

    @property
    def embed_std(self) -> float:
        """Standard deviation of embeddings and learned positions at their start: the family's."""
        return FAMILIES[self.family].embed_std

    @property
    def unembed_std(self) -> float:
        """Standard deviation of the unembedding at its start, or of one table for both: the family's."""
        return FAMILIES[self.family].unembed_std


class DataConfig(Section):
    """What is learned from, and how it becomes windows."""

    task: Literal["text", "reversal"] = Field(
        "text", description="training task; DATA reversal selects reversal"
    )
    tokenizer: str = Field("char", description="word, char or bpe; or a tokenizer.json or run directory")
    vocab_size: int = Field(4096, ge=257, le=2**24, description="total vocabulary size of word and bpe")
    end_of_text: bool = Field(
        True, description="end-of-text token between documents, one id of a new vocabulary"
    )
    field: str = Field(
        "text", min_length=1, description="column or field that holds the text of a table; dots for nesting"
    )
    val_fraction: float = Field(0.1, ge=0, lt=1, description="fraction of the text held out for validation")
    documents: str = Field(
        "auto",
        min_length=1,
        description="auto, none, line, paragraph, file (in a table: row), or the separator line",
    )
    val_split: Literal["auto", "end", "lines", "documents", "files"] = Field(
        "auto",
        description="end of the text, or random lines, documents or files; auto: documents if many, else end",
    )
    window: int = Field(
        0, ge=0, le=MOST_POSITIONS, description="length of a training window, at most n_ctx; 0: n_ctx"
    )
    stride: int = Field(
        0,
        ge=0,
        le=MOST_POSITIONS,
        description="tokens between window starts, at most the window's length; 0: disjoint windows",
    )
    reversal_length: int = Field(
        10, ge=1, le=10_000, description="n: length of the random half of a sequence"
    )
    reversal_symbols: int = Field(26, ge=2, le=10_000, description="V: number of different symbols")


class TrainConfig(Section):
    """How it is learned."""

    seed: int = Field(0, ge=0, lt=2**63, description="random seed of weights, batches and dropout")
    steps: int = Field(1000, ge=1, le=MOST_STEPS, description="optimizer steps")
    batch_size: int = Field(32, ge=1, le=MOST_WINDOWS, description="windows per optimizer step")
    micro_batch_size: int = Field(
        0,
        ge=0,
        le=MOST_WINDOWS,
        description="windows per forward and backward pass; must divide batch_size; 0: all at once",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for the matrices of the blocks, AdamW for the rest"
    )
    lr: float = Field(
        1e-3, gt=0, description="peak learning rate; Muon's updates are scaled to the size of AdamW's"
    )
    lr_final: float = Field(0.1, ge=0, le=1, description="final learning rate, as a fraction of lr")
    warmup_steps: int = Field(100, ge=0, le=MOST_STEPS, description="steps of linear warmup")
    decay: Literal["cosine", "linear"] = Field("cosine", description="shape of the learning rate decay")
    decay_fraction: float = Field(
        1.0, ge=0, le=1, description="fraction of the steps, at the end, in which lr decays"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="of AdamW")
    beta2: float = Field(0.99, ge=0, lt=1, description="of AdamW")
    momentum: float = Field(0.95, ge=0, lt=1, description="of Muon")
    eps: float = Field(1e-8, gt=0, description="of AdamW")
    weight_decay: float = Field(0.1, ge=0, description="decoupled; on matrices and embeddings only")
    grad_clip: float = Field(1.0, ge=0, description="maximum global gradient norm; 0: off")
    eval_every: int = Field(
        250, ge=0, le=MOST_STEPS, description="steps between evaluations; 0: only at the end"
    )
    checkpoint_every: int = Field(
        500, ge=0, le=MOST_STEPS, description="steps between checkpoints; 0: only at the end"
    )
    log_every: int = Field(10, ge=1, le=MOST_STEPS, description="steps between lines of metrics.jsonl")
    keep: Literal["best", "last"] = Field(
        "best", description="weights in model.safetensors: best by validation loss, or last"
    )
    keep_checkpoints: int = Field(
        2,
        ge=2,
        le=MOST_STEPS,
        description="number of newest checkpoints kept, besides that of the weights in model.safetensors",
    )
    patience: int = Field(
        0, ge=0, le=MOST_STEPS, description="stop after this many evaluations without improvement; 0: off"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of matrix products; auto: bf16 where the hardware supports it"
    )
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile; auto: only on a GPU")
    kernels: Literal["auto", "blocks", "sdpa", "reference"] = Field(
        "auto", description="implementation; auto: by device"
    )
    recompute: bool = Field(
        False, description="recompute activations in the backward pass: less memory, slower"
    )
    shard: bool = Field(
        False, description="shard parameters, gradients and optimizer state across processes (FSDP2)"
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} must divide batch_size {self.batch_size}"
            )
        return self


class Config(Section):
    """The whole configuration of a run."""

    model: ModelConfig = Field(default_factory=lambda: ModelConfig.model_validate({}))
    data: DataConfig = Field(default_factory=lambda: DataConfig.model_validate({}))
    train: TrainConfig = Field(default_factory=lambda: TrainConfig.model_validate({}))

    @model_validator(mode="after")
    def _check(self) -> "Config":
        window = self.data.window or self.model.n_ctx
        if window > self.model.n_ctx:
            raise ValueError(f"data.window {window} is longer than the model's context, {self.model.n_ctx}")
        if self.data.stride > window:
            raise ValueError(f"data.stride {self.data.stride} would skip text: it is at most {window}")
        return self

    def updated(self, section: str, **values: Any) -> "Config":
        """A copy with some values of one section replaced, validated again."""
        whole = self.model_dump()
        whole[section] |= values
        return Config.model_validate(whole)
