import gc

import numpy as np
import pytest
import torch
from helpers import radiograph, tiny_checkpoint

from hf_cxr.data.collator import CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation import bootstrap, prediction
from hf_cxr.inference import generation
from hf_cxr.inference.pipeline import decode, generate


def test_generating_from_permuted_images_is_permuting_the_texts():
    checkpoint = tiny_checkpoint()
    checkpoint.model.eval()
    pixels = torch.stack([torch.from_numpy(radiograph(seed, 32, 64)).float() / 128 - 1 for seed in range(8)])
    pixels = pixels[:, None].expand(-1, 3, -1, -1)
    order = next(bootstrap.derangements(8, seed=0))
    straight, permuted = (generate(checkpoint.model, batch)["sequences"] for batch in (pixels, pixels[order.copy()]))
    assert torch.equal(straight[order.copy()], permuted)


def test_every_study_of_a_split_is_predicted_once_in_order_whatever_the_batch(phantom_folder):
    checkpoint, split = tiny_checkpoint(), load_prepared(str(phantom_folder))["test"]
    runs = [prediction.predict_split(checkpoint, split, batch_size=size) for size in (1, 7)]
    for rows in runs:
        assert [row["uid"] for row in rows] == list(split["uid"])
    assert [row["prediction"] for row in runs[0]] == [row["prediction"] for row in runs[1]]
    one, seven = ([row["sequence_probability"] for row in rows] for rows in runs)
    assert one == pytest.approx(seven, rel=1e-4)


def test_the_sequence_probability_is_that_of_the_whole_text(phantom_folder):
    checkpoint, split = tiny_checkpoint(), load_prepared(str(phantom_folder))["test"]
    model = checkpoint.model.eval()
    canvas = CanvasDataset(pack_dataset(split, 32), 32)[0]
    pixels = CanvasCollator(checkpoint.image_processor)([canvas])["pixel_values"]
    for beams in (1, 3):
        output = generate(model, pixels, num_beams=beams)
        sequence = output["sequences"][0].clone()
        logits = model(pixel_values=pixels, decoder_input_ids=sequence[:, :-1]).logits.log_softmax(-1)
        steps = logits.gather(-1, sequence[:, 1:, None])[0, :, 0]
        steps = steps[sequence[0, 1:] != checkpoint.tokenizer.pad_token_id]
        score = decode(checkpoint.tokenizer, sequence, output["scores"][0])[0]["score"]
        assert score == pytest.approx(steps.sum().exp().item(), rel=1e-3)


def test_the_logits_of_earlier_steps_are_not_kept_while_texts_are_written(monkeypatch):
    model, rows, alive = tiny_checkpoint(max_new_tokens=40).model.eval(), 8 * 4, []
    vocabulary = model.config.decoder.vocab_size
    monkeypatch.setattr(generation, "LOGITS", rows * vocabulary)

    def count(*_):
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor and one.shape[-1:] == (vocabulary,)]
        alive.append(sum(one.numel() for one in tensors if one.ndim > 1))

    model.decoder.transformer.register_forward_hook(count)
    generate(model, torch.randn(8, 3, 32, 64, generator=torch.Generator().manual_seed(0)), num_beams=4)
    assert len(alive) > 40
    assert max(alive) <= 8 * rows * vocabulary, "of a few steps, not of all 40"


def test_an_emptied_panel_is_that_of_a_study_without_the_view():
    canvas = np.concatenate([radiograph(0, 32, 32), radiograph(1, 32, 32)], axis=1)
    assert prediction.views_of(canvas) == "both"
    assert prediction.views_of(prediction.without(canvas, "lateral")) == "frontal"
    assert prediction.views_of(prediction.without(canvas, "frontal")) == "lateral"
    assert (prediction.without(canvas, "frontal")[:, 32:] == canvas[:, 32:]).all()
    assert prediction.views_of(canvas) == "both", "the canvas itself is left as it is"
    assert prediction.views_of(np.zeros((8, 16), np.uint8)) == "none"


def test_studies_are_embedded_by_their_pixels_and_by_the_models_own_encoder(phantom_folder):
    checkpoint, split = tiny_checkpoint(), load_prepared(str(phantom_folder))["test"]
    canvases = prediction.open_canvases(checkpoint, split)
    found = [prediction.Writer(checkpoint, size).embed(canvases) for size in (3, 50)]
    for name, width in (("nearest_pixels", 16 * 32), ("nearest_encoder", checkpoint.model.encoder.config.hidden_size)):
        assert found[0][name].shape == (len(split), width)
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-4)
    pixels = prediction.Writer(checkpoint, 50)._pixels(canvases.canvas(index) for index in range(3))
    with torch.inference_mode():
        states = checkpoint.model.encoder(pixels)[0]
    both = torch.cat([states.mean(1), states[:, 0]], dim=1).numpy()  # and its class token, for the probe
    assert found[0]["encoder"][:3] == pytest.approx(both, abs=1e-4)
    assert (found[0]["encoder"][:, : both.shape[1] // 2] == found[0]["nearest_encoder"]).all()
    grey = canvases.canvas(2).reshape(16, 2, 32, 2).mean((1, 3))
    assert found[0]["nearest_pixels"][2] == pytest.approx(grey.ravel())


def test_the_mean_image_is_the_mean_of_the_canvases(phantom_folder):
    canvases = prediction.open_canvases(tiny_checkpoint(), load_prepared(str(phantom_folder))["test"])
    expected = np.mean([canvases.canvas(i).astype(float) for i in range(len(canvases))], axis=0).round()
    assert (prediction.mean_canvas(canvases) == expected).all()
