"""Settings: which layer wins, what is refused and how the error names it, and that files come back."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tformer.config import FAMILIES, Config, ModelConfig
from tformer.errors import RequestError
from tformer.layers import all_keys, file_layer, flag_layer, merge, preset_layer, preset_names
from tformer.yaml_text import dump_yaml, parse_yaml


def written(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return file_layer(path)


def refusal(call, *args) -> str:
    with pytest.raises(RequestError) as caught:
        call(*args)
    message = str(caught.value)
    assert caught.value.exit_code == 2 and "\n" not in message
    return message


def flags(*settings, **given):
    return merge([flag_layer(settings, given)])


# ---------------------------------------------------------------------------- which layer wins


def test_a_flag_wins_over_a_file_and_a_file_over_a_preset(tmp_path):
    preset = preset_layer("reversal")
    assert preset.values["train"]["steps"] != 7 and preset.values["model"]["n_layers"] not in (8, 9)
    file = written(tmp_path, "train: {steps: 7}\nmodel: {n_layers: 8}\n")
    command = flag_layer(["model.n_layers=9"], {"train.seed": 5, "train.lr": None})
    config = merge([preset, file, command])
    assert (config.train.seed, config.train.steps, config.model.n_layers) == (5, 7, 9)
    assert config.data.task == "reversal", "what nobody overrides is the preset's"
    assert config.train.lr == preset.values["train"]["lr"], "a flag left out overrides nothing"


def test_no_layer_at_all_is_the_defaults():
    assert merge([]) == Config() == flags()


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_configuration(name):
    config = merge([preset_layer(name)])
    if config.data.task == "reversal":
        assert config.model.n_ctx == 2 * config.data.reversal_length - 1


def test_there_are_presets():
    assert {"reversal", "text"} <= set(preset_names())


def test_an_unknown_preset_is_named_with_the_nearest():
    assert "did you mean reversal?" in refusal(preset_layer, "revresal")


# ---------------------------------------------------------------------------- what is refused, and how


@pytest.mark.parametrize(
    "wrong,right",
    [
        ("model.n_layer", "model.n_layers"),
        ("train.batchsize", "train.batch_size"),
        ("data.strid", "data.stride"),
    ],
)
def test_an_unknown_key_names_itself_its_source_and_the_nearest(tmp_path, wrong, right):
    section, name = wrong.split(".")
    for call, source in (
        (lambda: written(tmp_path, f"{section}:\n  {name}: 3\n"), str(tmp_path / "my.yaml")),
        (lambda: flag_layer([f"{wrong}=3"], {}), "the command line"),
    ):
        message = refusal(call)
        assert f"unknown key {wrong} in {source}" in message and f"did you mean {right}?" in message


def test_an_unknown_section_is_named_with_the_nearest(tmp_path):
    message = refusal(written, tmp_path, "trian: {steps: 3}")
    assert "'trian'" in message and "my.yaml" in message and "train" in message.split(";")[1]
    assert "train.steps" in refusal(flag_layer, ["steps=3"], {})


@pytest.mark.parametrize("key", all_keys())
@pytest.mark.parametrize("value", ["[1, 2]", "{a: 1}", "null", "''"])
def test_a_value_of_the_wrong_type_names_its_key_and_source(tmp_path, key, value):
    if (key, value) == ("data.tokenizer", "''"):
        return  # text, if an empty one
    section, name = key.split(".")
    for source, call in {
        "my.yaml": lambda: merge([written(tmp_path, f"{section}:\n  {name}: {value}\n")]),
        "the command line": lambda: flags(f"{key}={value}"),
    }.items():
        message = refusal(call)
        assert f"{key} in " in message and source in message


@pytest.mark.parametrize(
    "setting",
    [
        "model.n_layers=2.0",
        "model.n_layers='2'",
        "model.n_layers=true",
        "model.bias=1",
        "model.bias=yes",
        "model.n_kv_heads=false",
        "model.d_mlp=0.0",
        "train.lr=fast",
        "train.steps=1e3",
        "train.seed=-1",
        "model.n_layers=0",
        "model.n_layers=1000000000",
        "train.lr=.nan",
        "train.lr=.inf",
        "train.lr=1e400",
        "model.dropout=1.0",
        "train.lr=0",
        "data.val_fraction=1",
        "model.family=bert",
        "train.keep=all",
        "train.steps=" + "9" * 5000,
    ],
)
def test_a_value_that_makes_no_sense_is_refused(setting):
    assert setting.split("=")[0] in refusal(flags, setting)


def test_the_error_names_the_layer_that_won():
    message = refusal(merge, [preset_layer("reversal"), flag_layer(["train.steps=many"], {})])
    assert "train.steps in the command line" in message and "'many'" in message
    bad = refusal(merge, [flag_layer(["train.steps=many"], {}), flag_layer(["train.seed=0"], {})])
    assert "train.steps" in bad


@pytest.mark.parametrize(
    "setting",
    [
        "model.n_layers",
        "",
        "model",
        "=3",
        "model.=3",
        "model.a.b=3",
        ".=",
        "a=[",
        "model=3",
    ],
)
def test_a_setting_that_is_not_key_value_is_refused(setting):
    refusal(flag_layer, [setting], {})


def test_a_flag_and_a_setting_that_disagree_are_refused():
    assert "train.steps is given twice" in refusal(flag_layer, ["train.steps=3"], {"train.steps": 4})
    assert flag_layer(["train.steps=3", "train.steps=4"], {}).values == {"train": {"steps": 4}}
    assert flags("train.steps=3", **{"train.steps": 3}).train.steps == 3


MALFORMED = {
    "not YAML": "model: [",
    "a list": "- 1",
    "a word": "hello",
    "a section that is a number": "model: 3",
    "two documents": "model: {}\n---\nmodel: {}",
    "a key twice": "train: {steps: 1, steps: 2}",
    "a section twice": "train: {steps: 1}\ntrain: {seed: 2}",
    "an alias": "train: {steps: &a 3, warmup_steps: *a}",
    "a merge key": "train:\n  <<: {steps: 1}",
    "a python tag": "train: !!python/object/apply:os.getcwd []",
    "an unknown tag": "train: {steps: !mine 1}",
    "an empty int": "train: {steps: !!int ''}",
    "an empty float": "train: {lr: !!float ''}",
    "a false bool": "model: {bias: !!bool maybe}",
    "a false date": "train: {steps: !!timestamp soon}",
    "a set": "train: !!set {steps}",
    "nested deeply": "train: " + "[" * 20_000,
    "nested deeply and closed": "train: {steps: " + "[" * 3000 + "]" * 3000 + "}",
    "nested mappings": "{train: " * 3000 + "1" + "}" * 3000,
    "a NUL": "train: {steps: 1}\0",
    "a list as key": "? [1]\n: 2",
    "a number as key": "1: {}",
    "a number as name": "train: {1: 2}",
    "leading zeros of no base": "train: {steps: 08x}",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_by_its_name(tmp_path, name):
    assert "my.yaml" in refusal(lambda: merge([written(tmp_path, MALFORMED[name])]))


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("abtrue:{}[]-!&*<>|?'\"#%@,. \n01e~_/"), max_size=30))
def test_any_text_is_yaml_or_refused(text):
    try:
        parse_yaml(text, "my.yaml")
    except RequestError as error:
        assert "my.yaml" in str(error)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"train: {steps: 1} # \xe9")
    for name in ("missing.yaml", ".", "latin.yaml"):
        assert "cannot read the configuration" in refusal(file_layer, tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# a comment alone\n",
        "model:\ntrain:\n",
        "{}",
        "null",
        "record: {result: 1}",
    ],
)
def test_a_file_that_sets_nothing_is_the_defaults(tmp_path, text):
    assert merge([written(tmp_path, text)]) == Config()


# ---------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "text,value",
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("3.0e-4", 0.0003),
        (".5", 0.5),
        ("1.", 1.0),
        ("+2", 2),
        ("-2", -2),
        ("0", 0),
        ("0100", 100),
        ("089", 89),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("'1'", "1"),
        ("e3", "e3"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    parsed = parse_yaml(text, "--set")
    assert parsed == value and type(parsed) is type(value)


def test_a_learning_rate_without_a_point_is_a_number(tmp_path):
    assert flags("train.lr=1e-3").train.lr == 0.001
    assert merge([written(tmp_path, "train: {lr: 2e-4}")]).train.lr == 0.0002
    assert flags("train.lr=1").train.lr == 1.0, "a whole number will do where a real one is expected"


# ---------------------------------------------------------------------------- the model's layouts


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_fixes_is_no_setting_and_not_recorded(family):
    config = ModelConfig(family=family)
    for name in ("norm", "norm_embed", "embed_std", "unembed_std"):
        assert getattr(config, name) == getattr(FAMILIES[family], name)
        assert name not in config.model_dump()
        assert f"unknown key model.{name}" in refusal(flag_layer, [f"model.{name}=1"], {})


def test_defaults_of_a_family_are_settings_that_its_layout_has():
    for family in FAMILIES.values():
        for key, value in family.defaults.items():
            assert value in family.layout.get(key, (value,)), key


def test_a_family_brings_its_own_defaults():
    gpt2, nanochat = flags("model.family=gpt2").model, flags("model.family=nanochat").model
    assert (gpt2.positions, gpt2.activation, gpt2.bias, gpt2.tied) == ("learned", "gelu_new", True, True)
    assert (gpt2.qk_norm, gpt2.logit_softcap, gpt2.norm_eps) == (False, 0.0, 1e-5)
    assert (nanochat.positions, nanochat.activation, nanochat.bias) == ("rotary", "relu2", False)
    assert (nanochat.tied, nanochat.qk_norm, nanochat.logit_softcap) == (False, True, 15.0)
    assert flags("model.family=nanochat", "model.tied=true").model.tied is True


def test_sizes_left_out_follow_from_the_others():
    model = flags("model.d_model=96", "model.n_heads=6").model
    assert (model.n_kv_heads, model.d_mlp, model.d_head) == (6, 384, 16)
    assert flags("model.d_mlp=100").model.d_mlp == 100
    assert flags("model.d_mlp=0").model.d_mlp == 4 * ModelConfig().d_model


@pytest.mark.parametrize(
    "given,word",
    [
        (["model.positions=rotary"], "positions"),
        (["model.logit_softcap=15.0"], "logit_softcap"),
        (["model.qk_norm=true"], "qk_norm"),
        (["model.n_kv_heads=2"], "n_kv_heads"),
        (["model.n_heads=3"], "n_heads"),
        (["model.family=nanochat", "model.positions=learned"], "positions"),
        (["model.family=nanochat", "model.bias=true"], "bias"),
        (["model.family=nanochat", "model.qk_norm=false"], "qk_norm"),
        (["model.family=nanochat", "model.n_kv_heads=3"], "n_kv_heads"),
        (["model.family=nanochat", "model.d_model=12"], "even"),
        (["data.stride=300"], "stride"),
        (["train.micro_batch_size=5"], "micro_batch_size"),
    ],
)
def test_what_a_layout_cannot_express_is_refused_by_name(given, word):
    assert word in refusal(flags, *given)


@pytest.mark.parametrize(
    "given",
    [
        ["model.positions=sinusoidal"],
        ["model.positions=none"],
        ["model.activation=gelu"],
        ["model.tied=false"],
        ["model.family=nanochat", "model.n_kv_heads=2"],
        ["model.family=nanochat", "model.logit_softcap=0"],
        ["data.stride=256"],
        ["train.micro_batch_size=8"],
    ],
)
def test_what_a_layout_can_express_is_accepted(given):
    flags(*given)


# ---------------------------------------------------------------------------- copies and files


def test_an_updated_copy_is_checked_again_and_leaves_the_original():
    config = Config()
    assert config.updated("model", vocab_size=99, n_ctx=64).model.vocab_size == 99
    assert config.model.vocab_size == 0
    assert config.updated("model", vocab_size=99).updated("model", vocab_size=0) == config
    for section, values in (("model", {"n_layers": 0}), ("model", {"n_ctx": "9"}), ("data", {"nothing": 1})):
        with pytest.raises(ValidationError):
            config.updated(section, **values)


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(ValidationError):
        Config().train.steps = 5


# PyYAML itself does not bring back NEL and the Unicode line separators; no name of a file has them.
LETTERS = st.one_of(
    st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=20),
    st.text(st.sampled_from("0123456789eE.+-_~:nul#' \n"), max_size=6),
)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "train.lr": st.floats(1e-300, 1e300),
        "train.seed": st.integers(0, 2**63 - 1),
        "train.weight_decay": st.floats(0, 1e20),
        "model.n_layers": st.integers(1, 1000),
        "model.dropout": st.floats(0, 0.99),
        "data.tokenizer": LETTERS,
    },
)


@settings(max_examples=200, deadline=None)
@given(changes=CHANGES, family=st.sampled_from(["gpt2", "nanochat"]), note=LETTERS)
@example(changes={"data.tokenizer": "1e3"}, family="gpt2", note="08")
def test_a_configuration_comes_back_from_its_file(changes, family, note, tmp_path_factory):
    config = merge([flag_layer([], changes | {"model.family": family})])
    record = {"data": [note], "again": {note: None}, "result": {"loss": 1e-7, "steps": 3}}
    text = dump_yaml(config.model_dump() | {"record": record})
    path = tmp_path_factory.getbasetemp() / "tformer.yaml"
    path.write_text(text, encoding="utf-8")
    assert merge([file_layer(path)]) == config, "a run's own file does not give its configuration"
    assert parse_yaml(text, "tformer.yaml")["record"] == record


def test_a_value_that_stands_twice_comes_back():
    shared = {"name": "poem.txt", "sizes": [1, 2]}
    values = {"train": shared, "val": shared}
    assert parse_yaml(dump_yaml(values), "tformer.yaml") == values


def test_a_wrong_value_is_told_what_the_setting_is():
    message = refusal(lambda value: merge([flag_layer([value], {})]), "train.steps=0")
    assert "train.steps in the command line" in message and "found 0" in message
    assert message.endswith("train.steps is: optimizer steps")


def test_a_key_that_nothing_is_like_is_told_what_there_is():
    message = refusal(lambda value: flag_layer([value], {}), "model.zzzzzz=1")
    assert "model.n_layers" in message and "train.steps" not in message
