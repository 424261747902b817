"""Configurations: presets, the files in configs/, round trips, and every way to get one wrong."""

import contextlib
import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from zmar_jax.config import (
    PRESETS,
    Config,
    ConfigError,
    ModelConfig,
    TrainConfig,
    config_names,
    dump_config,
    from_dict,
    load_config,
    override,
    to_dict,
    without_places,
)

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
SIZES = st.integers(1, 2**16)
SMALL = st.floats(0, 1)


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    dim = 2 * draw(st.integers(1, 512))
    heads = [
        draw(st.sampled_from([n for n in range(1, 65) if (dim << level) % n == 0]))
        for level in range(4)
    ]
    return ModelConfig(
        dim=dim,
        blocks=draw(st.tuples(SIZES, SIZES, SIZES, SIZES)),
        heads=(heads[0], heads[1], heads[2], heads[3]),
        ffn_expansion=draw(st.floats(0.5, 100)),
        mask_threshold=draw(SMALL),
        layer_norm_eps=draw(SMALL),
        scale_shift=draw(st.floats(-100, 100)),
        flow_steps=draw(SIZES),
        policy=draw(st.sampled_from(["float32", "bfloat16"])),
    )


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def error(path: Path) -> str:
    """The message with which `path` is refused, less the path that it begins with."""
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_published_sizes() -> None:
    model = PRESETS["zmar_snflow"]
    assert model == ModelConfig()
    assert (model.condition_channels, model.hidden(48)) == (288, 127)


@pytest.mark.parametrize("name", PRESETS)
def test_files_are_the_presets(name: str) -> None:
    assert load_config(name) == Config(model=PRESETS[name])


def test_every_file_has_a_name() -> None:
    assert config_names() == [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_state_only_what_differs(path: Path) -> None:
    config = load_config(path)
    assert load_config(path.stem) == config
    assert yaml.safe_load(path.read_text()) in (
        yaml.safe_load(dump_config(config)),
        {"model": {}} if config == Config() else None,
    )
    assert path.read_text().startswith("# ")


def test_every_preset_has_a_file() -> None:
    assert set(PRESETS) <= {path.stem for path in FILES}


@settings(deadline=None)
@given(models())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, model: ModelConfig) -> None:
    config = Config(model=model)
    assert from_dict(Config, to_dict(config)) == config
    path = written(tmp_path_factory.getbasetemp(), dump_config(config))
    assert load_config(path) == config
    assert load_config(written(path.parent, yaml.safe_dump(to_dict(config)))) == config


def test_dump_holds_only_what_differs() -> None:
    assert dump_config(Config()) == "{}\n"
    dumped = dump_config(Config(model=ModelConfig(dim=8, blocks=(2, 1, 1, 1))))
    assert dumped == "model:\n  dim: 8\n  blocks: [2, 1, 1, 1]\n"


def test_configs_are_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(ModelConfig(), "dim", 8)  # noqa: B010 - pyright sees through an assignment
    assert len({ModelConfig(), ModelConfig(dim=48), ModelConfig(dim=8)}) == 2


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}", "model: {}", "\ufeffmodel: {}"])
def test_nothing_said_is_the_defaults(tmp_path: Path, text: str) -> None:
    assert load_config(written(tmp_path, text)) == Config()


@pytest.mark.parametrize(
    ("written_as", "remat"), [("true", "blocks"), ("false", "none"), ("reversible", "reversible")]
)
def test_remat_was_a_flag_once(tmp_path: Path, written_as: str, remat: str) -> None:
    assert load_config(written(tmp_path, f"train: {{remat: {written_as}}}")).train.remat == remat
    assert override(Config(), [f"train.remat={written_as}"]).train.remat == remat


def test_remat_says_what_it_may_be(tmp_path: Path) -> None:
    expected = "train.remat must be one of none, blocks, reversible, got 1"
    assert error(written(tmp_path, "train: {remat: 1}")) == expected
    with pytest.raises(ConfigError, match="remat must be one of"):
        TrainConfig(remat=False)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("number", ["1e-5", "1.0e-5", "1E-05", "0.00001", "1.e-5"])
def test_every_way_to_write_a_small_number(tmp_path: Path, number: str) -> None:
    config = load_config(written(tmp_path, f"model: {{layer_norm_eps: {number}}}"))
    assert config.model.layer_norm_eps == 1e-5


def test_whole_number_for_a_float(tmp_path: Path) -> None:
    shift = load_config(written(tmp_path, "model: {scale_shift: 3}")).model.scale_shift
    assert isinstance(shift, float)
    assert shift == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modle: {}", "unknown key modle; nearest: model"),
        ("model: {head: 8}", "unknown key model.head; nearest: model.heads"),
        ("model: {flow_step: 2}", "unknown key model.flow_step; nearest: model.flow_steps"),
        ("dim: 8", "unknown key dim; nearest: model.dim"),
        ("1: 2", "unknown key 1; nearest: "),
        ("model: {~: 2}", "unknown key model.None; nearest: model."),
        ("model: {true: 2}", "unknown key model.True; nearest: model."),
        ("model: {2020-01-01: 2}", "unknown key model.2020-01-01; nearest: model."),
    ],
)
def test_unknown_key(tmp_path: Path, text: str, expected: str) -> None:
    assert error(written(tmp_path, text)).startswith(expected)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("dim: true", "dim must be int, got True"),
        ("dim: '48'", "dim must be int, got '48'"),
        ("dim: 48.0", "dim must be int, got 48.0"),
        ("dim: ", "dim must be int, got None"),
        ("dim: [48]", "dim must be int, got [48]"),
        ("scale_shift: '2'", "scale_shift must be float, got '2'"),
        ("scale_shift: false", "scale_shift must be float, got False"),
        pytest.param(f"scale_shift: {10**400}", "scale_shift must be float, got 1000", id="huge"),
        ("blocks: 4", "blocks must be a list of ints, got 4"),
        ("blocks: '4444'", "blocks must be a list of ints, got '4444'"),
        ("blocks: [4, 4, 4]", "blocks and heads must have one number for each of 2 to 5 levels"),
        (
            "blocks: [4, 4, 4, 4, 4]",
            "blocks and heads must have one number for each of 2 to 5 levels",
        ),
        ("blocks: [4, 4, 4, '4']", "blocks[3] must be int, got '4'"),
        ("blocks: [4, yes, 4, 4]", "blocks[1] must be int, got True"),
        ("heads: {1: 2}", "heads must be a list of ints, got {1: 2}"),
        ("policy: float16", "policy must be one of float32, bfloat16, got 'float16'"),
        ("policy: [float32]", "policy must be one of float32, bfloat16, got ['float32']"),
    ],
)
def test_wrong_type(tmp_path: Path, setting: str, expected: str) -> None:
    assert error(written(tmp_path, f"model:\n  {setting}\n")).startswith(f"model.{expected}")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("dim: 0", "dim must be from 1 to 65536, got 0"),
        ("dim: -2", "dim must be from 1 to 65536, got -2"),
        ("dim: 1000000", "dim must be from 1 to 65536, got 1000000"),
        ("dim: 7", "dim must be even, got 7"),
        ("heads: [5, 2, 4, 8]", "heads[0] = 5 must divide that level's 48 channels"),
        ("heads: [1, 2, 4, 7]", "heads[3] = 7 must divide that level's 384 channels"),
        ("heads: [0, 2, 4, 8]", "heads must be from 1 to 65536, got (0, 2, 4, 8)"),
        ("blocks: [4, 4, 4, 0]", "blocks must be from 1 to 65536, got (4, 4, 4, 0)"),
        ("flow_steps: 0", "flow_steps must be from 1 to 65536, got 0"),
        ("quantization: 0", "quantization must be from 1 to 65536, got 0"),
        ("ffn_expansion: 0.001", "ffn_expansion 0.001 is too small"),
        ("ffn_expansion: -1", "ffn_expansion -1.0 is too small"),
        ("mask_threshold: 1.5", "mask_threshold must be between 0 and 1"),
        ("scale_eps: -1e-4", "scale_eps must not be negative"),
    ],
)
def test_impossible_size(tmp_path: Path, setting: str, expected: str) -> None:
    assert error(written(tmp_path, f"model:\n  {setting}\n")) == f"model.{expected}"


FLOATS = [field.name for field in dataclasses.fields(ModelConfig) if field.type is float]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400", "1e300"])
def test_floats_are_finite(tmp_path: Path, value: str) -> None:
    assert FLOATS
    for name in FLOATS:
        message = error(written(tmp_path, f"model: {{{name}: {value}}}"))
        allowed = "from 0.0 to 0.9" if name == "brightness" else "a number up to 65536"
        assert message.startswith(f"model.{name} must be {allowed}, got ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  dim: [8\n", r"line 3: expected ',' or '\]', but got '<stream end>'"),
        ("model:\n\tdim: 8\n", r"line 2: found character '\\t' that cannot start any token"),
        ("model: {}\n}\n", "line 2: "),
        ("model: {}\n---\nmodel: {}\n", "line 2: but found another document"),
        ("model:\n  dim: *width\n", "line 2: found undefined alias 'width'"),
        ("model: !!python/object:os.system {}\n", "line 1: could not determine a constructor"),
        ("model: {}\n\0", "line 2: character 0x0 is not allowed"),
        ("model: {}\n? [a, b]\n: c\n", "line 2: found unhashable key"),
        ("model: {}\n? {a: b}\n: c\n", "line 2: found unhashable key"),
        ("model:\n  dim: 2020-13-01\n", "line 2: cannot read '2020-13-01'"),
        ("model:\n  dim: !!bool maybe\n", "line 2: cannot read 'maybe'"),
        ("model:\n  dim: !!timestamp today\n", "line 2: cannot read 'today'"),
        pytest.param(f"model:\n  dim: {'9' * 5000}", "line 2: cannot read '99", id="huge"),
        pytest.param("[" * 20_000, "nested too deeply", id="deep"),
    ],
)
def test_invalid_yaml(tmp_path: Path, text: str, expected: str) -> None:
    assert re.match(f"not valid YAML: {expected}", error(written(tmp_path, text)))


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("model: {}\nmodel: {}\n", 2, "model"),
        ("model:\n  dim: 8\n  flow_steps: 2\n  dim: 8\n", 4, "dim"),
        ("model: {dim: 8, 'dim': 8}", 1, "dim"),
        ("model: {dim: 8, ? [a] : 1, dim: 8}", 1, "dim"),
    ],
)
def test_duplicate_key(tmp_path: Path, text: str, line: int, key: str) -> None:
    expected = f"not valid YAML: line {line}: {key} is there twice"
    assert error(written(tmp_path, text)) == expected


def test_merged_keys_are_no_duplicates(tmp_path: Path) -> None:
    # PyYAML 6.0.4 changed which of two merged mappings wins, so they name different keys
    text = "model: {<<: [{flow_steps: 2}, {dim: 8}], flow_steps: 3}"
    config = load_config(written(tmp_path, text))
    assert config == Config(model=ModelConfig(dim=8, flow_steps=3))


@pytest.mark.parametrize("text", ["[]", "- model", "model", "0", "false", "''", "48.5"])
def test_top_level_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    assert error(written(tmp_path, text)).startswith("the file must hold keys and values, got ")


@pytest.mark.parametrize("text", ["model:", "model: []", "model: tiny", "model: 1"])
def test_section_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    assert error(written(tmp_path, text)).startswith("model must hold keys and values, got ")


def test_aliases_cannot_make_a_message_explode(tmp_path: Path) -> None:
    levels = [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert len(error(written(tmp_path, "\n".join(["- &a0 lol", *levels])))) < 100_000


def test_missing_file(tmp_path: Path) -> None:
    message = error(tmp_path / "run.yaml")
    assert message.startswith("no such file; the configurations with a name are ")
    assert message.endswith(", ".join(path.stem for path in FILES))


def test_a_folder_of_the_same_name_does_not_hide_a_configuration(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert load_config("tiny").model == PRESETS["tiny"]
    written(tmp_path, "model: {dim: 8}").rename("mine.yaml")
    assert load_config("mine.yaml").model.dim == 8
    assert error(Path("mine")).startswith("no such file; ")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    assert error(tmp_path) == "cannot read this configuration: Is a directory"


@pytest.mark.parametrize("data", [b"model: {}  # caf\xe9", b"\xff\xfem\0o\0", b"\x80\x02}q\0."])
def test_file_that_is_not_utf8(tmp_path: Path, data: bytes) -> None:
    message = error(written(tmp_path, data))
    assert message.startswith("cannot read this configuration as UTF-8: ")


def test_utf8(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "# 夜\nmodel: {dim: 8}")).model.dim == 8


@settings(deadline=None)
@given(st.text(alphabet="model dim:[]{}&*!?|>-<#%@`'\",\n\t0189.eE~é", max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = written(tmp_path_factory.getbasetemp(), text)
    with contextlib.suppress(ConfigError):
        assert isinstance(load_config(path), Config)


def test_overrides_are_values_as_in_yaml() -> None:
    settings = ["model.dim=8", "model.blocks=[2, 1, 1, 1]", "data.masks.share=[0, 0.5]"]
    config = override(Config(), [*settings, "train.clip_norm=null", "data.folder=/photos"])
    assert config.model == ModelConfig(dim=8, blocks=(2, 1, 1, 1))
    assert config.data.masks.share == (0, 0.5)
    assert config.train.clip_norm is None
    assert config.data.folder == "/photos"
    assert override(config, []) == config
    assert from_dict(Config, to_dict(config)) == config


@pytest.mark.parametrize(
    "settings",
    [
        ["train.accumulate=3", "data.batch_size=12"],
        ["train.flow_warmup_steps=100", "train.weight_l1=10"],
        ["train={flow_warmup_steps: 5}", "train.weight_l1=1"],
    ],
)
def test_the_order_of_overrides_does_not_matter(settings: list[str]) -> None:
    assert override(Config(), settings) == override(Config(), settings[::-1])


def test_overrides_that_do_not_fit_each_other_are_all_named() -> None:
    settings = ["train.accumulate=3", "data.batch_size=16"]
    expected = "train.accumulate=3 data.batch_size=16: data.batch_size 16 must be a multiple"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        override(Config(), settings)
    with pytest.raises(ConfigError, match=r"^train\.step=1: unknown key train\.step"):
        override(Config(), [*settings, "train.step=1"])


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.steps", "train.steps: expected section.key=value, as train.steps=1000"),
        ("train.step=1", "train.step=1: unknown key train.step; nearest: train.steps"),
        ("trian.steps=1", "trian.steps=1: unknown key trian; nearest: train"),
        ("train.steps=a", "train.steps=a: train.steps must be int, got 'a'"),
        ("train=a", "train=a: train must hold keys and values, got 'a'"),
        ("train.ema=true", "train.ema=true: train.ema must be float, got True"),
        ("train.ema=1.5", "train.ema=1.5: train.ema must be from 0.0 to 0.999999, got 1.5"),
        ("train.clip_norm=.nan", "train.clip_norm=.nan: train.clip_norm must be from 1e-06 to"),
        ("data.masks.share=[0.4, 0.2]", "data.masks.share must be a range, low to high"),
        ("data.crop=100", "data.crop=100: data.crop must be a multiple of 8, got 100"),
        ("data.concat_histeq=true", "data.concat_histeq is not supported"),
        ("train.accumulate=3", "data.batch_size 16 must be a multiple of train.accumulate 3"),
        ("train.flow_warmup_steps=5", "train.flow_warmup_steps needs weight_l1 above 0"),
        ("train.steps=[", "train.steps=[: not valid YAML: line 1"),
    ],
)
def test_bad_override(setting: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        override(Config(), [setting])


def test_where_pictures_lie_is_no_part_of_what_is_computed():
    here = override(Config(), ["data.folder=photos", "data.masks.source=masks"])
    there = override(Config(), ["data.folder=/data/photos", "data.masks.source=../masks"])
    assert here != there
    assert without_places(here) == without_places(there)
    for change in ("data.folder=null", "data.masks.source=none", "data.seed=1"):
        assert without_places(override(here, [change])) != without_places(here)


def test_pairs_need_a_folder():
    with pytest.raises(ConfigError, match=r"folder must name a folder of pairs"):
        override(Config(), ["data.name=pairs"])
    with pytest.raises(ConfigError, match=r"gt_folder is of name pairs, not of photos"):
        override(Config(), ["data.gt_folder=gt"])
