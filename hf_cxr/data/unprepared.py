"""Studies as a collection lists them, with their images as the pipeline takes them: nothing is prepared or stored.

Which images those are is decided as for a prepared dataset, in `hf_cxr.data.selection`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_cxr.data.images import jobs, not_found
from hf_cxr.data.selection import select
from hf_cxr.data.storage import fetched, is_url
from hf_cxr.data.study import Archived, Embedded, StoredImage, Study
from hf_cxr.inference.view_evidence import pixel_evidence
from hf_cxr.inference.views import VIEWS, UnreadableImage, read_with_hint

Views = dict[str, Any]


def views_of(studies: Sequence[Study]) -> Iterator[tuple[str, Views | UnreadableImage]]:
    """uid, and the frontal and the lateral image of each study (a path or bytes, `None` for a view that it does not
    have) with the context that its table gives, or why there is none.

    Studies come in their order, but those with images in archives and tables last, when all of theirs have been met:
    each of these files is read in one pass.
    """
    packed = [any(isinstance(r.source, (Archived, Embedded)) for r in study.images) for study in studies]
    for study, later in zip(studies, packed, strict=True):
        if not later:
            yield study.uid, _views(study, {i: job[0] for (_, i), job in jobs([study], 0, ())})
    late = [study for study, later in zip(studies, packed, strict=True) if later]
    waiting: dict[int, dict[int, Any]] = {s: {} for s in range(len(late))}
    for (s, i), job in jobs(late, 0, ()):
        waiting[s][i] = job[0]
        if len(waiting[s]) == len(late[s].images):
            yield late[s].uid, _views(late[s], waiting.pop(s))
    for s, sources in waiting.items():
        yield late[s].uid, _views(late[s], sources)


def _views(study: Study, sources: Mapping[int, Any]) -> Views | UnreadableImage:
    if study.problem or not study.images:
        return UnreadableImage(study.problem or "no image listed")
    read: dict[int, Any] = {}
    images: list[StoredImage | str] = []
    for i, radiograph in enumerate(study.images):
        try:
            read[i] = sources[i]
            if isinstance(read[i], str) and is_url(read[i]):
                read[i] = fetched(read[i])
            evidence, hint = None, None
            if radiograph.view is None:
                image, hint = read_with_hint(read[i])
                evidence = pixel_evidence(image)
            images.append(StoredImage(0, 0, "", evidence, hint))
        except (KeyError, FileNotFoundError):
            images.append(not_found(radiograph))
        except (OSError, UnreadableImage) as error:
            images.append(str(error))
    selection = select(study, images)
    if selection.reason:
        return UnreadableImage(selection.reason)
    views = {view: None if i is None else read[i] for view, i in zip(VIEWS, selection.rows[0], strict=True)}
    return views | {name: getattr(study, name) for name in ("indication", "comparison", "age", "sex")}
