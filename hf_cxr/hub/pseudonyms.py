"""Study and patient ids of a collection that does not publish them: salted hashes take their place in what is pushed.

Salt and map stay at home, in a file beside the dataset's folder. What may be pushed at all is decided in `privacy`."""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_cxr.data.collection import collection_of
from hf_cxr.data.dataset_card import COLUMNS
from hf_cxr.data.schema import PAIR, PARQUET
from hf_cxr.hub.privacy import CARD, PREPARATION
from hf_cxr.utils.files import json_object

MARK = "ids"  # of a prepare.json whose ids are hashes already


def wanted(dataset: Path) -> bool:
    """Whether the ids of a prepared dataset are its own: those of some collections are published."""
    facts = json_object(dataset / PREPARATION)
    return not collection_of(facts).published_ids and MARK not in facts


def map_of(dataset: Path) -> Path:
    """The file with salt and map, which never leaves: beside the folder, not in it."""
    folder = dataset.resolve()
    return folder.with_name(f"{folder.name}.ids.json")


def hashed_copy(files: Mapping[str, Path], dataset: Path, target: Path) -> dict[str, Path]:
    """The files of a push with uid and patient replaced, written to the folder `target`; the others as they are.

    The salt of an earlier push is used again, so that a study keeps its hash. Raises `ValueError` for a damaged map,
    or one under a name that the folder had before, `OSError` where it cannot be written.
    """
    home = map_of(dataset)
    known = json_object(home) if home.is_file() else {"salt": secrets.token_hex(32), "uid": {}, "patient": {}}
    if not all(isinstance(known.get(name), kind) for name, kind in (("salt", str), ("uid", dict), ("patient", dict))):
        raise ValueError(f"{home}: holds no salt and map of ids; bring back the file that an earlier push wrote")
    names = Names(known)
    copies = dict(files)
    for name in (name for name in files if name.endswith(".parquet") or name == "splits.csv"):
        copies[name] = target / name
        copies[name].parent.mkdir(parents=True, exist_ok=True)
        (_hash_parquet if name.endswith(".parquet") else _hash_table)(files[name], copies[name], names)
    if not home.is_file() and (other := _earlier_map(home, known["uid"])):
        raise ValueError(
            f"{other}: written by an earlier push of studies with these ids; rename it to {home.name} so that they "
            "keep their hashes, or move it away"
        )
    facts = json_object(files[PREPARATION]) | {MARK: "salted hashes"}
    card = files[CARD].read_text(encoding="utf-8").replace(COLUMNS["uid"], "a salted hash of its name in its source")
    if "splits.csv" in files:
        before, facts["splits_sha256"] = facts.get("splits_sha256"), _sha256(copies["splits.csv"])
        card = card.replace(before or facts["splits_sha256"], facts["splits_sha256"])
    for name, text in ((PREPARATION, json.dumps(facts, indent=2, ensure_ascii=False) + "\n"), (CARD, card)):
        copies[name] = target / name
        copies[name].write_text(text, encoding="utf-8")
    _write_for_me_alone(home, json.dumps(known, indent=1, ensure_ascii=False))
    return copies


def _earlier_map(home: Path, uids: Collection[str]) -> Path | None:
    """A map beside `home` with some of these uids whose dataset is not there any more."""
    for other in sorted(home.parent.glob("*.ids.json")):
        gone = not other.with_name(other.name.removesuffix(".ids.json")).exists()
        if gone and not set(uids).isdisjoint(json_object(other).get("uid", ())):
            return other
    return None


class Names:
    """The salted hashes of the ids in a map, which grows by those that are asked for."""

    def __init__(self, known: dict[str, Any]) -> None:
        self.known = known
        self.taken = set(known["patient"].values())

    def uid(self, given: str) -> str:
        """Of a study; a further row of it ("uid#2") keeps its ending."""
        ending = match.group() if (match := PAIR.search(given)) else ""
        uid = given.removesuffix(ending)
        return self.known["uid"].setdefault(uid, f"s{self._digest('uid', uid)[:16]}") + ending

    def patient(self, given: int) -> int:
        """Of a patient, a number of 31 bits as in the column, no two the same."""
        number, tries = self.known["patient"].get(str(given)), 0
        while number is None:
            drawn = int(self._digest(f"patient {tries}", str(given))[:8], 16) >> 1
            number, tries = None if drawn in self.taken else drawn, tries + 1
        self.taken.add(number)
        self.known["patient"][str(given)] = number
        return number

    def _digest(self, kind: str, given: str) -> str:
        return hmac.new(bytes.fromhex(self.known["salt"]), f"{kind}:{given}".encode(), hashlib.sha256).hexdigest()


def _hash_parquet(file: Path, copy: Path, names: Names) -> None:
    source = pq.ParquetFile(file)
    schema = source.schema_arrow
    with pq.ParquetWriter(copy, schema, **PARQUET) as writer:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            for column, hashed in (("uid", names.uid), ("patient", names.patient)):
                if column in schema.names:
                    place, values = schema.get_field_index(column), table[column].to_pylist()
                    renamed = pa.array([value if value is None else hashed(value) for value in values])
                    table = table.set_column(place, schema.field(place), renamed.cast(schema.field(place).type))
            writer.write_table(table)


def _hash_table(file: Path, copy: Path, names: Names) -> None:
    with file.open(encoding="utf-8", newline="") as read, copy.open("w", encoding="utf-8", newline="") as write:
        rows, table = csv.reader(read), csv.writer(write, lineterminator="\n")
        table.writerow(next(rows))
        table.writerows((names.uid(uid), *rest) for uid, *rest in rows)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _write_for_me_alone(file: Path, text: str) -> None:
    """Write a file whole, readable by its owner only."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600, exist_ok=False)
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
