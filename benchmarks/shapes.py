"""LLaVA of given sizes with random weights, questions for it, and clocks: shared by benchmarks."""

import json
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from expunge.encoding import batches
from expunge.fiction.build import build_processor
from expunge.fiction.world import World
from expunge.models import accepts

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaVA.

    Attributes:
        layers: Layers, hidden size, MLP width, heads, key-value heads of the language model.
        vocabulary: Its tokens.
        vision: Layers, hidden size, MLP width, heads of the vision tower.
        image: Side of a picture in pixels.
        patch: Side of a patch.
    """

    layers: tuple[int, int, int, int, int]
    vocabulary: int
    vision: tuple[int, int, int, int]
    image: int
    patch: int

    @property
    def image_tokens(self):
        """Tokens of one picture."""
        return (self.image // self.patch) ** 2


SHAPES = {
    "tiny": Shape((4, 64, 192, 4, 2), 1600, (3, 48, 96, 4), 56, 14),
    "135m": Shape((30, 576, 1536, 9, 3), 49153, (12, 384, 1536, 6), 112, 14),
    "7b": Shape((32, 4096, 11008, 32, 32), 32064, (24, 1024, 4096, 16), 336, 14),
}


def processor_for(shape):
    """A LLaVA processor with the embedded world's tokenizer for pictures of the shape's size."""
    return build_processor(shape.image, shape.patch)


def config_for(shape, tokenizer):
    layers, hidden, width, heads, shared = shape.layers
    text = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    layers, hidden, width, heads = shape.vision
    vision = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=shape.image,
        patch_size=shape.patch,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=shape.image_tokens,
    )


def build(name, device="cpu", dtype=torch.float32):
    """A model with random weights and its processor."""
    shape = SHAPES[name]
    processor = processor_for(shape)
    config = config_for(shape, processor.tokenizer)
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model.eval(), processor


def questions(people, each):
    """Forget and retain questions: `people` subjects of each, `each` questions a subject."""
    sets = World(private=min(6 * people, 120), public=3).suite(percent=25)
    found = {}
    for name in ("forget", "retain"):
        by_subject = {}
        for example in sets[name]:
            if example.has("multi") and example.has("text"):
                by_subject.setdefault(example.subject, []).append(example)
        chosen = list(by_subject.values())[:people]
        found[name] = [rows[i % len(rows)] for rows in chosen for i in range(each)]
    return found


def encoded(model, prompter, rows, condition, batch_size):
    """The rows as batches, encoded once."""
    return list(batches(model, prompter, rows, condition, batch_size=batch_size))


@torch.inference_mode()
def forward(model, feed):
    """The bare forward passes that collecting runs too."""
    lean = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
    for batch in feed:
        model(**batch.inputs, use_cache=False, **lean)


def synchronise():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(jobs, repeats):
    """Run jobs by turns, after one unmeasured round; name -> mean seconds of every repeat.

    A repeat runs them forth and back, so that none gains by what runs before it.
    """
    seconds = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(repeats):
        taken = dict.fromkeys(jobs, 0.0)
        for name in [*jobs, *reversed(jobs)]:
            synchronise()
            begun = time.perf_counter()
            jobs[name]()
            synchronise()
            taken[name] += (time.perf_counter() - begun) / 2
        for name, each in taken.items():
            seconds[name].append(each)
    return seconds


def ratio(seconds, name, base):
    """Median over the repeats of one job's seconds over another's in the same turn."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def keep(path, part, value):
    """Put one part of a benchmark into its JSON file, with where it was measured."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    where = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    known[part] = {**value, "where": where}
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(part, json.dumps(known[part]), flush=True)


def _processor():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
