"""The embedded collection: synthetic two-view chest studies, drawn from a simple X-ray attenuation model.

An image is a map of line integrals of attenuation (tissue, minus air, plus bone and metal) put through a film curve.
Here are the generator, the patient and the film; what is drawn lives in `phantom_views`, prevalence and wording in
`phantom_text`. Nothing here is, or is derived from, a real radiograph.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from hf_cxr.data.collection import SYNTHETIC, Collection
from hf_cxr.data.sources.phantom_text import FRONTAL_ONLY, LATERAL_ONLY, TAGS, Case, plan, report
from hf_cxr.data.sources.phantom_views import SIDES, frontal_view, lateral_view, make_grid
from hf_cxr.data.study import Radiograph, Study
from hf_cxr.inference.views import VIEWS

__all__ = ["FRONTAL_ONLY", "LATERAL_ONLY", "TAGS", "Case", "draw", "plan", "render", "studies"]

# Cardiothoracic ratio: above 0.5 on a PA film is cardiomegaly (Danzer, Am J Med Sci 1919); the gap keeps labels clear.
NORMAL_CTR = (0.40, 0.47)
ENLARGED_CTR = (0.59, 0.70)
# Hurter–Driffield film: brightness = 1 / (1 + (exposure / speed)^contrast), a sigmoid in attenuation.
SPEED, CONTRAST = 2.35, 1.50


def studies(num_studies: int = 5000, seed: int = 0, size: int = 128) -> Iterator[Study]:
    """Yields `num_studies` studies; images (`size` × `size` pixels, mode "L") are drawn when a view is called."""
    for index in range(num_studies):
        case = plan(seed, index)
        impression, findings, indication = report(case)
        uid = f"phantom-{seed}-{index:06d}"
        yield Study(
            uid=uid,
            images=tuple(Radiograph(partial(draw, seed, index, view, size), view, view) for view in case.views),
            impression=impression,
            findings=findings,
            indication=indication,
            tags=case.tags,
            patient=uid,
        )


def collection() -> Collection:
    """The drawn one."""
    return SYNTHETIC


def tables() -> list[Path]:
    """None: the phantom is drawn, not read."""
    return []


def draw(seed: int, index: int, view: str, size: int = 128) -> Image.Image:
    """One view ("frontal" or "lateral") of study `index` as a `size` × `size` image of mode "L"."""
    return render(plan(seed, index), view, size)


def render(case: Case, view: str, size: int = 128) -> Image.Image:
    """Draws a view of `case`. The anatomy depends on `case.seed` and `case.index` alone, so that
    `dataclasses.replace(case, tags=...)` shows the same patient with other findings.
    """
    if view not in VIEWS:
        raise ValueError(f"view must be 'frontal' or 'lateral', got {view!r}")
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    a = _anatomy(case)
    rng = np.random.default_rng([case.seed, case.index, 2 + (view == "lateral")])
    jitter = rng.uniform(-1, 1, 6)
    grid = make_grid(size, 0.05 * jitter[0], 0.04 * jitter[1], 1.12 + 0.05 * jitter[2])
    mu = (frontal_view if view == "frontal" else lateral_view)(case, a, grid, rng)
    mottle = Image.fromarray(rng.standard_normal((14, 14), dtype=np.float32))
    mu += 0.05 * np.asarray(mottle.resize((size, size), Image.Resampling.BICUBIC))
    mu -= SPEED + 0.22 * jitter[3]
    mu *= -CONTRAST * (1.0 + 0.15 * jitter[4])
    np.exp(mu, out=mu)
    mu += 1.0
    film = np.divide(250.0, mu, out=mu)
    film += (3.5 + 1.5 * jitter[5]) * rng.standard_normal((size, size), dtype=np.float32)
    image = Image.fromarray(np.clip(film, 0, 255, out=film).astype(np.uint8))
    return image.rotate(3.0 * a.turn[view], Image.Resampling.BILINEAR)


def _anatomy(case: Case) -> Any:
    """Lengths in half-widths of an image; x runs to the image's right, y downwards, (0, 0) is the middle."""
    rng = np.random.default_rng([case.seed, case.index, 1])

    def vary(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    a = SimpleNamespace(
        build=vary(0.94, 1.08),
        width=vary(0.66, 0.74),
        apex=vary(-0.74, -0.66),
        dome=vary(0.30, 0.40),
        drop=vary(0.22, 0.28),  # from the dome to the costophrenic angle
        lift=vary(0.02, 0.07),  # the right dome stands higher than the left
        depth=vary(0.98, 1.10),
        ctr=vary(*NORMAL_CTR),
        big_ctr=vary(*ENLARGED_CTR),
        knob=vary(0.07, 0.095),
        rib_gap=vary(0.125, 0.145),
        rib_phase=vary(0.0, 1.0),
        bone=vary(0.85, 1.15),
        breast=max(0.0, vary(-0.25, 0.35)),
        bubble=vary(0.06, 0.13),
        kyphosis=vary(0.03, 0.08),
        curve=vary(0.10, 0.15) * (1 if vary(0, 1) < 0.5 else -1),
        waves=1.0 if vary(0, 1) < 0.5 else 1.7,  # scoliosis: C or S
        hernia=vary(0.15, 0.20),
        dent=vary(0.20, 0.27),
        wedge=vary(0.02, 0.34),
        haze=vary(0.56, 0.76),
        fluid={s: vary(-0.03, 0.03) for s, _ in SIDES},
        spot={s: (vary(0.34, 0.52), vary(-0.40, 0.02), vary(-0.16, 0.25), vary(0.078, 0.100)) for s, _ in SIDES},
        dot={s: (vary(0.30, 0.54), vary(-0.40, 0.04), vary(-0.16, 0.24), vary(0.046, 0.054)) for s, _ in SIDES},
        plate={s: (vary(0.10, 0.17), vary(-0.22, 0.22)) for s, _ in SIDES},
        patch={s: (vary(-0.04, 0.04), vary(-0.04, 0.04), vary(0.9, 1.15)) for s, _ in SIDES},
        turn={v: vary(-1, 1) for v in VIEWS},
    )
    if "cardiomegaly" in case.tags:
        a.ctr = a.big_ctr
    a.coeff = 0.70
    if "hyperinflation" in case.tags:
        a.apex, a.width, a.depth, a.ctr = a.apex - 0.05, a.width + 0.02, a.depth * 1.12, 0.8 * a.ctr
        a.dome, a.drop, a.lift, a.coeff = a.dome + 0.24, 0.06, 0.01, 0.20
    a.heart, a.seat = a.ctr * 2 * a.width, a.dome - 0.5 * a.lift  # its width on a frontal view, and its floor
    a.base = {"right": a.dome - a.lift, "left": a.dome}
    for side, _ in SIDES:
        if f"{side} atelectasis" in case.tags:
            a.base[side] -= 0.06  # volume loss pulls the diaphragm up
    return a
