"""The privacy check: which files make up a run or a dataset, whether they are whole, and whether one of them
tells of the machine, of its user, or holds a token. The way to the Hub is `hf_cxr.hub.push`.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import re
import socket
import struct
import textwrap
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq
import yaml
from PIL import Image
from pyarrow import ArrowException
from safetensors import SafetensorError, safe_open

from hf_cxr.inference.remote_code import REMOTE_CODE_FILES
from hf_cxr.utils.files import json_object

CARD, FACTS, CONFIG, PREPARATION = "README.md", "card.json", "config.json", "prepare.json"
INDEX, CODE = "model.safetensors.index.json", "pipeline.py"
VOCABULARIES = (
    *("tokenizer.json", "vocab.json", "vocab.txt"),
    *("spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
)
# What a pushed run consists of. Predictions hold the reports of the collection, so they stay here.
RUN_FILES = (
    *("model.safetensors", "model-*.safetensors", INDEX),
    *(CONFIG, "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *(*VOCABULARIES, "merges.txt", "bpe.codes"),
    *REMOTE_CODE_FILES,
    *(CARD, "report.json", "report.md"),
    # Those of `report.figures.CARD_FIGURES`, whose import would take matplotlib; a test holds them together.
    *(f"figures/{name}.png" for name in ("image_shuffle", "findings", "reliability", "risk")),
)
DATASET_FILES = ("data/*.parquet", CARD, PREPARATION, "splits.csv")
SPACE_FILES = ("app.py", "requirements.txt", CARD, *("hf_cxr" + depth * "/*" for depth in range(1, 6)))
PATTERNS = {"model": RUN_FILES, "dataset": DATASET_FILES, "space": SPACE_FILES}

TOKEN = r"(?:hf|api_org)_[A-Za-z0-9]{30,}"
HOME_FOLDER = (
    r"(?:/home/|/Users/|[A-Za-z]:\\{1,2}(?:Users|Documents and Settings)\\{1,2})"
    r"(?!(?:user|username|you|name)\b)[\w.-]+"
)
# Where disks and home folders are mounted: a path from there on tells of a machine, in whatever text it stands.
MOUNTED = (
    r"(?:(?<=file://)|(?<![\w.:/~-]))/(?:mnt|media|Volumes|scratch|gpfs|lustre|nfs|homes|srv|data|work|workspace|root"
    r"|private|opt|tmp|var)/[\w.][^\s\"'`]*"
)
# A whole string that is a path: of a program that names a file of its machine, in JSON or in a table.
ABSOLUTE_PATH = re.compile(
    r"\s*(?:(?:file://)?(?:/+[.~]?\w[^/\n]*){2,}/*|~(?:[A-Za-z_][\w.-]*)?/[^\n]+|[A-Za-z]:[\\/][^\n]*"
    r"|\\\\[\w.-]+\\[^\n]+)\s*"
)


def kind_of(path: Path, dataset: bool) -> str:
    """ "model" or "dataset", by a folder's files.

    Raises `FileNotFoundError` for a folder that is neither, or, with `dataset`, that is no dataset.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    is_run, is_dataset = (path / CONFIG).is_file(), (path / PREPARATION).is_file()
    if dataset and not is_dataset:
        what = "this is a run; push it without --dataset" if is_run else f"no prepared dataset (no {PREPARATION})"
        raise FileNotFoundError(f"{path}: {what}")
    if not is_run and not is_dataset:
        raise FileNotFoundError(f"{path}: neither a checkpoint ({CONFIG}) nor a prepared dataset ({PREPARATION})")
    return "dataset" if dataset or not is_run else "model"


def is_ours(name: str, kind: str) -> bool:
    """Whether a file of this name in a repository is one that a push puts there."""
    return any(PurePosixPath(name).match(one) and name.count("/") == one.count("/") for one in PATTERNS[kind])


def files_to_push(path: Path, kind: str) -> dict[str, Path]:
    """Name in the repository → file, of all that is pushed of a `kind` "model" or "dataset".

    Raises `FileNotFoundError` where something is missing without which it cannot be used, `ValueError` where weights
    or data are damaged.
    """
    files = {
        file.relative_to(path).as_posix(): file for one in PATTERNS[kind] for file in path.glob(one) if file.is_file()
    }
    if kind == "model" and not (path / FACTS).is_file() and any(path.glob("*.safetensors")):
        card = files[CARD].read_text(encoding="utf-8") if CARD in files else ""
        if CODE not in files or "pipeline_tag:" not in card:  # which a pipeline without the kit goes by
            raise FileNotFoundError(
                f"{path}: no run of hf-cxr ({FACTS} is not there), so it makes no card for it; nothing was pushed. "
                f"Write a {CARD} with `pipeline_tag: image-to-text` in its head, and upload the folder with: hf "
                f"upload --private USER/NAME {path}"
            )
    _check_there(path, files, [(CARD,), ("*.safetensors",) if kind == "model" else ("data/*.parquet",)])
    if kind == "model":
        _check_run(path, files)
    else:
        _check_data(path, files)
    return dict(sorted(files.items()))


def _check_there(path: Path, files: Mapping[str, Path], needed: list[tuple[str, ...]]) -> None:
    """Raise `FileNotFoundError` unless of each of `needed` there is a file, under one of its names."""
    for names in needed:
        if not any(PurePosixPath(file).match(name) for name in names for file in files):
            raise FileNotFoundError(
                f"{path}: holds no {' or '.join(names)}: it has not come to its end, or lost it; nothing was pushed"
            )


def _check_run(path: Path, files: Mapping[str, Path]) -> None:
    _check_there(path, files, [("preprocessor_config.json",), ("tokenizer_config.json",), VOCABULARIES, (CODE,)])
    shards = set(json_object(files[INDEX]).get("weight_map", {}).values()) if INDEX in files else set()
    code = [file.read_text(encoding="utf-8") for name, file in files.items() if name.endswith(".py")]
    imported = {f"{module}.py" for text in code for module in re.findall(r"^\s*from \.(\w+) import", text, re.M)}
    _check_there(path, files, [(name,) for name in sorted(shards | imported)])
    for file in files.values():
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="np"):  # reads the header, and compares it with the size
                    pass
            except SafetensorError as error:
                raise ValueError(f"{file}: damaged ({error}); nothing was pushed") from None


def _check_data(path: Path, files: Mapping[str, Path]) -> None:
    rows: dict[str, int] = {}
    for name, file in files.items():
        if name.endswith(".parquet"):
            split = file.name.partition("-")[0]
            try:
                rows[split] = rows.get(split, 0) + pq.ParquetFile(file).metadata.num_rows
            except (ArrowException, OSError) as error:
                raise ValueError(f"{file}: damaged ({_one_line(error)}); nothing was pushed") from None
    for split, count in json_object(path / PREPARATION).get("splits", {}).items():
        if rows.get(split, 0) != count:
            raise ValueError(f"{path}: split {split} has {rows.get(split, 0)} of {count} rows; nothing was pushed")


def facts_of(run: Path) -> dict[str, Any]:
    """The card.json of a run; empty where there is none."""
    return json_object(run / FACTS) if (run / FACTS).is_file() else {}


def dataset_of(run: Path) -> str | None:
    """The dataset that a run's config.yaml names."""
    config = run / "config.yaml"
    if not config.is_file():
        return None
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{config}: no YAML ({_one_line(error)})") from None
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    return dataset if isinstance(dataset, str) else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


# --- traces of this machine ----------------------------------------------------------------------------------------


def read_text(file: Path) -> str:
    """What can be read in a file: all of it; of weights the header; of Parquet the footer and every different string
    but the images, one a line, as JSON; of an image its comments too."""
    if file.suffix == ".safetensors":
        with file.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))[0]
            return stream.read(length).decode("utf-8", errors="replace")
    if file.suffix == ".parquet":
        metadata = (pq.ParquetFile(file).metadata.metadata or {}).items()
        stated = [f"{key.decode(errors='replace')}: {value.decode(errors='replace')}" for key, value in metadata]
        strings = chain(stated, _strings_of_parquet(file))
        return "\n".join(json.dumps(string, ensure_ascii=False) for string in strings)
    text = file.read_bytes().decode("utf-8", errors="replace")
    if file.suffix == ".png":
        with contextlib.suppress(OSError), Image.open(file) as image:
            image.load()  # what stands behind the pixels, too
            text += "\n".join(map(str, image.info.values()))
    return text


def reports_of(files: Mapping[str, Path]) -> tuple[Iterator[str], set[str]]:
    """Of the files that are to be pushed, every text that comes from reports, and the ids of the studies."""
    tables = [file for name, file in files.items() if name.endswith(".parquet")]
    written = [json_object(files["report.json"])] if "report.json" in files else []
    texts = chain(_strings_in(written), *(_strings_of_parquet(file, but="uid") for file in tables))
    return texts, {uid for file in tables for uid in _strings_of_parquet(file, only="uid")}


def _strings_of_parquet(file: Path, but: str = "", only: str = "") -> Iterator[str]:
    """Every different string of the columns, all of them, all `but` one, or `only` one."""
    parquet = pq.ParquetFile(file)
    leaves = [parquet.schema.column(number) for number in range(len(parquet.schema))]
    paths = [leaf.path for leaf in leaves if str(leaf.logical_type) == "String"]
    texts, seen = [path for path in paths if path != but and only in ("", path)], set[str]()
    for batch in parquet.iter_batches(columns=texts):
        new = set(_strings_in(batch.to_pylist())) - seen
        seen |= new
        yield from sorted(new)


def check_nothing_private(texts: Mapping[str, str], path: Path, token: str | None = None) -> None:
    """Raise `ValueError` naming the file if a text holds a place on this machine, its name or user, or a token.

    `texts` are those of the folder `path`, by file name, as `read_text` gives them; `token` is one in use, of whatever
    form.
    """
    traces = _traces(path)
    # More than a word that any text may hold, such as "wrong" or "secret".
    own = token if token and (token.startswith("hf_") or len(token) > 15) else None
    for name, text in texts.items():
        if re.search(TOKEN, text) or (own and own in text):
            raise ValueError(f"{path / name}: holds an access token; take it out, and revoke it if others saw it")
        for what, pattern in traces.items():
            if match := re.search(pattern, text):
                raise _found(path / name, what, match.group())
        if name in VOCABULARIES:  # tokens are bits of whatever was written on the web
            continue
        if not name.endswith(".parquet") and (match := re.search(MOUNTED, text)):  # reports say "and /media/lateral"
            raise _found(path / name, "an absolute path", match.group())
        for string in _whole_strings(name, text):
            if ABSOLUTE_PATH.fullmatch(string) and not (name.endswith(".parquet") and _is_prose(string)):
                raise _found(path / name, "an absolute path", string)


def _found(file: Path, what: str, where: str) -> ValueError:
    shown = textwrap.shorten(where, 120, placeholder=" …") or where[:120]
    return ValueError(f"{file}: holds {what} ({shown}); take it out there, then push again")


def _is_prose(string: str) -> bool:
    """Whether a string of a dataset is a report, such as "~T8/T9 compression", and no path: words, and no file."""
    return len(string.split()) > 1 and not re.search(r"\.\w{1,6}\s*$", string)


def _whole_strings(name: str, text: str) -> Iterator[str]:
    """The strings of a JSON file, the header of weights, or Parquet, and the cells of a table."""
    if name.endswith((".json", ".safetensors")):
        with contextlib.suppress(ValueError):
            yield from _strings_in(json.loads(text))
    elif name.endswith(".parquet"):
        yield from map(json.loads, text.split("\n"))
    elif name.endswith(".csv"):
        yield from re.split(r'[",\r\n]+', text)


def _strings_in(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, (dict, list, tuple)):
        for value in (*content.keys(), *content.values()) if isinstance(content, dict) else content:
            yield from _strings_in(value)


def _traces(path: Path) -> dict[str, str]:
    """What would tell of this machine or its user → how to find it."""
    places = {"the place of its folder": path.resolve(), "the working folder": Path.cwd()}
    user = ""  # in a container one may have neither name nor home
    with contextlib.suppress(KeyError, OSError):
        user = getpass.getuser()
    with contextlib.suppress(RuntimeError):
        places["your home"] = Path.home()
    if dataset := dataset_of(path):
        places["the place of its dataset"] = Path(dataset).resolve()
    traces = {what: rf"(?<![\w.-]){re.escape(str(place))}(?![\w-])" for what, place in places.items() if place.name}
    host = socket.gethostname()
    if len(host) > 5 and re.search(r"[\d.-]", host):  # "radiology" is a word as well as a name
        traces["the name of this machine"] = rf"\b{re.escape(host)}\b"
    if user not in ("", "root"):
        folders = r"(?:(?:file://|(?<![\w:/.]))/(?:[\w.-]+/)*|\b[A-Za-z]:\\{1,2}(?:[\w.-]+\\{1,2})*)"
        traces["a path with your user name"] = rf"{folders}{re.escape(user)}(?![\w-])"
    return traces | {"a home folder": HOME_FOLDER}
