"""The page to try a checkpoint on: two images in, a text out, with its score and where the model looked; and the same
as an API. How it looks lives in `page.py`, what visitors send in `uploads.py`, the model's queue in `batches.py`.
"""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import safehttpx
from gradio import routes
from gradio.state_holder import StateHolder
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from hf_cxr.data.sources.phantom import Case, render
from hf_cxr.inference.plausibility import doubts
from hf_cxr.inference.views import VIEWS, read_radiograph
from hf_cxr.serving import page
from hf_cxr.serving.batches import Batcher
from hf_cxr.serving.runner import Runner
from hf_cxr.serving.uploads import MOST_BYTES, Uploads
from hf_cxr.utils.files import json_object, staging_folder
from hf_cxr.utils.places import folder_of

T = TypeVar("T")
IDLE = 900  # seconds after which the images of a visitor are forgotten
SESSIONS = 256  # of visitors and of clients of the API, the last ones to ask
EXAMPLES = {
    "Normal": Case(7, 1),
    "Pleural effusion": Case(7, 3, ("right pleural effusion",), sizes={"right": "large"}),
    "Frontal view alone": Case(7, 2, ("cardiomegaly",), ("frontal",)),
}
EXAMPLE_SIDE = 256  # pixels
CHANCE = "the chance that the text states exactly the findings that a radiologist's does, as seen on other studies"
PROBABILITY = "the probability of the whole text under the model, which is no chance to be right"
# The browser is told to ask no other host, whatever Gradio's own page would like to fetch.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'; object-src 'none'"
TOO_LARGE = f"more than {MOST_BYTES >> 20} MB"
CLOSED = ("/deep_link", "/proxy=")  # routes that write a visitor's page to the disk, or ask other hosts
# Gradio would make a table of its last 10,000 answers for each further one.
QUIET = {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000"}
COPY = "(row) => { navigator.clipboard.writeText([row?.findings, row?.impression].filter(Boolean).join('\\n')) }"


def serve(checkpoint: str, pipe: Any, host: str = "127.0.0.1", port: int | None = None) -> None:
    """Run the app until it is interrupted.

    Args:
        checkpoint: a run folder or Hub id, whose report is shown.
        pipe: an `ImpressionPipeline` of it; or a `Runner`, which does not tell where the model looked.
        host: address to listen on; by default only this machine can reach it.
        port: default: the first free one from 7860 on.

    Raises `OSError` where the port is taken.
    """
    with staging_folder(Path(tempfile.gettempdir()) / "app") as folder:
        os.environ |= QUIET | {"GRADIO_TEMP_DIR": str(folder.resolve())}
        _fetch_nothing()
        routes.StateHolder = Visitors  # type: ignore[misc]
        app = make_app(pipe, folder_of(checkpoint, ["config.json", *page.REPORT]), uploads := Uploads(folder))
        app.upload_file_set = uploads.count  # type: ignore[assignment]
        _, address, _ = app.queue(max_size=256, default_concurrency_limit=None).launch(
            server_name=host,
            server_port=port,
            max_file_size=MOST_BYTES,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=page.CSS,
            state_session_capacity=SESSIONS,
            app_kwargs={"middleware": [Middleware(Guard)]},
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            footer_links=["api"],
        )
        print(f"{address} shows {checkpoint}; Ctrl-C ends it. {page.NOTE}", flush=True)
        try:
            while not threading.Event().wait(60):
                forget_idle(app)
        finally:
            app.close()


def _fetch_nothing() -> None:
    """Keep Gradio from fetching the addresses that a client names in the place of files."""

    async def refuse(*args: Any, **options: Any) -> Any:
        raise gr.Error("no address is fetched; send the file itself", print_exception=False)

    safehttpx.get = safehttpx.async_validate_url = refuse


class Guard:
    """Middleware: no request larger than a file may be, none of what is closed, no page that asks other hosts."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        length, room = dict(scope.get("headers", ())).get(b"content-length", b"0"), MOST_BYTES + 65536
        if not length.isdigit() or int(length) > room:
            return await PlainTextResponse(TOO_LARGE, 413)(scope, receive, send)
        if any(part in scope.get("path", "") for part in CLOSED):
            return await PlainTextResponse("closed", 404)(scope, receive, send)

        async def receive_so_much() -> Any:  # a request in chunks tells no length
            nonlocal room
            message = await receive()
            room -= len(message.get("body", b""))
            if room < 0:
                raise HTTPException(413, TOO_LARGE)
            return message

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(
                    {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
                )
            await send(message)

        await self.app(scope, receive_so_much, send_with_policy)


class Desk:
    """What the app does with images: takes them in, and has the model write."""

    def __init__(self, pipe: Any, uploads: Uploads, worth: str) -> None:
        self.uploads, self.batcher, self.worth = uploads, Batcher(pipe), worth
        self.explained = {} if isinstance(pipe, Runner) else {"return_attention": "words"}
        self.aside = ThreadPoolExecutor(1)  # one image at a time: the largest need 400 MB

    async def impression(
        self,
        frontal: gr.FileData | None = None,
        lateral: gr.FileData | None = None,
        indication: str = "",
        withhold_below: float = 0.0,
    ) -> dict[str, Any]:
        """The text for a study of one or two images (PNG, JPEG or DICOM), its score, findings and warnings."""
        try:
            images = self.uploads.take(frontal), self.uploads.take(lateral)
            return _withheld(await self._asked(*images, indication), float(withhold_below))
        except (TypeError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from None

    async def write(
        self, frontal: bytes | None, lateral: bytes | None, below: float, indication: str = ""
    ) -> tuple[dict[str, Any], Any, str]:
        """The answer to keep, and as it is shown: as JSON and as HTML."""
        try:
            answer = await self._asked(frontal, lateral, indication, **self.explained)
        except ValueError as error:
            answer = {"error": str(error)}
        views = await self._aside(page.looked_at, answer)
        words = [word for word, _ in answer.pop("attention_words", ())]
        answer.pop("attention", None)
        kept = {"answer": answer, "views": views, "words": words}
        return kept, *self.show(kept, below)

    def show(self, kept: dict[str, Any] | None, below: float) -> tuple[Any, str]:
        """An answer that was kept, withheld where its score is lower."""
        if not kept:
            return None, ""
        answer = _withheld(kept["answer"], below)
        return answer, page.answer_html(answer, kept["views"], kept["words"], self.worth)

    async def drop(self, view: str, upload: Any) -> tuple[bytes | None, str, None]:
        """An image that was dropped: what is kept of it, how it is shown, and nothing left where it was dropped."""
        try:
            content = self.uploads.take(upload)
            return content, await self.shown(view, content), None
        except ValueError as error:
            return None, page.boxed(page.told([f"{view}: {error}"], "wrong")), None

    async def shown(self, view: str, content: bytes | None) -> str:
        """An image, small, with what speaks against it. Raises `UnreadableImage`."""
        if content is None:
            return ""

        def read() -> str:
            grey = read_radiograph(content)
            return page.boxed(page.shown(grey, f"{view} view"), page.told(doubts(content, grey, view), "doubt"))

        return await self._aside(read)

    async def example(self, name: str) -> list[Any]:
        """What is kept of an example's two images, and how each is shown."""
        images = [_drawn(EXAMPLES[name], view) for view in VIEWS]
        return [*images, *[await self.shown(view, image) for view, image in zip(VIEWS, images, strict=True)]]

    async def _aside(self, work: Callable[..., T], *given: Any) -> T:
        """What `work` gives, while others are served."""
        return await asyncio.get_running_loop().run_in_executor(self.aside, work, *given)

    async def _asked(
        self, frontal: bytes | None, lateral: bytes | None, indication: str, **options: Any
    ) -> dict[str, Any]:
        if frontal is None and lateral is None:
            raise ValueError("no image is given: drop a frontal view, a lateral view or both")
        study = {"frontal": frontal, "lateral": lateral, "indication": indication or None}
        return await asyncio.wrap_future(self.batcher.ask(study, return_findings=True, **options))


def _withheld(answer: dict[str, Any], below: float) -> dict[str, Any]:
    """As the pipeline's `abstain_below`, for an answer that is there already."""
    if "error" in answer or answer["score"] >= below:
        return answer
    return dict.fromkeys(answer) | {"score": answer["score"], "abstained": True}


def _drawn(case: Case, view: str) -> bytes | None:
    """A view of a synthetic study as PNG; None where the study has none."""
    if view not in case.views:
        return None
    render(case, view, EXAMPLE_SIDE).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


class Visitors(StateHolder):
    """Gradio's sessions. It opens one for each client of the API, too: those that hold nothing make room first."""

    def update(self, session_id: str) -> None:
        if len(self.session_data) > self.capacity:
            empty = [name for name, one in list(self.session_data.items()) if not any(one.state_data.values())]
            if empty and empty[0] != session_id:
                with self.lock:
                    self.session_data.pop(empty[0], None)
                    self.time_last_used.pop(empty[0], None)
        super().update(session_id)


def forget_idle(app: gr.Blocks) -> None:
    """Forget all that the page holds of visitors who have asked nothing for `IDLE` seconds."""
    for visitor, used in list(app.state_holder.time_last_used.items()):
        if (datetime.now() - used).total_seconds() > IDLE:
            forget(app, visitor)


def forget(app: gr.Blocks, visitor: str) -> None:
    """Forget all that the page holds of a visitor. Gradio would keep images for an hour more, and answers for good."""
    app.state_holder.session_data.pop(visitor, None)
    app.state_holder.time_last_used.pop(visitor, None)


def make_app(pipe: Any, folder: Path, uploads: Uploads) -> gr.Blocks:
    """The page and its API. `folder` holds the checkpoint's config.json and, where there is one, its report."""
    calibrated = "cxr_calibration" in json_object(folder / "config.json")
    desk = Desk(pipe, uploads, CHANCE if calibrated else PROBABILITY)
    with gr.Blocks(title="hf-cxr", analytics_enabled=False) as app:
        gr.HTML(f'<p class="cxr-note always" role="note">{page.SHORT}</p>')
        with gr.Tab("A study"):
            _study(desk, "indication" in pipe.layout.context)
        with gr.Tab("This model"):
            gr.HTML(page.run_html(folder))
        gr.api(desk.impression, api_name="impression")

        def leave(request: gr.Request) -> None:
            forget(app, str(request.session_hash))

        app.unload(leave)
    return app


def _study(desk: Desk, indication: bool) -> None:
    """The tab where a study is given and its text read."""
    images, previews = list[gr.State](), list[gr.HTML]()
    with gr.Row():
        with gr.Column(scale=2):
            gr.Markdown("PNG, JPEG or DICOM; a study may have one view or both.")
            with gr.Row():
                for view in VIEWS:
                    with gr.Column(min_width=150):
                        image = gr.State(time_to_live=IDLE)
                        zone = gr.File(label=f"{view.capitalize()} view", height=130)
                        preview = gr.HTML(elem_id=f"{view}-image")
                        remove = gr.Button(f"Remove {view}", size="sm")
                    private(zone.upload, partial(desk.drop, view), zone, [image, preview, zone], preprocess=False)
                    private(remove.click, lambda: (None, ""), None, [image, preview])
                    images, previews = [*images, image], [*previews, preview]
            asked = [gr.Textbox(label="Indication", max_length=500)] if indication else []
            below = gr.Slider(0, 1, 0, step=0.01, label="Withheld below this score")
            write = gr.Button("Write the text", variant="primary")
            gr.Markdown("Or try a synthetic study, which was drawn and shows no patient:")
            with gr.Row():
                examples = {name: gr.Button(name, size="sm", min_width=100) for name in EXAMPLES}
        with gr.Column(scale=3):
            kept, answer = gr.State(time_to_live=IDLE), gr.HTML(elem_id="answer")
            copy = gr.Button("Copy the text", size="sm")
            with gr.Accordion("JSON", open=False):
                row = gr.JSON(show_label=False, elem_id="row")
    answering: Any = {"inputs": [*images, below, *asked], "outputs": [kept, row, answer], "show_progress_on": answer}
    private(write.click, desk.write, **answering)
    private(below.change, desk.show, [kept, below], [row, answer], trigger_mode="always_last")
    for name, button in examples.items():
        drawn = private(button.click, partial(desk.example, name), None, [*images, *previews])
        private(drawn.then, desk.write, **answering)
    private(copy.click, None, row, None, js=COPY)


def private(event: Any, *what: Any, **options: Any) -> Any:
    """Bind an event of the page, which is no part of the API."""
    return event(*what, api_visibility="private", **options)
