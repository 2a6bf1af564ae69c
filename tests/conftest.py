"""What tests share: an offline, quiet, repeatable setting, and a tiny LLaVA of the real kind."""

from __future__ import annotations

import copy
import os
import sys

if "gpu" not in sys.argv:  # `make test-gpu` runs what needs a CUDA device, all else is for the CPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, database=None, max_examples=30
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def processor():
    """The real processor of the embedded world, chat template included."""
    from expunge.fiction.build import build_processor

    return build_processor()


@pytest.fixture(scope="session")
def llava(processor):
    """An untrained LLaVA in float32; whoever edits it must undo that.

    Its weights are larger than at initialisation, so that activations lie on both sides of tau.
    """
    from expunge.fiction.build import build_model

    model = build_model(processor, seed=3).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(2.5)
    return model


@pytest.fixture(scope="session")
def llava64(llava):
    """The same model in float64; whoever edits it must undo that."""
    return copy.deepcopy(llava).double()


@pytest.fixture(scope="session")
def rows():
    """Set name to all questions of a small embedded world."""
    from expunge.fiction.world import World

    return World(private=24, public=3).suite()


@pytest.fixture(scope="session")
def few(rows):
    """Few forget and retain questions, of several tasks and lengths, some for one condition."""
    from dataclasses import replace

    forget = [*rows["forget"][:5], replace(rows["forget"][8], image=None)]
    retain = [*rows["retain"][:13:2], replace(rows["retain"][15], text_question=None)]
    return {"forget": forget, "retain": retain}
