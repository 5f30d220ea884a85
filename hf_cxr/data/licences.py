"""The licences of collections: what they are, and what may become public of what was made from them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from hf_cxr.data.collection import collection_of
from hf_cxr.utils.files import json_object

CREDENTIALED = "physionet-credentialed"
"""How the name of a licence begins that PhysioNet gives to single persons, who may share the data with nobody."""
_NO_DERIVATIVES, _NON_COMMERCIAL = r"\b(by|nc|by-?nc)?nd(\b|\d)|no-?deriv", r"\bnc|non-?commercial"
# The Hub's identifiers of licences that let a changed copy be shared; any other is taken for one that does not.
_FREE = (
    r"(apache-2\.0|mit|cc0-1\.0|cc-by(-nc)?(-sa)?-[1-4]\.[05]|odc-by|odbl|pddl|bsd(-[23]-clause)?|unlicense|cdla-\S+"
    r"|([a-z]+-)?openrail(-m{1,2}|-[a-z]+)?|c-uda|etalab-2\.0|wtfpl|isc|zlib|[al]?gpl(-[23]\.[01])?|gfdl|mpl-2\.0|ecl-2\.0"
    r"|eupl-1\.[12]|mit-license|apache-license-2\.0|cc0|afl-3\.0|artistic-2\.0)"
)


def stated_licence(folder: Path) -> str:
    """The licence that a dataset's card names, in the form of the Hub's identifiers: "CC BY-NC-ND 4.0" is
    "cc-by-nc-nd-4.0", several are parted by a blank. Empty where it names none, or says "other" or "unknown"."""
    card = folder / "README.md"
    try:
        named = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{card}: its head is no YAML ({' '.join(str(error).split())})") from None
    names = named if isinstance(named, list) else [named or ""]
    plain = (unicodedata.normalize("NFKC", str(name)).lower() for name in names)
    licences = [re.sub(r"[^a-z0-9.]+", "-", name).strip("-") for name in plain]
    return "" if set(licences) <= {"", "other", "unknown", "none"} else " ".join(filter(None, licences))


def licence_on_the_hub(licence: str) -> dict[str, Any]:
    """What the head of a card says of a licence: the Hub knows one by its identifier, else by a name."""
    known = re.fullmatch(rf"{_FREE}|cc-\S+|other", licence)
    return {"license": licence} if known else {"license": "other", "license_name": licence}


def _known(preparation: Mapping[str, Any]) -> str:
    licence = collection_of(preparation).licence
    return "" if licence == "other" else licence


def known_licence(facts: Mapping[str, Any]) -> str:
    """That of a dataset, by what a card.json tells: its `preparation`, else its own card. Empty: not known."""
    return _known(facts["preparation"]) or facts.get("licence") or ""


def check_may_be_public(folder: Path, hold_rights: bool = False) -> None:
    """Raise `ValueError` unless a prepared dataset may be published: by its card, and by what it was prepared from,
    for a card can be edited. Who holds the rights may, but for credentialed data, of which nobody can."""
    known, stated = _known(json_object(folder / "prepare.json")), stated_licence(folder)
    forbidden = next((licence for licence in (known, stated) if re.search(_NO_DERIVATIVES, licence)), None)
    unknown = next((one for one in f"{known} {stated}".split() if not re.fullmatch(_FREE, one)), None)
    if known.startswith(CREDENTIALED):
        why = f"its licence ({known}) is given to single persons, who may share the data with nobody"
        raise ValueError(f"{folder}: {why}; hf-cxr never makes it public")
    if hold_rights:
        return
    if forbidden:
        why = f"its licence ({forbidden}) forbids sharing derivatives such as resized images"
    elif unknown:
        why = f"its licence ({unknown}) is none that hf-cxr knows to allow it"
    elif not stated:
        why = "its licence is unknown (README.md names none)"
    else:
        return
    raise ValueError(f"{folder}: {why}; push it without --public, or state with --i-hold-the-rights that you may")


def note_on_a_dataset(folder: Path) -> str | None:
    """What to consider before a prepared dataset goes to the Hub at all, in a sentence; `None`: nothing."""
    known = _known(json_object(folder / "prepare.json"))
    if not known.startswith(CREDENTIALED):
        return None
    return (
        f"the agreement of this data ({known}) forbids to share it with third parties, online services among them: "
        "whether a private repository of the Hub is allowed is yours to judge"
    )


def note_on_weights(
    dataset: str | None, preparation: Mapping[str, Any], ancestors: Iterable[Mapping[str, Any]] = ()
) -> str | None:
    """What to consider before weights become public, in a sentence; `None` where there is nothing.

    Args:
        dataset: what they were trained on: a folder, whose card is read if it is still there, or a name on the Hub.
        preparation: its `prepare.json`, as far as that is known.
        ancestors: `continued_from` of the card.json: what they began from has learned as well.
    """
    own = {"licence": stated_licence(Path(dataset)) if dataset else "", "preparation": preparation}
    trained = [f"{one['licence'] or ''} {_known(one['preparation'])}".split() for one in (own, *ancestors)]
    named = dict.fromkeys(one for licences in trained for one in licences)
    bound = [one for one in named if not re.fullmatch(_FREE, one) or re.search(_NON_COMMERCIAL, one)]
    terms = [f"under {one}" for one in bound] + ([] if all(trained) else ["of a licence that is not known"])
    if not terms:
        return None
    said = f"these weights were trained on data {' and '.join(terms)}: whether they may be public is yours to judge"
    if any(one.startswith(CREDENTIALED) for one in bound):
        said += "; PhysioNet asks to share what is derived from its data there, under the agreement of the data"
    return said
