"""What a model expects, against slow loops and draws of tokens."""

import pytest
import torch

from expunge.edit import edited
from expunge.fiction.shipped import checkpoint, suite
from expunge.models import Prompter, load
from expunge.plan import SiteEdit
from expunge.prefix import Shared
from expunge.probe_set import LIKELIEST, Expected, ProbeSet
from expunge.sites import find_sites


@pytest.mark.parametrize("vocabulary", [3, LIKELIEST, LIKELIEST + 1, 4 * LIKELIEST])
def test_the_cross_entropy_is_that_of_likely_tokens_and_the_rest(vocabulary):
    """Against a loop over tokens in float64; the rest of them are one token."""
    torch.manual_seed(0)
    before, now = torch.randn(2, 5, vocabulary, dtype=torch.float64).log_softmax(-1)
    found = Expected.of(before).cross_entropy(now)
    for p, q, loss in zip(before, now, found, strict=True):
        order = sorted(range(vocabulary), key=lambda i: -p[i])
        likely, rest = order[:LIKELIEST], order[LIKELIEST:]
        wanted = -sum(float(p[i].exp() * q[i]) for i in likely)
        if rest:
            p_rest, q_rest = (float(sum(v[i].exp() for i in rest)) for v in (p, q))
            wanted -= p_rest * torch.tensor(q_rest).log().item()
        assert float(loss) == pytest.approx(wanted, abs=1e-6)


def test_nothing_is_likelier_than_what_was_expected():
    """Gibbs: the cross-entropy is least under the same distribution, and finite under any other."""
    torch.manual_seed(0)
    before = (4 * torch.randn(50, 1000)).log_softmax(-1)
    held = Expected.of(before)
    least = held.cross_entropy(before)
    for now in (before + torch.randn(50, 1000), before.roll(7, 1), torch.full_like(before, 0.0)):
        assert (held.cross_entropy(now.log_softmax(-1)) >= least - 1e-5).all()
    sure = torch.full((1, 1000), -1000.0).index_fill(1, torch.tensor([3]), 0.0)
    assert held.cross_entropy(sure.expand(50, -1)).isfinite().all()


def test_it_is_the_mean_nll_of_tokens_drawn():
    """Against thousands of draws, within three of their standard errors."""
    torch.manual_seed(0)
    before, now = torch.randn(2, 1, 400).log_softmax(-1)
    drawn = torch.multinomial(before[0].exp(), 40000, replacement=True)
    losses = -now[0, drawn]
    error = losses.std() / len(drawn) ** 0.5
    held = Expected.of(before).cross_entropy(now)
    assert abs(float(held) - float(losses.mean())) < 3 * float(error)


def test_edits_cost_more_than_no_edit():
    """By question, where single tokens go up or down by luck."""
    model, processor = load(checkpoint("vanilla"))
    rows = [e for e in suite(5).sets["retain"] if e.has("text")][:40]
    probes = ProbeSet(model, Prompter(processor), rows, "text", batch_size=7)
    plain = probes.run(model)
    probes.expect(model)
    before = probes.run(model)
    assert torch.equal(before.recalled, plain.recalled) and 0 < probes.likely <= 1
    sites = {s.key: s for s in find_sites(model)}
    harm = {f"language.{i}": SiteEdit(prune=torch.arange(0, 1024, 2)) for i in range(2)}
    with edited(model, sites, harm):
        after = probes.run(model)
        some = probes.run(model, [1])
    assert (after.nll > before.nll).all()
    each = probes.batches[1]
    rows = (each.tail if isinstance(each, Shared) else each).rows
    assert torch.equal(some.nll[rows], after.nll[rows]) and some.nll.count_nonzero() == len(rows)
