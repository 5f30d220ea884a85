"""The app's API and what it leaves behind. How the page looks and works in a browser is in tests/browser."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from http.client import HTTPConnection
from types import SimpleNamespace

import httpx
import pytest
from helpers import ROOT, radiograph, run_cxr
from PIL import Image

gradio = pytest.importorskip("gradio", reason="Gradio is absent: pip install -e '.[app]'")

from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402
from serving_app import SECRET, app_of, dicom_bytes, left_in, pipe_of  # noqa: E402

from hf_cxr.inference.sections import Layout  # noqa: E402
from hf_cxr.serving import page, uploads  # noqa: E402
from hf_cxr.serving.app import IDLE, SESSIONS, forget, forget_idle, make_app  # noqa: E402
from hf_cxr.serving.batches import Batcher  # noqa: E402


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("disk") / "tmp"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    pipe = pipe_of(folder)
    return SimpleNamespace(plain=pipe, folder=folder)


@pytest.fixture(scope="module")
def address(pipe, place):
    with pytest.MonkeyPatch.context() as patch, app_of(pipe.folder, pipe.plain, patch, place) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        Image.fromarray(radiograph(number)).save(path)
    return paths


def ask(client, *images, **options):
    given = (handle_file(image) if image else None for image in images)
    return client.predict(*given, **options, api_name="/impression")


def same(answer, other):
    """Whether two answers are alike, but for the last digits of the score."""
    return answer | {"score": 0} == other | {"score": 0} and answer["score"] == pytest.approx(other["score"], rel=1e-3)


# --- what is answered --------------------------------------------------------------------------------------------


def test_the_api_answers_as_the_pipeline_does(client, pipe, images):
    frontal, lateral = images[:2]
    for views in ({"frontal": frontal, "lateral": lateral}, {"frontal": frontal}, {"lateral": lateral}):
        (expected,) = pipe.plain(views, return_findings=True)
        answer = ask(client, views.get("frontal"), views.get("lateral"))
        assert same(answer, expected)
        assert answer["impression"]


def test_a_text_is_withheld_below_the_score_that_is_asked_for(client, images):
    score = ask(client, images[0])["score"]
    assert ask(client, images[0], withhold_below=score / 2)["impression"]
    withheld = ask(client, images[0], withhold_below=min(1.0, score * 1.5 + 0.01))
    assert (withheld["impression"], withheld["abstained"]) == (None, True)
    assert withheld["score"] == pytest.approx(score)


def test_many_at_once_get_the_texts_that_each_gets_alone(client, pipe, images, monkeypatch):
    """The same file, sent by several at once, among them."""
    sizes = []
    alone = {image: pipe.plain(frontal=str(image), return_findings=True)[0] for image in images}
    assert len({answer["impression"] for answer in alone.values()}) > 1
    forward = pipe.plain._forward
    monkeypatch.setattr(
        pipe.plain,
        "_forward",
        lambda inputs, **options: sizes.append(len(inputs["prompt"])) or forward(inputs, **options),
    )
    asked = [*images, *images, images[0], images[0], images[0]]
    with ThreadPoolExecutor(len(asked)) as threads:
        answers = list(threads.map(lambda image: ask(client, image), asked))
    for image, answer in zip(asked, answers, strict=True):
        assert same(answer, alone[image])
    assert len(sizes) < len(asked)


def test_what_waits_is_answered_together_by_kind_and_never_more_than_the_most():
    calls, gate = [], threading.Event()

    def pipe(studies, batch_size, on_unreadable, **options):
        gate.wait(10)
        assert batch_size == len(studies)
        calls.append((studies, options))
        if "wrong" in studies:
            raise RuntimeError("a bug")
        return [[{"text": study}] for study in studies]

    batcher = Batcher(pipe, most=4)
    first = batcher.ask("first")
    time.sleep(0.2)
    others = [batcher.ask(str(number)) for number in range(5)]
    worded = batcher.ask("worded", words=True)
    gone = batcher.ask("gone")
    wrong = batcher.ask("wrong", wrong=True)
    gone.cancel()
    gate.set()
    assert [future.result(10)["text"] for future in (first, *others, worded)] == ["first", *"01234", "worded"]
    with pytest.raises(RuntimeError, match="a bug"):
        wrong.result(10)
    assert batcher.ask("after").result(10) == {"text": "after"}
    assert max(len(studies) for studies, _ in calls) == 4
    assert not [studies for studies, _ in calls if "gone" in studies]
    assert [options for studies, options in calls if "worded" in studies] == [{"words": True}]


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "zero bytes"),
        (b"just words", "not an image of a known format"),
        (b"\x89PNG\r\n\x1a\n and no more", "frontal"),
        (b"GIF89a\xff\xff\xff\xff", "frontal"),
    ],
)
def test_what_is_no_image_is_answered_with_one_clear_line(client, tmp_path, place, content, reason):
    (tmp_path / "image.png").write_bytes(content)
    answer = ask(client, tmp_path / "image.png")
    assert answer["impression"] is None
    assert reason in answer["error"]
    assert "\n" not in answer["error"]
    assert str(place) not in json.dumps(answer)


def test_damaged_files_bombs_and_other_types_each_get_a_clear_line_and_the_app_goes_on(address, place, monkeypatch):
    """As `python benchmarks/app_abuse.py` does it with 200."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import app_abuse
    import app_load

    refused = 0
    with httpx.Client(base_url=address, timeout=120) as asking:
        for name, content in app_abuse.bad(40):
            answer = app_load.ask(asking, (content, None), name)
            assert app_abuse.fault_of(answer, place) is None, name
            refused += "error" in answer
        (good,) = app_load.studies(1)
        assert app_load.ask(asking, (good["frontal"], None))["impression"]
    assert refused > 20
    assert left_in(place) == []


def test_no_image_at_all_is_told(client):
    with pytest.raises(AppError, match="no image is given"):
        ask(client, None, None)


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(address):
    for path in ("/gradio_api/upload", "/gradio_api/queue/join"):
        connection = HTTPConnection(address.removeprefix("http://"), timeout=60)
        connection.putrequest("POST", path)
        connection.putheader("content-length", str(65 << 20))
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (413, b"more than 64 MB")
        connection.close()


def test_a_request_in_chunks_is_refused_where_it_grows_too_large(address):
    chunk = b"[" + b"0," * (1 << 19)
    connection = HTTPConnection(address.removeprefix("http://"), timeout=60)
    headers = {"content-type": "application/json", "transfer-encoding": "chunked"}
    connection.request("POST", "/gradio_api/queue/join", (chunk for _ in range(65)), headers, encode_chunked=True)
    answer = connection.getresponse()
    assert (answer.status, b"more than 64 MB" in answer.read()) == (413, True)
    connection.close()


def call(address, *data):
    """A call of the API without the client, which would not send such things."""
    event = httpx.post(f"{address}/gradio_api/call/impression", json={"data": data}).json()["event_id"]
    return httpx.get(f"{address}/gradio_api/call/impression/{event}", timeout=60).text


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
@pytest.mark.parametrize("path", ["OTHER", "IN/../OTHER", "https://huggingface.co/robots.txt"])
def test_no_other_file_of_the_machine_and_no_address_is_read(address, place, tmp_path, path, meta):
    other = tmp_path / "folder" / "other.png"
    other.parent.mkdir()
    Image.fromarray(radiograph(0)).save(other)
    (inside,) = place.iterdir()
    path = path.replace("IN", str(inside)).replace("OTHER", str(other))
    answer = call(address, {"path": path} | meta, None, "", 0)
    assert "event: error" in answer
    assert "impression" not in answer
    assert other.exists()


@pytest.mark.parametrize(
    "path",
    ["file=https://huggingface.co/robots.txt", "file=/etc/hostname", "deep_link?session_hash=a", "proxy=http://a.b"],
)
def test_routes_to_other_files_and_hosts_are_closed(address, path):
    assert httpx.get(f"{address}/gradio_api/{path}").status_code in (403, 404)


# --- what is left behind, and what is told -----------------------------------------------------------------------


def test_nothing_that_was_sent_is_on_the_disk_after_the_answer(client, place, images):
    ask(client, images[0], images[1])
    assert left_in(place) == []


def test_clients_of_the_api_do_not_cost_a_visitor_the_images(address):
    config = httpx.get(f"{address}/config").json()
    names = {one["props"].get("value"): one["id"] for one in config["components"]}
    of = {target[0]: one["id"] for one in config["dependencies"] for target in one["targets"]}
    api = next(one["id"] for one in config["dependencies"] if one["api_name"] == "impression")

    def join(session, number, *data):
        asked = {"data": data, "fn_index": number, "session_hash": session}
        assert asking.post("/gradio_api/queue/join", json=asked).status_code == 200

    def asked(name, *data):
        join("visitor", of[names[name]], *data)
        told = asking.get("/gradio_api/queue/data", params={"session_hash": "visitor"}).text.splitlines()
        (done,) = [line for line in told if '"process_completed"' in line]
        return json.loads(done.partition(":")[2])["output"]["data"]

    with httpx.Client(base_url=address, timeout=60) as asking:
        asked("Frontal view alone")
        for number in range(SESSIONS + 9):
            join(f"client {number}", api, None, None, "", 0)
        assert asked("Write the text", None, None, 0)[1]["impression"]


def test_an_upload_that_nobody_asks_about_is_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "SECONDS", 0.4)
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc" / "image.png").write_bytes(b"image")
    (tmp_path / "broken_off").write_bytes(b"fi")
    uploads.Uploads(tmp_path)
    time.sleep(0.2)
    assert (tmp_path / "abc" / "image.png").exists()
    time.sleep(1)
    assert list(tmp_path.iterdir()) == []


def test_no_word_of_a_dicom_header_is_in_an_answer_or_on_the_page(client, tmp_path, pipe, place):
    (tmp_path / "image.dcm").write_bytes(content := dicom_bytes(tmp_path))
    answer = ask(client, tmp_path / "image.dcm")
    assert answer["impression"]
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(content[:-4000])
    assert "error" in (told := ask(client, broken))
    assert SECRET.decode() not in json.dumps([answer, told])
    assert left_in(place) == []


def test_the_page_may_ask_no_other_host_and_reports_to_nobody(address):
    answer = httpx.get(address)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "http" not in policy
    config = httpx.get(f"{address}/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("run_history")
    assert not [sheet for sheet in config.get("stylesheets") or () if sheet.startswith("http")]
    assert page.SHORT in json.dumps(config)


# --- the page ----------------------------------------------------------------------------------------------------


def labels(app):
    return {block.label for block in app.blocks.values() if getattr(block, "label", None)}


def test_the_indication_is_asked_for_where_the_model_takes_one(pipe, tmp_path):
    for context in ((), ("indication",)):
        model = SimpleNamespace(layout=Layout(context=context))
        assert ("Indication" in labels(make_app(model, pipe.folder, uploads.Uploads(tmp_path)))) == bool(context)


def test_an_answer_shows_text_findings_score_warnings_and_where_each_word_looked():
    image, looked = Image.new("L", (40, 50)), Image.new("RGB", (40, 50))
    answer = {
        "impression": "Small effusion.",
        "score": 0.25,
        "finding_labels": ["<b>effusion"],
        "warnings": ["frontal: <i>"],
    }
    maps = {
        "attention": {"frontal": looked},
        "attention_words": [(word, {"frontal": image}) for word in ("Small", "effusion.")],
    }
    views = page.looked_at(answer | maps)
    html = page.answer_html(answer, views, ["Small", "effusion."], "a chance")
    assert '<span class="word w0" tabindex="0">Small</span>' in html
    assert '<span class="word w1" tabindex="0">effusion.</span>' in html
    assert html.count("data:image/jpeg") == 3
    assert all(part in html for part in ("0.25", "a chance", "&lt;b&gt;effusion", "frontal: &lt;i&gt;", page.NOTE))
    assert "<b>effusion" not in html
    withheld = dict.fromkeys(answer) | {"score": 0.25, "abstained": True}
    html = page.answer_html(withheld, views, ["Small", "effusion."], "a chance")
    assert "Withheld" in html
    assert "effusion" not in html
    assert "data:image" not in html


def test_the_tab_of_a_run_shows_its_verdict_scores_and_figures(run_folder, tmp_path):
    report = json.loads((run_folder / "report.json").read_text())
    html = page.run_html(run_folder)
    assert report["verdict"].split("(")[0].strip().split(",")[0] in html
    assert "baseline" in html
    assert html.count("data:image/png") == len(list((run_folder / "figures").glob("*.png"))) > 0
    assert "no report" in page.run_html(tmp_path)


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_says_in_one_line_what_is_wrong(pipe, address):
    taken = address.rpartition(":")[2]
    for words, reason in (
        (["runs/nowhere"], "no such checkpoint"),
        ([pipe.folder, "--port", "99999"], "port must be 0-65535"),
        ([pipe.folder, "--port", taken], "in use"),
        ([pipe.folder, "--host", "no.such.host.invalid"], "cannot listen there"),
    ):
        result = run_cxr("app", *words)
        assert result.returncode == 2
        assert reason in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_all_that_is_held_of_a_visitor_goes_with_the_page_or_after_a_while():
    now = datetime.now()
    used = {"here": now, "left": now, "idle": now - timedelta(seconds=IDLE + 1)}
    holder = SimpleNamespace(session_data=dict.fromkeys(used, "images"), time_last_used=used)
    app = SimpleNamespace(state_holder=holder)
    forget(app, "left")
    forget_idle(app)
    assert holder.session_data == {"here": "images"}
    assert [*holder.time_last_used] == ["here"]
    forget(app, "never seen")


def test_closing_the_page_is_told(pipe, tmp_path):
    app = make_app(pipe.plain, pipe.folder, uploads.Uploads(tmp_path))
    assert [name for fn in app.fns.values() for _, name in fn.targets if name == "unload"] == ["unload"]
