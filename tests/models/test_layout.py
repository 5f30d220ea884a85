"""What the tokens of sections and context change in a checkpoint that is built; their order is that of
`tests/inference/test_section_order.py`."""

from __future__ import annotations

import pytest
import torch
from helpers import TEXTS, gpt2_folder, tiny_checkpoint
from transformers import VisionEncoderDecoderModel

from hf_cxr.inference.sections import CONTEXT, Layout, layout_of, prompt_ids
from hf_cxr.models.modeling import UnsupportedPart, build, load_checkpoint

REPORT = Layout(("findings", "impression"), ("indication",))


def of_layout(decoder: str, layout: Layout, max_new_tokens: int = 12):
    torch.manual_seed(0)
    return build("tiny", decoder, 32, texts=TEXTS, vocab_size=350, max_new_tokens=max_new_tokens, layout=layout)


@pytest.mark.parametrize("decoder", ["tiny", "gpt2"])
def test_the_tokens_of_a_layout_are_added_survive_saving_and_are_left_out_of_texts(tmp_path, decoder):
    decoder = gpt2_folder(tmp_path / "gpt2") if decoder == "gpt2" else decoder
    of_layout(decoder, REPORT).save_pretrained(tmp_path / "saved")
    plain, saved = of_layout(decoder, Layout()), load_checkpoint(tmp_path / "saved")
    assert REPORT.tokens == ["<indication>", "<findings>", "<impression>"]
    vocabulary = saved.tokenizer.get_vocab()
    assert {token: vocabulary.pop(token) for token in REPORT.tokens} == {
        token: len(plain.tokenizer) + place for place, token in enumerate(REPORT.tokens)
    }
    assert vocabulary == plain.tokenizer.get_vocab()
    assert saved.model.decoder.get_input_embeddings().num_embeddings == len(saved.tokenizer)
    assert saved.model.config.decoder.vocab_size == saved.model.config.vocab_size == len(saved.tokenizer)
    assert layout_of(saved.model.config) == REPORT
    ids = [*prompt_ids(saved.tokenizer, REPORT, {"indication": "Cough"}), *saved.tokenizer("Small").input_ids]
    assert saved.tokenizer.decode(ids, skip_special_tokens=True) == "CoughSmall"
    assert layout_of(VisionEncoderDecoderModel.from_pretrained(tmp_path / "saved").config) == REPORT


def test_an_impression_without_context_changes_nothing():
    one, other = tiny_checkpoint(), of_layout("tiny", Layout())
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    assert one.model.config.to_dict() == other.model.config.to_dict()
    assert "cxr_layout" not in one.model.config.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_findings_without_context_need_no_token_but_the_checkpoint_says_that_it_writes_them():
    checkpoint = of_layout("tiny", Layout(("findings",)))
    assert checkpoint.tokenizer.get_vocab() == tiny_checkpoint().tokenizer.get_vocab()
    assert layout_of(checkpoint.model.config).target == "findings"


def test_a_from_scratch_decoder_has_room_for_all_context_and_a_pretrained_one_says_what_is_missing(tmp_path):
    whole = Layout(("impression",), CONTEXT)
    longest = 3 * 65 + 1 + 128
    assert of_layout("tiny", whole, 128).model.config.decoder.n_positions == longest + 1
    assert of_layout("tiny", Layout(), 128).model.config.decoder.n_positions == 256
    assert of_layout(gpt2_folder(tmp_path / "fits", n_positions=longest + 1), whole, 128)
    with pytest.raises(
        UnsupportedPart, match=r"texts of 128 tokens behind a context of 196 do not fit its 324 positions"
    ):
        of_layout(gpt2_folder(tmp_path / "short", n_positions=longest), whole, 128)
