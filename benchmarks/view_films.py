"""Images to fit and to measure the view evidence: drawn chests of both views, changed films, and what is no film.

Nothing here reads a real image; `fit_view_evidence.py` brings those.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

SIDE = 128  # pixels of all images here
Rng = np.random.Generator
BICUBIC = Image.Resampling.BICUBIC


def smooth(rng: Rng, cells: int, side: int = SIDE) -> np.ndarray:
    """Smooth noise, about -2 to 2, (side, side)."""
    small = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(small.resize((side, side), BICUBIC))


def to_image(values: np.ndarray) -> Image.Image:
    low, high = np.percentile(values, (0.5, 99.5))
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-6))).clip(0, 255).astype(np.uint8))


# Drawn chests: a few soft shapes whose places, sizes and densities vary far more than those of patients do.


def _axes() -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(SIDE, dtype=np.float32) + 0.5) * (2 / SIDE) - 1
    return axis[None, :], axis[:, None]


def _step(distance: np.ndarray, soft: float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(distance / soft, -30, 30)))


def _blob(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    x, y = _axes()
    c, s = math.cos(angle), math.sin(angle)
    u, v = c * (x - cx) + s * (y - cy), c * (y - cy) - s * (x - cx)
    return np.clip(1 - (u / rx) ** 2 - (v / ry) ** 2, 0, 1) ** 0.5


def _film(attenuation: np.ndarray, rng: Rng) -> Image.Image:
    attenuation = attenuation + rng.uniform(0, 0.3) * smooth(rng, int(rng.integers(3, 9)))
    values = 1 / (1 + np.exp(-rng.uniform(0.8, 2.2) * (attenuation - rng.uniform(1.0, 2.0))))
    return to_image(values + rng.uniform(0, 0.03) * rng.standard_normal(values.shape))


def sketched_lateral(rng: Rng) -> Image.Image:
    """A lateral chest: lung between a sternum and a spine, heart in front, domes below, arms above."""
    x, y = _axes()
    u = rng.uniform
    k, shift = u(0.75, 1.25), u(-0.15, 0.15)  # depth of the chest, place in the image
    apex, dome = u(-0.95, -0.5), u(0.15, 0.8)
    spine = shift + k * u(0.3, 0.5) + u(0.03, 0.16) * np.cos(u(1.0, 2.0) * (y - u(-0.3, 0.3))) + u(-0.12, 0.12) * y
    sternum = shift - k * (u(0.38, 0.58) - u(0.0, 0.3) * np.exp(-(((y + 0.9) / u(0.3, 0.8)) ** 2))) - u(0, 0.2) * y
    skin = sternum - u(0.03, 0.3) - u(0, 0.25) * np.exp(-(((y - u(0, 0.4)) / u(0.2, 0.4)) ** 2))
    back = spine + u(0.15, 0.45)
    trunk = _step(x - skin, 0.03) * _step(back - x, 0.03)
    mu = u(1.8, 3.2) * trunk * (0.6 + 0.4 * _blob(shift, 0.2, 1.3, 2.0))
    mu = mu + trunk * u(0.2, 1.6) * _step(apex + u(0.0, 0.45) - y, u(0.05, 0.25))  # shoulders
    for _ in range(rng.integers(0, 3)):  # arms
        mu = mu + u(0.2, 1.2) * _blob(shift + u(-0.9, 0.5), u(-1.1, -0.6), u(0.3, 0.9), u(0.1, 0.3), u(-1.0, 1.0))
    lung = (
        _step(x - sternum, u(0.02, 0.06))
        * _step(spine + u(0.0, 0.2) - x, u(0.02, 0.08))
        * _step(y - apex, u(0.04, 0.2))
    )
    reach = (x - shift + u(0.0, 0.3)) / k
    for _ in range(2):
        bowl = np.where(reach > 0, u(0.2, 1.1), u(0.3, 1.4)) * reach * reach
        mu = mu - u(0.5, 1.1) * lung * _step(dome + u(-0.12, 0.12) + bowl - y, u(0.02, 0.05))
    heart = _blob(shift - k * u(0.05, 0.3), dome - u(0.1, 0.35), u(0.2, 0.45), u(0.15, 0.35), u(0.2, 1.2))
    mu = mu + u(0.2, 1.1) * heart * lung
    mu = mu + u(0.1, 0.7) * _blob(shift + u(-0.1, 0.15), u(-0.3, 0.1), u(0.08, 0.25), u(0.1, 0.3))  # hila
    mu = mu + u(0.0, 0.5) * _blob(shift + u(-0.1, 0.1), u(-0.55, -0.2), u(0.12, 0.3), u(0.1, 0.25)) * lung  # arch
    tube = np.abs(x - shift - u(-0.1, 0.15) - u(0.0, 0.25) * (y + 0.5))
    mu = mu - u(0.0, 0.7) * _step(0.04 - tube, 0.02) * _step(-0.1 - y, 0.08)  # trachea
    discs = 0.7 + 0.3 * np.cos(u(18, 34) * y + u(0, 6))
    mu = mu + u(0.15, 1.1) * _step(u(0.06, 0.13) - np.abs(x - spine - u(-0.05, 0.05)), 0.025) * discs * (
        1 - u(0, 0.7) * (y + 1) / 2
    )
    ribs = np.cos(u(14, 30) * (y - u(0.1, 0.9) * x) + u(0, 6))
    mu = mu + u(0.0, 0.3) * lung * np.clip(ribs, 0, 1)
    if rng.random() < 0.25:  # fluid or consolidation
        mu = mu + u(0.3, 1.2) * _blob(shift + u(-0.3, 0.5), u(0.0, 0.7), u(0.2, 0.6), u(0.15, 0.5))
    if rng.random() < 0.5:
        mu = mu - u(0.2, 0.8) * _blob(shift + u(-0.4, 0.1), dome + u(0.1, 0.35), u(0.1, 0.25), u(0.05, 0.15))  # bubble
    return _film(mu, rng)


def sketched_frontal(rng: Rng) -> Image.Image:
    """A frontal chest of the same kind of shapes: two lungs beside a mediastinum."""
    x, y = _axes()
    u = rng.uniform
    shift, apex, dome, width = u(-0.12, 0.12), u(-0.9, -0.6), u(0.15, 0.65), u(0.55, 0.9)
    x = x - shift - u(-0.06, 0.06) * y
    neck = _step(y + u(0.7, 1.1), u(0.04, 0.12))
    trunk = _step((0.25 + (width + u(0.1, 0.4) - 0.25) * neck) - np.abs(x), 0.04)
    mu = u(1.8, 3.2) * trunk * (1 + u(-0.15, 0.25) * y)
    rise = np.clip((u(0.0, 0.4) - y) / (1.0 - apex), 0, 1)
    for sign in (-1, 1):
        out = sign * x
        wall = width * u(0.92, 1.08) * (1 - rise ** u(2.0, 3.0)) ** 0.5
        floor = dome + u(-0.1, 0.1) + u(0.1, 0.5) * np.clip(out / width - 0.4, 0, 1) ** 2
        lung = (
            _step(wall - out, 0.03)
            * _step(out - u(0.08, 0.16), 0.03)
            * _step(y - apex, 0.06)
            * _step(floor - y, u(0.02, 0.06))
        )
        mu = mu - u(0.9, 1.9) * lung
        if rng.random() < 0.2:
            mu = mu + u(0.3, 1.4) * _blob(shift + sign * u(0.2, 0.5), u(-0.4, 0.6), u(0.2, 0.5), u(0.2, 0.5))
        mu = mu + u(0.0, 0.5) * _blob(shift + sign * 0.18, u(-0.2, 0.1), u(0.06, 0.16), u(0.1, 0.25))
        mu = mu + u(0.0, 0.6) * _blob(shift + sign * u(0.8, 1.1), u(-0.8, -0.4), u(0.15, 0.35), u(0.2, 0.5))
        collar = y - apex - u(0.1, 0.35) + u(-0.1, 0.4) * out
        mu = mu + u(0.0, 0.5) * _step(0.03 - np.abs(collar), 0.015) * _step(out - 0.05, 0.03) * _step(0.75 - out, 0.05)
    size = u(0.2, 0.5)
    mu = mu + u(0.5, 1.3) * _blob(shift + u(0.0, 0.2), dome - u(0.05, 0.3), size, size * u(0.6, 0.9), u(0.2, 0.8))
    mu = mu + u(0.2, 0.8) * _step(u(0.05, 0.1) - np.abs(x), 0.03)
    ribs = np.cos(u(14, 30) * (y + u(-0.5, 0.5) * np.abs(x)) + u(0, 6))
    mu = mu + u(0.0, 0.3) * np.clip(ribs, 0, 1) * trunk
    return _film(mu, rng)


# Changes of a film


def warped(image: Image.Image, rng: Rng, most: float, cells: int) -> Image.Image:
    """The image with the corners of a coarse grid moved by up to `most` of a cell."""
    width, height = image.size
    at = np.stack(np.meshgrid(np.linspace(0, width, cells + 1), np.linspace(0, height, cells + 1)), -1)
    at = at + rng.uniform(-most, most, at.shape) * (width / cells)
    mesh = []
    for i in range(cells):
        for j in range(cells):
            box = (width * j // cells, height * i // cells, width * (j + 1) // cells, height * (i + 1) // cells)
            corners = (at[i, j], at[i + 1, j], at[i + 1, j + 1], at[i, j + 1])
            mesh.append((box, tuple(float(v) for corner in corners for v in corner)))
    return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def textured(image: Image.Image, film: Image.Image, rng: Rng) -> Image.Image:
    """A drawn image with the fine structure of a film, of any part of it and turned any way."""
    film = film.rotate(90 * int(rng.integers(4)))
    left, top = rng.integers(0, SIDE // 2, 2)
    film = film.crop((left, top, left + SIDE // 2, top + SIDE // 2)) if rng.random() < 0.5 else film
    film = film.resize((SIDE, SIDE), BICUBIC)
    fine = np.asarray(film, np.float32) - np.asarray(
        film.filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 5))), np.float32
    )
    return to_image(np.asarray(image, np.float32) + rng.uniform(0.4, 2.0) * fine)


def marked(image: Image.Image, rng: Rng) -> Image.Image:
    """With burnt-in letters, an arrow or a box."""
    image = image.copy()
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 4)):
        x, y = rng.integers(0, SIDE - 8, 2).tolist()
        ink, kind = int(rng.choice([0, 255, 200])), rng.random()
        if kind < 0.6:
            text = "".join(rng.choice(list("LRAPE0123456789:/ "), rng.integers(1, 14)))
            pen.text((x, y), text, fill=ink, font_size=int(rng.integers(6, 18)))
        elif kind < 0.8:
            pen.line((x, y, *(int(v) for v in rng.integers(0, SIDE, 2))), fill=ink, width=int(rng.integers(1, 4)))
        else:
            pen.rectangle((x, y, x + int(rng.integers(4, 30)), y + int(rng.integers(3, 16))), fill=ink)
    return image


def bordered(image: Image.Image, rng: Rng) -> Image.Image:
    widths = (rng.uniform(0, 0.25, 4) * (rng.random(4) < 0.7) * SIDE).astype(int)
    fill = int(rng.choice([0, 0, 255, int(rng.integers(256))]))
    return ImageOps.expand(image, tuple(widths.tolist()), fill).resize((SIDE, SIDE), Image.Resampling.BOX)


def turned(image: Image.Image, rng: Rng, most: float) -> Image.Image:
    fill = int(rng.choice([0, 0, int(np.asarray(image).mean()), 255]))
    return image.rotate(rng.uniform(-most, most), Image.Resampling.BILINEAR, fillcolor=fill)


def changed(image: Image.Image, rng: Rng, warp: float) -> Image.Image:
    """A film as another hospital, scanner, printer or web page might show it; upright still."""

    def chance(share: float) -> bool:
        return bool(rng.random() < share)

    if chance(0.5):
        image = ImageOps.mirror(image)
    if chance(0.7):
        image = warped(image, rng, warp, int(rng.integers(2, 6)))
    if chance(0.7):
        image = turned(image, rng, 15)
    if chance(0.8):
        box = rng.uniform(0, 0.13, 4) * SIDE
        image = image.resize((SIDE, SIDE), BICUBIC, box=(box[0], box[1], SIDE - box[2], SIDE - box[3]))
    values: np.ndarray = np.asarray(image, np.float32)
    if chance(0.5):
        values = values + rng.uniform(5, 45) * smooth(rng, int(rng.integers(2, 5)))
    if chance(0.5):  # saturated
        low, high = np.percentile(values, (rng.uniform(0, 25), rng.uniform(75, 100)))
        values = (values - low) * (255 / max(high - low, 1))
    if chance(0.4):
        values = values + rng.uniform(2, 25) * rng.standard_normal(values.shape)
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if chance(0.3):
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.5)))
    if chance(0.4):
        image = marked(image, rng)
    if chance(0.25):
        image = ImageOps.invert(image)
    return bordered(image, rng) if chance(0.35) else image


def half_film(film: Image.Image, other: Image.Image, rng: Rng) -> Image.Image:
    """No frontal view, made of frontal films: a half stretched to the whole, or halves of two that do not match."""
    cut = int(SIDE * rng.uniform(0.45, 0.6))
    half = film.crop((0, 0, cut, SIDE)) if rng.random() < 0.5 else film.crop((SIDE - cut, 0, SIDE, SIDE))
    if rng.random() < 0.6:
        return half.resize((SIDE, SIDE), BICUBIC)
    made = Image.new("L", (SIDE, SIDE))
    made.paste(half.resize((SIDE // 2, SIDE)), (0, 0))
    made.paste(other.resize((SIDE, SIDE)).crop((0, 0, SIDE // 2, SIDE)), (SIDE // 2, 0))
    return made


# What is no upright chest film


def on_its_head(film: Image.Image, rng: Rng) -> Image.Image:
    way = (Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM)[int(rng.integers(2))]
    return film.transpose(way)


def on_its_side(film: Image.Image, rng: Rng) -> Image.Image:
    return film.transpose((Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)[int(rng.integers(2))])


def page(rng: Rng, film: Image.Image | None = None) -> Image.Image:
    """A page of text, at times with a film as its figure."""
    dark = rng.random() < 0.3
    image = Image.new("L", (SIDE, SIDE), 30 if dark else 255)
    pen, y, size = ImageDraw.Draw(image), int(rng.integers(2, 20)), int(rng.integers(5, 14))
    while y < SIDE:
        words = " ".join("".join(rng.choice(list("aeinorstl"), rng.integers(2, 9))) for _ in range(12))
        left = int(rng.integers(3, 9))
        pen.text(
            (left, y),
            words[: int(rng.integers(5, 60))],
            fill=230 if dark else int(rng.integers(0, 90)),
            font_size=size,
        )
        y += size + int(rng.integers(1, 8))
    if film is not None:
        side = int(rng.integers(30, 70))
        image.paste(film.resize((side, side)), tuple(rng.integers(0, SIDE - side, 2).tolist()))
    return image


def screenshot(rng: Rng, film: Image.Image | None = None) -> Image.Image:
    """Windows, bars and buttons; at times a film in one of the windows."""
    image = Image.new("L", (SIDE, SIDE), int(rng.integers(256)))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 12)):
        x, y = rng.integers(-10, SIDE - 20, 2).tolist()
        box = (x, y, x + int(rng.integers(10, 100)), y + int(rng.integers(5, 80)))
        pen.rectangle(box, fill=int(rng.integers(256)), outline=int(rng.integers(256)))
        pen.text(
            (x + 3, y + 2), "File Edit View Help"[: int(rng.integers(4, 19))], fill=int(rng.integers(256)), font_size=8
        )
    if film is not None:
        side = int(rng.integers(30, 70))
        image.paste(film.resize((side, side)), tuple(rng.integers(0, SIDE - side, 2).tolist()))
    return image


def chart(rng: Rng) -> Image.Image:
    """Axes with bars or curves."""
    image = Image.new("L", (SIDE, SIDE), 255)
    pen = ImageDraw.Draw(image)
    pen.line((12, 8, 12, 116, 120, 116), fill=0, width=1)
    if rng.random() < 0.5:
        for i, height in enumerate(rng.integers(5, 100, 8).tolist()):
            pen.rectangle((16 + 13 * i, 115 - height, 25 + 13 * i, 115), fill=int(rng.integers(40, 220)))
    else:
        for _ in range(3):
            walk = np.cumsum(rng.standard_normal(100) * 4) + rng.uniform(20, 100)
            pen.line([(14 + i, float(v)) for i, v in enumerate(walk)], fill=int(rng.integers(0, 200)), width=1)
    return image


def noise(rng: Rng) -> Image.Image:
    """White to brown noise."""
    power = rng.uniform(0, 2.5)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    f[0, 0] = 1
    spectrum = np.fft.fft2(rng.standard_normal((SIDE, SIDE))) / f**power
    return to_image(np.fft.ifft2(spectrum).real)


def gradient(rng: Rng) -> Image.Image:
    x, y = _axes()
    angle = rng.uniform(0, 7)
    ramp = np.cos(angle) * x + np.sin(angle) * y
    rings = np.hypot(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1))
    return to_image((ramp, rings, np.cos(rng.uniform(3, 30) * ramp))[int(rng.integers(3))] + 0.02 * smooth(rng, 32))


def photograph(rng: Rng) -> Image.Image:
    """A scene: a shaded ground, objects with edges and shadows, natural texture over all."""
    values = 40 * smooth(rng, 3) + 30 * (_axes()[1] > rng.uniform(-0.5, 0.5)) * rng.uniform(-2, 2)
    image = to_image(values)
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 14)):
        x, y = rng.integers(-20, SIDE, 2).tolist()
        w, h = rng.integers(8, 80, 2).tolist()
        ink = int(rng.integers(256))
        if rng.random() < 0.5:
            pen.ellipse((x, y, x + w, y + h), fill=ink)
        else:
            pen.polygon([(x + int(dx), y + int(dy)) for dx, dy in rng.integers(-20, 60, (5, 2))], fill=ink)
    texture = np.asarray(noise(rng), np.float32) - 128
    return to_image(np.asarray(image, np.float32) + rng.uniform(0.1, 1.0) * texture)


def other_bones(rng: Rng) -> Image.Image:
    """A limb, a hand or a skull: capsules of bone in soft tissue on black."""
    x, y = _axes()
    values, u = np.zeros((SIDE, SIDE), np.float32), rng.uniform
    if rng.random() < 0.25:  # a skull
        values += u(0.8, 1.5) * _blob(u(-0.2, 0.2), u(-0.3, 0.2), u(0.6, 0.9), u(0.6, 0.95))
        values -= u(0.2, 0.6) * _blob(u(-0.1, 0.1), u(-0.2, 0.1), u(0.5, 0.7), u(0.5, 0.7))
        values += u(0.2, 0.8) * _blob(u(-0.4, 0.4), u(0.3, 0.8), u(0.2, 0.5), u(0.2, 0.4))
    else:
        angle, number = u(-0.5, 0.5) + (math.pi / 2 if rng.random() < 0.3 else 0), int(rng.integers(1, 6))
        for i in range(number):
            at = (i - (number - 1) / 2) * u(0.25, 0.45)
            away = np.abs((x - at) * math.cos(angle) + y * math.sin(angle) * u(0.5, 1.0))
            thick = u(0.05, 0.16)
            values += u(0.3, 0.6) * _step(2 * thick - away, 0.04) + u(0.4, 1.0) * _step(thick - away, 0.02)
            values -= u(0.1, 0.3) * _step(0.5 * thick - away, 0.02)
        for _ in range(rng.integers(0, 5)):
            values += u(0.2, 0.7) * _blob(u(-0.6, 0.6), u(-0.6, 0.6), u(0.1, 0.3), u(0.1, 0.3))
    return _film(values * 1.5, rng)


def collage(films: list[Image.Image], rng: Rng) -> Image.Image:
    """Two films side by side or one above the other, or four."""
    across, down = ((2, 1), (1, 2), (2, 2), (3, 1))[int(rng.integers(4))]
    made = Image.new("L", (SIDE, SIDE), int(rng.choice([0, 255])))
    for i in range(across):
        for j in range(down):
            film = films[int(rng.integers(len(films)))]
            made.paste(
                film.resize((SIDE // across - 2, SIDE // down - 2)), (SIDE // across * i + 1, SIDE // down * j + 1)
            )
    return made


def kinds(film: Callable[[Rng], Image.Image]) -> dict[str, Callable[[Rng], Image.Image]]:
    """What is no upright chest film, by name, each made from a seed; `film` gives a film to make it of."""
    return {
        "chest upside down": lambda rng: on_its_head(film(rng), rng),
        "chest on its side": lambda rng: on_its_side(film(rng), rng),
        "page of text": page,
        "page with a film": lambda rng: page(rng, film(rng)),
        "screenshot": screenshot,
        "screenshot with a film": lambda rng: screenshot(rng, film(rng)),
        "several films": lambda rng: collage([film(rng) for _ in range(4)], rng),
        "chart": chart,
        "noise": noise,
        "gradient": gradient,
        "photograph": photograph,
        "other bones": other_bones,
    }
