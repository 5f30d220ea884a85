import functools
import io
import json
import re
import subprocess
import sys
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from datasets import concatenate_datasets
from helpers import STUDIES, copy_folder, radiograph
from PIL import Image
from transformers.pipelines.pt_utils import KeyDataset

import hf_cxr
from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.sources import phantom
from hf_cxr.inference.checks import CALIBRATION

STANDALONE = """
import json, sys
sys.modules["hf_cxr"] = None  # as where it is not installed
import numpy as np
from transformers import pipeline
pipe = pipeline(model=sys.argv[1], trust_remote_code=True)
images = [np.random.default_rng(seed).integers(0, 256, (80, 70), dtype=np.uint8) for seed in range(int(sys.argv[2]))]
print("TEXT:" + json.dumps([pipe({"frontal": image, "lateral": None}) for image in images]))
"""

STOCK = """
import json, sys
sys.modules["hf_cxr"] = None
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel
run, *canvases = sys.argv[1:]
model = VisionEncoderDecoderModel.from_pretrained(run)
tokenizer, processor = AutoTokenizer.from_pretrained(run), AutoImageProcessor.from_pretrained(run)
pixels = [processor(Image.open(canvas), return_tensors="pt").pixel_values for canvas in canvases]
texts = [tokenizer.decode(model.generate(one)[0], skip_special_tokens=True).strip() for one in pixels]
print("TEXT:" + json.dumps(texts))
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


def test_a_view_alone_is_a_study_of_a_frontal_view_and_two_in_a_list_are_two_studies(talker, tmp_path):
    images = [radiograph(1), radiograph(2)]
    paths = [str(tmp_path / f"{place}.png") for place in "ab"]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    alone = [talker({"frontal": image, "lateral": None}) for image in images]
    both = talker({"frontal": images[0], "lateral": images[1]})
    assert len({rows[0]["impression"] for rows in (*alone, both)}) == 3
    assert [talker(path) for path in paths] == [talker(Image.fromarray(image)) for image in images] == alone
    assert talker(images[0]) == talker((tmp_path / "a.png").read_bytes()) == talker(tmp_path / "a.png") == alone[0]
    with (tmp_path / "a.png").open("rb") as stream:
        assert talker(stream) == alone[0]
    assert talker(paths) == list(talker(image for image in images)) == alone
    assert talker(tuple(paths)) == talker(frontal=paths[0], lateral=images[1]) == both
    assert talker(frontal=paths[0]) == alone[0]
    assert talker(lateral=paths[1]) == talker({"lateral": paths[1]})
    with pytest.raises(ValueError, match="not both"):
        talker(paths[0], lateral=paths[1])
    with pytest.raises(TypeError, match="as a pair"):
        talker(*paths)
    with pytest.raises(ValueError, match="at least one view"):
        talker()


@pytest.fixture(scope="module")
def talker(talkative_run):
    return transformers.pipeline("cxr-impression", model=str(talkative_run))


def without_scores(answers):
    return [[{name: row[name] for name in row if name != "score"} for row in rows] for rows in answers]


def scores(answers):
    return np.array([[row["score"] for row in rows] for rows in answers])


@pytest.fixture(scope="module")
def studies(phantom_folder):
    """200 studies of all splits, more than a tenth of them with one view only."""
    splits = load_prepared(str(phantom_folder))
    rows = concatenate_datasets([splits[name] for name in ("test", "validation", "train")]).select(range(200))
    rows = rows.select_columns(["frontal", "lateral"])
    assert sum(None in (row["frontal"], row["lateral"]) for row in rows) > 10
    return rows


@pytest.mark.parametrize(
    ("number", "options"), [(200, {}), (80, {"num_beams": 3, "num_return_sequences": 2})], ids=["greedy", "beams"]
)
def test_a_batch_gives_exactly_the_texts_of_one_by_one(talker, studies, number, options):
    studies, options = studies.select(range(number)), options | {"return_findings": True}
    alone = [talker(study, **options) for study in studies]
    assert len({row["impression"] for rows in alone for row in rows}) > number / 2
    for size in (8, 32):
        batched = list(talker(studies, batch_size=size, **options))
        assert without_scores(batched) == without_scores(alone)
        np.testing.assert_allclose(scores(batched), scores(alone), rtol=1e-3, atol=0)


def test_datasets_are_streamed_in_every_form(talker, studies):
    few = studies.select(range(5)).add_column("uid", list("abcde"))
    alone = [talker({"frontal": row["frontal"], "lateral": row["lateral"]}) for row in few]
    assert len({rows[0]["impression"] for rows in alone}) > 2
    assert without_scores(talker(few, batch_size=2)) == without_scores(alone)
    assert list(talker(few)) == alone
    for stream in (few.to_iterable_dataset(), datasets.IterableDataset.from_generator(lambda: iter(few))):
        assert list(talker(stream)) == alone
        mapped = stream.map(lambda row: row)  # which no longer knows its columns
        assert mapped.column_names is None
        assert without_scores(talker(mapped, batch_size=2)) == without_scores(alone)
    assert list(talker({"frontal": row["frontal"], "lateral": row["lateral"]} for row in few)) == alone
    assert talker([(row["frontal"], row["lateral"]) for row in few]) == alone
    together = [{"study": {"frontal": row["frontal"], "lateral": row["lateral"]}} for row in few]
    assert list(talker(KeyDataset(together, "study"))) == alone
    assert talker([]) == []


def test_a_column_named_after_a_view_is_a_stream_of_that_view(pipe):
    frontal = [{"frontal": radiograph(seed)} for seed in range(3)]
    assert list(pipe(KeyDataset(frontal, "frontal"))) == [pipe(row) for row in frontal]
    lateral = [{"lateral": radiograph(seed)} for seed in range(3)]
    assert list(pipe(KeyDataset(lateral, "lateral"))) == [pipe(row) for row in lateral]
    assert pipe(lateral[0]) != pipe(frontal[0])
    with pytest.raises(ValueError, match="neither a column"):
        pipe(datasets.Dataset.from_dict({"image": ["f.png"]}))
    with pytest.raises(ValueError, match=r"neither a column 'frontal' nor 'lateral': \['image'\]"):
        list(pipe(datasets.IterableDataset.from_generator(lambda: iter([{"image": "f.png"}]))))


@pytest.fixture
def site(tmp_path):
    """A web site of the files in `tmp_path`; yields its address."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def online(monkeypatch):
    """The client asks at every request; the suite itself runs with HF_HUB_OFFLINE=1 in CI."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_a_view_can_be_an_address_and_keeps_its_sixteen_bits(pipe, site, tmp_path, online):
    deep = radiograph(1).astype(np.uint16) * 16 + 9000
    Image.fromarray(deep).save(tmp_path / "f.png")
    assert pipe({"frontal": f"{site}/f.png"}) == pipe({"frontal": deep})
    assert pipe({"frontal": f" {site}/f.png".replace("http", "HTTP")}) == pipe({"frontal": deep})
    with pytest.raises(ValueError, match=r"/absent.png: could not be fetched: status 404") as error:
        pipe({"frontal": f"{site}/absent.png"})
    assert "\n" not in str(error.value)
    (tmp_path / "page.html").write_text("<html>")
    with pytest.raises(ValueError, match=r"^lateral: http.*/page.html: image bytes: not an image"):
        pipe({"lateral": f"{site}/page.html"})


def test_an_error_hides_what_an_address_keeps_secret(pipe, site, online):
    secret = site.replace("//", "//joe:pa55@") + "/absent.png?sig=abc"
    with pytest.raises(ValueError, match=rf"^frontal: {site}/absent.png: could not be fetched: status 404$") as error:
        pipe({"frontal": secret})
    assert error.value.__cause__ is None or "pa55" not in str(error.value.__cause__)


@pytest.mark.parametrize("offline", [True, False])
def test_no_error_of_the_client_is_told_in_its_own_words(pipe, monkeypatch, offline):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    for address in ("http://joe:pa55@127.0.0.1:9/f.png?sig=abc", "http://joe:pa55@[::/f.png?sig=abc"):
        with pytest.raises(ValueError, match="frontal") as error:
            pipe({"frontal": address})
        assert not re.search("joe|pa55|sig|abc", str(error.value))
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE" if offline else "the server cannot be reached$"):
        pipe({"frontal": "http://joe:pa55@127.0.0.1:9/f.png?sig=abc"})


def test_an_address_that_moved_is_followed(pipe, site, tmp_path, online):
    (tmp_path / "moved").mkdir()
    Image.fromarray(radiograph(1)).save(tmp_path / "moved" / "index.html", "PNG")  # the site sends /moved to /moved/
    assert pipe({"lateral": f"{site}/moved"}) == pipe({"lateral": radiograph(1)})


def test_an_address_without_end_is_not_read_to_the_end(pipe, site, tmp_path, online, monkeypatch):
    monkeypatch.setattr("hf_cxr.inference.inputs.MAX_BYTES", 1 << 20)
    (tmp_path / "large.png").write_bytes(bytes(3 << 20))
    with pytest.raises(ValueError, match=r"large.png: could not be fetched: more than 1 MB"):
        pipe({"frontal": f"{site}/large.png"})


def test_an_address_that_drips_is_given_up(pipe, site, tmp_path, online, monkeypatch):
    monkeypatch.setattr("hf_cxr.inference.inputs.MAX_SECONDS", 0)
    Image.fromarray(radiograph(1)).save(tmp_path / "slow.png")
    with pytest.raises(ValueError, match=r"slow.png: could not be fetched: not whole after 0 s"):
        pipe({"frontal": f"{site}/slow.png"})


def test_an_unlikely_image_is_told_in_the_answer_or_refused_or_passed(pipe):
    blank = {"frontal": radiograph(1), "lateral": np.full((90, 80), 7, dtype=np.uint8)}
    for size in (1, 2):
        rows = pipe([blank, {"frontal": radiograph(2)}], batch_size=size)
        assert rows[0][0]["warnings"] == ["lateral: all pixels have one value"]
        assert set(rows[1][0]) == {"impression", "score"}
    assert set(pipe(blank, on_unlikely="ignore")[0]) == {"impression", "score"}
    with pytest.raises(ValueError, match="lateral: all pixels have one value"):
        pipe(blank, on_unlikely="error")
    with pytest.raises(ValueError, match="on_unlikely is one of warn, error, ignore"):
        pipe(blank, on_unlikely="no")


def test_views_in_each_others_place_are_told_and_in_their_own_are_not(pipe):
    frontal, lateral = (phantom.draw(4, 2, view, 256) for view in ("frontal", "lateral"))
    assert "warnings" not in pipe(frontal=frontal, lateral=lateral)[0]
    assert pipe(frontal=lateral, lateral=frontal)[0]["warnings"] == [
        "frontal: looks like a lateral view, not a frontal one",
        "lateral: looks like a frontal view, not a lateral one",
    ]
    upside_down = pipe(frontal=frontal.rotate(180), on_unlikely="warn")[0]["warnings"]
    assert upside_down == ["frontal: does not look like an upright chest radiograph"]


def test_a_callable_is_a_view_and_is_doubted_as_what_it_returns(pipe):
    photograph = np.full((80, 70, 3), (90, 140, 220), dtype=np.uint8)
    photograph[:40] = (60, 150, 40)
    calls = []
    answer = pipe({"frontal": lambda: calls.append(1) or photograph})
    assert answer == pipe({"frontal": photograph})
    assert answer[0]["warnings"] == ["frontal: a colour image, not a radiograph"]
    assert calls == [1]
    with pytest.raises(ValueError, match=r"^frontal: <lambda>: returned int, not an image or an array$"):
        pipe({"frontal": lambda: 3})


def test_an_image_that_cannot_be_read_is_told_with_its_view(pipe, tmp_path):
    with pytest.raises(ValueError, match=r"^lateral: .*absent.png: no such file$"):
        pipe({"frontal": radiograph(1), "lateral": str(tmp_path / "absent.png")})
    with pytest.raises(ValueError, match=r"^frontal: array: no finite pixel value$"):
        pipe((np.full((40, 40), np.nan), radiograph(1)))


def in_every_form(rows):
    """Many studies as a list, as pairs, as a generator, as a dataset, as a stream and as a column."""
    table = datasets.Dataset.from_list(rows)
    yield rows
    yield [(row["frontal"], row["lateral"]) for row in rows]
    yield (row for row in rows)
    yield table
    yield table.to_iterable_dataset()
    yield KeyDataset([{"study": row} for row in rows], "study")


@pytest.mark.parametrize("size", [1, 2])
def test_an_error_tells_which_of_many_studies_it_is(pipe, tmp_path, size):
    Image.fromarray(radiograph(1)).save(tmp_path / "f.png")
    good, bad = str(tmp_path / "f.png"), str(tmp_path / "absent.png")
    rows = [{"frontal": frontal, "lateral": None} for frontal in (good, good, bad, good)]
    for studies in in_every_form(rows):
        with pytest.raises(ValueError, match=r"^study 2: frontal: .*absent.png: no such file$"):
            list(pipe(studies, batch_size=size))
    with pytest.raises(ValueError, match=r"^study 1: lateral: a view is a path, .* not float$"):
        pipe([(good, None), (good, float("nan"))], batch_size=size)
    with pytest.raises(ValueError, match=r"^study 1: a study is a .* pair, a dict of both .*, not 3 views$"):
        pipe([{"frontal": good}, (good, good, good)], batch_size=size)


@pytest.mark.parametrize("options", [{}, {"return_attention": True, "return_findings": True, "abstain_below": 1.0}])
def test_the_other_studies_can_go_on_without_one_that_cannot_be_read(talker, tmp_path, options):
    Image.fromarray(radiograph(1)).save(tmp_path / "f.png")
    good, bad = str(tmp_path / "f.png"), str(tmp_path / "absent.png")
    rows = [{"frontal": frontal, "lateral": None} for frontal in (good, bad, good, good)]
    alone = talker(rows[0], **options)
    assert "error" not in alone[0]
    for size in (1, 3):
        for studies in in_every_form(rows):
            answers = list(talker(studies, batch_size=size, on_unreadable="skip", **options))
            assert without_scores(answers[:1] + answers[2:]) == without_scores([alone] * 3)
            assert answers[1] == [
                {"impression": None, "score": None, "error": f"frontal: {tmp_path}/absent.png: no such file"}
            ]
    with pytest.raises(ValueError, match="on_unreadable is one of error, skip, not 'warn'"):
        talker(rows, on_unreadable="warn")


def test_an_error_is_one_line_where_other_processes_load_the_images(pipe, tmp_path):
    studies = [{"frontal": radiograph(1)}, {"frontal": str(tmp_path / "absent.png")}]
    with pytest.raises(ValueError, match=r"^study 1: frontal: .*absent.png: no such file$"):
        pipe(studies, num_workers=2)


def test_an_iterator_of_studies_and_an_open_file_will_do(pipe, tmp_path):
    Image.fromarray(radiograph(1)).save(tmp_path / "f.png")
    expected = pipe({"frontal": radiograph(1)})
    assert list(pipe(iter([{"frontal": radiograph(1)}]))) == [expected]
    assert list(pipe(zip([radiograph(1)], [None], strict=True))) == [expected]
    with (tmp_path / "f.png").open("rb") as stream:
        assert pipe({"frontal": stream}) == expected
    assert pipe({"frontal": io.BytesIO((tmp_path / "f.png").read_bytes())}) == expected
    assert pipe(()) == pipe([]) == []


@pytest.mark.parametrize(
    ("view", "told"),
    [
        ("", "an empty path; a view that a study does not have is None"),
        ("s3://bucket/f.png", "an address of s3; only http and https are fetched"),
        ("file:///f.png", "an address of file; only http and https are fetched"),
        ("a\0b.png", "a\0b.png: embedded null byte"),
    ],
)
def test_a_path_that_is_none_is_told_as_such(pipe, view, told):
    with pytest.raises(ValueError, match=f"^lateral: {told}$"):
        pipe({"frontal": radiograph(1), "lateral": view})


def test_a_dataset_of_several_splits_asks_for_one(pipe, studies):
    with pytest.raises(ValueError, match="several splits: choose one of test, train"):
        pipe(datasets.DatasetDict({"test": studies, "train": studies}))


def test_what_a_text_holds_possible_is_told_apart(pipe, monkeypatch):
    text = "Left pleural effusion. Pneumonia cannot be excluded. No pneumothorax."
    monkeypatch.setattr("hf_cxr.inference.pipeline.decode", lambda *_: [{"impression": text, "score": 0.1}])
    row = pipe({"frontal": radiograph(1)}, return_findings=True)[0]
    assert row["finding_labels"] == ["left pleural effusion"]
    assert row["possible_finding_labels"] == ["pneumonia"]


def test_a_saved_pipeline_is_a_checkpoint_that_loads_with_and_without_the_kit(talker, tmp_path):
    talker.save_pretrained(tmp_path / "saved")
    study = {"frontal": np.random.default_rng(0).integers(0, 256, (80, 70), dtype=np.uint8), "lateral": None}
    modes = {(tmp_path / "saved" / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1
    again = transformers.pipeline("cxr-impression", model=str(tmp_path / "saved"))  # asks for no remote code
    assert again(study) == talker(study)
    assert json.loads(text_of(STANDALONE, str(tmp_path / "saved"), "1")) == [talker(study)]


def test_an_image_that_datasets_alone_can_open_is_opened_by_it(pipe, tmp_path):
    Image.fromarray(radiograph(1)).save(tmp_path / "f.png")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "f.png", "a.png")
    places = [f"zip://{name}::{tmp_path}/z.zip" for name in ("a.png", "absent.png")]
    rows = datasets.Dataset.from_dict({"frontal": places}).cast_column("frontal", datasets.Image())
    first, second = pipe(rows, on_unreadable="skip")
    assert first == pipe({"frontal": radiograph(1)})
    assert second[0]["error"].startswith("frontal: partial: ")


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from [{"frontal": radiograph(seed)} for seed in range(3)]

    def __len__(self):
        return 3


def test_a_stream_of_torch_will_do(pipe):
    assert list(pipe(Stream(), batch_size=2)) == pipe(
        [{"frontal": radiograph(seed)} for seed in range(3)], batch_size=2
    )


def test_a_file_that_fails_while_it_is_read_is_an_error_of_its_study(pipe):
    class Broken(io.BytesIO):
        def read(self, *_):
            raise OSError("the network is\ndown")

    told = pipe([{"frontal": Broken()}], on_unreadable="skip")[0][0]["error"]
    assert told == "frontal: an open file that cannot be read (OSError: the network is down)"


def test_the_inputs_can_be_imported_first():
    assert text_of("from hf_cxr.inference.inputs import numbered; print('TEXT:' + numbered.__name__)") == "numbered"


def test_a_saved_pipeline_pushes_nothing_by_itself(pipe, tmp_path):
    with pytest.raises(ValueError, match="use hf-cxr push"):
        pipe.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="user/x")


def flipped(image):
    return np.flipud(np.asarray(image))


def test_a_damaged_image_of_a_dataset_is_an_error_of_its_study_alone(talker, studies):
    few = studies.select(range(3)).cast_column("frontal", datasets.Image(decode=False))
    stored = [row["frontal"] for row in few]
    assert all(image["bytes"] for image in stored)
    cut = [stored[0], {"bytes": stored[1]["bytes"][:200], "path": None}, stored[2]]
    damaged = few.remove_columns("frontal").add_column("frontal", cut).cast_column("frontal", datasets.Image())
    whole = list(talker(studies.select(range(3))))
    for rows in (damaged, damaged.cast_column("frontal", datasets.Image(decode=False)).to_iterable_dataset()):
        answers = list(talker(rows, on_unreadable="skip"))
        assert [answers[0], answers[2]] == [whole[0], whole[2]]
        assert re.match("frontal: image bytes: ", answers[1][0]["error"])
    with pytest.raises(ValueError, match=r"^study 1: frontal: image bytes: "):
        list(talker(KeyDataset(damaged, "frontal")))
    arrays = studies.select(range(3)).with_transform(
        lambda rows: rows | {"frontal": list(map(flipped, rows["frontal"]))}
    )
    expected = studies[0] | {"frontal": flipped(studies[0]["frontal"])}
    assert next(iter(talker(arrays))) == talker(expected) != whole[0]


def test_an_unlikely_image_that_is_refused_need_not_stop_the_others(pipe):
    blank, study = {"frontal": np.full((90, 80), 7, dtype=np.uint8)}, {"frontal": radiograph(1)}
    answers = pipe([blank, study], on_unlikely="error", on_unreadable="skip", batch_size=2)
    assert answers[0][0]["error"] == "frontal: all pixels have one value"
    assert answers[1][0]["impression"] == pipe(study)[0]["impression"]


def test_a_score_is_the_models_own_however_the_text_was_drawn(pipe):
    study = {"frontal": radiograph(1)}
    greedy = pipe(study)
    assert greedy[0]["score"] > 0
    for drawn in (pipe(study, do_sample=True, top_k=1), pipe(study, do_sample=True, temperature=1e-3)):
        assert drawn[0]["impression"] == greedy[0]["impression"]
        assert drawn[0]["score"] == pytest.approx(greedy[0]["score"], rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "num_return_sequences": 2}])
def test_a_text_cut_short_says_so_and_is_sure_of_nothing(pipe, monkeypatch, options):
    monkeypatch.setattr(pipe.model.config, CALIBRATION, CURVE, raising=False)  # which gives 0.2 to what never occurs
    for row in pipe({"frontal": radiograph(1)}, max_new_tokens=1, **options):
        assert row["truncated"] is True
        assert row["score"] == 0
    assert not any("truncated" in row for row in pipe({"frontal": radiograph(1)}, **options))


@pytest.mark.parametrize("number", ["5", 2.5, 0])
def test_a_number_that_is_none_is_a_clear_error(pipe, number):
    with pytest.raises(ValueError, match=f"max_new_tokens is a whole number of at least 1, not {number!r}"):
        pipe({"frontal": radiograph(1)}, max_new_tokens=number)


@pytest.mark.parametrize("option", ["num_beams", "num_return_sequences"])
def test_no_beam_and_no_text_are_clear_errors(pipe, option):
    with pytest.raises(ValueError, match=f"{option} is a whole number of at least 1, not 0"):
        pipe({"frontal": radiograph(1)}, **{option: 0})


def test_more_tokens_than_the_decoder_has_places_for_are_a_clear_error(pipe):
    with pytest.raises(ValueError, match=r"max_new_tokens 9999: this decoder writes 1 to \d+"):
        pipe({"frontal": radiograph(1)}, max_new_tokens=9999)


def test_the_model_is_shown_the_packed_canvas_frontal_left(pipe):
    frontal, lateral = radiograph(1), radiograph(2)
    for views in ((frontal, lateral), (None, lateral), (frontal, None)):
        canvas = hf_cxr.pack_views(*views, size=32)
        expected = pipe.image_processor(canvas, return_tensors="pt")["pixel_values"]
        assert pipe.preprocess(dict(zip(("frontal", "lateral"), views, strict=True)))["pixel_values"].equal(expected)


def test_several_sequences_and_the_findings_can_be_asked_for(pipe):
    rows = pipe(
        {"frontal": radiograph(1)}, num_beams=3, num_return_sequences=3, return_findings=True, max_new_tokens=6
    )
    assert len(rows) == 3
    assert all(isinstance(row["finding_labels"], list) for row in rows)
    assert rows[0]["score"] >= rows[-1]["score"]


def test_a_row_of_a_dataset_is_a_study_whatever_else_it_holds(pipe):
    study = {"frontal": radiograph(1), "lateral": None}
    assert pipe(study | {"uid": "7", "impression": "normal"}) == pipe(study)
    with pytest.raises(ValueError, match=r"'frontal' and 'lateral', not \['laterl'\]"):
        pipe({"frontal": radiograph(1), "laterl": radiograph(2)})


@pytest.mark.parametrize("study", ["f.png", {}, {"front": 1}, (None, None), (1, 2, 3), {"frontal": None}])
def test_what_is_no_study_is_a_clear_error(pipe, study):
    with pytest.raises((ValueError, TypeError)) as error:
        pipe(study)
    assert "\n" not in str(error.value)


def test_an_unknown_option_is_a_clear_error(pipe):
    with pytest.raises(TypeError, match="num_beems"):
        pipe({"frontal": radiograph(1)}, num_beems=3)


def test_a_checkpoint_answers_the_same_where_hf_cxr_is_not_installed(talker, talkative_run, tmp_path):
    ours = [talker({"frontal": radiograph(seed), "lateral": None}) for seed in range(STUDIES)]
    assert len({rows[0]["impression"] for rows in ours}) > STUDIES / 2
    theirs = json.loads(text_of(STANDALONE, str(copy_folder(talkative_run, tmp_path / "moved")), str(STUDIES)))
    assert theirs == ours


def test_stock_classes_give_the_same_text_on_a_packed_canvas(talker, talkative_run, tmp_path):
    views = [(radiograph(seed), radiograph(seed + 1)) for seed in range(STUDIES)]
    for seed, pair in enumerate(views):
        hf_cxr.pack_views(*pair, size=32).save(tmp_path / f"{seed}.png")
    canvases = [str(tmp_path / f"{seed}.png") for seed in range(STUDIES)]
    stock = json.loads(text_of(STOCK, str(talkative_run), *canvases))
    assert stock == [talker(pair)[0]["impression"] for pair in views]
    assert len(set(stock)) > 2


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
        {"impression": None, "score": answer["score"]}
        | {"finding_labels": None, "possible_finding_labels": None, "abstained": True}
    ]
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibrated_pipe(study, abstain_below=70)
