"""Second moments by groups of sites: the same plan, within the limit, and the limit's errors."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge import evidence, make_plan
from expunge.config import bytes_of
from expunge.errors import InputError
from expunge.evidence import held_beside
from expunge.methods import METHODS
from expunge.passes import groups_within, shown
from expunge.sites import Site, find_sites


def site(number, width):
    return Site(f"language.{number}", "language", "mlp", f"layers.{number}", width, 1, False)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 200_000),
    st.integers(0, 1000),
)
def test_groups_fit_and_keep_the_order(widths, limit, beside):
    sites = [site(i, w) for i, w in enumerate(widths)]
    reach = {("forget", "multi"): sites, ("forget", "text"): sites[::2]}
    need = {s.key: 8 * s.width**2 * (1 + (i % 2 == 0)) for i, s in enumerate(sites)}
    least = beside + max(need.values())
    if limit < least:
        with pytest.raises(InputError, match="memory is") as caught:
            groups_within(limit, sites, reach, beside)
        told = bytes_of(re.findall(r"needs (\S+):", str(caught.value))[0])
        assert least <= told <= 1.01 * least
        limit = told
    groups = groups_within(limit, sites, reach, beside)
    assert [s for group in groups for s in group] == sites
    filled = [beside + sum(need[s.key] for s in group) for group in groups]
    assert max(filled) <= limit
    for now, after in zip(filled, groups[1:], strict=False):
        assert now + need[after[0].key] > limit  # not more groups than it takes in this order


def test_what_reaches_other_sites_too_takes_no_room():
    sites = [site(i, 8) for i in range(4)]
    reach = {("forget", "multi"): sites}
    assert groups_within(2 * 8 * 8**2, sites[1:3], reach, 0) == [sites[1:3]]


@given(st.integers(1, 2**50))
def test_amounts_are_read_as_they_are_shown(number):
    assert number <= bytes_of(shown(number)) <= max(1.01 * number, number + 1)


@pytest.fixture(scope="module")
def limits(llava64):
    """Method -> memory that takes three passes or more."""
    sites = [s for s in find_sites(llava64) if s.tower in ("connector", "language") and not s.dead]
    found = {}
    for name in ("filter", "directions", "filter-search"):
        views = 3 if METHODS[name].picture else 2
        sets = views * (1 + max(METHODS[name].folds, 1))
        width = max(s.width for s in sites)
        found[name] = f"{held_beside(sites, METHODS[name]) + sets * 8 * width**2}B"
    return found


@pytest.mark.parametrize("method", ["filter", "directions", "filter-search"])
def test_the_plan_is_the_same_however_many_passes(
    method, limits, llava64, processor, few, monkeypatch
):
    """With little noise, which is quicker."""
    monkeypatch.setattr(evidence, "noise_like", partial(evidence.noise_like, number=16))
    options = {"method": method, "strength": 0.3, "batch_size": 4}
    forget, retain = few["forget"], few["retain"]
    whole = make_plan(llava64, processor, forget, retain, **options)
    parts = make_plan(llava64, processor, forget, retain, memory=limits[method], **options)
    assert len(whole.provenance["passes"]) == 1 < 3 <= len(parts.provenance["passes"])
    sites = [p["sites"] for p in parts.provenance["passes"]]
    assert sum(sites) == whole.provenance["passes"][0]["sites"]
    assert whole.tensors().keys() == parts.tensors().keys()
    for key, edit in whole.edits.items():
        a, b = edit.lowrank
        other = parts.edits[key].lowrank
        assert torch.equal(a, other[0]) and torch.equal(b, other[1])


def test_a_site_that_does_not_fit_is_refused(llava64, processor, few):
    with pytest.raises(InputError, match=r"memory is 1MiB, but site \S+ alone needs \S+MiB: \d+"):
        make_plan(llava64, processor, few["forget"], few["retain"], method="filter", memory="1MiB")


MEASURE = """
import sys, torch
from pathlib import Path
from expunge import make_plan
from expunge.fiction.build import build_processor
from expunge.fiction.world import World
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

torch.set_num_threads(1)
processor = build_processor()
tokenizer = processor.tokenizer
text = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=900,
    num_hidden_layers=3, num_attention_heads=2, pad_token_id=tokenizer.pad_token_id)
vision = CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=2, image_size=64, patch_size=16)
config = LlavaConfig(vision_config=vision, text_config=text, image_seq_length=16,
    image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
model = LlavaForConditionalGeneration(config).eval()
rows = World(private=24, public=3).suite()

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(l for l in lines if l.startswith(name)).split()[1])

def plan(method, memory=None):
    return make_plan(model, processor, rows["forget"][:2], rows["retain"][:40:4], method=method,
        strength=0.3, memory=memory, towers=["language"], batch_size=2)

plan("manu")  # every library is loaded, every forward pass has run once
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
made = plan("filter-search", sys.argv[1] if len(sys.argv) > 1 else None)
print(len(made.provenance["passes"]), status("VmHWM") - before)
"""


def measured(*limit):
    """(passes, peak in bytes) in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *limit], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_measured_peak_stays_within_the_limit():
    """Three sites of 900 neurons: up to 130 MB of second moments each."""
    limited, free = measured("290MB"), measured()
    assert limited[0] > 1 and limited[1] <= 290e6, (limited, free)
    assert free[0] == 1 and free[1] > 290e6, (limited, free)
