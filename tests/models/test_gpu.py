"""What runs on a CUDA device against float64 on the CPU: sums, plans, edits, a whole run."""

from __future__ import annotations

import json

import pytest
import torch

from expunge.collect import collect_statistics
from expunge.fiction.shipped import checkpoint, suite
from expunge.models import Prompter, load
from expunge.planning import make_plan
from expunge.sites import find_sites
from expunge.stats import NEURON_FIELDS, NeuronStats, SecondMoment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def here():
    return load(checkpoint("vanilla"), device="cuda")


@pytest.fixture(scope="module")
def there():
    return load(checkpoint("vanilla"), device="cpu")


@pytest.fixture(scope="module")
def few():
    sets = suite().sets
    return {name: sets[name][:40] for name in ("forget", "retain")}


def drawn(rows, width, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, width, generator=generator) * 0.3).to(dtype)


@pytest.mark.parametrize("shape", [(1, 1), (300, 200), (4097, 129), (1000, 11008)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_neuron_sums_are_exact(shape, dtype):
    z = drawn(*shape, dtype)
    z[0, 0] = 0.1  # in float32 just above the float64 number
    mask = torch.rand(shape[0], generator=torch.Generator().manual_seed(1)) < 0.7
    stats, wanted = (NeuronStats.zeros(shape[1], device=d) for d in ("cuda", "cpu"))
    for each, there in ((stats, "cuda"), (wanted, "cpu")):
        each.update(z.to(there), times=3)
        each.update(z.to(there), mask.to(there))
    assert stats.count == wanted.count
    for name in NEURON_FIELDS:
        found = getattr(stats, name).cpu()
        torch.testing.assert_close(found, getattr(wanted, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_second_moments_of_every_precision(dtype):
    z = drawn(5000, 1700, dtype)
    moment = SecondMoment.zeros(1700, "cuda")
    moment.update(z[:3000].cuda())
    moment.update(z[3000:].cuda(), times=2)
    first, second = z[:3000].double(), z[3000:].double()
    wanted = first.T @ first + 2 * second.T @ second
    assert (moment.outer.cpu() - wanted).norm() < 2e-6 * wanted.norm()


@pytest.mark.parametrize("condition", ["multi", "text"])
def test_statistics_equal_those_of_the_cpu(here, there, few, condition):
    found, wanted = (
        collect_statistics(
            model,
            Prompter(processor),
            few["forget"],
            condition,
            sites=[s for s in find_sites(model) if not s.dead],
            moments=True,
        )
        for model, processor in (here, there)
    )
    assert found.neurons.keys() == wanted.neurons.keys()
    for key, stats in found.neurons.items():
        assert stats.count == wanted.neurons[key].count
        close = {"rtol": 1e-3, "atol": 1e-3 * max(stats.count, 1)}
        assert torch.allclose(stats.absolute.cpu(), wanted.neurons[key].absolute, **close)
        one, two = found.moments[key].outer.cpu(), wanted.moments[key].outer
        assert (one - two).norm() <= 1e-3 * two.norm()


@pytest.mark.parametrize("method", ["manu", "filter"])
def test_plans_equal_those_of_the_cpu(here, there, few, method):
    """Logits after the edits are compared, since eigenvectors turn freely."""
    changed = []
    for model, processor in (here, there):
        plan = make_plan(model, processor, few["forget"], few["retain"], method=method)
        ids = torch.arange(5, 60)[None].to(model.device)
        with torch.no_grad():
            before = model(input_ids=ids).logits.cpu()
            undo = plan.apply(model)
            changed.append(model(input_ids=ids).logits.cpu() - before)
            undo()
            assert torch.equal(model(input_ids=ids).logits.cpu(), before)
    assert (changed[0] - changed[1]).norm() <= 0.02 * changed[1].norm() > 0


def test_a_plan_for_half_precision(few):
    model, processor = load(checkpoint("vanilla"), device="cuda", dtype="bfloat16")
    plan = make_plan(model, processor, few["forget"], few["retain"], method="filter")
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    undo = plan.apply(model)
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, weights[k])]
    assert changed and all(torch.isfinite(model.state_dict()[k]).all() for k in changed)
    undo()
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_the_whole_run(tmp_path):
    from typer.testing import CliRunner

    from expunge.cli import app

    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["demo", "--out", str(out)])
    assert done.exit_code == 0, done.output
    forget = json.loads((out / "results.json").read_text())["summary"]["forget_accuracy"]
    assert max(forget.values()) < 0.35
