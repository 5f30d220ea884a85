"""What became of studies and images: the digest and the list of images. The report as text is in test_prepare."""

from hf_cxr.data.provenance import digest_of, list_images
from hf_cxr.data.selection import Selection
from hf_cxr.data.study import Radiograph, StoredImage, Study

IMAGE, OTHER = StoredImage(0, 9, "aa"), StoredImage(9, 9, "bb")


def test_the_digest_tells_images_their_order_and_the_reasons_of_those_that_cannot_be_read():
    states = [
        *([[IMAGE, OTHER]], [[OTHER, IMAGE]], [[IMAGE], [OTHER]], [[IMAGE]], [[IMAGE, "a.png: zero bytes"]]),
        *([[IMAGE, "a.png: truncated"]], [["aa"]], [[]], [], [[IMAGE, ""]]),
    ]
    digests = [digest_of(state) for state in states]
    assert len(set(digests)) == len(states) - 1  # an image whose reason is its digest
    assert digest_of([[StoredImage(5, 7, "aa", 0.5, "frontal"), OTHER]]) == digests[0]  # where it lies tells nothing


def test_every_listed_image_has_a_line_with_its_use():
    study = Study(
        "s", tuple(Radiograph(name, view) for name, view in (("a", "frontal"), ("b", "lateral"), ("c", None)))
    )
    chosen = Selection((("frontal", 1.0), ("lateral", 0.75), ("frontal", 0.5)), ((0, 1),))
    left = Study("t", (Radiograph("d", "lateral"),))
    everything = [(study, (IMAGE, OTHER, "c: zero bytes"), chosen), (left, ("",), None)]
    listing, uses = list_images(everything, {"t": "no impression text"})
    assert listing.splitlines() == [
        "uid,image,view,confidence,use,reason",
        "s,a,frontal,1.000,used,",
        "s,b,lateral,0.750,used,",
        "s,c,frontal,0.500,unreadable,c: zero bytes",
        "t,d,lateral,,study left out,no impression text",
    ]
    assert uses == {"study left out": 1, "unreadable": 1, "used": 2}
    _, uses = list_images([(study, (IMAGE, OTHER, IMAGE), chosen)], {})
    assert uses == {"unused": 1, "used": 2}
