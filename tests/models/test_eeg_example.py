"""A declared tower and its condition: the example with brain signals forgets one person."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from expunge.collect import Counting, collect_inputs
from expunge.errors import InputError
from expunge.plan import Plan
from expunge.sites import find_sites

PATH = Path(__file__).parents[2] / "examples" / "eeg_tower.py"


@pytest.fixture(scope="module")
def eeg():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("eeg_tower", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_person_is_forgotten_under_both_conditions(eeg):
    results = eeg.run()
    for condition in ("multi", "text"):
        assert results["before"]["forgotten"][condition] == 1.0
        assert results["before"]["others"][condition] == 1.0
        assert results["after"]["forgotten"][condition] <= 1 / 6
        assert results["after"]["others"][condition] >= 0.95
    assert results["undone"] == results["before"]


def test_the_declared_tower_has_its_own_sites_and_condition(eeg):
    torch.manual_seed(1)
    facts, model = eeg.world(1), eeg.EegModel().eval()
    sites = find_sites(model, declared={"eeg": "eeg"})
    assert [(s.key, s.path, s.width) for s in sites if s.tower == "eeg"] == [("eeg.0", "eeg.2", 96)]
    random = torch.Generator().manual_seed(0)
    people = torch.arange(3)
    with_signal, _ = eeg.questions(facts, people, "multi", random)
    words, _ = eeg.questions(facts, people, "text", random)
    both = collect_inputs(model, [with_signal], sites=sites).neurons
    assert both["eeg.0"].count == 3 * 6 * 4 and both["language.0"].count == 3 * 6 * 5
    alone = collect_inputs(model, [words], sites=sites, condition="text").neurons
    assert alone["eeg.0"].count == 0 and alone["language.0"].count == 3 * 6 * 2
    with pytest.raises(InputError, match=r"eeg\.0 .*never ran under multi"):
        collect_inputs(model, [words], sites=sites)
    counting = Counting("no_image")
    kept = collect_inputs(model, [with_signal], sites=sites, counting=counting).neurons
    assert kept["language.0"].count == 3 * 6 and kept["eeg.0"].count == 3 * 6 * 4


def test_a_plan_remembers_the_declared_tower(eeg, tmp_path):
    torch.manual_seed(1)
    facts, model = eeg.world(1), eeg.EegModel().eval()
    plan = eeg.unlearn(model, facts, 2)
    assert "eeg.0" in plan.edits
    plan.save(tmp_path / "plan.safetensors")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    undo = Plan.load(tmp_path / "plan.safetensors").apply(model)
    assert not torch.equal(model.eeg[2].weight, before["eeg.2.weight"])
    undo()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
