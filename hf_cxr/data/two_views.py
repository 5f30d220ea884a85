"""The frontal and the lateral image of each study of a table, for a model to read: chosen as a prepared dataset's are,
and not stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from PIL import Image

from hf_cxr.data import archives, storage
from hf_cxr.data.embedded import embedded_images
from hf_cxr.data.selection import select
from hf_cxr.data.study import MISSING, Archived, Embedded, Radiograph, StoredImage, Study
from hf_cxr.data.view_labels import pixel_evidence
from hf_cxr.inference.views import VIEWS, UnreadableImage, ViewSource, read_radiograph, read_with_hint


def two_views(studies: Iterable[Study]) -> Iterator[tuple[str, dict[str, ViewSource | None] | str]]:
    """The uid of each study, and its views or the reason why there are none. Only images whose view nobody names are
    opened."""
    for study in studies:
        images = [_seen(radiograph) for radiograph in study.images]
        selection = select(study, images)
        if study.problem or selection.step:
            yield study.uid, study.problem or selection.reason
        else:
            chosen = zip(VIEWS, selection.rows[0], strict=True)
            yield study.uid, {view: None if i is None else _source(study.images[i]) for view, i in chosen}


def _seen(radiograph: Radiograph) -> StoredImage | str:
    """What `select` asks of an image."""
    if radiograph.searched:
        return f"{MISSING} in {radiograph.searched}: {radiograph.label}"
    if radiograph.view is not None:
        return StoredImage(0, 0, "")
    try:
        image, hint = read_with_hint(_source(radiograph), at_least=512)
    except UnreadableImage as error:
        return str(error)
    return StoredImage(0, 0, "", pixel_evidence(image), hint)


def _source(radiograph: Radiograph) -> ViewSource:
    source = radiograph.source
    if isinstance(source, (Archived, Embedded)) or (isinstance(source, str) and storage.is_url(source)):
        return partial(_image, source)
    return source


def _image(source: Archived | Embedded | str) -> Image.Image:
    """An image that lies in an archive, in a table or at an address."""
    if isinstance(source, Archived):
        content = next(content for _, content in archives.members(source.archive, lambda name: name == source.key))
    elif isinstance(source, Embedded):
        content = next(content for _, content in embedded_images(source.table, {source}))
    else:
        with storage.open_file(source) as stream:
            content = stream.read()
    return read_radiograph(content)
