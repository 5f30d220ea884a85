"""Build or adapt encoder, decoder, tokenizer and image processor into one stock checkpoint.

What leaves this module is a plain `VisionEncoderDecoderModel` with stock companions: nothing here is needed to load
it. Training lives in `hf_cxr.training.run`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import is_torchvision_available

from hf_cxr.inference.checks import UnusableCheckpoint, check_parts, no_tokens, panels_of, positions_of
from hf_cxr.inference.processor import ImpressionProcessor
from hf_cxr.inference.remote_code import share_weights
from hf_cxr.inference.sections import CONTEXT_TOKENS, LAYOUT, PLAIN, Layout, checked_layout, layout_of
from hf_cxr.models import encoders
from hf_cxr.models.encoders import ENCODER_SIZES, PANELS, UnsupportedPart
from hf_cxr.models.loading import NEVER_READ, OUR_FILES, check_files, load, load_config, load_model, loading
from hf_cxr.utils.places import check_checkpoint

# From-scratch sizes. `base` is GPT-2 small.
DECODER_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"n_embd": 128, "n_layer": 2, "n_head": 4},
    "mini": {"n_embd": 192, "n_layer": 3, "n_head": 6},
    "small": {"n_embd": 384, "n_layer": 6, "n_head": 6},
    "base": {"n_embd": 768, "n_layer": 12, "n_head": 12},
}
CROSS_ATTENTION = ("crossattention", "cross_attn", "encoder_attn", "enc_to_dec_proj")  # new to a pretrained pair
GPT2_DROPOUT = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
DROPOUT = (*GPT2_DROPOUT, "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
MAX_NEW_TOKENS = 128  # the longest of the 3,921 Indiana impressions has 130 words, the 95th percentile 36


@dataclass
class Checkpoint:
    """The three parts that are saved together and load with plain transformers."""

    model: VisionEncoderDecoderModel
    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write weights (safetensors), configs, tokenizer, image processor and remote code files to `folder`."""
        self.model.save_pretrained(folder)
        layout = layout_of(self.model.config).saved()
        ImpressionProcessor(self.image_processor, self.tokenizer, layout).save_pretrained(folder)
        share_weights(folder)


def load_checkpoint(
    folder: str | os.PathLike, revision: str | None = None, dtype: str | torch.dtype | None = None
) -> Checkpoint:
    """Load a checkpoint from a folder or a Hub id, its weights as `dtype` ("float32", "bfloat16", …) or, by default,
    as its config says.

    Raises `FileNotFoundError` where there is no such folder or repository, or the folder holds no checkpoint, and
    `ValueError` for one of another kind or with damaged weights.
    """
    check_checkpoint(folder)
    try:
        config = load_config(folder, revision)
    except (OSError, ValueError) as error:
        if Path(folder).exists():
            raise
        raise FileNotFoundError(f"{folder}: no such folder, and not to be had from the Hub ({error})") from error
    if config.model_type != "vision-encoder-decoder":
        raise ValueError(f"{folder}: a checkpoint of type {config.model_type!r}, not 'vision-encoder-decoder'")
    if Path(folder).is_dir():
        check_files(Path(folder))
    with loading(folder):
        image_processor = load(AutoImageProcessor, folder, revision=revision, **image_backend())
        if panels_of(image_processor) == PANELS and Path(folder).is_dir():  # before time goes into weights
            check_files(Path(folder), OUR_FILES)
        if not hasattr(config.encoder, "hidden_size"):
            raise UnusableCheckpoint(no_tokens(config.encoder.model_type))
        tokenizer = load(AutoTokenizer, folder, config=config, revision=revision)
        whole: dict[str, Any] = {"use_safetensors": True, "dtype": dtype or "auto", "output_loading_info": True}
        model, info = load_model(VisionEncoderDecoderModel, folder, config, revision=revision, **whole)
        differ = (*info["missing_keys"], *info["unexpected_keys"])  # which would be random numbers
        if wrong := sorted(name for name in differ if not NEVER_READ.search(name)):
            raise UnusableCheckpoint(f"its weights are not those of its config ({len(wrong)} differ, as {wrong[0]})")
        check_parts(model, tokenizer, image_processor)
        checked_layout(model.config, tokenizer)
    return Checkpoint(ready_for_trainer(model), tokenizer, image_processor)


def weights_digest(folder: str | os.PathLike) -> str | None:
    """SHA-256 of the weight files in a folder; `None` where it holds none."""
    files = sorted(Path(folder).glob("model*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest() if files else None


def ready_for_trainer(model: VisionEncoderDecoderModel) -> VisionEncoderDecoderModel:
    """Cure two traps of the stock model under `Trainer`.

    Its `forward` takes `**kwargs`, so `Trainer` would believe that it divides its loss by `num_items_in_batch`, and
    gradients would come out multiplied by the accumulation steps and the number of processes. And the decoder attends
    to the encoder's tokens alone: its pooler and mask token would be unused parameters to DDP.
    """
    model.accepts_loss_kwargs = False
    encoders.freeze_unused(model.encoder)
    return model


def image_backend() -> dict[str, str]:
    """Choose the Pillow backend explicitly where torchvision is missing, instead of transformers' warned fall-back."""
    return {} if is_torchvision_available() else {"backend": "pil"}


def build(
    encoder: str,
    decoder: str,
    panel_size: int,
    texts: Iterable[str] = (),
    vocab_size: int = 4000,
    max_new_tokens: int = MAX_NEW_TOKENS,
    tokenizer: PreTrainedTokenizerBase | None = None,
    decoder_dropout: float | None = None,
    layout: Layout = PLAIN,
    panels: int = PANELS,
) -> Checkpoint:
    """Build a checkpoint from two parts.

    Args:
        encoder: a from-scratch size (`tiny`, `mini`, `small`, `base`), a Hub id or a local folder.
        decoder: the same. A from-scratch decoder gets a byte-level BPE tokenizer trained on `texts`; a pretrained one
            keeps its own.
        panel_size: side of one square panel in pixels; the canvas is `panel_size` × `panels * panel_size`.
        texts: the training texts: the sections that are learned, and the context where it is given.
        vocab_size: the most tokens that a trained tokenizer may have.
        max_new_tokens: the longest text that `generate` writes by default.
        tokenizer: takes the place of one trained on `texts`.
        decoder_dropout: `None`: a pretrained decoder keeps its own, a from-scratch one has none.
        layout: the sections that are written and the context that is given; its tokens are added to the tokenizer.
        panels: 2 for both views, 1 for a single square image.

    Raises `UnsupportedPart` for an encoder whose patch does not divide the panel or that needs a square image, and for
    a decoder without cross-attention or with too few positions.
    """
    canvas = (panel_size, panels * panel_size)
    make_encoder = encoders.scratch_encoder if encoder in ENCODER_SIZES else encoders.adapt_encoder
    encoder_model = make_encoder(encoder, canvas)
    if decoder in DECODER_SIZES:
        tokenizer = tokenizer or train_tokenizer(texts, vocab_size)
        tokenizer.add_tokens(layout.tokens, special_tokens=True)
        longest = prompt_length(layout) + max_new_tokens
        decoder_model = _scratch_decoder(decoder, tokenizer, longest, decoder_dropout or 0.0)
    else:
        tokenizer = _own_tokenizer(decoder)
        decoder_model = adapt_decoder(decoder, decoder_dropout)
    fit_decoder(decoder_model, tokenizer, layout, max_new_tokens, f"decoder {decoder}")
    encoder_model.config.name_or_path = decoder_model.config.name_or_path = ""  # no path of this machine is saved
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder_model.config, decoder_model.config)
    model = VisionEncoderDecoderModel(config=config, encoder=encoder_model, decoder=decoder_model)
    set_special_tokens(model, tokenizer, max_new_tokens)
    set_layout(model, layout)
    return Checkpoint(ready_for_trainer(model), tokenizer, encoders.image_processor(encoder, canvas))


# --- layout ------------------------------------------------------------------------------------------------------


def prompt_length(layout: Layout) -> int:
    """The most tokens before a text, behind the start token."""
    return len(layout.context) * (CONTEXT_TOKENS + 1) + 1 if layout.context else 0


def fit_decoder(
    decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layout: Layout, max_new_tokens: int, where: str
) -> None:
    """Add the tokens of a layout to tokenizer and embeddings. Raises `UnsupportedPart` for too few positions."""
    prompt, positions = prompt_length(layout), positions_of(decoder)
    if prompt + max_new_tokens >= positions:
        before = f" behind a context of {prompt}" if prompt else ""
        raise UnsupportedPart(
            f"{where}: texts of {max_new_tokens} tokens{before} do not fit its {positions} positions"
        )
    tokenizer.add_tokens(layout.tokens, special_tokens=True)
    if len(tokenizer) > decoder.get_input_embeddings().num_embeddings:
        decoder.resize_token_embeddings(len(tokenizer))


def set_layout(model: VisionEncoderDecoderModel, layout: Layout) -> None:
    """Write a layout into the model's config, which names none for the default one."""
    vars(model.config).pop(LAYOUT, None)
    if saved := layout.saved():
        setattr(model.config, LAYOUT, saved)


# --- decoder and tokenizer ---------------------------------------------------------------------------------------


def _scratch_decoder(size: str, tokenizer: PreTrainedTokenizerBase, longest: int, dropout: float) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        n_positions=max(256, longest + 1),
        add_cross_attention=True,
        is_decoder=True,
        **dict.fromkeys(GPT2_DROPOUT, dropout),
        **DECODER_SIZES[size],
    )
    return AutoModelForCausalLM.from_config(config)


def adapt_decoder(name: str, dropout: float | None = None) -> PreTrainedModel:
    """Load a pretrained decoder with cross-attention added. Raises `UnsupportedPart` where its type has none."""
    config = load_config(name)
    if config.model_type == "vision-encoder-decoder":
        raise UnsupportedPart(f"decoder {name}: {encoders.WHOLE_CHECKPOINT}")
    config.is_decoder, config.add_cross_attention = True, True
    if dropout is not None:
        config.update({key: dropout for key in DROPOUT if hasattr(config, key)})
    try:
        with torch.device("meta"):  # no weights are needed to see what it has
            keys = [key for key, _ in AutoModelForCausalLM.from_config(config).named_parameters()]
    except ValueError:  # no causal language model at all
        keys = []
    if not any(mark in key for key in keys for mark in CROSS_ATTENTION):
        raise UnsupportedPart(
            f"decoder {name}: a {config.model_type!r} model has no cross-attention, so it cannot attend to the "
            "images; use GPT-2, DistilGPT-2 or a BERT-style decoder"
        )
    return load_model(AutoModelForCausalLM, name, config, dtype=torch.float32)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the training impressions. Any text can be written in it: no unknown token."""
    texts = list(texts)
    if not texts:
        raise ValueError("a from-scratch decoder needs training texts to train its tokenizer on")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def _own_tokenizer(decoder: str) -> PreTrainedTokenizerBase:
    """The decoder's tokenizer, with the begin, end and (own) padding token that training and generation need."""
    tokenizer = load(AutoTokenizer, decoder)
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.cls_token or tokenizer.eos_token
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.bos_token is None or tokenizer.eos_token is None:
        raise UnsupportedPart(f"decoder {decoder}: its tokenizer has no begin or end token")
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return tokenizer


def set_special_tokens(
    model: VisionEncoderDecoderModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int = MAX_NEW_TOKENS
) -> None:
    """Set pad, begin, end and decoder start everywhere they are read: the config, its decoder's, and generation's."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    for config in (model.config, model.config.decoder):
        config.update(ids)
    model.config.decoder_start_token_id = model.config.decoder.decoder_start_token_id = tokenizer.bos_token_id
    model.config.vocab_size = model.config.decoder.vocab_size
    model.generation_config = GenerationConfig(
        **ids,
        decoder_start_token_id=tokenizer.bos_token_id,
        max_new_tokens=max_new_tokens,
        num_beams=1,
        do_sample=False,
    )
    model.decoder.generation_config = GenerationConfig(**ids)
