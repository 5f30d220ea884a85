"""Checkpoints of others: none of their code is run, and whatever is wrong with their files is one line."""

import functools
import io
import json
import sys
import time
from types import SimpleNamespace

import pytest
import transformers
from helpers import copy_folder, gpt2_folder, radiograph, tiny_checkpoint, vit_folder
from PIL import Image
from transformers import VisionEncoderDecoderModel, ViTImageProcessorPil

import hf_cxr
from hf_cxr.cli.parser import main
from hf_cxr.inference.checks import CALIBRATION, MOST_TEXTS, UnusableCheckpoint, curve_of
from hf_cxr.models.modeling import load_checkpoint

CONFIG, GENERATION, IMAGES = "config.json", "generation_config.json", "preprocessor_config.json"
TOKENS, INDEX = "tokenizer_config.json", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    tiny_checkpoint().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "f.png"
    Image.fromarray(radiograph(1)).save(path)
    return str(path)


def edited(folder, name, place, value):
    """`name`'s JSON with `value` at `place`, names parted by points."""
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    *outer, last = place.split(".")
    functools.reduce(dict.__getitem__, outer, content)[last] = value
    return json.dumps(content)


def refusal(words, capsys):
    """The one line of a command that fails."""
    capsys.readouterr()
    started = time.process_time()
    assert main(list(map(str, words))) == 2
    captured = capsys.readouterr()
    assert words[0] == "train" or captured.out == ""
    *bars, line = captured.err.splitlines()  # those of a dataset that is read before the checkpoint
    assert words[0] == "evaluate" or not bars, captured.err
    assert line.startswith(f"hf-cxr {words[0]}: ")
    assert time.process_time() - started < 10
    return line


NO_OBJECTS = [None, b"", b"[]", b"null", b"3", b'"x"', b'{"a":', b"\xff\xfe{}", b'{"a": "\xe9"}', b"[" * 100_000]


@pytest.mark.parametrize("name", [CONFIG, GENERATION, IMAGES, TOKENS, "tokenizer.json"])
def test_a_file_that_is_missing_or_holds_no_object_is_one_line_that_names_the_checkpoint(
    name, whole, image, tmp_path, capsys
):
    folder = copy_folder(whole, tmp_path / "run")
    for content in NO_OBJECTS:
        (folder / name).unlink(missing_ok=True) if content is None else (folder / name).write_bytes(content)
        line = refusal(["predict", folder, "--frontal", image], capsys)
        assert line.startswith(f"hf-cxr predict: {folder}"), line
    (folder / name).write_bytes(b"{}")
    refusal(["predict", folder, "--frontal", image], capsys)


CURVES = ["x", [], {}, {"x": [0, 1]}, {"x": [0, 1], "y": [0], "n": 9}, {"x": ["a"], "y": ["b"], "n": 9}]
CURVES += [{"x": [], "y": [], "n": 9}, {"x": [[0]], "y": [[1]], "n": 9}, {"x": [1, 0], "y": [0, 1], "n": 9}]
CURVES += [{"x": [0, 1], "y": [0, 1e300], "n": 9}, {"x": [0, float("nan")], "y": [0, 1], "n": 9}]
WRONG = [
    (CONFIG, CALIBRATION, 3),
    *((CONFIG, f"decoder.{name}", value) for name in ("n_layer", "n_embd", "vocab_size") for value in ("x", 10**9)),
    *((CONFIG, f"encoder.{name}", 10**9) for name in ("num_hidden_layers", "patch_size", "hidden_size", "num_labels")),
    *((CONFIG, "encoder.image_size", size) for size in (100_000, [100_000, 200_000], [64, 128])),
    *((CONFIG, f"decoder.{name}", 6_000_000) for name in ("vocab_size", "n_positions")),
    *((CONFIG, name, value) for name in ("encoder", "decoder", "model_type") for value in (None, [], "x")),
    *((GENERATION, name, "x") for name in ("pad_token_id", "eos_token_id", "do_sample", "repetition_penalty")),
    *((GENERATION, name, 10**9) for name in ("max_new_tokens", "num_beams", "decoder_start_token_id")),
    *((GENERATION, name, None) for name in ("max_new_tokens", "eos_token_id", "pad_token_id")),
    (GENERATION, "penalty_alpha", 0.5),
    *(
        (IMAGES, "size", size)
        for size in (None, [], 10**9, {"shortest_edge": 32}, {"height": 10**5, "width": 2 * 10**5})
    ),
    *((IMAGES, name, "x") for name in ("rescale_factor", "image_mean", "image_std")),
    (IMAGES, "image_std", [0, 0, 0]),
    *((TOKENS, "pad_token", value) for value in (None, 3, [])),
]


def test_a_value_that_cannot_be_is_one_line_without_a_hang_or_gigabytes(whole, image, tmp_path, capsys):
    import resource

    folder, before = copy_folder(whole, tmp_path / "run"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, place, value in WRONG:
        kept = (folder / name).read_bytes()
        (folder / name).write_text(edited(folder, name, place, value), encoding="utf-8")
        line = refusal(["predict", folder, "--frontal", image], capsys)
        assert len(line) < 500, (place, value)
        (folder / name).write_bytes(kept)
    assert main(["predict", str(folder), "--frontal", image]) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000, "kilobytes"


@pytest.mark.parametrize("curve", CURVES)
def test_a_calibration_that_is_no_curve_is_refused(curve):
    with pytest.raises(UnusableCheckpoint, match="no curve"):
        curve_of(SimpleNamespace(**{CALIBRATION: curve}))


def test_evaluate_and_the_python_face_refuse_what_predict_refuses(whole, phantom_folder, image, tmp_path, capsys):
    for name, place, value in ((CONFIG, CALIBRATION, 3), (GENERATION, "num_beams", 10**9), (IMAGES, "size", 10**9)):
        folder = copy_folder(whole, tmp_path / place)
        (folder / name).write_text(edited(folder, name, place, value), encoding="utf-8")
        told = refusal(["evaluate", folder, phantom_folder], capsys)
        with pytest.raises(UnusableCheckpoint) as error:
            hf_cxr.predict(folder, image)
        assert told == f"hf-cxr evaluate: {error.value}"
        with pytest.raises(UnusableCheckpoint):
            transformers.pipeline("cxr-impression", model=str(folder))


def test_without_its_generation_config_a_checkpoint_is_refused_and_texts_do_not_stop_at_20_tokens(whole, tmp_path):
    folder = copy_folder(whole, tmp_path / "run")
    (folder / GENERATION).unlink()
    with pytest.raises(FileNotFoundError, match=r"generation_config\.json is missing"):
        load_checkpoint(folder)
    with pytest.raises(ValueError, match=r"generation_config\.json is missing"):
        transformers.pipeline("cxr-impression", model=str(folder))


def test_an_index_reads_no_weights_of_another_folder(whole, tmp_path):
    folder = copy_folder(whole, tmp_path / "run")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    names = VisionEncoderDecoderModel.from_pretrained(whole).state_dict()
    for place in ("../model.safetensors", str(tmp_path / "model.safetensors"), 3):
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, place)}
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
        with pytest.raises(ValueError, match="does not name files of this folder"):
            load_checkpoint(folder)


def test_an_index_that_names_no_file_is_refused(whole, tmp_path):
    folder = copy_folder(whole, tmp_path / "run")
    for place in ("", ".", "..", "model-00001-of-00002.safetensors"):
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": place}}), encoding="utf-8")
        with pytest.raises(ValueError, match="does not name files of this folder"):
            load_checkpoint(folder)


def test_weights_that_are_a_pickle_are_refused(whole, tmp_path):
    folder = copy_folder(whole, tmp_path / "run")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"are a pickle \(pytorch_model\.bin\), which could run code; save"):
        load_checkpoint(folder)


def test_options_out_of_bounds_are_one_line(whole, image, phantom_folder, capsys):
    pipe = transformers.pipeline("cxr-impression", model=str(whole))
    wrong = [{"num_beams": 10**9}, {"num_return_sequences": 10**9}, {"num_beams": "x"}, {"abstain_below": "x"}]
    wrong += [{"abstain_below": float("nan")}, {"generate_kwargs": 3}, {"temperature": 0}, {"temperature": "x"}]
    wrong += [{"top_p": 2}, {"top_k": -1}, {"top_k": 1.5}, {"do_sample": "x"}, {"do_sample": True, "top_p": []}]
    wrong += [{"return_attention": "x"}, {"on_unlikely": 3}, {"batch_size": 0}, {"num_workers": 10**9}]
    wrong += [
        {"num_beams": True},
        {"top_p": True},
        {"batch_size": True},
        {"batch_size": "x"},
        {"num_return_sequences": 2},
    ]
    for options in wrong:
        with pytest.raises(ValueError, match=f"{[*options][-1]}|settings") as error:
            list(pipe([image, image], **options))
        assert "\n" not in str(error.value)
    for words in (["predict", whole, "--frontal", image], ["evaluate", whole, phantom_folder]):
        line = refusal([*words, "--num-beams", 10**9], capsys)
        assert f"num_beams is at most {MOST_TEXTS}, not 1000000000" in line


# --- neither one square image nor two ------------------------------------------------------------------------------


def test_a_checkpoint_of_images_of_another_shape_is_refused_everywhere_in_the_same_words(
    whole, image, phantom_folder, tmp_path, capsys
):
    folder = copy_folder(whole, tmp_path / "oblong")
    ViTImageProcessorPil(size={"height": 32, "width": 48}).save_pretrained(folder)
    told = f"{folder}: not a checkpoint of one or two views: its images are 32 × 48 pixels (height × width), neither "
    told += "square nor twice as wide as high"
    assert refusal(["predict", folder, "--frontal", image], capsys) == f"hf-cxr predict: {told}"
    assert refusal(["evaluate", folder, phantom_folder], capsys) == f"hf-cxr evaluate: {told}"
    for use in (hf_cxr.predict, lambda model, _: transformers.pipeline("cxr-impression", model=str(model))):
        with pytest.raises(UnusableCheckpoint) as error:
            use(folder, image)
        assert str(error.value) == told


# --- code ----------------------------------------------------------------------------------------------------------


def hostile(folder, name, place, auto_map, **others):
    """A checkpoint that needs code of its own, which would write a file."""
    code = (
        f"open({str(folder / 'ran')!r}, 'w')\nfrom transformers import *\nclass X(PretrainedConfig): model_type='x'\n"
    )
    for file in ("evil.py", "processor.py", "pipeline.py"):
        (folder / file).write_text(code, encoding="utf-8")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code, encoding="utf-8")
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    part = functools.reduce(dict.__getitem__, filter(None, place.split(".")), content)
    part |= {"auto_map": auto_map, **others}
    part = {key: value for key, value in part.items() if value is not ...}
    (folder / name).write_text(json.dumps(part if not place else content), encoding="utf-8")


HOSTILE = {
    "config": (CONFIG, "", {"AutoConfig": "evil.X"}, {"model_type": "x"}),
    "encoder": (CONFIG, "encoder", {"AutoModel": "evil.X"}, {"model_type": "trocr"}),
    "decoder": (CONFIG, "decoder", {"AutoModelForCausalLM": "evil.X"}, {"model_type": "vit"}),
    "tokenizer": (TOKENS, "", {"AutoTokenizer": ["evil.X", "evil.X"]}, {"tokenizer_class": ...}),
    "images": (IMAGES, "", {"AutoImageProcessor": "evil.X"}, {"image_processor_type": ...}),
}


@pytest.mark.parametrize("part", HOSTILE)
def test_no_command_runs_code_of_a_folder_whatever_is_piped_to_it(
    part, whole, image, phantom_folder, tmp_path, capsys, monkeypatch
):
    folder = copy_folder(whole, tmp_path / "run")
    name, place, auto_map, others = HOSTILE[part]
    hostile(folder, name, place, auto_map, **others)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    train = ["train", "demo", "--dataset", phantom_folder, "--output_dir", tmp_path / "out"]
    commands = [["predict", folder, "--frontal", image], ["evaluate", folder, phantom_folder]]
    needed = part in ("config", "tokenizer", "images")
    if needed:
        commands += [[*train, "--encoder", folder], [*train, "--decoder", folder]]
    for words in commands:
        line = refusal(words, capsys)
        if needed and words[0] != "train":
            assert line.endswith(f"{folder}: needs code of its own (auto_map), and the kit runs none of it")
    assert not (folder / "ran").exists()
    assert sys.stdin.read() == "y\n" * 9, "nobody was asked"


def test_an_auto_map_beside_a_type_that_transformers_knows_is_not_needed(whole, image, tmp_path, capsys):
    folder = copy_folder(whole, tmp_path / "run")
    hostile(folder, CONFIG, "", {"AutoConfig": "evil.X", "AutoModel": "evil.X"})
    assert main(["predict", str(folder), "--frontal", image]) == 0
    assert not (folder / "ran").exists()


def test_a_pretrained_part_that_needs_code_is_refused(tmp_path):
    vit, gpt2 = vit_folder(tmp_path / "vit"), gpt2_folder(tmp_path / "gpt2")
    for name in (vit, gpt2):
        path = tmp_path / name.rsplit("/")[-1] / CONFIG
        content = json.loads(path.read_text(encoding="utf-8")) | {"model_type": "x", "auto_map": {"AutoConfig": "e.X"}}
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(ValueError, match="needs code of its own"):
            hf_cxr.build(vit, "tiny", 64, texts=["a"]) if name == vit else hf_cxr.build("tiny", gpt2, 64)
