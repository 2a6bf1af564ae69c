"""A modality of the user's own through `make_plan` and the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge import load, make_plan, read
from expunge.errors import InputError
from expunge.plan import Plan

CODE = Path(__file__).parent / "eeg" / "modeling_eeg.py"
TEMPLATE = "{image} {question} "
SETTINGS = {
    "method": "manu",
    "budget": 0.1,
    "prompt_template": TEMPLATE,
    "towers": ("eeg", "language"),
    "towers_declared": {"eeg": "eeg"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A checkpoint with code of its own, recordings as .npy files, and questions about them."""
    folder = tmp_path_factory.mktemp("eeg")
    (folder / "model").mkdir()
    shutil.copy(CODE, folder / "model")
    auto = {"AutoConfig": "EegConfig", "AutoModelForCausalLM": "EegModel"}
    auto = {name: f"modeling_eeg.{kind}" for name, kind in auto.items()}
    sizes = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "vocab_size": 21}
    config = {"model_type": "eeg_reader", "num_attention_heads": 4, "eeg_token_id": 2, **sizes}
    config |= {"auto_map": auto, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    processor = {"auto_map": {"AutoProcessor": "modeling_eeg.EegProcessor"}}
    (folder / "model" / "processor_config.json").write_text(json.dumps(processor))
    sys.path.insert(0, str(CODE.parent))
    try:
        from modeling_eeg import EegConfig, EegModel
    finally:
        sys.path.pop(0)
    torch.manual_seed(0)
    model = EegModel(EegConfig(**config))
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / "model" / "model.safetensors", {"format": "pt"})
    random = np.random.default_rng(0)
    for name, people in (("forget", "ab"), ("retain", "cdef")):
        rows = []
        for who in people:
            np.save(folder / f"{who}.npy", random.normal(size=(4, 16)).astype("float32"))
            ask = {"question": "g", "text_question": f"{who} g", "answer": str(len(rows))}
            rows.append({"subject": who, "image": f"{who}.npy", **ask})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_a_plan_is_made_over_signal_and_text(home):
    model, processor = load(home / "model", trust_remote_code=True, device="cpu")
    assert type(processor).__name__ == "EegProcessor"
    forget, retain = read(home / "forget.jsonl"), read(home / "retain.jsonl")
    plan = make_plan(model, processor, forget, retain, **SETTINGS)
    assert plan.scores["eeg.0"].shape == (48,) and plan.scores["eeg.0"].std() > 0
    assert sum(len(i) for i in plan.neurons().values()) == int(0.1 * (48 + 2 * 56))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    undo = plan.apply(model)
    assert any(not value.equal(before[name]) for name, value in model.state_dict().items())
    undo()
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_the_command_line_declares_the_tower(home, tmp_path):
    command = [
        *(sys.executable, "-m", "expunge", "plan", "--model", home / "model"),
        *("--forget", home / "forget.jsonl", "--retain", home / "retain.jsonl"),
        *("--method", "manu", "--budget", "0.1", "--prompt-template", TEMPLATE),
        *("--tower", "eeg=eeg", "--towers", "eeg,language", "--trust-remote-code"),
        *("--out", tmp_path / "run", "--json"),
    ]
    said = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    plan = Plan.load(tmp_path / "run" / "plan.safetensors")
    model, processor = load(home / "model", trust_remote_code=True, device="cpu")
    forget, retain = read(home / "forget.jsonl"), read(home / "retain.jsonl")
    same = make_plan(model, processor, forget, retain, **SETTINGS)
    assert plan.neurons().keys() == same.neurons().keys()
    assert all(index.equal(same.neurons()[key]) for key, index in plan.neurons().items())


def test_a_recording_that_cannot_be_read_is_named(home, tmp_path):
    row = {"subject": "s", "image": "no.npy", "question": "g", "answer": "1"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"line 1.*image.*no\.npy: no such file"):
        read(tmp_path / "rows.jsonl")
    (tmp_path / "no.npy").write_bytes(b"not numbers")
    with pytest.raises(InputError, match=r"no\.npy: not an array"):
        read(tmp_path / "rows.jsonl")
