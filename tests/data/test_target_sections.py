"""Which studies have the sections of a layout, and what each is given as context."""

from datasets import Dataset, DatasetDict

from hf_cxr.data.sections import contexts, section_texts, whole_texts, with_sections
from hf_cxr.inference.sections import Layout

ROWS = Dataset.from_dict(
    {
        "impression": ["A.", "", "C.", None],
        "findings": ["a.", "b.", "  ", "d."],
        "indication": ["Cough", "", None, "Pain"],
        "age": [63.0, None, 5.0, None],
        "sex": ["F", "M", "", None],
    }
)
REPORT = Layout(("findings", "impression"))


def test_only_studies_with_every_section_are_kept_and_the_others_counted():
    dataset = DatasetDict(train=ROWS, test=ROWS.select([0]))
    for layout, kept in ((Layout(), [0, 2]), (Layout(("findings",)), [0, 1, 3]), (REPORT, [0])):
        complete, left_out = with_sections(dataset, layout)
        assert complete["train"].to_list() == ROWS.select(kept).to_list()
        assert left_out == {"train": 4 - len(kept), "test": 0}
    assert with_sections(DatasetDict(train=ROWS.remove_columns("findings")), REPORT)[1] == {"train": 4}


def test_the_texts_of_a_report_are_findings_then_impression():
    one = ROWS.select([0])
    assert section_texts(one, REPORT) == {"findings": ["a."], "impression": ["A."]}
    assert whole_texts(one, REPORT) == ["a. A."]
    assert whole_texts(one, Layout()) == ["A."]


def test_the_context_of_a_study_is_what_it_has():
    age_sex = ["63 years, F", "M", "5 years", None]
    for given, indication, told in zip(contexts(ROWS), ["Cough", None, None, "Pain"], age_sex, strict=True):
        assert (given.get("indication"), given.get("age_sex")) == (indication, told)
    assert contexts(ROWS.select_columns(["impression"])) == [{}] * 4
