import json
from dataclasses import asdict

import pytest
from helpers import copy_folder, state_licence

from hf_cxr.data.collection import INDIANA, SYNTHETIC, Collection
from hf_cxr.data.licences import check_may_be_public, licence_on_the_hub, note_on_weights, stated_licence
from hf_cxr.hub import push as hub


@pytest.fixture
def dataset(phantom_folder, tmp_path):
    return copy_folder(phantom_folder, tmp_path / "dataset")


def prepared_from(dataset, source, **collection):
    """As this version writes it of a `collection`, or as earlier versions did."""
    preparation = json.loads((dataset / "prepare.json").read_text())
    del preparation["collection"]
    stated = {"collection": asdict(Collection(**collection))} if collection else {}
    (dataset / "prepare.json").write_text(json.dumps(preparation | {"source": source} | stated))


@pytest.mark.parametrize(
    "licence",
    [
        *("cc-by-nc-nd-4.0", "CC BY NC ND 4.0", "cc by-nd", "CC-BY-NoDerivatives", "[mit, cc-by-nd-4.0]"),
        *("CC-BY-NCND", "CC BYNCND 4.0", "cc-by-nc-nd4.0", "cc-by-nc-ＮＤ-4.0"),
    ],
)
def test_a_dataset_of_no_derivatives_may_not_be_public_however_its_card_says_so(dataset, licence):
    state_licence(dataset, licence)
    with pytest.raises(ValueError, match=r"forbids sharing derivatives.*--i-hold-the-rights"):
        check_may_be_public(dataset)
    with pytest.raises(ValueError, match="forbids"):
        hub.push(dataset, "user/name", public=True)


@pytest.mark.parametrize("source", ["kaggle", "openi", "r2gen"])
def test_an_edited_card_does_not_free_the_indiana_collection(dataset, source):
    state_licence(dataset, "mit")
    prepared_from(dataset, source)
    with pytest.raises(ValueError, match=r"cc-by-nc-nd-4.0\) forbids"):
        check_may_be_public(dataset)


@pytest.mark.parametrize("licence", ["other", "unknown", "null", "", "none"])
def test_a_dataset_of_unknown_licence_may_not_be_public(dataset, licence):
    prepared_from(dataset, "csv")
    state_licence(dataset, licence)
    with pytest.raises(ValueError, match="its licence is unknown"):
        check_may_be_public(dataset)


@pytest.mark.parametrize(
    "licence",
    [
        "all-rights-reserved",
        "proprietary",
        "physionet-credentialed",
        "tbd",
        "[other, mit]",
        "mit-like",
        "railway-internal",
    ],
)
def test_a_licence_that_is_not_known_to_allow_it_keeps_a_dataset_private(dataset, licence):
    prepared_from(dataset, "csv")
    state_licence(dataset, licence)
    with pytest.raises(ValueError, match=r"its licence \(.*\) is none that hf-cxr knows to allow it"):
        check_may_be_public(dataset)


def test_an_account_that_is_none_is_told(dataset):
    (dataset / "prepare.json").write_text("[]")
    with pytest.raises(ValueError, match=r"prepare.json: holds no JSON object"):
        check_may_be_public(dataset)


def test_a_dataset_without_card_may_not_be_public_and_a_broken_one_is_told(dataset):
    (dataset / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(ValueError, match=r"README.md: its head is no YAML"):
        check_may_be_public(dataset)
    (dataset / "README.md").unlink()
    with pytest.raises(ValueError, match="its licence is unknown"):
        check_may_be_public(dataset)


def test_data_that_is_free_may_be_public(dataset):
    check_may_be_public(dataset)  # the phantom
    prepared_from(dataset, "csv")
    for licence in ("mit", "cc-by-nc-4.0", "CC BY 4.0", "bsd-3-clause", "MIT License", "bigscience-openrail-m"):
        state_licence(dataset, licence)
        check_may_be_public(dataset)


def test_weights_of_restricted_or_unknown_data_come_with_a_note(dataset, phantom_folder):
    assert note_on_weights(str(phantom_folder), {"source": "phantom"}) is None
    assert note_on_weights(None, {"collection": asdict(SYNTHETIC)}) is None
    for source in ("kaggle", "openi", "r2gen"):  # the folder is gone, or its name is one on the Hub
        for place in (None, "user/name", "gone"):
            assert "under cc-by-nc-nd-4.0" in note_on_weights(place, {"source": source})
    assert "a licence that is not known" in note_on_weights("user/name", {})
    state_licence(dataset, "CC-BY-NC 4.0")
    assert "under cc-by-nc-4.0" in note_on_weights(str(dataset), {"source": "csv"})
    assert "under cc-by-nc-4.0" in note_on_weights(str(dataset), {"source": "phantom"})


def test_the_note_on_a_run_knows_its_data_by_the_run_alone(run_folder, tmp_path):
    assert hub.licence_note(run_folder) is None
    run = copy_folder(run_folder, tmp_path / "run")
    (run / "config.yaml").unlink()
    facts = json.loads((run / "card.json").read_text())
    facts["preparation"]["collection"] = asdict(INDIANA)
    (run / "card.json").write_text(json.dumps(facts))
    assert "under cc-by-nc-nd-4.0" in hub.licence_note(run)
    (run / "card.json").unlink()
    assert "not known" in hub.licence_note(run)


def test_every_known_licence_is_one_that_cards_name(dataset):
    for licence in (INDIANA.licence, SYNTHETIC.licence):
        assert licence_on_the_hub(licence) == {"license": licence}
        state_licence(dataset, licence)
        assert stated_licence(dataset) == licence
    assert licence_on_the_hub("bimcv-2.0") == {"license": "other", "license_name": "bimcv-2.0"}


@pytest.mark.parametrize("stated", ["mit", "other"])
@pytest.mark.parametrize(
    ("licence", "why"),
    [
        ("cc-by-nc-nd-4.0", "forbids sharing derivatives"),
        ("physionet-credentialed-1.5.0", "may share the data with nobody"),
        ("bimcv-2.0", "is none that hf-cxr knows to allow it"),
    ],
)
def test_an_edited_card_does_not_free_a_collection_that_states_its_licence(dataset, licence, why, stated):
    state_licence(dataset, stated)
    prepared_from(dataset, "table", licence=licence)
    with pytest.raises(ValueError, match=rf"its licence \({licence}\) .*{why}"):
        check_may_be_public(dataset)


def test_a_collection_whose_licence_is_free_may_be_public_as_far_as_its_card_agrees(dataset):
    prepared_from(dataset, "table", licence="cc-by-4.0")
    state_licence(dataset, "cc-by-4.0")
    check_may_be_public(dataset)
    state_licence(dataset, "cc-by-nd-4.0")
    with pytest.raises(ValueError, match="forbids"):
        check_may_be_public(dataset)


def test_credentialed_data_is_never_public_and_other_data_is_if_one_holds_the_rights(dataset):
    prepared_from(dataset, "mimic", licence="physionet-credentialed-1.5.0")
    with pytest.raises(ValueError, match="hf-cxr never makes it public"):
        check_may_be_public(dataset, hold_rights=True)
    prepared_from(dataset, "kaggle", licence="cc-by-nc-nd-4.0")
    check_may_be_public(dataset, hold_rights=True)


def test_a_push_of_credentialed_data_comes_with_a_note_even_where_it_is_private(dataset):
    assert hub.licence_note(dataset, public=False) is None
    prepared_from(dataset, "mimic", licence="physionet-credentialed-1.5.0")
    assert "forbids to share it with third parties" in hub.licence_note(dataset, public=False)


def test_weights_of_credentialed_data_come_with_what_their_owner_asks_for():
    collection = asdict(Collection(licence="physionet-credentialed-1.5.0"))
    note = note_on_weights(None, {"source": "mimic", "collection": collection})
    assert "under physionet-credentialed-1.5.0" in note
    assert "under the agreement of the data" in note
