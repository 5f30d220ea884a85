import subprocess
import sys

import numpy as np
import pytest
import transformers
from helpers import copy_folder, radiograph
from PIL import Image

import hf_cxr
from hf_cxr.pipeline import CALIBRATION

STANDALONE = """
import sys
sys.modules["hf_cxr"] = None  # as where it is not installed
import numpy as np
from transformers import pipeline
pipe = pipeline(model=sys.argv[1], trust_remote_code=True)
picture = np.random.default_rng(1).integers(0, 256, (80, 70), dtype=np.uint8)
print("TEXT:" + pipe({"frontal": picture, "lateral": None})[0]["impression"])
"""

STOCK = """
import sys
sys.modules["hf_cxr"] = None
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel
run, canvas = sys.argv[1:]
model = VisionEncoderDecoderModel.from_pretrained(run)
tokenizer, processor = AutoTokenizer.from_pretrained(run), AutoImageProcessor.from_pretrained(run)
pixels = processor(Image.open(canvas), return_tensors="pt").pixel_values
print("TEXT:" + tokenizer.decode(model.generate(pixels)[0], skip_special_tokens=True).strip())
"""


def text_of(code: str, *words: str) -> str:
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    return next(line for line in result.stdout.splitlines() if line.startswith("TEXT:"))[5:]


@pytest.fixture(scope="module")
def pipe(run_folder):
    return transformers.pipeline("cxr-impression", model=str(run_folder))


def test_the_task_is_known_after_import_without_remote_code(pipe):
    answer = pipe({"frontal": radiograph(1), "lateral": radiograph(2)})
    assert [set(row) for row in answer] == [{"impression", "score"}]
    assert 0 <= answer[0]["score"] <= 1


def test_importing_the_package_is_light():
    code = "import hf_cxr, sys; print('TEXT:' + str({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert text_of(code) == "set()"


def test_every_form_of_input_gives_the_same_text(pipe, tmp_path):
    frontal, lateral = radiograph(1), radiograph(2)
    Image.fromarray(frontal).save(tmp_path / "f.png")
    Image.fromarray(lateral).save(tmp_path / "l.png")
    forms = [
        {"frontal": frontal, "lateral": lateral},
        {"frontal": str(tmp_path / "f.png"), "lateral": tmp_path / "l.png"},
        {"frontal": (tmp_path / "f.png").read_bytes(), "lateral": Image.fromarray(lateral)},
        (frontal, lateral),
    ]
    assert len({pipe(form)[0]["impression"] for form in forms}) == 1


def test_a_batch_gives_exactly_the_texts_of_one_by_one(pipe):
    studies = [
        {"frontal": radiograph(seed), "lateral": None if seed % 3 else radiograph(seed + 50)} for seed in range(9)
    ]
    alone = [pipe(study) for study in studies]
    for size in (2, 9):
        batched = pipe(studies, batch_size=size)
        assert [rows[0]["impression"] for rows in batched] == [rows[0]["impression"] for rows in alone]
        assert np.allclose([rows[0]["score"] for rows in batched], [rows[0]["score"] for rows in alone], rtol=1e-4)


def test_several_sequences_and_the_findings_can_be_asked_for(pipe):
    rows = pipe(
        {"frontal": radiograph(1)}, num_beams=3, num_return_sequences=3, return_findings=True, max_new_tokens=6
    )
    assert len(rows) == 3
    assert all(isinstance(row["findings"], list) for row in rows)
    assert rows[0]["score"] >= rows[-1]["score"]


@pytest.mark.parametrize("study", ["f.png", {}, {"front": 1}, (None, None), (1, 2, 3), {"frontal": None}])
def test_what_is_no_study_is_a_clear_error(pipe, study):
    with pytest.raises((ValueError, TypeError)) as error:
        pipe(study)
    assert "\n" not in str(error.value)


def test_an_unknown_option_is_a_clear_error(pipe):
    with pytest.raises(TypeError, match="num_beems"):
        pipe({"frontal": radiograph(1)}, num_beems=3)


def test_a_checkpoint_answers_the_same_where_hf_cxr_is_not_installed(pipe, run_folder, tmp_path):
    ours = pipe({"frontal": radiograph(1), "lateral": None})[0]["impression"]
    assert text_of(STANDALONE, str(copy_folder(run_folder, tmp_path / "moved"))) == ours


def test_stock_classes_give_the_same_text_on_a_packed_canvas(pipe, run_folder, tmp_path):
    views = radiograph(1), radiograph(2)
    hf_cxr.pack_views(*views, size=32).save(tmp_path / "canvas.png")
    assert text_of(STOCK, str(run_folder), str(tmp_path / "canvas.png")) == pipe(views)[0]["impression"]


CURVE = {"event": "…", "n": 99, "x": [0.0, 1e-9, 1.0], "y": [0.2, 0.6, 0.8]}


@pytest.fixture
def calibrated_pipe(pipe, monkeypatch):
    monkeypatch.setattr(pipe.model.config, CALIBRATION, CURVE, raising=False)
    return pipe


def test_the_score_is_what_the_checkpoints_calibration_makes_of_the_probability(run_folder, calibrated_pipe, pipe):
    study = {"frontal": radiograph(1), "lateral": radiograph(2)}
    score = calibrated_pipe(study)[0]["score"]
    setattr(pipe.model.config, CALIBRATION, None)
    probability = pipe(study)[0]["score"]
    assert score == pytest.approx(np.interp(probability, CURVE["x"], CURVE["y"]))
    assert score != pytest.approx(probability)


def test_a_text_below_the_threshold_is_withheld(calibrated_pipe):
    study = {"frontal": radiograph(1), "lateral": radiograph(2)}
    answer = calibrated_pipe(study)[0]
    assert calibrated_pipe(study, abstain_below=answer["score"]) == [answer | {"abstained": False}]
    above = answer["score"] + 1e-6
    assert calibrated_pipe(study, abstain_below=above, return_findings=True) == [
        {"impression": None, "score": answer["score"], "findings": None, "abstained": True}
    ]
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibrated_pipe(study, abstain_below=70)
