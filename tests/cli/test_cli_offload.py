"""A model spread over CPU and disk: the same plan, the same checkpoint, the same figures."""

from __future__ import annotations

import json

import pytest
import yaml
from commands import expunge

from expunge import applied, load, make_plan, read
from expunge.encoding import input_device

PLACES = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "cpu",
    "model.language_model.embed_tokens": "cpu",
    "model.language_model.layers.0": "cpu",
    "model.language_model.layers.1": "disk",
    "model.language_model.layers.2": "disk",
    "model.language_model.layers.3": "cpu",
    "model.language_model.norm": "disk",
    "model.language_model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


def content(folder):
    """Every file of a checkpoint."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_run_over_cpu_and_disk_is_the_run_in_memory(brief, task, tmp_path):
    settings = tmp_path / "places.yaml"
    settings.write_text(yaml.safe_dump({"device_map": PLACES}))
    said = expunge("run", *task.brief, "--config", settings, "--out", tmp_path / "run", "--json")
    assert said.code == 0, said.err
    whole, apart = brief[0], tmp_path / "run"
    assert (apart / "plan.safetensors").read_bytes() == (whole / "plan.safetensors").read_bytes()
    assert content(apart / "model") == content(whole / "model")
    assert said.json["models"] == brief[1].json["models"]
    assert json.loads((apart / "run.json").read_text())["config"]["device_map"] == PLACES


def test_stages_take_a_map_by_name(brief, task, tmp_path):
    spread = ("--device-map", "auto")
    said = expunge("plan", *task.brief, *spread, "--out", tmp_path / "run")
    assert said.code == 0, said.err
    plan = tmp_path / "run" / "plan.safetensors"
    assert plan.read_bytes() == (brief[0] / "plan.safetensors").read_bytes()
    said = expunge(
        "apply", plan, "--model", task.vanilla, *spread, "--out", tmp_path / "model", "--json"
    )
    assert said.code == 0, said.err
    assert content(tmp_path / "model") == content(brief[0] / "model")


def test_a_map_that_does_not_exist_is_refused(task, tmp_path):
    said = expunge("plan", *task.brief, "--device-map", "moon", "--out", tmp_path / "run")
    assert said.code == 2 and "device_map" in said.err and "auto" in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["manu", "filter"])
def test_what_does_not_fit_into_memory_goes_to_disk(task, method):
    forget, retain = read(task.file("forget"))[:4], read(task.file("retain"))[:4]
    whole, processor = load(task.vanilla, device="cpu")
    apart, _ = load(task.vanilla, device_map="auto", max_memory={"cpu": "4MB"})
    assert {"cpu", "disk"} <= set(apart.hf_device_map.values())
    assert str(input_device(apart)) == "cpu"
    plans = [make_plan(m, processor, forget, retain, method=method) for m in (whole, apart)]
    assert plans[0].tensors().keys() == plans[1].tensors().keys()
    for name, tensor in plans[0].tensors().items():
        assert tensor.equal(plans[1].tensors()[name]), name
    with applied(whole, plans[0]), applied(apart, plans[1]):
        edited = whole.state_dict()
        for name, tensor in apart.state_dict().items():
            assert tensor.device.type == "meta" or tensor.equal(edited[name])
