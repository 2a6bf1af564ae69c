"""Make the tiny tokenizer, processor and untrained LLaVA of the embedded world."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from expunge.fiction.draw import SIZE
from expunge.fiction.forms import all_words
from expunge.fiction.skills import skill_words
from expunge.fiction.world import FIRST, LAST, TITLES

# The one that does without torchvision; older versions of transformers have it under this name.
Pictures = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
PATCH = 16
IMAGE_TOKENS = (SIZE // PATCH) ** 2
SHARED = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
    " num_key_value_heads max_position_embeddings tie_word_embeddings pad_token_id eos_token_id"
    " rms_norm_eps rope_parameters"
).split()
SPECIAL = ("<pad>", "<end>", "<user>", "<assistant>", "<image>", "<system>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tokenizer(pieces: int = 1500) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `pieces` pieces over the world's wordings.

    Names are spelled in several pieces.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    words = all_words() + skill_words() + list(TITLES)
    corpus = [f" {w}" for w in words] + words + [" Options:"]
    corpus += [s for f in FIRST for s in (f" {f.capitalize()}", f, f.capitalize())]
    corpus += [s for t in LAST for s in (t,)]
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>", "<image>", "<system>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor(side: int = SIZE, patch: int = PATCH, pieces: int = 1500) -> LlavaProcessor:
    """An ordinary LLaVA processor for pictures of `side` pixels in patches of `patch`."""
    square = {"height": side, "width": side}
    pictures = Pictures(
        size={"shortest_edge": side},
        crop_size=square,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(pieces),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def rename_for_all(weights: Path) -> None:
    """Give the weights the names that LLaVA checkpoints on the Hub have.

    Every version of transformers reads those; newer ones write a shorter name for the vision tower,
    which 5.0 does not know.
    """
    whole, short = "vision_tower.vision_model.", "vision_tower."
    named = {
        name if whole in name else name.replace(short, whole): tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(named, weights, {"format": "pt"})


def language(
    processor: LlavaProcessor,
    kind: Callable[..., PreTrainedConfig] = LlamaConfig,
    *,
    width: int = 128,
    neurons: int = 1024,
    layers: int = 4,
    heads: int = 4,
) -> PreTrainedConfig:
    """Configuration of a language model of a kind and size, with the processor's vocabulary."""
    tokenizer = processor.tokenizer
    return kind(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=neurons,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def build_model(
    processor: LlavaProcessor, seed: int = 0, text: PreTrainedConfig | None = None
) -> LlavaForConditionalGeneration:
    """An untrained LLaVA in float32, on CPU; of 2.5 million parameters, where `text` is not given.

    Args:
        processor: Gives the vocabulary and its special pieces.
        seed: Of the weights.
        text: Configuration of another language model.
    """
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=64,
    )
    text = text or language(processor)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def as_kind(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    kind: Callable[..., PreTrainedConfig],
    **options: Any,
) -> LlavaForConditionalGeneration:
    """The same function with a language model of another kind, such as Llama or Qwen2.

    What only the other kind has are biases; they are zero.

    Args:
        model: A model of `build_model`; unchanged.
        processor: Its processor.
        kind: Configuration class of the other kind.
        options: What it must switch on to hold every weight, such as `attention_bias`.
    """
    old = model.config.text_config
    text = kind(**{name: getattr(old, name) for name in SHARED}, bos_token_id=None, **options)
    other = build_model(processor, text=text).eval()
    lacking, more = other.load_state_dict(model.state_dict(), strict=False)
    assert not more and all(name.endswith("_proj.bias") for name in lacking)
    with torch.no_grad():
        for name in lacking:
            other.get_parameter(name).zero_()
    return other


def as_gemma(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> LlavaForConditionalGeneration:
    """The same function with a Gemma, which has no biases but can be given some of attention.

    A Gemma multiplies the embeddings of words, and its norms have weights of 1 more than they say.

    Args:
        model: A model of `build_model`, or one with another language model without biases;
            unchanged.
        processor: Its processor.
    """
    old: Any = model.config.text_config
    same = {name: getattr(old, name) for name in SHARED}
    text = GemmaConfig(**same, head_dim=old.head_dim, hidden_act=old.hidden_act, bos_token_id=None)
    other = build_model(processor, text=text).eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    longer = math.sqrt(old.hidden_size)
    for name, value in weights.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            value /= longer
        elif "language_model" in name and name.endswith("norm.weight"):
            value *= 1 if ".layers." in name else longer  # of the last, for the output embedding
            value -= 1
    other.load_state_dict(weights)
    return other
