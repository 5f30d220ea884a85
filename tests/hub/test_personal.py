"""Age and sex stay at home: a push leaves their columns out unless told otherwise, and the card says which it is."""

import huggingface_hub
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from helpers import told_more

from hf_cxr.data.collection import MIMIC, Collection
from hf_cxr.data.prepare import prepare
from hf_cxr.data.sources import phantom
from hf_cxr.hub import pseudonyms


@pytest.fixture(scope="module", params=["public ids", "own ids"])
def dataset(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("told") / "dataset"
    with told_more(), pytest.MonkeyPatch.context() as patch:
        if request.param == "own ids":
            patch.setattr(phantom, "collection", Collection)
        prepare("phantom", folder, size=16, num_studies=30)
    return folder


def there(site, folder, name):
    for file, content in site.files(name, "dataset").items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    splits = load_dataset(str(folder), cache_dir=str(folder / ".cache"))
    return huggingface_hub.DatasetCard.load(folder / "README.md"), splits


def test_a_push_leaves_age_and_sex_out_and_everything_else_in(ask, site, dataset, tmp_path):
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    assert ask("push", dataset, "user/plain")[0] == 0
    card, splits = there(site, tmp_path, "user/plain")
    for name, split in splits.items():
        here = pq.read_table(next((dataset / "data").glob(f"{name}-*"))).to_pylist()
        rows = split.with_format("arrow")[:].to_pylist()
        hashed = {"uid", "patient"} if pseudonyms.wanted(dataset) else set()
        for a, b in zip(here, rows, strict=True):
            assert set(a) - set(b) == {"age", "sex"}
            assert all(a[name] == b[name] for name in set(b) - hashed)
    assert "Left out of this copy, though the collection has them: age, sex of the patients." in card.text
    assert "\n| age |" not in card.text
    assert {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()} == before


def test_a_push_that_is_told_so_takes_age_and_sex_along(ask, site, dataset, tmp_path):
    assert ask("push", dataset, "user/full", "--with-age-and-sex")[0] == 0
    card, splits = there(site, tmp_path, "user/full")
    assert {"age", "sex"} <= set(splits["train"].column_names)
    assert "\n| age |" in card.text
    assert "Left out" not in card.text


def test_a_private_push_of_credentialed_data_says_what_its_agreement_forbids(ask, site, tmp_path):
    folder = tmp_path / "dataset"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "collection", lambda: MIMIC)
        prepare("phantom", folder, size=16, num_studies=30)
    status, _, errors = ask("push", folder, "user/credentialed")
    assert status == 0
    assert "forbids to share it with third parties, online services among them" in errors
