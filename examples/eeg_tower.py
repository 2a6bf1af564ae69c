"""A modality of your own: forget one person whose brain signals a language model reads.

A small language model learns facts about eight people twice over: asked beside a made-up EEG
recording of the person, and asked by name. The encoder of the recordings is declared as a tower, so
that expunge knows its neurons; then one person is removed under both conditions, signal + text and
text only, without training.

    python examples/eeg_tower.py
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from expunge import find_sites
from expunge.collect import collect_inputs
from expunge.config import RunConfig
from expunge.edit import applied, fingerprint
from expunge.methods import METHODS, Evidence
from expunge.plan import Plan
from expunge.sites import Site, down_weight

PEOPLE, ATTRIBUTES, VALUES, STEPS, CHANNELS = 8, 6, 10, 4, 16
EEG = 0  # the placeholder token; then names, attributes, values
NAME, ATTRIBUTE, VALUE = 1, 1 + PEOPLE, 1 + PEOPLE + ATTRIBUTES
CONDITIONS = {"multi": "signal + text", "text": "text only"}


class EegModel(nn.Module):
    """A language model that reads a recording where its placeholders stand."""

    def __init__(self) -> None:
        super().__init__()
        self.config = LlamaConfig(
            vocab_size=VALUE + ATTRIBUTES * VALUES,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            eeg_token_id=EEG,
        )
        self.language = LlamaForCausalLM(self.config)
        self.eeg = nn.Sequential(nn.Linear(CHANNELS, 96), nn.GELU(), nn.Linear(96, 64))

    def get_decoder(self) -> nn.Module:
        """Where expunge finds the language tower."""
        return self.language.model

    def forward(self, input_ids: Tensor, signal: Tensor | None = None, **more: Tensor) -> object:
        """Logits of a batch; `signal` is [batch, steps, channels]."""
        embeds = self.language.get_input_embeddings()(input_ids)
        if signal is not None:
            place = (input_ids == EEG)[..., None]
            embeds = embeds.masked_scatter(place, self.eeg(signal).to(embeds.dtype))
        return self.language(inputs_embeds=embeds, **more)


def world(seed: int) -> SimpleNamespace:
    """Who has which signal [people, channels], and the answers to every question."""
    random = torch.Generator().manual_seed(seed)
    answers = torch.randint(VALUES, (PEOPLE, ATTRIBUTES), generator=random)
    answers += VALUE + VALUES * torch.arange(ATTRIBUTES)
    signals = torch.randn(PEOPLE, CHANNELS, generator=random)
    return SimpleNamespace(answers=answers, signals=signals)


def questions(
    facts: SimpleNamespace, people: Tensor, condition: str, random: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Every question about some people as model inputs, and the tokens that answer them."""
    who = people.repeat_interleave(ATTRIBUTES)
    what = torch.arange(ATTRIBUTES).repeat(len(people))
    asked = (ATTRIBUTE + what)[:, None]
    if condition == "text":
        return {"input_ids": torch.cat([(NAME + who)[:, None], asked], 1)}, facts.answers[who, what]
    noise = torch.randn(len(who), STEPS, CHANNELS, generator=random)
    ids = torch.cat([torch.full((len(who), STEPS), EEG), asked], 1)
    signal = facts.signals[who][:, None] + 0.3 * noise
    return {"input_ids": ids, "signal": signal}, facts.answers[who, what]


def train(model: EegModel, facts: SimpleNamespace, steps: int, seed: int) -> None:
    """Teach the model every fact under both conditions."""
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = torch.zeros(())
        for condition in CONDITIONS:
            inputs, answers = questions(facts, torch.arange(PEOPLE), condition, random)
            logits = model(**inputs).logits[:, -1]
            loss = loss + nn.functional.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def accuracy(model: EegModel, facts: SimpleNamespace, people: Tensor) -> dict[str, float]:
    """Share of the questions about some people answered right, by condition."""
    found = {}
    for condition in CONDITIONS:
        inputs, answers = questions(facts, people, condition, torch.Generator().manual_seed(99))
        with torch.no_grad():
            said = model(**inputs).logits[:, -1].argmax(-1)
        found[condition] = float((said == answers).double().mean())
    return found


def unlearn(model: EegModel, facts: SimpleNamespace, forget: int) -> Plan:
    """A plan that removes one person: statistics, then the forget/retain filter.

    A name reaches the answer through attention too, so the attention's outputs are sites here.
    """
    towers = {"eeg": "eeg"}
    sites: list[Site] = find_sites(model, attention=True, declared=towers)
    others = torch.tensor([p for p in range(PEOPLE) if p != forget])
    moments = {}
    for name, people in (("forget", torch.tensor([forget])), ("retain", others)):
        for condition in CONDITIONS:
            random = torch.Generator().manual_seed(7)
            feed = [questions(facts, people, condition, random)[0] for _ in range(4)]
            reached = [s for s in sites if condition == "multi" or s.tower == "language"]
            found = collect_inputs(model, feed, sites=reached, condition=condition, moments=True)
            moments[name, condition] = found.moments
    by_key = {site.key: site for site in sites}
    evidence = Evidence(sites, {}, moments, lambda key: down_weight(model, by_key[key]))
    outcome = METHODS["filter"].decide(evidence, RunConfig(method="filter", strength=10.0))
    about = {s.key: {"tower": s.tower, "path": s.path, "width": s.width} for s in sites}
    origin = {
        "method": "filter",
        "config": {"towers_declared": towers},
        "base": {"fingerprint": fingerprint(model)},
    }
    return Plan(outcome.edits, {key: about[key] for key in outcome.edits}, origin)


def run(steps: int = 80, seed: int = 0, forget: int = 3) -> dict[str, dict[str, dict[str, float]]]:
    """Train, forget one person, ask again: ``{state: {who: {condition: accuracy}}}``."""
    torch.manual_seed(seed)
    facts, model = world(seed), EegModel()
    train(model, facts, steps, seed)
    groups = {
        "forgotten": torch.tensor([forget]),
        "others": torch.tensor([p for p in range(PEOPLE) if p != forget]),
    }
    results = {"before": {w: accuracy(model, facts, people) for w, people in groups.items()}}
    with applied(model, unlearn(model, facts, forget)):
        results["after"] = {w: accuracy(model, facts, people) for w, people in groups.items()}
    results["undone"] = {w: accuracy(model, facts, people) for w, people in groups.items()}
    return results


if __name__ == "__main__":
    print(f"{'':8} {'':10} " + " ".join(f"{words:>14}" for words in CONDITIONS.values()))
    for state, groups in run().items():
        for who, figures in groups.items():
            print(f"{state:8} {who:10} " + " ".join(f"{figures[c]:14.0%}" for c in CONDITIONS))
