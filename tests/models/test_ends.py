"""Directions that end an answer, against what the model's own last layers make of a state."""

import pytest
import torch
from families import FAMILIES

from expunge.ends import end_directions, end_tokens, final_norm

STATES = 5


def leading(model, states):
    """Logits of the end tokens over the mean logit, times the size of a state, [states, ends]."""
    norm, head = final_norm(model), model.get_output_embeddings()
    with torch.inference_mode():
        logits = head(norm(states))
    centred = states - states.mean(1, keepdim=True)
    size = (centred if isinstance(norm, torch.nn.LayerNorm) else states).norm(dim=1, keepdim=True)
    return (logits[:, sorted(end_tokens(model))] - logits.mean(1, keepdim=True)) * size


@pytest.mark.parametrize("ends", [2, [2, 7, 11]])
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2-vl", "internvl", "gpt2", "opt"])
def test_only_along_them_does_the_end_become_likelier(name, ends):
    """RMSNorm, RMSNorm whose weights are less by one, LayerNorm, tied and untied embeddings."""
    model = FAMILIES[name].build().double().eval()
    model.generation_config.eos_token_id = ends
    generator = torch.Generator().manual_seed(3)
    norm = final_norm(model)
    with torch.no_grad():  # else its weights are all the same
        norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
        if getattr(norm, "bias", None) is not None:  # says the same of every state
            norm.bias.zero_()
    found = end_directions(model)
    assert found is not None and found.shape == (32, len(end_tokens(model)))
    assert torch.allclose(found.T @ found, torch.eye(found.shape[1]), atol=1e-5)
    basis = found.double()
    states, moves = (torch.randn(STATES, 32, generator=generator).double() for _ in range(2))
    if isinstance(norm, torch.nn.LayerNorm):  # takes the mean away, so nothing that has one
        moves -= moves.mean(1, keepdim=True)
        one = torch.cat([basis, torch.ones(32, 1).double()], 1)
        basis = torch.linalg.qr(one)[0]
    across = moves - moves @ basis @ basis.T
    before, after = leading(model, states), leading(model, states + across)
    assert torch.allclose(before, after, atol=1e-4 * float(before.abs().max()))
    along = leading(model, states + moves @ found.double() @ found.double().T)
    assert not torch.allclose(before, along, atol=1e-2 * float(before.abs().max()))


@pytest.mark.parametrize("ends", [None, 50_256])
def test_a_model_that_never_ends_has_none(ends):
    model = FAMILIES["llava"].build()
    model.generation_config.eos_token_id = ends
    assert end_directions(model) is None
