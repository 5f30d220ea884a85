"""Texts behind prompts of unequal lengths are those of one by one, whatever the decoder and the search."""

import numpy as np
import pytest
import torch
from helpers import talkative, tiny_checkpoint
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertGenerationConfig,
    RobertaConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)

from hf_cxr.inference import generation
from hf_cxr.inference.generation import generate, prompt_inputs
from hf_cxr.inference.minimum_risk import RISK
from hf_cxr.models.modeling import set_special_tokens

PROMPTS = [[], [30], [31, 32, 33, 34, 35, 36, 37, 38, 39], [40, 41], [30, 42, 43]]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "is_decoder": True,
    "add_cross_attention": True,
}
DECODERS = {"bert": BertConfig, "bert_generation": BertGenerationConfig, "roberta": RobertaConfig}


def checkpoint_of(decoder: str):
    """Tiny random weights that write another text for every canvas and every prompt."""
    checkpoint = tiny_checkpoint(max_new_tokens=10)
    if decoder != "gpt2":
        pad = {"pad_token_id": checkpoint.tokenizer.pad_token_id}
        config = DECODERS[decoder](
            vocab_size=len(checkpoint.tokenizer),
            max_position_embeddings=64,
            cross_attention_hidden_size=None,
            **pad,
            **SIZES,
        )
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        whole = VisionEncoderDecoderConfig.from_encoder_decoder_configs(checkpoint.model.config.encoder, model.config)
        checkpoint.model = VisionEncoderDecoderModel(config=whole, encoder=checkpoint.model.encoder, decoder=model)
        set_special_tokens(checkpoint.model, checkpoint.tokenizer, 10)
    talkative(checkpoint)
    for name, weights in checkpoint.model.decoder.named_parameters():  # where a token stands has to matter
        if "position_embeddings" in name or "wpe" in name:
            torch.nn.init.normal_(weights, std=1.0)
    checkpoint.model.eval()
    return checkpoint


@pytest.fixture(scope="module", params=["gpt2", *DECODERS])
def checkpoint(request):
    return checkpoint_of(request.param)


def pixels(number: int = len(PROMPTS)) -> torch.Tensor:
    return torch.randn(number, 3, 32, 64, generator=torch.Generator().manual_seed(0))


def rows(output) -> list[list[list[int]]]:
    """The tokens of each text, without the padding that longer ones of its batch give it."""
    return [[[token for token in text if token != 0] for text in texts] for texts in output["sequences"].tolist()]


def one_by_one(model, prompts, **options):
    alone = [generate(model, one[None], [ids], **options) for one, ids in zip(pixels(), prompts, strict=True)]
    return [rows(output)[0] for output in alone], torch.cat([output["scores"] for output in alone])


@pytest.mark.parametrize("options", [{}, {"num_beams": 4, "num_return_sequences": 3}])
@pytest.mark.parametrize("prompts", [None, PROMPTS])
def test_texts_are_scored_by_the_keys_and_values_that_the_search_made(checkpoint, monkeypatch, prompts, options):
    """Those of cross-attention are computed once a layer, and texts and scores are as if they were made anew."""
    made, hooks, model = list[str](), [], checkpoint.model
    for name, layer in model.decoder.named_modules():
        if name.endswith(("crossattention.c_attn", "crossattention.self.key")):
            hooks.append(layer.register_forward_hook(lambda *_, name=name: made.append(name)))
    found = generate(model, pixels(), prompts, **options)
    assert sorted(made) == sorted(set(made)), "once"
    assert len(made) == 2, "layers"
    monkeypatch.setattr(generation, "_cross_attention", lambda *_: [])
    anew = generate(model, pixels(), prompts, **options)
    for hook in hooks:
        hook.remove()
    assert len(made) >= 6, "which the hooks see"
    assert torch.equal(found["sequences"], anew["sequences"])
    assert found["scores"].tolist() == [pytest.approx(row, rel=1e-5) for row in anew["scores"].tolist()]


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_beams": 4, "num_return_sequences": 3}])
def test_a_batch_of_unequal_prompts_gives_exactly_the_texts_of_one_by_one(checkpoint, options):
    texts, scores = one_by_one(checkpoint.model, PROMPTS, **options)
    assert len({str(text) for text in texts}) == len(PROMPTS), "each study has another text"
    together = generate(checkpoint.model, pixels(), PROMPTS, **options)
    assert rows(together) == texts
    torch.testing.assert_close(together["scores"], scores, atol=1e-5, rtol=1e-4)
    assert (together["sequences"][:, :, 0] == checkpoint.tokenizer.bos_token_id).all(), "no prompt, no padding"
    other = [[*ids, 50] for ids in PROMPTS]
    assert rows(generate(checkpoint.model, pixels(), other, **options)) != texts, "a prompt is read"


@pytest.mark.parametrize("options", [{}, {"num_beams": 4, "num_return_sequences": 3}])
def test_a_score_behind_a_prompt_is_the_probability_of_the_text_and_0_where_it_is_cut_short(
    checkpoint, monkeypatch, options
):
    model = checkpoint.model
    written = [set(text[3:-1]) for [text] in rows(generate(model, pixels(), PROMPTS))]
    end = next(token for tokens in written for token in tokens if sum(token in some for some in written) < 4)
    monkeypatch.setattr(model.generation_config, "eos_token_id", end)
    monkeypatch.setattr(generation, "LOGITS", 2 * 3 * 15 * 350)  # two studies at a time
    output = generate(model, pixels(), PROMPTS, **options)
    ended = [[text[-1] == end for text in texts] for texts in rows(output)]
    assert {True, False} == {whole for texts in ended for whole in texts}
    assert output["truncated"].tolist() == [[not whole for whole in texts] for texts in ended]
    for place, prompt in enumerate(PROMPTS):
        for text, score, whole in zip(
            rows(output)[place], output["scores"][place].tolist(), ended[place], strict=True
        ):
            ids = torch.tensor([text[:1] + prompt + text[1:]])
            with torch.inference_mode():
                logits = model(pixels()[place, None], decoder_input_ids=ids[:, :-1]).logits[0, len(prompt) :]
            likely = logits.log_softmax(-1).gather(-1, ids[0, len(prompt) + 1 :, None]).sum().exp().item()
            assert score == pytest.approx(likely * whole, rel=1e-3, abs=0)


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}])
def test_the_stock_class_gives_these_texts_from_prompt_inputs(checkpoint, options):
    model = checkpoint.model
    texts, _ = one_by_one(model, PROMPTS, **options)
    inputs = prompt_inputs(model, PROMPTS, len(PROMPTS))
    with torch.inference_mode():
        tokens = model.generate(pixels(), **inputs, **options)[:, inputs["decoder_input_ids"].shape[1] :].tolist()
    start = model.generation_config.decoder_start_token_id
    end = model.generation_config.eos_token_id
    cut = [row[: row.index(end) + 1] if end in row else row for row in tokens]
    assert [[[start, *[token for token in row if token != 0]]] for row in cut] == texts


def test_a_prompt_alone_is_where_the_decoder_itself_puts_it(checkpoint):
    """Without padding the stock class needs no positions: with ours it computes the same."""
    model = checkpoint.model
    inputs = prompt_inputs(model, PROMPTS[2:3], 1)
    with torch.inference_mode():
        plain = model(pixels(1), decoder_input_ids=inputs["decoder_input_ids"]).logits
        told = model(pixels(1), **inputs).logits
    torch.testing.assert_close(told, plain, atol=1e-5, rtol=1e-5)


def test_batches_of_prompts_go_wrong_without_their_positions(checkpoint, monkeypatch):
    texts, _ = one_by_one(checkpoint.model, PROMPTS)
    monkeypatch.setattr(generation, "_places", lambda model, mask: {"decoder_attention_mask": mask})
    assert rows(generate(checkpoint.model, pixels(), PROMPTS)) != texts


def test_empty_prompts_change_nothing(checkpoint):
    plain = generate(checkpoint.model, pixels())
    empty = generate(checkpoint.model, pixels(), [[]] * len(PROMPTS))
    assert plain["sequences"].equal(empty["sequences"])
    assert plain["scores"].equal(empty["scores"])


def test_a_prompt_that_leaves_no_room_is_cut_before_its_last_token():
    checkpoint = checkpoint_of("bert")  # 64 positions
    long = [*([40] * 200), 50]
    together = generate(checkpoint.model, pixels(2), [long, [40] * 52 + [50]])
    assert [len(ids) for ids in together["prompts"]] == [53, 53]
    assert together["prompts"][0][-1] == 50
    assert [len(ids) for ids in generate(checkpoint.model, pixels(1), [long], max_new_tokens=20)["prompts"]] == [43]
    with pytest.raises(ValueError, match=r"^2 prompts for 1 studies$"):
        generate(checkpoint.model, pixels(1), [[3], [4]])


def test_a_decoder_without_positions_says_in_one_line_that_it_takes_no_context():
    from transformers import TrOCRConfig, TrOCRForCausalLM

    checkpoint = tiny_checkpoint()
    config = TrOCRConfig(vocab_size=350, d_model=32, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32)
    checkpoint.model.decoder = TrOCRForCausalLM(config)
    with pytest.raises(ValueError, match=r"takes no positions, so no context; GPT-2 or a BERT-style decoder does$"):
        prompt_inputs(checkpoint.model, [[3]], 1)


# --- minimum risk ------------------------------------------------------------------------------------------------


def risk(samples: int) -> dict:
    return {"samples": samples, "thresholds": {}}


def test_minimum_risk_of_no_samples_but_the_greedy_text_gives_that_of_the_stock_class(checkpoint, monkeypatch):
    texts, scores = one_by_one(checkpoint.model, PROMPTS)
    monkeypatch.setattr(generation, "STATES", 1 << 14)  # a study or two at a time
    monkeypatch.setattr(generation, "choose", lambda texts, whole, settings: (0, np.zeros(1)))
    monkeypatch.setattr(checkpoint.model.config, RISK, risk(3), raising=False)
    output = generate(checkpoint.model, pixels(), PROMPTS, checkpoint.tokenizer)
    assert rows(output) == texts
    torch.testing.assert_close(output["scores"], scores, atol=1e-5, rtol=1e-4)
    assert rows(generate(checkpoint.model, pixels(), PROMPTS, checkpoint.tokenizer, decode="search")) == texts


def test_samples_of_a_study_are_the_same_alone_and_follow_its_probabilities(checkpoint, monkeypatch):
    model, sampled = checkpoint.model, []
    monkeypatch.setattr(
        generation, "_sampled", lambda *args, of=generation._sampled: sampled.append(of(*args)) or sampled[-1]
    )
    monkeypatch.setattr(model.config, RISK, risk(200), raising=False)
    prompts = [[30 + place, 40 - place] for place in range(len(PROMPTS))]
    for chosen in (slice(None), slice(2, 3)):
        generate(model, pixels()[chosen], prompts[chosen], checkpoint.tokenizer, max_new_tokens=2)
    together, alone = sampled
    assert torch.equal(together[2 * 201 : 3 * 201], alone)
    start = torch.tensor([[model.generation_config.decoder_start_token_id, *prompts[2]]])
    with torch.inference_mode():
        expected = model(pixels()[2:3], decoder_input_ids=start).logits[0, -1].softmax(-1)
    first = torch.bincount(alone[1:, start.shape[1]], minlength=len(expected)) / 200
    assert (first - expected).abs().max() <= 1.01 / 200
