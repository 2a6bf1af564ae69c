"""A mixture of experts: which experts the forget set is routed to, in the folder and the report."""

from __future__ import annotations

import html
import json
import re

import pytest
import torch
import transformers
from commands import expunge

from expunge.data import write_jsonl
from expunge.edit import save_checkpoint
from expunge.encoding import batches
from expunge.fiction.build import CHAT_TEMPLATE
from expunge.models import Prompter

EXPERTS, TOP = 4, 2


@pytest.fixture(scope="module")
def mixture(processor, rows, tmp_path_factory):
    """A folder with a tiny Qwen3-MoE of random weights and text-only questions; both in memory."""
    words = processor.tokenizer
    tokenizer = type(words)(
        tokenizer_object=words.backend_tokenizer,
        pad_token=words.pad_token,
        eos_token=words.eos_token,
        chat_template=CHAT_TEMPLATE,
    )
    config = transformers.Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=56,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10 if weight.ndim > 1 else 1)
    home = tmp_path_factory.mktemp("mixture")
    save_checkpoint(model, tokenizer, home / "model")
    asked = {n: [e for e in rows[n] if e.has("text")][:6] for n in ("forget", "retain")}
    for name, examples in asked.items():
        texts = [vars(e) | {"image": None, "question": None} for e in examples]
        asked[name] = [type(examples[0])(**text) for text in texts]
        write_jsonl(asked[name], home / f"{name}.jsonl")
    return home, model, tokenizer, asked


def routed_by_router(model, tokenizer, examples):
    """Tokens given to each expert of each layer, counted at the routers."""
    counts = torch.zeros(2, EXPERTS, dtype=torch.long)
    feed = batches(model, Prompter(tokenizer), examples, "text", batch_size=1)
    for batch in feed:
        with torch.no_grad():
            said = model(**batch.inputs, output_router_logits=True)
        for layer, logits in enumerate(said.router_logits):
            chosen = logits.topk(TOP, dim=-1).indices
            counts[layer] += torch.bincount(chosen.flatten(), minlength=EXPERTS)
    return counts.tolist()


@pytest.mark.parametrize("method", ["manu", "filter"])
def test_the_report_shows_the_experts_of_the_forget_set(mixture, method, tmp_path):
    home, model, tokenizer, asked = mixture
    sets = [part for n in asked for part in (f"--{n}", home / f"{n}.jsonl")]
    out = tmp_path / "run"
    said = expunge(
        "run", "--model", home / "model", *sets, "--method", method, "--towers", "language",
        "--out", out, "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    found = json.loads((out / "experts.json").read_text())
    assert found["unit"] == "token" and list(found["layers"]) == ["language.0", "language.1"]
    for name, examples in asked.items():
        expected = routed_by_router(model, tokenizer, examples)
        layers = found["layers"].values()
        assert [sets[name] for sets in layers] == [{"text": counts} for counts in expected]
    page = (out / "report.html").read_text()
    table = page[page.index("Experts that carry the forget set") :].split("</table>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*)</tr>', table)
    assert len(rows) == 2 * EXPERTS
    excess = []
    for key, rest in rows:
        cells = [html.unescape(c) for c in re.findall(r"<td>(.*?)</td>", rest)]
        layer, _, expert = key.partition(".expert.")
        shares = [found["layers"][layer][n]["text"] for n in ("forget", "retain")]
        shares = [100 * each[int(expert)] / sum(each) for each in shares]
        assert (cells[1], cells[3]) == tuple(f"{share:.1f}\u00a0%" for share in shares)
        assert cells[4] == f"{shares[0] - shares[1]:+.1f}"
        excess.append(shares[0] - shares[1])
    assert excess == sorted(excess, reverse=True) and excess[0] > 0


def test_a_model_without_experts_has_no_such_table(brief):
    assert not (brief[0] / "experts.json").exists()
    assert "Experts that carry" not in (brief[0] / "report.html").read_text()
