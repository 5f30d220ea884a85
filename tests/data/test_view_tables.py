"""Tables of views: which column, which words, and which image a row is about."""

import time
import timeit
from functools import partial

import pytest

from hf_cxr.data.study import Archived, Embedded, Radiograph, Study
from hf_cxr.data.view_tables import label_views, read_view_table

FRONTAL, LATERAL = ("frontal", ""), ("lateral", "")
PA, AP = ("frontal", "PA"), ("frontal", "AP")


def table_of(folder, content, columns=None):
    path = folder / "views.csv"
    path.write_text(content, encoding="utf-8")
    return read_view_table(path, columns)


def views_of(studies, table):
    """Label of each image → its view, and how many images the table does not name."""
    labelled, unnamed = label_views(studies, table)
    return {image.label: (image.view, image.projection) for study in labelled for image in study.images}, unnamed


def collection(*names, root="/data/images"):
    return [Study(str(i), (Radiograph(f"{root}/{name}", name=name),)) for i, name in enumerate(names)]


# Columns and words


def test_a_table_of_views_is_read_in_the_spellings_there_are(iu, tmp_path):
    kaggle = [said.view for said in read_view_table(iu / "indiana_projections.csv").views.values()]
    assert len(kaggle) == 7466
    assert kaggle.count("frontal") == 3818
    theirs = [said.view for said in read_view_table(iu / "nlmcxr_tsne_pa.csv.gz").views.values()]
    assert len(theirs) == 3851
    assert theirs.count("lateral") == 584
    table = table_of(tmp_path, "\ufeffView;Image\r\nPA;a/CXR1.dcm\r\nLATERAL;2.png\r\n;3.png\r\n")
    assert table.views == {("1", "a"): PA, ("2",): LATERAL}


@pytest.mark.parametrize(
    "header",
    [
        "dicom_id,ViewPosition",  # MIMIC-CXR-JPG's metadata
        "ImageID,Projection",  # PadChest
        "Image Index,View Position",  # NIH
        "path_to_image,frontal_lateral",  # CheXpert Plus
        "FILE NAME,view_position",
        "image_path,View",
    ],
)
def test_the_columns_are_found_by_the_names_that_collections_give_them(tmp_path, header):
    table = table_of(tmp_path, f"age,{header},note\n7,a.png,AP,x\n8,b.png,L,y\n")
    assert table.views == {("a",): AP, ("b",): LATERAL}


def test_the_columns_may_be_named(tmp_path):
    content = "picture,image,Seite,view\na.png,x,PA,?\n"
    assert table_of(tmp_path, content, {"image": "picture", "view": "seite"}).views == {("a",): PA}
    with pytest.raises(ValueError, match="no column 'Sicht'; it has picture, image"):
        table_of(tmp_path, content, {"view": "Sicht"})
    with pytest.raises(ValueError, match="'row' is neither image nor view"):
        table_of(tmp_path, content, {"row": "picture"})
    with pytest.raises(
        ValueError, match=r"'Image' and 'image_' could both be 'image'; name one: --view-columns image="
    ):
        table_of(tmp_path, "Image,image_,view\na,b,PA\n")


def test_words_that_say_no_view_count_as_unnamed_and_are_told(tmp_path):
    report = "Heart size is normal and the lungs are clear."
    table = table_of(tmp_path, f"image,view\na.png,PA\nb.png,UNK\nc.png,UNK\nd.png,{report}\ne.png,\nf.png,PA LLD\n")
    named, unnamed = views_of(collection(*(f"{name}.png" for name in "abcdefg")), table)
    assert (named["a.png"], named["b.png"], named["f.png"]) == (PA, (None, ""), ("neither", ""))
    assert unnamed == 5  # b, c, d, e and g, which is not in the table
    said = table.unknown_words("")
    assert said == "words that say no view (3 in all): 'UNK' (2), …"
    with pytest.raises(ValueError, match=r"names no view of an image of this collection; words .* 'UNK' \(1\)"):
        label_views(collection("a.png"), table_of(tmp_path, "image,view\na.png,UNK\n"))
    names = "".join(f"{n}.png,Name{n} Smith\n" for n in range(9))
    said = "words that say no view (9 in all): 9 different, not shown, as they may be text or names"
    assert table_of(tmp_path, f"image,view\n{names}").unknown_words("") == said


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("image,side\n1.png,PA\n", "no column 'view'"),
        ("uid,view\n1,PA\n", "no column 'image'"),
        ("image,view\n1.png,PA\n1.dcm,L\n", "line 3: image '1' is both frontal and lateral"),
        ("image,view\n1.png,PA\n1.dcm,decubitus\n", "line 3: image '1' is both frontal and neither"),
        ("", "empty"),
    ],
)
def test_a_bad_table_of_views_is_one_clear_line(tmp_path, content, what):
    with pytest.raises(ValueError, match=what) as caught:
        table_of(tmp_path, content)
    assert "\n" not in str(caught.value)


# Which image a row is about


def test_a_table_of_views_goes_before_the_collection(tmp_path):
    study = Study("1", (Radiograph("CXR1_IM-1-1001.png"), Radiograph("CXR1_IM-1-2001.png", "frontal", "", "PA")))
    (labelled,), unnamed = label_views([study], table_of(tmp_path, "image,view\n1_IM-1-1001,PA\n1_IM-1-2001,L\n"))
    assert [(image.view, image.projection) for image in labelled.images] == [PA, LATERAL]
    assert unnamed == 0
    (labelled,), unnamed = label_views([study], table_of(tmp_path, "image,view\n1_IM-1-1001,L\n"))
    assert [(image.view, image.projection) for image in labelled.images] == [LATERAL, PA]
    assert unnamed == 1
    with pytest.raises(ValueError, match="names no view of an image"):
        label_views([study], table_of(tmp_path, "image,view\nother,PA\n"))


def test_a_projection_that_the_collection_knows_stays_where_the_table_says_frontal_alone(tmp_path):
    study = Study("1", (Radiograph("a.png", "frontal", "", "AP"), Radiograph("b.png", "lateral")))
    (labelled,), _ = label_views([study], table_of(tmp_path, "image,view\na,Frontal\nb,Frontal\n"))
    assert [(image.view, image.projection) for image in labelled.images] == [AP, FRONTAL]


def test_a_table_of_one_study_is_not_applied_to_all_others(tmp_path):
    studies = collection("CXR1/0.png", "CXR1/1.png", "CXR2/0.png", "CXR2/1.png")
    with pytest.raises(ValueError, match=r"'0' is the end of the paths of 2 images of this collection; give the fold"):
        label_views(studies, table_of(tmp_path, "image,view\n0.png,PA\n1.png,L\n"))
    named, unnamed = views_of(studies, table_of(tmp_path, "image,view\nx/CXR1/0.png,PA\nx/CXR1/1.png,L\n"))
    assert named == {"CXR1/0.png": PA, "CXR1/1.png": LATERAL, "CXR2/0.png": (None, ""), "CXR2/1.png": (None, "")}
    assert unnamed == 2


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("0.png,PA", PA),  # one image, one row
        ("/elsewhere/CXR9/0.dcm,PA", PA),
        (r"C:\\export\\0.png,PA".replace("\\\\", "\\"), PA),
        ("a/0.png,PA\nCXR1/0.png,L", LATERAL),  # the longer end goes before the shorter
        ("b/CXR1/0.png,PA\nc/CXR1/0.png,AP", (None, "")),  # two folders that may both be meant, and differ
        ("b/CXR1/0.png,PA\nc/CXR1/0.png,PA", PA),
        ("x/images/CXR1/0.png,PA\ny/images/CXR1/0.png,L\ndata/images/CXR1/0.png,AP", AP),
    ],
)
def test_an_image_takes_the_row_with_the_longest_end_that_is_its_own(tmp_path, rows, expected):
    table = table_of(tmp_path, f"image,view\n{rows}\nother.png,PA\n")
    named, _ = views_of(collection("CXR1/0.png", "other.png"), table)
    assert named["CXR1/0.png"] == expected


def test_two_rows_that_differ_are_refused_where_one_is_the_end_of_the_other(tmp_path):
    table = table_of(tmp_path, "image,view\n1.png,PA\na/1.png,L\n")
    assert views_of(collection("a/1.png"), table)[0] == {"a/1.png": LATERAL}
    with pytest.raises(ValueError, match=r"'1' is the end of the paths of 2 rows"):
        label_views(collection("b/1.png"), table)


def test_images_are_known_by_their_places_in_archives_and_told_apart_in_tables(tmp_path):
    table = table_of(tmp_path, "image,view\nCXR1/0.png,PA\n")
    packed = [
        Study(str(i), (Radiograph(Archived(tmp_path / "a.zip", f"iu/images/CXR{i}/0.png"), name="0.png"),))
        for i in (1, 2)
    ]
    assert [study.images[0].view for study in label_views(packed, table)[0]] == ["frontal", None]
    cells = [Study(str(i), (Radiograph(Embedded("t.parquet", i, "image", 0), name="0.png"),)) for i in (1, 2)]
    with pytest.raises(ValueError, match="2 images of this collection"):
        label_views(cells, table_of(tmp_path, "image,view\n0.png,PA\n"))


@pytest.mark.parametrize("other", ["a.png", "a.dcm"])
def test_an_image_that_two_studies_list_is_one_image_and_so_are_two_files_of_it(tmp_path, other):
    studies = collection("a.png", other)
    assert [s.images[0].view for s in label_views(studies, table_of(tmp_path, "image,view\na,PA\n"))[0]] == [
        "frontal"
    ] * 2


def test_a_large_table_is_matched_in_time_that_grows_with_its_length(tmp_path):
    """All images are called 0.png and 1.png: a rule that compared each row with each image would never end."""
    times = []
    for number in (500, 4_000):
        names = [f"CXR{i}/{n}.png" for i in range(number) for n in (0, 1)]
        rows = "".join(f"r2gen/{name},{'PA' if name[-5] == '0' else 'L'}\n" for name in names)
        table, studies = table_of(tmp_path, f"image,view\n{rows}"), collection(*names)
        times.append(
            min(timeit.repeat(partial(views_of, studies, table), timer=time.process_time, number=1, repeat=3))
        )
        named, unnamed = views_of(studies, table)
        assert unnamed == 0
        assert all(said == (PA if name[-5] == "0" else LATERAL) for name, said in named.items())
    assert times[1] < 8 * 4 * times[0]
