"""Write docs/families.md: what is pruned in every tested family, and what is not.

The tiny models of the family tests are looked at, without weights: python docs/make_families.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "models"))

from families import AUTO, FAMILIES, Family  # noqa: E402

from expunge.errors import InputError  # noqa: E402
from expunge.sites import Site, find_sites  # noqa: E402
from expunge.sites.blocks import UNUSED, features  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
TOWERS = ("vision", "audio", "connector", "language")
ATTENTION = re.compile(r"attn|attention|[qkv]_proj|perceiver\.|crossattention")
# Why a linear layer is no site: the first pattern that its path matches.
REASONS = (
    (r"(router|gate|classifier)$", "chooses experts"),
    (r"embed|patch|position|pos_", "makes embeddings"),
    (r"norm|modulat|ada", "scales a norm"),
    (r"\bconv\.", "part of a convolution"),
    (r"encoder\.out(_mid)?$", "guesses letters halfway"),
    (r"", "one linear map, without hidden units"),
)
HEAD = """# Families

Made by `docs/make_families.py`; do not edit. Every family is tested on a tiny model of its own
configuration class: statistics with and without its media, a plan, the edit against ablation, undo
bit for bit, and a saved checkpoint that plain transformers reads back.

A path is that of the down projection whose columns are pruned; `N` stands for a number. Attention
(the features that enter its output projection) is pruned on request only. Input and output
embeddings are never pruned: they have no hidden units. Sites that are never read are numbered as in
the tiny model: the layers behind the last one that the configuration reads.

For a model that is not listed, `expunge inspect MODEL` says what is found in it; a tower that it
does not find is declared with `--tower name=path.to.module`.
"""


def built(family: Family) -> nn.Module:
    """The family's tiny model, without weights."""
    config = transformers.AutoConfig.for_model(**{**family.config, "model_type": family.model_type})
    classes = [getattr(transformers, f"AutoModelFor{name}") for name in AUTO]
    auto = next(each for each in classes if type(config) in each._model_mapping)
    with torch.device("meta"):
        return auto.from_config(config)


def pattern(path: str) -> str:
    """A path with numbers as N."""
    return re.sub(r"(?<![A-Za-z_])\d+", "N", path)


def listed(lines: Iterable[str]) -> str:
    """Distinct lines as one, or nothing."""
    return ", ".join(dict.fromkeys(lines)) or "nothing"


def pruned(sites: list[Site], tower: str) -> str:
    """Where the neurons of a tower are."""
    what = {"expert": " (each expert)"}
    return listed(
        f"`{pattern(site.path)}`{what.get(site.kind, '')}" for site in sites if site.tower == tower
    )


def left_out(model: nn.Module, family: Family, sites: list[Site]) -> str:
    """What is not pruned, and why."""
    reasons = [f"{key} (its output is never read)" for key in sorted(family.dead)]
    reasons += [f"{key} without media (it does not run)" for key in family.asleep_without_media]
    blocks = [re.sub(r"(\.output(_query)?)?\.[^.]+$", "", site.path) for site in sites]
    unused = [p for p, m in model.named_modules() if UNUSED.search(type(m).__name__)]
    for path, module in model.named_modules():
        ours = any(path.startswith(f"{block}.") for block in blocks)
        spoken = module is model.get_output_embeddings()
        if features(module) is None or ours or spoken or ATTENTION.search(path.lower()):
            continue
        why = next(words for found, words in REASONS if re.search(found, path.lower()))
        if any(path.startswith(f"{p}.") for p in unused):
            why = "its output reaches no answer"
        reasons.append(f"`{pattern(path)}` ({why})")
    return listed(reasons)


def attention(model: nn.Module) -> str:
    """Where attention can be pruned on request."""
    try:
        found = find_sites(model, attention=True)
    except InputError:
        return listed([])
    return listed(f"`{pattern(s.path)}`" for s in found if s.kind == "attention")


def section(name: str, family: Family) -> list[str]:
    """What the page says about one family."""
    model = built(family)
    sites = find_sites(model)
    conditions = ["media and text"] * (family.media is not None) + ["text only"] * family.text
    found = [tower for tower in TOWERS if any(site.tower == tower for site in sites)]
    return [
        f"## {name} (`{family.model_type}`)",
        "",
        f"- conditions: {listed(conditions)}",
        *(f"- {tower}: {pruned(sites, tower)}" for tower in found),
        f"- attention, on request: {attention(model)}",
        f"- not pruned: {left_out(model, family, sites)}",
        "",
    ]


def page() -> str:
    """The whole document."""
    lines = [HEAD, f"{len(FAMILIES)} families:", ""]
    for name, family in sorted(FAMILIES.items()):
        lines += section(name, family)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(FAMILIES)} families")
