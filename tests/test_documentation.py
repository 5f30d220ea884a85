"""Every command and every snippet of README and docs runs, as printed, in a folder that looks like a user's: the
collection in its published forms (filled with phantom studies), images, and a Hub on this machine that holds small
stand-ins for the pretrained models. What is not run is listed below with its reason."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import published_forms
import pytest
import torch
from forms import chexpert_plus, covid_chestxray, mimic, padchest, r2gen_mimic, rexgradient
from helpers import ROOT, TINY_RECIPE, gpt2_folder, vit_folder, write_config
from hub_server import HubServer

import hf_cxr

PAGES = [ROOT / "README.md", ROOT / "docs" / "training.md"]
PAGES += [page for page in sorted((ROOT / "docs").glob("*.md")) if page not in PAGES]
COMMANDS = ("hf-cxr", "hf", "make", "accelerate", "torchrun", "python", "pip", "pytest")

# Command or its beginning → why it is not run here.
NOT_RUN = {
    "git clone": "there is no address to clone from here",
    "make": "this suite is `make test`; `make -n` below shows what each target runs; the demo has a test of its own",
    "pip install": "needs the package registry",
    "DASK_DISTRIBUTED": "runs until it is stopped; tests/data/test_scheduler.py starts it",
    "dask worker": "the same",
    "hf auth login": "asks for a token; the sandbox gives it as HF_TOKEN",
    "python benchmarks/": "takes minutes; tests/test_benchmarks.py runs some, here their arguments are checked",
    "python tests/hub_server.py": "runs until it is stopped; tests/hub/test_hub_server.py starts it",
    "hf-cxr evaluate user/their-model": "a model of others; tests/evaluation/test_single_image_models.py has some",
    "hf-cxr compare runs/theirs": "the same",
    "hf-cxr evaluate --predictions": "texts of others; tests/evaluation/test_external.py has some",
    "hf-cxr export-predictions rexrank": "studies of ReXrank; tests/evaluation/test_export.py has some",
    "hf-cxr compare runs/first runs/second runs/third": "tests/evaluation/test_compare.py compares several",
    "hf-cxr prepare r2gen": "tests/cli/test_r2gen_lines.py runs these three lines",
    "hf-cxr train iu_xray_small --dataset data/r2gen": "the same",
    "hf-cxr evaluate runs/r2gen": "the same",
    "accelerate launch --cpu": "tests/training/test_distributed.py runs it",
    "torchrun": "as `accelerate launch`",
    "accelerate launch --config_file": "several hosts; tests/training/test_distributed.py runs two on the loopback",
    "hf-cxr evaluate runs/iu data/indiana --clinical": "installs it; tests/evaluation/test_clinical.py does too",
    "hf-cxr train runs/ours/config.yaml": "the reward stage of a run of yours; tests/training/test_reward.py has some",
    "hf-cxr app": "runs until it is stopped; `meanwhile` starts it",
}
REFUSED_WITHOUT_GPU = {"--accelerate_config fsdp2": "FSDP needs GPUs", "--accelerate_config deepspeed": "deepspeed"}
PRINTED = "http://127.0.0.1:7860"  # the address of the app on its page; another app may have that port
SHORTER = ["--num_train_epochs", "1", "--findings_pretraining_epochs", "1", "--max_target_length", "24"]
SMALLER = {"4000": "160", "8": "2", "CONFIG": "CONFIG.yaml"}  # studies of the phantom, processes; one config
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9]*|.*…")  # a word of a command that the reader replaces; CONFIG is a file here


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The commands of a page: the lines of its shell blocks, then those in running text and tables."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    inline = [code for code in re.findall(r"`([^`]+)`", text) if len(code.split()) > 2]
    inline = [" ".join(code.split()) for code in inline if code.split()[0] in COMMANDS]
    told = [shlex.join(shlex.split(line, comments=True)) for line in lines]
    return list(dict.fromkeys([command for command in told if command] + [shlex.join(shlex.split(c)) for c in inline]))


def reason_not_to_run(command: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)


def is_form(command: str) -> bool:
    """Whether a command holds a word that the reader has to replace."""
    return any(PLACEHOLDER.fullmatch(word) and word != "CONFIG" for word in shlex.split(command))


class Sandbox:
    """A user's folder, a Hub, and a process that runs commands in the one with the other."""

    def __init__(self, folder: Path, hub: HubServer) -> None:
        self.folder, self.done = folder, set[frozenset[str]]()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        modules = os.pathsep.join(filter(None, (str(folder / "scripts"), os.environ.get("PYTHONPATH"))))
        self.env = os.environ | hub.env | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": modules}
        runner = [sys.executable, str(ROOT / "tests" / "command_runner.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.runner = subprocess.Popen(runner, cwd=folder, env=self.env, **pipes)

    def ask(self, task: dict) -> tuple[int, str, str]:
        self.runner.stdin.write(json.dumps(task) + "\n")
        self.runner.stdin.flush()
        answer = json.loads(self.runner.stdout.readline())
        return answer["status"], answer["stdout"], answer["stderr"]

    def run(self, command: str) -> None:
        """Run one command once, whatever the order of its options; it has to succeed."""
        words = [SMALLER.get(word, word) for word in shlex.split(command)]
        if "train" in words or "scripts/train.py" in words:
            words += SHORTER + ([] if torch.cuda.is_available() else ["--use_cpu", "true"])
            if "CONFIG.yaml" in words and "--resume" not in words:
                words.append("--restart")  # it stands for many configs, each with an output_dir of its own
        if frozenset(words) in self.done:
            return
        self.done.add(frozenset(words))
        if "download" in words:
            words += ["--mirror", self.mirror]
        if words[0] == "hf-cxr":
            status, told, error = self.ask({"words": words[1:]})
        elif words[0] == "python":
            status, told, error = self.ask({"script": words[1:]})
        else:
            result = subprocess.run(words, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=300)
            status, told, error = result.returncode, result.stdout, result.stderr
        refusal = next((told for part, told in REFUSED_WITHOUT_GPU.items() if part in command), None)
        if refusal and status == 2:
            assert refusal.lower() in error.lower(), f"{command}\n{error}"
        else:
            assert status == 0, f"{command}\n{told[-1000:]}\n{error[-3000:]}"

    @contextmanager
    def meanwhile(self, page: Path) -> Iterator[str]:
        """What the page starts and does not end, for the snippets that talk to it: its address."""
        started = [shlex.split(command) for command in commands(page) if command.startswith("hf-cxr app")]
        if not started or not blocks(page, "python"):
            yield PRINTED
            return
        with subprocess.Popen(started[0], cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True) as app:
            try:
                address = app.stdout.readline().partition(" ")[0]
                assert address.startswith("http://127.0.0.1:")
                yield address
            finally:
                app.terminate()


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    folder, stored = tmp_path_factory.mktemp("user"), tmp_path_factory.mktemp("hub")
    vit_folder(stored / "models" / "google" / "vit-base-patch16-224-in21k", image_size=224)
    gpt2_folder(stored / "models" / "gpt2")
    drawn = published_forms.draw(60)
    published_forms.open_i(folder / "mirror", drawn)
    published_forms.kaggle(folder / "kaggle", drawn)
    published_forms.r2gen(folder / "iu_xray.zip", drawn)
    published_forms.own_table(folder / "export.csv", drawn)
    published_forms.on_the_hub(stored / "datasets" / "user" / "open-i" / "train.parquet", drawn)
    places = {"chexpert": chexpert_plus, "padchest": padchest, "rexgradient": rexgradient, "covid": covid_chestxray}
    places["mimic_cxr"] = r2gen_mimic
    for place, form in places.items():
        (folder / place).mkdir()
        form.make(folder / place, 40)
    mimic.make(folder, 60)
    both = next(views for _, _, views in drawn if len(views) == 2)
    for view, image in both.items():
        (folder / f"{view}.png").write_bytes(image)
        (folder / f"{view}s").mkdir()
        (folder / f"{view}s" / "a.png").write_bytes(image)
    published_forms.write_table(
        folder / "studies.csv", [{"uid": "a", "frontal": "frontal.png"}, {"uid": "b", "frontal": "frontal.png"}]
    )
    for name in ("configs", "scripts"):
        shutil.copytree(ROOT / name, folder / name)
    write_config(folder / "CONFIG.yaml", **TINY_RECIPE, dataset="data/phantom", output_dir="runs/config")
    site = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    site.folder = str(folder / "mirror")
    Thread(target=site.serve_forever, daemon=True).start()
    with site, HubServer(tokens={"hf_test": "user"}, root=stored) as hub:
        made = Sandbox(folder, hub)
        made.mirror = f"http://127.0.0.1:{site.server_port}/"
        yield made
        made.runner.stdin.close()
        made.runner.wait(30)
        site.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, directory=args[2].folder, **kwargs)

    def log_message(self, *args):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_snippet_of_a_page_runs_as_printed(sandbox, page):
    """The README comes first: other pages go on with the datasets and runs that it made."""
    for command in commands(page):
        if not reason_not_to_run(command) and not is_form(command):
            sandbox.run(command)
    with sandbox.meanwhile(page) as address:
        for code in blocks(page, "python"):
            if ">>>" not in code:  # else a doctest, below
                status, told, error = sandbox.ask({"code": code.replace(PRINTED, address)})
                assert status == 0, f"{page.name}\n{code}\n{told}\n{error[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_with_prompts_print_what_the_page_says(page):
    import doctest

    result = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert result.failed == 0


def test_what_is_not_run_is_in_the_documentation_and_its_arguments_exist():
    told = [command for page in PAGES for command in commands(page) if reason_not_to_run(command)]
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in told), f"{start}: no page says this any more"
    for command in told:
        words = shlex.split(command)
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        if command.startswith("python benchmarks/"):
            source = (ROOT / words[1]).read_text(encoding="utf-8")
            assert not [word for word in words[2:] if word.startswith("--") and f'"{word}"' not in source], command


def test_the_options_of_a_command_with_a_word_to_replace_exist():
    forms = [command for page in PAGES for command in commands(page) if is_form(command)]
    assert any(command.startswith("hf-cxr") for command in forms)
    for words in map(shlex.split, forms):
        if words[0] == "hf-cxr":
            told = help_of(words[1])
            assert not [word for word in words if word.startswith("--") and word not in told], words


@functools.cache
def help_of(command: str) -> str:
    """What `hf-cxr COMMAND --help` prints."""
    words = [str(Path(sys.executable).with_name("hf-cxr")), command, "--help"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_fits_on_a_few_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The documentation site as `make docs` builds it: any dead link, dead anchor or unknown name is an error."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    result = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_the_site_holds_every_page_notebook_public_name_and_command(site):
    for page in PAGES[1:]:
        assert (site / page.with_suffix(".html").name).is_file()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert "Research use only" in (site / "tutorials" / f"{notebook.stem}.html").read_text(encoding="utf-8")
    reference = (site / "python.html").read_text(encoding="utf-8")
    told = [re.sub("<.*?>", "", heading) for heading in re.findall("<h2.*?</h2>", reference, re.DOTALL)]
    assert [name for name in hf_cxr.__all__ if not name.startswith("_")] == sorted(
        (heading.split()[0].removesuffix("¶") for heading in told), key=hf_cxr.__all__.index
    )
    assert "hf-cxr prepare" in (site / "command_line.html").read_text(encoding="utf-8")


def test_pages_of_the_site_ask_no_other_host_and_name_no_place_of_this_machine(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"?https?:", text), page.name
        assert not re.findall(r"<link[^>]* rel=\"?(?:stylesheet|preconnect|icon)[^>]* href=\"?https?:", text), (
            page.name
        )
        assert str(ROOT) not in text, page.name
