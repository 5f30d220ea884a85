"""What is known of a collection as a whole: its name, licence and language. What may become public of what was made
from it is decided in `hf_cxr.data.licences`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Collection:
    """A published collection, or (as it stands) a user's own."""

    name: str = "your own collection"
    licence: str = "other"
    """An identifier of the Hub, or the short name of a licence that has none there."""
    note: str = "The licence of the source is not known to hf-cxr: check it before you share this dataset."
    """What the licence means for the reader of the card: Markdown, a few plain sentences."""
    language: str | None = None
    """Of the reports, ISO 639-1; `None`: not known."""
    limits: str = "- Those of your own collection, which hf-cxr does not know."
    """What is known to be wrong with it, as a Markdown list."""
    published_ids: bool = False
    """Whether its study and patient ids are public pseudonyms, so that a push need not hash them."""


_INDIANA_LIMITS = """\
- From the hospitals of one region (Indiana, USA); how common findings are there says little of your patients.
- Names, dates and much else were blanked as `XXXX` by a program, which took harmless words too ("new", "likely").
- Half of the impressions open with "no acute …" in some wording, so one constant sentence scores well on word overlap.
- Impressions refer to earlier films that are not here ("unchanged", "improved")."""
INDIANA = Collection(
    "Indiana University chest X-ray collection",
    "cc-by-nc-nd-4.0",
    "The reports and images are the Indiana University chest X-ray collection (Demner-Fushman et al., 2016; Open-i, "
    "U.S. National Library of Medicine), licensed **CC BY-NC-ND 4.0**: attribution, non-commercial use, and **no "
    "redistribution of derivatives**. This folder holds resized images and cleaned text, that is, a derivative: keep "
    "it to yourself, use it for research, and do not publish it.",
    "en",
    _INDIANA_LIMITS,
    published_ids=True,
)
MIMIC = Collection(
    "MIMIC-CXR",
    "physionet-credentialed-1.5.0",
    "The reports and images are MIMIC-CXR (Johnson et al., 2019; PhysioNet), under the **PhysioNet Credentialed "
    "Health Data License 1.5.0**: only those who have signed its data use agreement may have access. **Do not "
    "publish this dataset, and give nobody access to it**, nor send its texts to a service that keeps them.",
    "en",
    "- Patients of the emergency department of one hospital (Boston, USA), 2011 to 2016.\n"
    "- Names, dates and more were replaced by `___`, and dates were shifted.\n"
    "- Reports compare with earlier films, which a model does not see.",
)
SYNTHETIC = Collection(
    "Synthetic chest studies",
    "apache-2.0",
    "Synthetic images and texts drawn by hf-cxr; no patient is behind any of them.",
    "en",
    "- A drawing, not a radiograph: a model learns nothing of patients from it.",
    published_ids=True,
)
_EARLIER = {"kaggle": INDIANA, "openi": INDIANA, "r2gen": INDIANA, "phantom": SYNTHETIC}


def collection_of(preparation: Mapping[str, Any]) -> Collection:
    """The collection that a `prepare.json` states; earlier versions stated its source alone."""
    stated = preparation.get("collection")
    if not isinstance(stated, dict):
        return _EARLIER.get(str(preparation.get("source")), Collection())
    return Collection(**{field.name: stated[field.name] for field in fields(Collection) if field.name in stated})
