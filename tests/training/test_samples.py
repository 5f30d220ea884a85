import json
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY_RECIPE, run_cxr, tiny_checkpoint, write_config
from PIL import Image
from transformers import TrainerControl, TrainerState

from hf_cxr.config import parse_arguments
from hf_cxr.data.collator import CanvasDataset, pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.training.run import fine_tune
from hf_cxr.training.samples import MARGIN, MOST_LINES, SIDE, TEXT_WIDTH, Sample, SampleCallback, draw, text_font, wrap

WITHHELD = "Samples are not sent to {}: they are patient data; share_samples: true sends them\n"


@pytest.fixture(scope="module")
def packed(phantom_folder):
    dataset = load_prepared(str(phantom_folder))
    return {name: pack_dataset(dataset[name], 32) for name in ("train", "validation")}


@pytest.fixture
def parsed(tmp_path, phantom_folder):
    """The arguments of a run of two steps with an evaluation after each, by what differs."""

    def parse(**values):
        recipe = TINY_RECIPE | {"dataset": str(phantom_folder), "output_dir": str(tmp_path / "run"), "log_samples": 3}
        recipe |= {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1, "report_to": "none"}
        return parse_arguments(write_config(tmp_path / "config.yaml", **recipe | values))

    return parse


@pytest.fixture
def evaluate(parsed, packed, tmp_path):
    """One evaluation's end, as the Trainer tells of it, where a model wrote `output` to every study."""
    kept = {}

    def call(step, output="No acute disease.", count=3, share=False, main=True, report_to="none", texts=None):
        truths = texts or list(packed["validation"]["impression"])
        made = count, share, report_to
        if made not in kept:
            canvases, uids = CanvasDataset(packed["validation"], 32), packed["validation"]["uid"]
            kept[made] = SampleCallback(canvases, uids, lambda: kept["pairs"], tmp_path / "samples", count, share)
        kept["pairs"] = [(truth, output) for truth in truths] if output is not None else []
        state = TrainerState(global_step=step, is_world_process_zero=main)
        kept[made].on_evaluate(parsed(report_to=report_to)[1], state, TrainerControl())

    return call


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def spread(packed) -> list[str]:
    """The first, the middle and the last study."""
    uids = list(packed["validation"]["uid"])
    return [uids[0], uids[round((len(uids) - 1) / 2)], uids[-1]]


# --- a real run --------------------------------------------------------------------------------------------------


def test_tensorboard_shows_the_same_studies_at_each_evaluation_beside_the_trainers_scalars(parsed, packed, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fine_tune(tiny_checkpoint(), packed, *parsed(report_to="tensorboard"))
    (logs,) = (tmp_path / "run" / "runs").iterdir()
    (_,) = logs.iterdir()  # one writer, the Trainer's
    events = accumulator.EventAccumulator(str(logs), size_guidance={"images": 0, "tensors": 0}).Reload()
    assert "eval/loss" in events.Tags()["scalars"]
    assert events.Tags()["images"] == [f"samples/{uid}" for uid in spread(packed)]
    rows = rows_of(tmp_path / "run" / "samples")
    for uid in spread(packed):
        images = events.Images(f"samples/{uid}")
        assert [image.step for image in images] == [1, 2]
        assert (images[0].width, images[0].height) == (2 * SIDE + TEXT_WIDTH + 3 * MARGIN, SIDE + 2 * MARGIN)
        texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"samples/{uid}/text_summary")]
        assert texts == [
            f"**truth** {row['impression']}\n\n**output** {row['prediction']}" for row in rows if row["uid"] == uid
        ]


def test_each_evaluation_leaves_an_image_and_a_row_per_study(parsed, packed, tmp_path):
    fine_tune(tiny_checkpoint(), packed, *parsed())
    folder = tmp_path / "run" / "samples"
    assert sorted(path.name for path in folder.iterdir()) == ["samples.jsonl", "step-000001.png", "step-000002.png"]
    rows, truth = rows_of(folder), {row["uid"]: row["impression"] for row in packed["validation"]}
    assert [(row["step"], row["uid"]) for row in rows] == [(step, uid) for step in (1, 2) for uid in spread(packed)]
    for row in rows:
        assert row["impression"] in truth[row["uid"]], "cut at max_target_length, else the study's own"
    with Image.open(folder / "step-000002.png") as image:
        assert image.height > 3 * SIDE


@pytest.mark.slow
def test_two_processes_write_what_one_would(packed, phantom_folder, tmp_path):
    for processes in (1, 2):
        config = write_config(
            tmp_path / f"{processes}.yaml",
            **TINY_RECIPE,
            dataset=str(phantom_folder),
            output_dir=str(tmp_path / f"run{processes}"),
            max_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            per_device_train_batch_size=16 // processes,
            per_device_eval_batch_size=3,  # 20 studies: the last round of batches is padded
            log_samples=3,
        )
        result = run_cxr("train", config, processes=processes)
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stderr.count("model learns to write: 0 of 1 steps") == 1, "of process 0 alone"
    one, two = (rows_of(tmp_path / f"run{processes}" / "samples") for processes in (1, 2))
    assert [row["uid"] for row in two] == spread(packed)
    assert [(row["uid"], row["impression"]) for row in two] == [(row["uid"], row["impression"]) for row in one]


# --- files -------------------------------------------------------------------------------------------------------


def test_a_resumed_run_holds_no_step_twice(evaluate, tmp_path):
    for step, output in ((10, "a"), (20, "b"), (30, "c"), (20, "d")):
        evaluate(step, output)
    assert [(row["step"], row["prediction"]) for row in rows_of(tmp_path / "samples")] == [(10, "a")] * 3 + [
        (20, "d")
    ] * 3
    evaluate(30, "e")
    assert [row["prediction"] for row in rows_of(tmp_path / "samples")] == ["a"] * 3 + ["d"] * 3 + ["e"] * 3
    assert len(list((tmp_path / "samples").iterdir())) == 4, "three images, the rows, and nothing half written"


def test_only_the_main_process_writes(evaluate, tmp_path):
    evaluate(1, main=False)
    assert not (tmp_path / "samples").exists()


def test_an_evaluation_without_texts_leaves_nothing(evaluate, tmp_path):
    evaluate(1, output=None)
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (2, 2), (1000, 20)])
def test_as_many_studies_as_asked_for_or_as_there_are(evaluate, packed, tmp_path, count, shown):
    assert len(packed["validation"]) == 20
    evaluate(1, count=count)
    uids = [row["uid"] for row in rows_of(tmp_path / "samples")]
    assert len(set(uids)) == len(uids) == shown


def test_texts_in_any_script_reach_the_files(evaluate, packed, tmp_path):
    text = "Kein Erguß – 心影增大 😀 مرحبا a\u0301 \u2028 \u200b \x00 \ud800"
    evaluate(1, text, texts=[text] * len(packed["validation"]))
    assert {row["impression"] for row in rows_of(tmp_path / "samples")} == {text}


# --- images ----------------------------------------------------------------------------------------------------


def pixels(canvas, impression="Clear.", prediction="Clear.", uid="1") -> np.ndarray:
    return np.asarray(draw(Sample(uid, canvas, impression, prediction)))


def test_the_canvas_is_on_the_left_and_a_missing_view_says_so():
    canvas = np.full((32, 64), 90, np.uint8)
    canvas[:, 32:] = 0
    views = pixels(canvas)[MARGIN : MARGIN + SIDE, MARGIN : MARGIN + 2 * SIDE]
    assert (views[:, : SIDE - 10] == 90).all()
    lateral = views[:, SIDE + 10 :]
    assert 0 < (lateral > 0).mean() < 0.05, "a few letters on black"


def test_a_finding_in_common_missed_or_invented_has_its_colour():
    canvas = np.ones((32, 64), np.uint8)
    green, red, orange = (0x1A, 0x7F, 0x37), (0xCF, 0x22, 0x2E), (0xB3, 0x59, 0x00)

    def colours(impression, prediction):
        found = {tuple(colour) for colour in np.unique(pixels(canvas, impression, prediction).reshape(-1, 3), axis=0)}
        return [colour in found for colour in (green, red, orange)]

    assert colours("Cardiomegaly.", "Cardiomegaly.") == [True, False, False]
    assert colours("Cardiomegaly.", "No cardiomegaly.") == [False, True, False]
    assert colours("Clear lungs.", "Cardiomegaly.") == [False, False, True]


def test_an_image_grows_with_its_text_up_to_a_bound():
    canvas, words = np.ones((32, 64), np.uint8), "Stable cardiomegaly with small pleural effusions. "
    short, long, longest = (pixels(canvas, words * times, words * times).shape for times in (1, 12, 1000))
    assert short[0] == SIDE + 2 * MARGIN < long[0] == longest[0]
    assert (pixels(canvas, words * 12, words * 12)[:, -MARGIN:] == 255).all(), "no text runs off the image"


@pytest.mark.parametrize("text", ["", "word " * 2000, "x" * 100_000, "漢" * 500, "short " + "y" * 300 + " end"])
def test_wrapped_lines_fit_the_column(text):
    lines = wrap(text, text_font())
    assert len(lines) <= MOST_LINES
    assert all(text_font().getlength(line) <= TEXT_WIDTH for line in lines)
    kept = "".join(lines).replace(" ", "")
    assert kept == text.replace(" ", "") or (kept.endswith("…") and text.replace(" ", "").startswith(kept[:-1]))


def test_letters_of_european_languages_are_legible():
    assert len({bytes(text_font().getmask(letter)) for letter in "aeéèüßñçãøłΩЖ"}) == 13


# --- trackers that are no dependency -----------------------------------------------------------------------------


def test_wandb_offline_gets_images_and_keeps_the_trainers_steps(
    parsed, packed, evaluate, tmp_path, monkeypatch, capsys
):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    fine_tune(tiny_checkpoint(), packed, *parsed(report_to="wandb"))
    folder, summary = Path(wandb.run.dir), dict(wandb.run.summary)
    evaluate(7, report_to="wandb", count=1)
    step = wandb.run.summary["train/global_step"]
    wandb.finish()
    assert len(list((folder / "media" / "images").glob("samples_*.png"))) == 3 + 3 + 1
    rows = [row for row in rows_of(tmp_path / "run" / "samples") if row["step"] == 2]
    captions = [f"{row['uid']}\ntruth: {row['impression']}\noutput: {row['prediction']}" for row in rows]
    shown = dict(summary["samples"])
    assert shown["captions"] == captions
    assert (shown["width"], shown["height"]) == (2 * SIDE + TEXT_WIDTH + 3 * MARGIN, SIDE + 2 * MARGIN)
    assert (summary["train/global_step"], step) == (2, 7)
    assert "eval/loss" in summary
    assert "not sent" not in capsys.readouterr().out


def test_wandb_online_gets_no_patient_data(evaluate, tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb")
    from wandb.sdk.wandb_run import Run

    # A run without a server behind it: what is logged to it fails.
    monkeypatch.setattr(wandb, "run", Run(settings=wandb.Settings(mode="online")))
    evaluate(1, report_to="wandb")
    evaluate(2, report_to="wandb")
    assert capsys.readouterr().out == WITHHELD.format("wandb"), "said once"
    assert len(rows_of(tmp_path / "samples")) == 6, "files always"
    with pytest.raises(wandb.Error):
        evaluate(3, report_to="wandb", share=True)


def test_trackio_on_this_machine_gets_a_table_and_a_space_does_not(
    parsed, packed, evaluate, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    fine_tune(tiny_checkpoint(), packed, *parsed(report_to="trackio", run_name="local", project="samples-test"))
    logs = SQLiteStorage.get_logs("samples-test", "local")
    tables = [log for log in logs if "samples" in log]
    assert [log["train/global_step"] for log in tables] == [1, 2]
    rows = rows_of(tmp_path / "run" / "samples")
    shown = tables[-1]["samples"]["_value"]
    assert [[row["uid"], row["truth"], row["output"]] for row in shown] == [list(row.values())[1:] for row in rows[3:]]
    with Image.open(trackio.utils.MEDIA_DIR / shown[0]["canvas"]["file_path"]) as image:
        assert image.size == (64, 32)
    assert "not sent" not in capsys.readouterr().out

    trackio.context_vars.current_space_id.set("user/space")  # where `trackio.init` keeps it
    try:
        evaluate(1, report_to="trackio")
        evaluate(2, report_to="trackio")
        assert capsys.readouterr().out == WITHHELD.format("trackio"), "said once"
    finally:
        trackio.context_vars.current_space_id.set(None)
    assert len(rows_of(tmp_path / "samples")) == 6, "files always"
