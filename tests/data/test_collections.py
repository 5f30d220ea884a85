"""What a card and the page of explore tell of each published form: collection, licence, language, placeholders."""

import json
from importlib import import_module

import published_forms
import pytest
from forms import mimic
from huggingface_hub import DatasetCard

from hf_cxr.data.licences import check_may_be_public
from hf_cxr.data.prepare import prepare
from hf_cxr.explore import _preparation

INDIANA = ("Indiana University chest X-ray collection", "cc-by-nc-nd-4.0", "en", {})
OWN = ("your own collection", "other", None, {})
TOLD = {
    "openi": INDIANA,
    "kaggle": INDIANA,
    "r2gen": INDIANA,
    "table": OWN,
    "mimic": ("MIMIC-CXR", "physionet-credentialed-1.5.0", "en", {"___"}),
    "chexpert_plus": ("CheXpert Plus", "stanford-research-use", "en", {}),
    "padchest": ("PadChest", "padchest-research-use", "es", {}),
    "rexgradient": ("ReXGradient-160K", "rexgradient-non-commercial", "en", {}),
    "covid_chestxray": ("COVID-19 image data collection", "other", "en", {}),
}


def options_of(form, folder):
    """What reads a small tree of this form, made in `folder`."""
    drawn = published_forms.draw(14, size=32)
    if form in ("openi", "kaggle"):
        (published_forms.open_i if form == "openi" else published_forms.kaggle)(folder / "tree", drawn)
        return {"root": folder / "tree"}
    if form == "r2gen":
        published_forms.r2gen(folder / "iu_xray.zip", drawn)
        return {"root": folder / "iu_xray.zip", "section": "findings"}
    if form == "table":
        published_forms.own_table(folder / "t.csv", drawn)
        columns = {"uid": "accession", "frontal": "pa_file", "lateral": "lat_file", "impression": "conclusion"}
        return {"root": folder / "t.csv", "columns": columns}
    if form == "mimic":
        truths = mimic.draw(40)
        images, reports = mimic.jpg_tree(folder / "jpg", truths), mimic.reports_zip(folder / "reports.zip", truths)
        return {"images": images, "reports": reports}
    made = import_module(f"forms.{form}")
    made.make(folder, 40)
    given = dict(zip(made.OPTIONS[::2], made.OPTIONS[1::2], strict=True))
    places = {name: folder / given[f"--{name}"] for name in ("root", "images") if f"--{name}" in given}
    return {"preset": form, "section": given.get("--section", "impression"), **places}


@pytest.mark.parametrize("form", TOLD)
def test_each_form_is_told_as_the_collection_it_is(form, tmp_path):
    name, licence, language, placeholders = TOLD[form]
    options = options_of(form, tmp_path)
    source = "table" if "preset" in options else form
    report = prepare(source, tmp_path / "out", size=16, **options)
    stated = json.loads((tmp_path / "out" / "prepare.json").read_text())["collection"]
    assert (stated["name"], stated["licence"], stated["language"]) == (name, licence, language)
    assert set(report["placeholders"]) == set(placeholders)
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert (card.data.get("license_name") or card.data.license, card.data.language) == (licence, language)
    assert f"# Chest radiograph studies ({name})" in card.text
    assert stated["note"] in card.text
    explored = _preparation(tmp_path / "out")["from"]
    assert explored == {"source": source, "collection": name, "licence": licence, "language": language}
    with pytest.raises(ValueError, match=r"push it without --public|never makes it public"):
        check_may_be_public(tmp_path / "out")
