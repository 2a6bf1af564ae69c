"""When matrices are multiplied in half the bits, and what that changes."""

import pytest
import torch

from expunge import precision
from expunge.precision import LARGE, half_products, pays


@pytest.fixture
def units(monkeypatch):
    """A CPU with bfloat16 units, whatever this one is."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)


def model(weights=LARGE, dtype=torch.float32):
    layer = torch.nn.Linear(16, 1, bias=False)
    layer.weight = torch.nn.Parameter(torch.ones(1, dtype=dtype).expand(weights // 16, 16))
    return layer


def test_a_large_float32_model_pays_where_there_are_units(units):
    assert pays(model()) and not pays(model(LARGE // 2)) and not pays(model(dtype=torch.bfloat16))
    spread = model()
    spread.hf_device_map = {"": "cpu"}
    assert not pays(spread)


@pytest.mark.parametrize("told", [{}, {"avx512_bf16": False, "amx_bf16": False}, None])
def test_nothing_changes_without_units(monkeypatch, told):
    if told is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert not pays(model())
    with half_products(model()):
        assert not torch.is_autocast_enabled("cpu")


def test_products_are_near_and_the_setting_ends_with_the_block(units, monkeypatch):
    """Within the rounding of bfloat16 against float64; what is added to them stays in float32."""
    monkeypatch.setattr(precision, "LARGE", 1)
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 64, bias=False)
    x = torch.randn(32, 256)
    exact = x.double() @ layer.weight.detach().double().T
    plain = layer(x)
    with half_products(layer), torch.inference_mode():
        found = layer(x)
        assert found.dtype == torch.bfloat16 and (x[:, :64] + found).dtype == torch.float32
    assert 1e-4 < float((found - exact).norm() / exact.norm()) < 1e-2
    assert torch.equal(layer(x), plain) and not torch.is_autocast_enabled("cpu")
