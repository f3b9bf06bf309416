"""The command line: what it takes, and how it answers what it can't take."""

import pytest

from evals.config import ConfigError, compose_config


def test_presets():
    mini = compose_config([])
    assert (mini.scale, mini.weights, mini.features, mini.dataset.name) == ("mini", "mini", "effnet", "photos")
    assert mini.make_protocol().eval_size == 128
    paper = compose_config(["scale=paper"])
    assert (paper.weights, paper.features, paper.make_protocol().eval_size) == ("paper", "inception", 1024)


def test_each_setting_of_a_scale_can_be_set_alone():
    config = compose_config(["scale=paper", "weights=mini", "protocol=native-256", "dataset=photos"])
    assert (config.weights, config.features, config.dataset.name) == ("mini", "inception", "photos")
    assert config.make_protocol().fit == "crop"


def test_options_and_protocol_fields():
    config = compose_config(["options.downsample-bits.bits=640", "protocol.rounding=truncate", "tokenizers=[a,b-c]"])
    assert config.options == {"downsample-bits": {"bits": 640}}
    assert config.make_protocol().rounding == "truncate"
    assert "rounding=truncate" in config.make_protocol().name, "a changed protocol does not pass for the preset"
    assert config.tokenizers == ["a", "b-c"]


@pytest.mark.parametrize(
    "folder", ["/my pictures", "/a=b", "/x[1]", "/it's", "relative/ünïcode", "/with,comma", "/a{b}"]
)
def test_a_path_with_special_characters_is_taken_or_answered_with_quoting_that_works(folder: str):
    import shlex

    plain = f"dataset.root={folder}"
    try:
        assert compose_config(["dataset=folder", plain]).dataset.root == folder
    except ConfigError as error:
        advice = str(error).split("write ", 1)[1]
        (override,) = shlex.split(advice)
        assert compose_config(["dataset=folder", override]).dataset.root == folder


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenisers=all", "did you mean 'tokenizers'"),
        ("dataset=phots", "did you mean 'photos'"),
        ("protocol=mini128", "mini-128"),
        ("protocol.eval_siz=3", "protocol.eval_size"),
        ("protocol.eval_size=3", "16 to 16384"),
        ("protocol.fit=stretch", "squash, crop"),
        ("scale=large", "mini"),
        ("seeds=0", "at least 1"),
        ("limit=-3", "at least 1"),
        ("limit=many", "limit"),
        ("precision=fp16", "fp32 or tf32 or bf16"),
        ("on_bad_image=ignore", "stop or skip"),
        ("seed=-1", "2\\^63"),
        ("justaword", "key=value"),
        ("dataset.rot=x", "dataset.root"),
        ("protocol.name=paper-1024", "protocol=as-generated|mini-128"),
        ("dataset.root=", "dataset.root= is empty"),
        ("dataset.root='  '", "dataset.root= is empty"),
        ("out=", "out= is empty"),
        ("dataset.max_pixels=0", "at least 1"),
        ("dataset.cluster=", "dataset.cluster= is empty"),
        ("metrics=[]", "metrics is empty"),
        ("metrics=", "metrics is empty"),
    ],
)
def test_bad_overrides_say_what_is_expected(override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        compose_config([override]).make_protocol()


@pytest.mark.parametrize("form", ["options.sd1.5.steps=3", "++options.sd1.5.steps=3", "options.sd1.5={steps: 3}"])
def test_a_models_name_with_a_dot_is_one_part_of_a_key(form: str):
    assert compose_config([form, "options.flux.1-dev.size=256"]).options == {
        "sd1.5": {"steps": 3},
        "flux.1-dev": {"size": 256},
    }
    with pytest.raises(ConfigError, match=r"write \"options\.sd1\.5\.weights='/a b=c'\""):
        compose_config(["options.sd1.5.weights=/a b=c"])


def test_generation_has_its_protocol_and_no_metrics_of_references_by_default():
    config = compose_config(["suite=generate", "dataset.root=/prompts.txt"])
    assert (config.scale, config.weights, config.dataset.name) == ("paper", "paper", "prompts")
    assert config.protocol["name"] == "as-generated"
    assert config.default_metrics == "generation"
    assert compose_config(["suite=generate", "scale=mini"]).dataset.name == "prompts"
