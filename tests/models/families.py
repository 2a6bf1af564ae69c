"""One tiny model per family, from the family's own configuration class, with random weights.

An entry says how small the model is (`config`), which sites it must have (`widths`, written out by
hand from the configuration), and which media go beside the prompt (`media`). Hidden sizes are 32;
the widths of the MLPs differ by tower (48 vision, 40 audio, 56 language, 24 experts), so that a
site in the wrong tower shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.aria import modeling_aria

VOCABULARY, IMAGE, AUDIO, START, END, VIDEO = 99, 90, 91, 92, 93, 94
AUTO = ("ImageTextToText", "MultimodalLM", "Seq2SeqLM", "CausalLM")

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VIT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}
AUDIO_ENCODER = {
    "d_model": 32,
    "hidden_size": 32,
    "encoder_layers": 2,
    "num_hidden_layers": 2,
    "encoder_attention_heads": 4,
    "num_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "intermediate_size": 40,
    "num_mel_bins": 8,
    "max_source_positions": 8,
}
QFORMER = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "encoder_hidden_size": 32,
    "vocab_size": VOCABULARY,
}
OPT = {
    "model_type": "opt",
    "hidden_size": 32,
    "ffn_dim": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
T5 = {
    "model_type": "t5",
    "d_model": 32,
    "d_ff": 56,
    "d_kv": 8,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@dataclass(frozen=True)
class Media:
    """What goes beside the text of two examples.

    Attributes:
        tokens: Placeholder ids that stand at the beginning of each prompt.
        tensors: Keyword arguments of `forward`.
        types: Whether `forward` wants token types, and under which name.
    """

    tokens: list[int]
    tensors: dict[str, torch.Tensor]
    types: str | None = None


@dataclass(frozen=True)
class Family:
    """A tiny model of one family.

    Attributes:
        model_type: Name of the configuration class.
        config: Its arguments.
        widths: Width of every site, by key.
        media: What goes beside the text; None for a text-only family.
        dead: Sites whose output the model never uses.
        silent: Sites that run for other inputs than `media` makes.
        asleep_without_media: Language sites that only run beside media.
        decoder: Whether `forward` wants the decoder's input too.
        text: Whether the model runs without media.
        extra: Further arguments of `forward`, from the prompt's ids.
    """

    model_type: str
    config: Mapping[str, Any]
    widths: Mapping[str, int]
    media: Callable[[torch.Generator], Media] | None = None
    dead: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    asleep_without_media: frozenset[str] = frozenset()
    decoder: bool = False
    text: bool = True
    extra: Callable[[torch.Tensor], dict[str, torch.Tensor]] | None = None

    def build(self) -> nn.Module:
        """The model, in float32 and evaluation mode, with the same random weights every time."""
        config = transformers.AutoConfig.for_model(**{**self.config, "model_type": self.model_type})
        classes = [getattr(transformers, f"AutoModelFor{name}") for name in AUTO]
        auto = next(each for each in classes if type(config) in each._model_mapping)
        model = auto.from_config(config).float().eval()
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=random)
                if parameter.ndim > 1:
                    parameter.copy_(0.2 * noise)
                else:  # gains, gates and biases keep their value on average
                    parameter.add_(0.2 * noise)
            for module in model.modules():
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx] = 0  # as a trained model has it
        return model

    def inputs(self, model: nn.Module, condition: str) -> dict[str, torch.Tensor] | None:
        """Two examples of different length, padded on the right; None where unsupported."""
        random = torch.Generator().manual_seed(1)
        media = None
        if condition == "multi":
            if self.media is None:
                return None
            media = self.media(random)
        elif not self.text:
            return None
        lead = media.tokens if media else []
        words = torch.randint(5, 80, (2, 9), generator=random)
        ids = torch.cat([torch.tensor([lead] * 2, dtype=torch.long).reshape(2, -1), words], dim=1)
        mask = torch.ones_like(ids)
        ids[1, -3:], mask[1, -3:] = 0, 0
        batch = {"input_ids": ids, "attention_mask": mask}
        if media:
            batch |= media.tensors
            if media.types:
                batch[media.types] = (ids == IMAGE).long()
            if self.extra:
                batch |= self.extra(ids)
        if self.decoder:
            batch["decoder_input_ids"] = torch.randint(5, 80, (2, 4), generator=random)
        return batch


def layers(tower: str, count: int, width: int) -> dict[str, int]:
    return {f"{tower}.{index}": width for index in range(count)}


def experts(count: int, number: int, width: int) -> dict[str, int]:
    return {
        f"language.{layer}.expert.{index}": width
        for layer in range(count)
        for index in range(number)
    }


MakeMedia = Callable[[torch.Generator], Media]


def pictures(
    tokens: int, shape: tuple[int, ...] = (2, 3, 8, 8), types: str | None = None, **more: Any
):
    """Media of one image per example: `tokens` placeholders and random pixels of `shape`."""

    def make(random: torch.Generator) -> Media:
        pixels = torch.randn(shape, generator=random)
        extra = {name: torch.tensor(value) for name, value in more.items()}
        return Media([IMAGE] * tokens, {"pixel_values": pixels} | extra, types)

    return make


def packed(patches: int, features: int, tokens: int) -> MakeMedia:
    """Media of the Qwen kind: all patches of the batch in one row, and their grids."""
    side = int(patches**0.5)

    def make(random: torch.Generator) -> Media:
        pixels = torch.randn((2 * patches, features), generator=random)
        grids = torch.tensor([[1, side, side]] * 2)
        tensors = {"pixel_values": pixels, "image_grid_thw": grids}
        return Media([START, *[IMAGE] * tokens, END], tensors, "mm_token_type_ids")

    return make


def sounds(
    tokens: int, shape: tuple[int, ...], name: str = "input_features", **more: Any
) -> MakeMedia:
    """Media of one recording per example."""

    def make(random: torch.Generator) -> Media:
        features = torch.randn(shape, generator=random)
        extra = {key: torch.tensor(value) for key, value in more.items()}
        return Media([AUDIO] * tokens, {name: features} | extra)

    return make


def picture_and_sound(random: torch.Generator) -> Media:
    """Media of Phi-4: one crop and the whole of a picture, then 16 frames of a recording."""
    tensors = {
        "image_pixel_values": torch.randn((2, 2, 3, 8, 8), generator=random),
        "image_sizes": torch.tensor([[8, 8], [8, 8]]),
        "image_attention_mask": torch.ones(2, 2, 2, 2, dtype=torch.long),
        "audio_input_features": torch.randn((2, 16, 16), generator=random),
        "audio_embed_sizes": torch.tensor([2, 2]),
        "audio_attention_mask": torch.ones(2, 16, dtype=torch.bool),
    }
    return Media([IMAGE] * 5 + [AUDIO] * 2, tensors)


@torch.no_grad()
def unmake(experts: nn.Module, site: Any, index: torch.Tensor) -> None:
    """Zero what makes the neurons `index` of one expert of a layer, so that they say nothing."""
    rows = torch.cat([index, index + site.width])
    if type(experts).__name__ == "GptOssExperts":
        rows = torch.cat([2 * index, 2 * index + 1])
        experts.gate_up_proj_bias[site.expert, rows] = 0
    up = experts.gate_up_proj[site.expert]
    up = up if up.shape[0] == 2 * site.width else up.T
    up[rows] = 0


TWO = layers("language", 2, 56)
LLAVA_SITES = layers("vision", 2, 48) | {"connector.0": 32} | TWO
SIGLIP = {"model_type": "siglip_vision_model", **VIT}
CLIP = {"model_type": "clip_vision_model", **VIT, "projection_dim": 32}
LLAMA = {"model_type": "llama", **TEXT}
QWEN_VIT = {
    "depth": 2,
    "embed_dim": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}

FAMILIES: dict[str, Family] = {
    "llava": Family(
        "llava",
        {"vision_config": CLIP, "text_config": LLAMA, "image_token_index": IMAGE},
        LLAVA_SITES,
        pictures(4),
        dead=frozenset({"vision.1"}),
    ),
    "llava-next": Family(
        "llava_next",
        {
            "vision_config": CLIP,
            "text_config": LLAMA,
            "image_token_index": IMAGE,
            "image_grid_pinpoints": [[8, 8]],
        },
        LLAVA_SITES,
        pictures(10, (2, 2, 3, 8, 8), image_sizes=[[8, 8], [8, 8]]),
        dead=frozenset({"vision.1"}),
    ),
    "llava-onevision": Family(
        "llava_onevision",
        {
            "vision_config": SIGLIP,
            "text_config": {"model_type": "qwen2", **TEXT},
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
            "image_grid_pinpoints": [[8, 8]],
        },
        LLAVA_SITES,
        pictures(10, (2, 2, 3, 8, 8), image_sizes=[[8, 8], [8, 8]]),
    ),
    "vipllava": Family(
        "vipllava",
        {
            "vision_config": {**CLIP, "num_hidden_layers": 3},
            "text_config": LLAMA,
            "image_token_index": IMAGE,
            "vision_feature_layers": [-2, -3],
        },
        LLAVA_SITES | {"vision.2": 48},
        pictures(4),
        dead=frozenset({"vision.2"}),
    ),
    "qwen2-vl": Family(
        "qwen2_vl",
        {
            "vision_config": {**QWEN_VIT, "mlp_ratio": 2},
            "text_config": {**TEXT, "rope_parameters": ROPE},
            **QWEN_TOKENS,
        },
        layers("vision", 2, 64) | {"connector.0": 128} | TWO,
        packed(16, 96, 4),
    ),
    "qwen2.5-vl": Family(
        "qwen2_5_vl",
        {
            "vision_config": {**QWEN_VIT, "window_size": 16, "fullatt_block_indexes": [1]},
            "text_config": {**TEXT, "rope_parameters": ROPE},
            **QWEN_TOKENS,
        },
        layers("vision", 2, 48) | {"connector.0": 128} | TWO,
        packed(16, 96, 4),
    ),
    "qwen3-vl": Family(
        "qwen3_vl",
        {
            "vision_config": {
                **QWEN_VIT,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            "text_config": {**TEXT, "rope_parameters": ROPE},
            **QWEN_TOKENS,
        },
        layers("vision", 2, 48) | layers("connector", 2, 128) | TWO,
        packed(16, 96, 4),
    ),
    "qwen3-vl-moe": Family(
        "qwen3_vl_moe",
        {
            "vision_config": {
                **QWEN_VIT,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            "text_config": {**TEXT, **EXPERTS, "rope_parameters": ROPE},
            **QWEN_TOKENS,
        },
        layers("vision", 2, 48) | layers("connector", 2, 128) | experts(2, 4, 24),
        packed(16, 96, 4),
    ),
    "idefics2": Family(
        "idefics2",
        {
            "vision_config": {"model_type": "idefics2_vision", **VIT},
            "perceiver_config": {
                "model_type": "idefics2_perceiver",
                "hidden_size": 32,
                "resampler_n_latents": 3,
                "resampler_depth": 2,
                "resampler_n_heads": 4,
                "resampler_head_dim": 8,
                "num_key_value_heads": 2,
            },
            "text_config": {"model_type": "mistral", **TEXT},
            "image_token_id": IMAGE,
        },
        layers("vision", 2, 48) | {"connector.0": 56, "connector.1": 128, "connector.2": 128} | TWO,
        pictures(3, (2, 1, 3, 8, 8)),
    ),
    "idefics3": Family(
        "idefics3",
        {
            "vision_config": {"model_type": "idefics3_vision", **VIT},
            "text_config": LLAMA,
            "image_token_id": IMAGE,
            "scale_factor": 2,
        },
        layers("vision", 2, 48) | TWO,
        pictures(1, (2, 1, 3, 8, 8)),
    ),
    "smolvlm": Family(
        "smolvlm",
        {
            "vision_config": {"model_type": "smolvlm_vision", **VIT},
            "text_config": LLAMA,
            "image_token_id": IMAGE,
            "scale_factor": 2,
        },
        layers("vision", 2, 48) | TWO,
        pictures(1, (2, 1, 3, 8, 8)),
    ),
    "gemma3": Family(
        "gemma3",
        {
            "vision_config": SIGLIP,
            "text_config": TEXT,
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE,
            "image_token_id": IMAGE,
        },
        layers("vision", 2, 48) | TWO,
        pictures(4, types="token_type_ids"),
    ),
    "paligemma": Family(
        "paligemma",
        {
            "vision_config": {**SIGLIP, "vision_use_head": False},
            "text_config": {"model_type": "gemma", **TEXT},
            "projection_dim": 32,
            "image_token_index": IMAGE,
            "image_token_id": IMAGE,
        },
        layers("vision", 2, 48) | TWO,
        pictures(4, types="token_type_ids"),
    ),
    "internvl": Family(
        "internvl",
        {
            "vision_config": {
                **VIT,
                "model_type": "internvl_vision",
                "image_size": [8, 8],
                "patch_size": [4, 4],
            },
            "text_config": {"model_type": "qwen2", **TEXT},
            "image_token_id": IMAGE,
        },
        LLAVA_SITES,
        pictures(1),
    ),
    "mistral3": Family(
        "mistral3",
        {
            "vision_config": {"model_type": "pixtral", **VIT, "head_dim": 8, "image_size": 16},
            "text_config": {"model_type": "mistral", **TEXT},
            "image_token_index": IMAGE,
            "image_token_id": IMAGE,
            "spatial_merge_size": 2,
        },
        LLAVA_SITES,
        pictures(1, image_sizes=[[8, 8], [8, 8]]),
    ),
    "llava-pixtral": Family(
        "llava",
        {
            "vision_config": {"model_type": "pixtral", **VIT, "head_dim": 8},
            "text_config": {"model_type": "mistral", **TEXT},
            "image_token_index": IMAGE,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        LLAVA_SITES,
        pictures(4, image_sizes=[[8, 8], [8, 8]]),
    ),
    "mllama": Family(
        "mllama",
        {
            "vision_config": {
                **VIT,
                "attention_heads": 4,
                "num_global_layers": 1,
                "vision_output_dim": 64,
                "max_num_tiles": 1,
                "supported_aspect_ratios": [[1, 1]],
                "intermediate_layers_indices": [0],
            },
            "text_config": {
                **TEXT,
                "num_hidden_layers": 3,
                "cross_attention_layers": [1],
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
            "image_token_index": IMAGE,
        },
        layers("vision", 3, 48) | layers("language", 3, 56),
        pictures(
            1,
            (2, 1, 1, 3, 8, 8),
            aspect_ratio_ids=[[1], [1]],
            aspect_ratio_mask=[[[1]], [[1]]],
            cross_attention_mask=[[[[1]]] * 10] * 2,
        ),
        asleep_without_media=frozenset({"language.1"}),  # cross-attention layers are skipped
    ),
    "blip2-opt": Family(
        "blip-2",
        {
            "vision_config": VIT,
            "qformer_config": QFORMER,
            "text_config": OPT,
            "num_query_tokens": 3,
            "image_token_index": IMAGE,
        },
        layers("vision", 2, 48) | layers("connector", 2, 44) | TWO,
        pictures(3),
        text=False,
    ),
    "blip2-t5": Family(
        "blip-2",
        {
            "vision_config": VIT,
            "qformer_config": QFORMER,
            "text_config": T5,
            "num_query_tokens": 3,
            "image_token_index": IMAGE,
        },
        layers("vision", 2, 48) | layers("connector", 2, 44) | layers("language", 4, 56),
        pictures(3),
        decoder=True,
        text=False,
    ),
    "instructblip": Family(
        "instructblip",
        {
            "vision_config": VIT,
            "qformer_config": QFORMER,
            "text_config": T5,
            "num_query_tokens": 3,
            "image_token_index": IMAGE,
        },
        layers("vision", 2, 48) | layers("connector", 4, 44) | layers("language", 4, 56),
        pictures(3, qformer_input_ids=[[5, 6, 7], [8, 9, 10]]),
        dead=frozenset({"connector.2"}),
        decoder=True,
        text=False,
    ),
    "instructblip-llama": Family(
        "instructblip",
        {
            "vision_config": VIT,
            "qformer_config": QFORMER,
            "text_config": LLAMA,
            "num_query_tokens": 3,
            "image_token_index": IMAGE,
        },
        layers("vision", 2, 48) | layers("connector", 4, 44) | TWO,
        pictures(3, qformer_input_ids=[[5, 6, 7], [8, 9, 10]]),
        dead=frozenset({"connector.2"}),
        text=False,
    ),
    "glm4v": Family(
        "glm4v",
        {
            "vision_config": {
                **QWEN_VIT,
                "image_size": 16,
                "out_hidden_size": 32,
            },
            "text_config": {**TEXT, "rope_parameters": ROPE},
            **QWEN_TOKENS,
            "image_start_token_id": START,
            "image_end_token_id": END,
        },
        layers("vision", 2, 32) | {"connector.0": 48} | TWO,
        packed(16, 96, 4),
    ),
    "aria": Family(
        "aria",
        {
            "vision_config": {"model_type": "idefics3_vision", **VIT},
            "text_config": {
                "model_type": "aria_text",
                **TEXT,
                "intermediate_size": 24,
                "moe_num_experts": 4,
            },
            "projector_patch_to_query_dict": {4: 2},
            "image_token_index": IMAGE,
        },
        layers("vision", 2, 48)
        | {"connector.0": 32}
        | experts(2, 4, 24)
        | {"language.0.shared": 48, "language.1.shared": 48},
        pictures(2),
    ),
    "lfm2-vl": Family(
        "lfm2_vl",
        {
            "vision_config": {
                "model_type": "siglip2_vision_model",
                **VIT,
                "num_patches": 16,
            },
            "text_config": {
                "model_type": "lfm2",
                **TEXT,
                "layer_types": ["conv", "full_attention"],
                "block_auto_adjust_ff_dim": False,
            },
            "projector_hidden_size": 36,
            "image_token_id": IMAGE,
        },
        layers("vision", 2, 48) | {"connector.0": 36} | TWO,
        pictures(
            1,
            (2, 4, 48),
            spatial_shapes=[[2, 2], [2, 2]],
            pixel_attention_mask=[[1] * 4] * 2,
        ),
    ),
    "ovis2": Family(
        "ovis2",
        {
            "vision_config": {**VIT, "vocab_size": 64, "num_visual_indicator_tokens": 2},
            "text_config": {"model_type": "qwen2", **TEXT},
            "image_token_id": IMAGE,
            "visual_indicator_token_ids": [START, END],
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
        },
        layers("vision", 2, 48) | TWO,
        pictures(4),
    ),
    "kosmos-2": Family(
        "kosmos-2",
        {
            "vision_config": VIT,
            "text_config": {
                "vocab_size": VOCABULARY,
                "embed_dim": 32,
                "layers": 2,
                "ffn_dim": 56,
                "attention_heads": 4,
                "max_position_embeddings": 64,
            },
            "latent_query_num": 3,
        },
        layers("vision", 2, 48) | TWO,
        pictures(3),
        text=False,
        extra=lambda ids: {"image_embeds_position_mask": (ids == IMAGE).long()},
    ),
    "florence-2": Family(
        "florence2",
        {
            "vision_config": {
                "depths": [1, 1],
                "patch_size": [3, 3],
                "patch_stride": [2, 2],
                "patch_padding": [1, 1],
                "patch_prenorm": [False, True],
                "embed_dim": [16, 32],
                "num_heads": [2, 4],
                "num_groups": [2, 4],
                "window_size": 2,
                "mlp_ratio": 1.5,
                "projection_dim": 32,
                "max_position_embeddings": 8,
                "max_temporal_embeddings": 8,
            },
            "text_config": {
                "model_type": "bart",
                "d_model": 32,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_ffn_dim": 56,
                "decoder_ffn_dim": 56,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": 64,
                "pad_token_id": 0,
            },
            "image_token_id": IMAGE,
        },
        {"vision.0": 24, "vision.1": 24, "vision.2": 48, "vision.3": 48}
        | layers("language", 4, 56),
        pictures(5),
        decoder=True,
    ),
    "qwen2-audio": Family(
        "qwen2_audio",
        {
            "audio_config": AUDIO_ENCODER,
            "text_config": {"model_type": "qwen2", **TEXT},
            "audio_token_index": AUDIO,
        },
        layers("audio", 2, 40) | TWO,
        sounds(4, (2, 8, 16), feature_attention_mask=[[1] * 16] * 2),
    ),
    "voxtral": Family(
        "voxtral",
        {
            "audio_config": {**AUDIO_ENCODER, "intermediate_size": 64, "encoder_ffn_dim": 64},
            "text_config": LLAMA,
            "audio_token_id": AUDIO,
        },
        layers("audio", 2, 64) | {"connector.0": 32} | TWO,
        sounds(4, (2, 8, 16)),
    ),
    "granite-speech": Family(
        "granite_speech",
        {
            "encoder_config": {
                "input_dim": 8,
                "num_layers": 2,
                "hidden_dim": 32,
                "feedforward_mult": 2,
                "num_heads": 4,
                "dim_head": 8,
                "output_dim": 6,
                "context_size": 4,
                "max_pos_emb": 8,
                "conv_kernel_size": 3,
            },
            "projector_config": {"model_type": "blip_2_qformer", **QFORMER},
            "text_config": {"model_type": "granite", **TEXT},
            "audio_token_index": AUDIO,
            "has_lora_adapter": False,
            "downsample_rate": 2,
            "window_size": 4,
        },
        layers("audio", 4, 64) | layers("connector", 2, 44) | TWO,
        sounds(4, (2, 8, 8), input_features_mask=[[True] * 4] * 2),
    ),
    "phi4-multimodal": Family(
        "phi4_multimodal",
        {
            **TEXT,
            "vision_config": {
                **VIT,
                "num_hidden_layers": 3,
                "crop_size": 8,
                "image_token_id": IMAGE,
            },
            "audio_config": {
                "hidden_size": 32,
                "intermediate_size": 40,
                "num_blocks": 2,
                "num_attention_heads": 4,
                "ext_pw_out_channel": 32,
                "depthwise_separable_out_channel": 32,
                "nemo_conv_channels": 32,
                "input_size": 16,
                "audio_token_id": AUDIO,
            },
        },
        layers("vision", 3, 48) | layers("audio", 4, 40) | layers("connector", 3, 32) | TWO,
        picture_and_sound,
        dead=frozenset({"vision.2"}),
        silent=frozenset({"connector.1"}),  # for recordings without a picture
    ),
    "llama": Family("llama", TEXT, TWO),
    "qwen3": Family("qwen3", TEXT, TWO),
    "mistral": Family("mistral", TEXT, TWO),
    "gpt2": Family(
        "gpt2",
        {"n_embd": 32, "n_inner": 56, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY},
        TWO,
    ),
    "opt": Family("opt", OPT, TWO),
    "t5": Family("t5", T5, layers("language", 4, 56), decoder=True),
    "mixtral": Family(
        "mixtral",
        {**TEXT, "intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2},
        experts(2, 4, 24),
    ),
    "qwen3-moe": Family("qwen3_moe", {**TEXT, **EXPERTS}, experts(2, 4, 24)),
    "qwen2-moe": Family(
        "qwen2_moe",
        {**TEXT, **EXPERTS, "shared_expert_intermediate_size": 40},
        experts(2, 4, 24) | {"language.0.shared": 40, "language.1.shared": 40},
    ),
    "gpt-oss": Family(
        "gpt_oss",
        {
            **TEXT,
            "intermediate_size": 24,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        experts(2, 4, 24),
    ),
    "llama4": Family(
        "llama4_text",
        {
            **TEXT,
            "intermediate_size": 24,
            "intermediate_size_mlp": 56,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "interleave_moe_layer_step": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        {"language.0": 56, "language.1.shared": 24}
        | {f"language.1.expert.{index}": 24 for index in range(4)},
    ),
}
if hasattr(modeling_aria, "AriaGroupedExpertsGemm"):
    del FAMILIES["aria"]  # transformers 5.0 keeps its experts in a layout that is refused
