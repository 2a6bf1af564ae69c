"""Code that comes with a checkpoint: a language model that reads recordings, and its processor."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

STEPS, CHANNELS = 4, 16
WORDS = ["<pad>", "<end>", "<eeg>", *"abcdefgh", *(f"{n}" for n in range(10))]


class EegConfig(LlamaConfig):
    model_type = "eeg_reader"


class EegModel(PreTrainedModel, GenerationMixin):
    config_class = EegConfig

    def __init__(self, config):
        super().__init__(config)
        self.language = LlamaForCausalLM(config)
        self.eeg = nn.Sequential(nn.Linear(CHANNELS, 48), nn.GELU(), nn.Linear(48, 32))
        self.post_init()

    def get_decoder(self):
        return self.language.model

    def forward(self, input_ids, signal=None, **more):
        embeds = self.language.get_input_embeddings()(input_ids)
        if signal is not None:
            place = (input_ids == self.config.eeg_token_id)[..., None]
            embeds = embeds.masked_scatter(place, self.eeg(signal).to(embeds.dtype))
        return self.language(inputs_embeds=embeds, **more)


class EegProcessor:
    chat_template = None
    image_token = "<eeg>"

    def __init__(self):
        words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="<end>"
        )

    @classmethod
    def from_pretrained(cls, path, **options):
        return cls()

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoProcessor"):
        pass

    def save_pretrained(self, folder):
        self.tokenizer.save_pretrained(folder)

    def __call__(self, text, signal, **options):
        longer = [each.replace("<eeg>", " ".join(["<eeg>"] * STEPS)) for each in text]
        arrays = torch.stack([torch.from_numpy(array) for (array,) in signal])
        return {**self.tokenizer(longer, **options), "signal": arrays}
