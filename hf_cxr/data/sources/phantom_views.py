"""The two views of the synthetic chest: attenuation along the beam, shape after shape.

Tissue adds, air takes away, bone and metal add more. Who the patient is and the film lie in `phantom`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw

from hf_cxr.data.sources.phantom_text import Case

# Attenuation (natural log of exposure) through the middle of a trunk, and what full-depth lung takes away from it.
BODY, AIR = 3.0, 1.75
SIDES = (("right", -1), ("left", 1))  # the patient's right lies on the left of a frontal image

Array = np.ndarray
Line = tuple[Any, float, float]  # points of shape (k, 2), width, amount from 0 to 1


@dataclass(frozen=True)
class Grid:
    """Patient coordinates of the pixels: `x` of shape (1, n), `y` of shape (n, 1); `px` is the size of one pixel."""

    x: Array
    y: Array
    px: float
    n: int

    def window(self, x: float, y: float, rx: float, ry: float) -> tuple[slice, slice]:
        left, top = float(self.x[0, 0]), float(self.y[0, 0])

        def cut(low: float, high: float) -> slice:
            return slice(max(0, math.floor(low / self.px)), max(0, math.ceil(high / self.px) + 1))

        return cut(y - ry - top, y + ry - top), cut(x - rx - left, x + rx - left)


def make_grid(n: int, dx: float, dy: float, zoom: float) -> Grid:
    axis = (np.arange(n, dtype=np.float32) + 0.5) * (2.0 / n) - 1.0
    return Grid(((axis - dx) / zoom)[None, :], ((axis - dy) / zoom)[:, None], 2.0 / n / zoom, n)


def _edge(distance: Array, soft: float) -> Array:
    """0 outside, 1 inside, linear over `soft` at the border."""
    return np.clip(distance * (1.0 / soft) + 0.5, 0.0, 1.0)


def _inside(x: Array, y: Array, cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> Array:
    """1 in the middle of an ellipse, 0 on and beyond its rim: the square of an ellipsoid's chord."""
    u, v = x - cx, y - cy
    if angle:
        c, s = math.cos(angle), math.sin(angle)
        u, v = c * u + s * v, c * v - s * u
    return np.clip(1.0 - (u * (1 / rx)) ** 2 - (v * (1 / ry)) ** 2, 0.0, 1.0)


def _add(mu: Array, g: Grid, shape: tuple[float, ...], amount: float, power: float = 0.5) -> None:
    """Adds an ellipsoid's attenuation; `shape` is (cx, cy, rx, ry[, angle]); a small power gives a flat top."""
    r = max(shape[2:4])
    w = g.window(shape[0], shape[1], *((r, r) if len(shape) > 4 else shape[2:4]))
    mu[w] += amount * _inside(g.x[:, w[1]], g.y[w[0]], *shape) ** power


def _bands(phase: Array, half: float) -> Array:
    """Bands around whole numbers of `phase`, with flat tops."""
    phase = phase - np.rint(phase)
    return np.clip(2.5 - (2.5 / half**2) * phase * phase, 0.0, 1.0)


def _lines(g: Grid, lines: list[Line]) -> Array:
    """Draws polylines, the later ones on top; returns a map of shape (n, n) with values from 0 to 1."""
    scale = 2 if g.n <= 256 else 1
    layer = Image.new("L", (g.n * scale, g.n * scale))
    pen = ImageDraw.Draw(layer)
    corner = np.array([g.x[0, 0], g.y[0, 0]])
    for points, width, amount in lines:
        thick = width * scale / g.px
        path = ((np.asarray(points) - corner) * (scale / g.px) + scale / 2).ravel().tolist()
        pen.line(path, fill=int(255 * amount * min(1.0, max(thick, 0.35))), width=max(1, round(thick)), joint="curve")
    return np.asarray(layer.reduce(scale) if scale > 1 else layer, dtype=np.float32) * np.float32(1 / 255)


def _vessels(
    g: Grid, rng: np.random.Generator, roots: list[tuple[float, float, float]], swell: float, tall: float
) -> Array:
    """Branching vessels from the hila; a root is (x, y, direction of the fan in radians), `tall` its half-height."""
    lines: list[Line] = []
    steps = np.array([0.12, 0.4, 0.7, 1.0])
    for x, y, aim in roots:
        spread = np.linspace(-1, 1, 9)
        fan = aim + 1.25 * spread + rng.uniform(-0.15, 0.15, 9)
        bend, reach = rng.uniform(-0.5, 0.5, 9), rng.uniform(0.38, 0.60, 9) * (1.0 + 0.2 * np.abs(spread))
        turns = fan[:, None] + bend[:, None] * steps
        away = reach[:, None] * steps
        paths = np.stack([x + away * np.cos(turns), y + tall * np.sin(fan)[:, None] + away * np.sin(turns)], -1)
        for k, path in enumerate(paths):
            lines += [(path[j : j + 2], swell * (0.027 - 0.008 * j), 0.75 - 0.18 * j) for j in range(3)]
            for sign, start in ((-1, path[2]), (1, path[1]), (-1, path[1])):
                turn = turns[k, 1] + sign * 0.5
                tip = start + 0.40 * reach[k] * np.array([math.cos(turn), math.sin(turn)])
                lines.append(((start, tip), swell * 0.010, 0.42))
    return _lines(g, sorted(lines, key=lambda line: line[2]))


def frontal_view(case: Case, a: Any, g: Grid, rng: np.random.Generator) -> Array:
    """Attenuation of the frontal (PA) view, shape (n, n)."""
    x, y, tags = g.x, g.y, case.tags
    trunk = a.build * np.interp(
        y, [-1.1, -0.93, -0.84, -0.72, -0.55, -0.2, 0.2, 1.1], [0.2, 0.22, 0.42, 0.85, 1.04, 1.0, 0.93, 0.97]
    ).astype(np.float32)
    mu = BODY * np.clip(1.0 - (x / trunk) ** 2, 0.0, 1.0) ** 0.4
    mu *= np.clip(1.0 + 0.12 * y, 0.88, 1.1)
    rise = np.clip((0.30 - y) / (0.30 - a.apex), 0.0, 1.0)
    wall = (a.width * (1.0 - 0.06 * np.clip(y - 0.3, 0, 1)) * (1.0 - rise**2.6) ** 0.5 + 1e-3).astype(np.float32)
    full, ruptures = _frontal_lungs(case, a, g, wall)
    air = full.copy()
    np.clip(air - _frontal_heart(a, g), 0.12 * air, None, out=air)
    for side, sign in SIDES:
        if f"{side} consolidation" in tags:
            air *= 1.0 - _patch(case, a, g, side, sign, frontal=True)
    if "edema" in tags:
        air *= 1.0 - a.haze * np.sqrt(np.maximum(*(_inside(x, y, s * 0.27, 0.02, 0.34, 0.52) for s in (-1, 1))))
    mu -= AIR * air

    # Vessels and hila.
    swell = 1.6 if "edema" in tags else 1.0
    vessels = _vessels(g, rng, [(-0.15, -0.02, math.pi), (0.15, -0.05, 0.0)], swell, 0.09)
    for half, beyond, rim in ruptures:
        vessels[half] *= 1.0 - beyond
        mu[half] += 0.55 * rim
    mu += vessels * (0.22 * full + 0.42 * air)
    _add(mu, g, (-0.18, 0.0, 0.07 * swell**0.5, 0.11), 0.45, 1.0)
    _add(mu, g, (0.18, -0.05, 0.07 * swell**0.5, 0.10), 0.40, 1.0)

    _frontal_bones(mu, a, g, wall, "scoliosis" in tags)
    for side, sign in SIDES:
        _spots(mu, g, case, a, side, lambda spot, s=sign: (s * spot[0], spot[1]))
        if f"{side} atelectasis" in tags:
            height, tilt = a.plate[side]
            level = a.base[side] - height
            _add(mu, g, (sign * 0.40, level, 0.22, 0.026, tilt), 0.95, 0.5)
            _add(mu, g, (sign * 0.46, level - 0.09, 0.13, 0.018, tilt * 0.6), 0.6, 0.5)
    if "hiatal hernia" in tags:
        _hernia(mu, g, 0.07, a.base["left"] - 0.13, a.hernia)
    wires = [(((-0.055, v), (0.055, v + 0.02), (0.05, v - 0.02), (-0.055, v)), 0.022, 1.0) for v in _WIRES]
    vein = ((0.43, -0.56), (0.30, -0.62), (0.10, -0.58), (-0.06, -0.42), (-0.10, -0.15))
    atrium = (*vein, (-0.12, 0.10), (-0.06, 0.16))
    ventricle = (*vein, (-0.08, 0.20), (0.05, a.seat + 0.06), (0.6 * (0.66 * a.heart), a.seat + 0.05))
    _metal(mu, g, case, wires, (0.47, -0.50, 0.105, 0.085), (atrium, ventricle))
    _add(mu, g, (0.74, -0.80, 0.012, 0.045), 4.0, 0.2)  # the side marker, an L on the patient's left
    _add(mu, g, (0.757, -0.765, 0.028, 0.012), 4.0, 0.2)
    return mu


def _frontal_lungs(case: Case, a: Any, g: Grid, wall: Array) -> tuple[Array, list[tuple[Any, Array, Array]]]:
    """The chord of a rounded cage of half-width `wall`, cut by the mediastinum, the diaphragm and any fluid.

    Also, of each lung with a pneumothorax: its half of the image, what lies beyond the lung's edge, and that edge.
    """
    y, tags, soft = g.y, case.tags, max(0.02, g.px)
    ax = np.abs(g.x)
    chord = np.clip(1.0 - (ax / wall) ** 2, 0.0, 1.0) ** 0.4
    chord *= _edge(ax - 0.10, 0.05)
    air = np.zeros_like(chord)
    ruptures = []
    for side, sign in SIDES:
        top = 0.45 * a.width
        floor = a.base[side] + a.drop * np.where(ax > top, ((ax - top) / (a.width - top)) ** 2, 0.25 * (1 - ax / top))
        fade = soft
        if f"{side} pleural effusion" in tags:
            height = {"small": 0.22, "moderate": 0.42, "large": 0.68}[case.sizes[side]] + a.fluid[side]
            meniscus = a.base[side] + a.drop - height * (0.55 + 0.45 * np.clip(ax / a.width, 0, 1) ** 3)
            floor, fade = np.minimum(floor, meniscus), 0.05
        half = g.window(sign * 0.6, 0.0, 0.6, 2.0)
        lung = chord[half] * _edge(floor[:, half[1]] - y, fade)
        if f"{side} pneumothorax" in tags:
            gap = {"small": 0.17, "moderate": 0.25, "large": 0.34}[case.sizes[side]]
            shrunk = np.clip((0.45 - y) / (0.45 - a.apex - 1.3 * gap), 0.0, 1.0)
            edge = (a.width - 0.55 * gap) * (1.0 - shrunk**2.4) ** 0.5 * (1.0 - 0.45 * gap * shrunk)
            beyond = _edge(ax[:, half[1]] - edge, soft)
            rim = np.clip(1.0 - np.abs(ax[:, half[1]] - edge) * (1 / max(0.022, g.px)), 0, 1) * (lung > 0.05)
            lung *= 0.76 + 0.48 * beyond
            ruptures.append((half, beyond, rim))
        air[half] = np.maximum(air[half], lung)
    return air, ruptures


def _frontal_heart(a: Any, g: Grid) -> Array:
    """Heart and great vessels; the heart's borders lie exactly where the cardiothoracic ratio puts them."""
    left, right = 0.66 * a.heart, 0.34 * a.heart
    tilt = 0.70 - 1.2 * (a.ctr - 0.43)  # a large heart lies flatter
    long, wide = 0.84 * left, (0.90 - 0.8 * a.ctr) * left
    across = math.hypot(long * math.cos(tilt), wide * math.sin(tilt))
    down = math.hypot(long * math.sin(tilt), wide * math.cos(tilt))
    heart = np.maximum(
        _inside(g.x, g.y, left - across, a.seat + 0.03 - down, long, wide, tilt),
        _inside(g.x, g.y, -0.3 * right, a.seat - 0.85 * down, 0.7 * right, 0.95 * down),
    )
    solid = cast(Array, 1.5 * np.sqrt(heart))
    for shape in (
        (0.13, -0.30, a.knob, a.knob * 1.15),  # aortic knob
        (0.10, -0.10, 0.115, 0.14),  # pulmonary trunk
        (0.07, 0.0, 0.10, 0.5),  # descending aorta
        (0.04, a.seat - 0.45, 0.15, 0.32),  # the heart's waist
        (-0.09, -0.30, 0.085, 0.45),  # superior vena cava
    ):
        w = g.window(*shape)
        np.maximum(solid[w], 1.2 * _inside(g.x[:, w[1]], g.y[w[0]], *shape) ** 0.5, out=solid[w])
    return solid


def _frontal_bones(mu: Array, a: Any, g: Grid, wall: Array, bent: bool) -> None:
    """Adds ribs, spine, clavicles and shoulders, and what lies with them: airways, breasts, the gastric bubble.

    Ribs are bands of a phase, posterior ones falling outwards, anterior ones inwards; a scoliotic spine is `bent`.
    """
    x, y = g.x, g.y
    ax = np.abs(x)
    cage = wall * 1.05 + 0.01
    inside = np.clip(1.0 - (ax / cage) ** 2, 0.0, 1.0)
    bone = _edge(inside - 0.03, 0.06) / (0.42 + np.sqrt(inside))
    bone *= _edge(y - a.apex + 0.02, 0.04) * (0.35 + 0.65 * _edge(0.5 - y, 0.3))
    out = ax / a.width
    back = _bands((y + 0.05 * np.sin(3.0 * out) - 0.21 * out**2.4) / a.rib_gap + a.rib_phase, 0.21)
    front = _bands((y + 0.46 * out - 0.10 * out**2) / (1.12 * a.rib_gap) + a.rib_phase, 0.20)
    back *= 0.36
    back += front * (0.17 * _edge(ax - 0.27, 0.1) * _edge(0.45 - y, 0.1))
    mu += a.bone * bone * back
    bend = a.curve * np.sin(a.waves * math.pi * (y + 0.75) / 1.5) if bent else 0.006 * np.sin(3 * y)
    w = g.window(0, 0, 0.32, 2.0)
    off = np.abs(x[:, w[1]] - bend)
    disc = 0.55 + 0.45 * _bands(y / (1.05 * a.rib_gap) + a.rib_phase, 0.38)
    mu[w] += a.bone * (0.55 * _edge(0.075 - off, 0.03) * disc + 0.25 * _edge(0.02 - off, 0.02))
    _add(mu, g, (0.0, -0.55, 0.034, 0.42), -0.75, 0.4)  # trachea, then the main bronchi
    _add(mu, g, (-0.07, -0.12, 0.10, 0.028, 0.75), -0.35, 0.5)
    _add(mu, g, (0.08, -0.11, 0.11, 0.026, -0.6), -0.35, 0.5)
    for sign in (-1, 1):
        w = g.window(sign * 0.45, a.apex + 0.08, 0.42, 0.18)
        out = (ax[:, w[1]] - 0.04) / 0.8
        collar = np.abs(y[w[0]] - (a.apex + 0.20 - 0.20 * np.sqrt(np.clip(out, 0, 1)) - 0.03 * np.sin(6 * out)))
        mu[w] += 0.50 * a.bone * _edge(0.026 - collar, 0.02) * _edge(0.42 - np.abs(out * 0.8 - 0.40), 0.04)
        _add(mu, g, (sign * 0.86, -0.40, 0.13, 0.34, sign * 0.35), 0.35 * a.bone, 0.4)  # scapula
        _add(mu, g, (sign * 1.02, -0.62, 0.15, 0.15), 0.6 * a.bone, 0.4)  # humeral head
        if a.breast > 0.05:
            _add(mu, g, (sign * 0.44, 0.26, 0.33, 0.28), 1.1 * a.breast, 0.6)
    _add(mu, g, (0.36, a.base["left"] + a.drop * 0.55, a.bubble * 1.4, a.bubble * 0.8), -0.9, 0.5)  # gastric bubble


def lateral_view(case: Case, a: Any, g: Grid, rng: np.random.Generator) -> Array:
    """Attenuation of the lateral view, the patient facing the image's left, shape (n, n)."""
    x, y, tags, k = g.x, g.y, case.tags, a.depth
    rows = [-1.1, -0.9, -0.72, -0.6, -0.4, -0.1, 0.2, 0.5, 1.1]

    def profile(*values: float) -> Array:
        return cast(Array, np.interp(y, rows, np.array(values) * k).astype(np.float32))

    front = profile(0.05, 0.05, 0.0, -0.16, -0.31, -0.44, -0.51, -0.53, -0.53)  # back of the sternum
    skin = 0.8 * (1.0 - a.build) + profile(-0.75, -0.60, -0.45, -0.42, -0.47, -0.58, -0.66, -0.70, -0.74)
    skin = skin - 0.2 * a.breast * np.exp(-(((y - 0.15) / 0.25) ** 2))
    spine = 0.31 * k + a.kyphosis * np.cos(1.6 * (y + 0.05))
    if "pectus excavatum" in tags:
        dent = a.dent * np.exp(-(((y - 0.16) / 0.24) ** 2)).astype(np.float32)
        front, skin = front + dent, skin + 0.8 * dent
    broken = None  # the height of a broken vertebra
    if "compression fracture" in tags:
        broken = (round((a.wedge + 0.05) / a.rib_gap - 0.5 + a.rib_phase) - a.rib_phase) * a.rib_gap
        spine = spine + 0.12 * np.exp(-(((y - broken) / 0.20) ** 2))  # the wedge angulates the spine (gibbus)
    hull = np.clip((x - skin) * (spine + 0.33 - x) * (4.0 / (spine + 0.33 - skin) ** 2), 0.0, 1.0)
    mu = (0.97 * BODY) * hull**0.35
    mu += 1.1 * _edge(-0.60 - y, 0.40) * _edge(hull - 0.05, 0.1)  # shoulders and raised arms

    rise = np.clip((0.1 - y) / (0.1 - a.apex), 0.0, 1.0)
    chord = (_edge(x - front, 0.05) * _edge(spine + 0.13 - x, 0.06)).astype(np.float32)
    chord *= (1.0 - rise**3.5) ** 0.5
    full = _lateral_lungs(case, a, g, chord)
    air = full.copy()
    big = (a.ctr / 0.43) ** 0.7
    heart = _inside(x, y, (-0.25 + 0.14 * (big - 1)) * k, a.seat - 0.16 * big, 0.33 * big, 0.24 * big, 0.75)
    solid = 0.62 * heart**0.6
    w = g.window(-0.02, -0.25, 0.30, 0.25)  # the great vessels
    solid[w] = np.maximum(solid[w], 0.45 * _inside(x[:, w[1]], y[w[0]], 0.0, -0.22, 0.20, 0.16) ** 0.5)
    np.clip(air - solid, 0.12 * air, None, out=air)
    if "edema" in tags:
        air *= 1.0 - 0.9 * a.haze * np.sqrt(_inside(x, y, 0.05, 0.02, 0.40, 0.52))
    mu -= (AIR * 0.90) * air
    swell = 1.6 if "edema" in tags else 1.0
    mu += 0.32 * _vessels(g, rng, [(0.05, -0.08, 0.9), (0.03, -0.08, -2.3)], swell, 0.05) * full
    _add(mu, g, (0.05, -0.06, 0.09, 0.12), 0.40, 1.0)
    w = g.window(0.03, -0.6, 0.12, 0.44)
    tube = np.abs(x[:, w[1]] - 0.02 - 0.10 * (y[w[0]] + 0.6))
    mu[w] -= 0.6 * _edge(0.032 - tube, 0.02) * _edge(-0.16 - y[w[0]], 0.05)

    _lateral_bones(mu, a, g, chord, spine, front, broken)
    for side, _ in SIDES:
        _spots(mu, g, case, a, side, lambda spot: (spot[2] * k, spot[1]))
        if f"{side} atelectasis" in tags:
            height, tilt = a.plate[side]
            _add(mu, g, (0.10, a.base[side] - height + 0.04, 0.24, 0.024, 0.25 + 0.5 * tilt), 0.6, 0.5)
    if "hiatal hernia" in tags:
        _hernia(mu, g, 0.13 * k, a.base["left"] - 0.08, a.hernia)
    sternum = zip(np.interp(_WIRES, y[:, 0], front[:, 0]) - 0.03, _WIRES, strict=True)
    wires = [(((u - 0.035, v), (u + 0.02, v + 0.02)), 0.020, 1.0) for u, v in sternum]
    vein = ((-0.34 * k, -0.44), (-0.24, -0.54), (-0.10, -0.52), (-0.02, -0.38), (-0.01, -0.15))
    atrium = (*vein, (-0.06, 0.10), (-0.16, 0.08))
    ventricle = (*vein, (-0.05, 0.18), (-0.30 * k, a.seat - 0.04))
    _metal(mu, g, case, wires, (-0.36 * k, -0.38, 0.035, 0.10, 0.35), (atrium, ventricle))
    return mu


def _lateral_lungs(case: Case, a: Any, g: Grid, chord: Array) -> Array:
    """Both lungs, one behind the other: `chord` cut by each side's diaphragm and fluid, less a consolidation."""
    air = np.zeros_like(chord)
    reach = (g.x + 0.2 * a.depth) / a.depth
    bowl = np.where(reach > 0, a.coeff, 1.2) * reach * reach
    for side, sign in SIDES:
        floor, fade = a.base[side] + bowl, max(0.02, g.px)
        if f"{side} pleural effusion" in case.tags:
            height = {"small": 0.24, "moderate": 0.42, "large": 0.64}[case.sizes[side]] + a.fluid[side]
            deepest = a.base[side] + a.coeff * 0.45
            floor, fade = np.minimum(floor, deepest - height * (0.55 + 0.6 * np.clip(reach, 0, 1) ** 2)), 0.05
        lung = chord * _edge(floor - g.y, fade)
        if f"{side} consolidation" in case.tags:
            lung *= 1.0 - _patch(case, a, g, side, sign, frontal=False)
        air += 0.5 * lung
    return air


def _lateral_bones(mu: Array, a: Any, g: Grid, lung: Array, spine: Array, front: Array, broken: float | None) -> None:
    """Adds the ribs around a `lung`, the spine, with a wedge at the height `broken`, and the sternum."""
    x, y = g.x, g.y
    reach = (x + 0.2 * a.depth) / a.depth
    ribs = _bands((y + 0.30 * reach + 0.25 * reach**2) / a.rib_gap + a.rib_phase, 0.17)
    ribs += _bands((y + 0.36 * reach + 0.20 * reach**2) / a.rib_gap + a.rib_phase + 0.4, 0.17)
    mu += (0.15 * a.bone) * ribs * _edge(lung - 0.3, 0.3) * _edge(0.55 + 0.3 * x - y, 0.2)
    phase = y / a.rib_gap + a.rib_phase
    w = g.window(0.40 * a.depth, 0, 0.30, 2.0)
    along = x[:, w[1]] - spine
    width = _edge(0.080 - np.abs(along), 0.025)
    tall, dense = np.full_like(width, 0.38), np.full_like(width, 0.55)
    if broken is not None:
        there = np.abs(y - broken) < 0.5 * a.rib_gap
        tall = np.where(there, 0.10 + 0.28 * np.clip((along + 0.08) / 0.16, 0, 1) ** 1.5, tall)
        dense = np.where(there, 2.3, dense)
    bodies = np.clip((tall - np.abs(phase - np.rint(phase))) * (a.rib_gap / 0.02) + 0.5, 0, 1)
    mu[w] += a.bone * (dense * bodies + 0.12) * width
    mu[w] += 0.28 * a.bone * _edge(0.03 - np.abs(along - 0.15), 0.03)
    mu += 0.75 * a.bone * _edge(0.026 - np.abs(x - front + 0.03), 0.02) * _edge(y + 0.58, 0.05) * _edge(0.30 - y, 0.05)


_WIRES = (-0.44, -0.32, -0.20, -0.08, 0.04, 0.16)


def _metal(mu: Array, g: Grid, case: Case, wires: list[Line], generator: tuple[float, ...], leads: Any) -> None:
    """Adds the wires of a sternotomy, and the generator and the leads of a pacemaker."""
    lines = wires if "sternotomy" in case.tags else []
    if "pacemaker" in case.tags:
        _add(mu, g, generator, 3.0, 0.25)
        lines = [*lines, *((lead, 0.014, 1.0) for lead in leads)]
    if lines:
        mu += 3.0 * _lines(g, lines)


# Where a lobe lies: (frontal |x|, y, rx, ry), (lateral x, y, rx, ry), in half-widths.
_LOBES = {
    "upper": ((0.36, -0.34, 0.28, 0.27), (0.02, -0.36, 0.30, 0.24)),
    "middle": ((0.26, 0.17, 0.25, 0.18), (-0.28, 0.14, 0.26, 0.13)),
    "lower": ((0.42, 0.26, 0.28, 0.26), (0.27, 0.30, 0.24, 0.30)),
}


def _patch(case: Case, a: Any, g: Grid, side: str, sign: int, frontal: bool) -> Array:
    """The share of air that a consolidation takes, shape (n, n): a fuzzy, mottled lobe."""
    dx, dy, grow = a.patch[side]
    cx, cy, rx, ry = _LOBES[case.lobes[side]][0 if frontal else 1]
    cx = sign * (cx + dx) if frontal else cx * a.depth + dx
    cy += dy + (a.base[side] - 0.33 if case.lobes[side] != "upper" else 0.0)
    fuzzy = 1.0 + 0.10 * np.sin(23 * g.x + 40 * dx) * np.sin(19 * g.y + 40 * dy)
    patch = np.minimum(1.0, 2.2 * _inside(g.x, g.y, cx, cy, rx * grow, ry * grow)) * fuzzy
    return cast(Array, np.clip((0.82 if frontal else 0.95) * patch, 0.0, 0.97))


def _spots(mu: Array, g: Grid, case: Case, a: Any, side: str, place: Any) -> None:
    """Adds the nodule (a soft ball) and the granuloma (a small, very dense one) of one lung."""
    for name, spot, amount, power in (("nodule", a.spot[side], 1.5, 0.4), ("granuloma", a.dot[side], 4.0, 0.3)):
        if f"{side} {name}" in case.tags:
            _add(mu, g, (*place(spot), spot[3], spot[3]), amount, power)


def _hernia(mu: Array, g: Grid, cx: float, cy: float, r: float) -> None:
    """A stomach above the diaphragm: a ball of tissue, air above a level in it."""
    _add(mu, g, (cx, cy, r, r), 0.75, 0.35)
    w = g.window(cx, cy, r, r)
    cavity = _inside(g.x[:, w[1]], g.y[w[0]], cx, cy, 0.8 * r, 0.8 * r) ** 0.35
    mu[w] -= 1.5 * cavity * _edge(cy + 0.1 * r - g.y[w[0]], max(0.015, g.px))
