"""The configuration: YAML there and back, and every wrong key and value refused."""

import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from expunge.config import RunConfig, bytes_of
from expunge.errors import InputError

CHANGED = {
    "model": "folder/model", "forget": "f.jsonl", "retain": "r.jsonl", "test": "t.jsonl",
    "neighbor": "n.jsonl", "real": "x.jsonl", "skills": "s.jsonl", "gold": "gold",
    "method": "manu", "budget": 0.03, "strength": 2.5, "keep": 0.8, "towers": ["vision", "eeg"],
    "towers_declared": {"eeg": "a.b"}, "attention": True, "importances": {"abs": 1.0, "var": 0.5},
    "per_tower": True, "positions": "answer", "unit": "example", "tau": 0.2, "eps": 1e-7,
    "batch_size": 4, "memory": "8GiB", "sketch": 64, "seed": 7, "dtype": "float32", "device": "cpu",
    "data_format": "mllmu", "official": True, "prompt_template": "{image}{question}",
    "allow_overlap": True, "show_content": True, "trust_remote_code": True,
}  # fmt: skip


def test_every_key_goes_to_yaml_and_back(tmp_path):
    known = {f.name for f in dataclasses.fields(RunConfig)}
    config = RunConfig.of(CHANGED)
    default = RunConfig()
    for name in CHANGED:
        assert getattr(config, name) != getattr(default, name), name
    for each in (config, default):
        each.write(tmp_path / "run.yaml")
        assert RunConfig.read(tmp_path / "run.yaml") == each
    assert set(yaml.safe_load((tmp_path / "run.yaml").read_text())) == known


def test_all_settings_are_tried_here():
    """A setting added to the configuration must be added to `CHANGED`, or be a new default."""
    assert set(CHANGED) <= {f.name for f in dataclasses.fields(RunConfig)}


def test_options_win_over_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text("budget: 0.5\nseed: 3\n")
    config = RunConfig.read(tmp_path / "run.yaml", {"budget": 0.1})
    assert (config.budget, config.seed) == (0.1, 3)


def test_a_model_goes_to_a_device_or_is_spread():
    places = {"model.layers.0": "cpu", "model.layers.1": "disk"}
    assert RunConfig.of({"device_map": places}).device_map == places
    with pytest.raises(InputError, match="device and device_map are both given"):
        RunConfig.of({"device": "cpu", "device_map": "auto"})


def test_empty_file_is_the_default(tmp_path):
    (tmp_path / "run.yaml").write_text("# nothing\n")
    assert RunConfig.read(tmp_path / "run.yaml") == RunConfig()


@pytest.mark.parametrize(("name", "near"), [("budgt", "budget"), ("towrs", "towers"),
                                            ("batchsize", "batch_size")])  # fmt: skip
def test_unknown_key_names_the_nearest(name, near):
    with pytest.raises(InputError, match=f"unknown configuration key '{name}'.*'{near}'"):
        RunConfig.of({name: 1})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("budget", "much", "a number or nothing"),
        ("budget", True, "a number"),
        ("seed", 1.5, "a whole number"),
        ("seed", True, "a whole number"),
        ("seed", None, "a whole number"),
        ("seed", -1, "at least 0"),
        ("batch_size", 0, "at least 1"),
        ("batch_size", "8", "a whole number"),
        ("sketch", 0, "at least 1"),
        ("memory", "much", "such as 8GiB"),
        ("memory", "0GiB", "such as 8GiB"),
        ("memory", "1.2.3GB", "such as 8GiB"),
        ("memory", "8", "such as 8GiB"),
        ("memory", 8, "text or nothing"),
        ("tau", -0.1, "at least 0"),
        ("tau", float("nan"), "at least 0"),
        ("eps", 0.0, "above 0"),
        ("eps", float("inf"), "above 0"),
        ("attention", 1, "true or false"),
        ("attention", "yes", "true or false"),
        ("towers", "vision", "a list of names"),
        ("towers", [], "a list of names"),
        ("towers", [1], "a list of names"),
        ("towers", [""], "a list of names"),
        ("towers_declared", ["eeg"], "a mapping"),
        ("towers_declared", {"eeg": 1}, "text"),
        ("importances", {"abs": "big"}, "a number"),
        ("device_map", {"model.layers.0": 0}, "text"),
        ("model", 3, "text"),
        ("forget", None, "text"),
        ("dtype", "floaty", "Available: auto"),
        ("dtype", "int8", "Available: auto"),
    ],
)
def test_wrong_value(name, value, expected):
    with pytest.raises(InputError, match=expected) as caught:
        RunConfig.of({name: value})
    assert name in str(caught.value)


@given(st.floats(min_value=1e-12, max_value=1e6))
def test_yaml_numbers_without_a_point(value):
    """YAML takes 1e-06 for text; the number that it is gets through."""
    text = f"{value:.3e}".replace(".000", "")
    assert RunConfig.of({"eps": yaml.safe_load(text)}).eps == float(text)


def test_whole_numbers_where_any_number_fits():
    config = RunConfig.of({"budget": 1, "strength": 2})
    assert (config.budget, config.strength) == (1.0, 2.0)
    assert isinstance(config.budget, float)


def test_file_is_named_in_the_error(tmp_path):
    path = tmp_path / "run.yaml"
    for text in (
        "budgt: 1",
        "budget: [",
        "- a",
        "just words",
        "seed: x",
        "!!python/object:os.x {}",
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=r"run\.yaml"):
            RunConfig.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"run\.yaml"):
        RunConfig.read(path)


def test_wrong_option_does_not_blame_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1")
    with pytest.raises(InputError) as caught:
        RunConfig.read(path, {"seed": -1})
    assert "run.yaml" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [("8GiB", 8 * 2**30), ("500 MB", 500 * 10**6), ("1.5kib", 1536), ("7B", 7), ("2.5e3MB", 25e8)],
)
def test_amounts_of_memory(text, number):
    assert bytes_of(text) == number
