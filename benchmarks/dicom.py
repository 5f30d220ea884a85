"""Does a DICOM file read back as the image that was put into it? Structural similarity per class of header.

    python benchmarks/dicom.py --images ../shared/data/iu/images ../shared/data/nih_frontal \\
        --headers ../shared/data/iu/dicom_headers.csv.gz

Each image is written with header combinations that occur in the table (photometric interpretation, bits, rescale,
window, view) to a temporary folder, so that a viewer which follows the header would show the image; then it is read
with `hf_cxr.inference.views` and compared with the source, and with the source after the stretch that the reader gives
to every deep image: what still differs then is the reader's fault. `write_dicom` is also what the tests make their
files with. Needs the extra `dicom`. """

from __future__ import annotations

import argparse
import csv
import gzip
import io
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from hf_cxr.inference.views import read_radiograph, shrink

EXPLICIT = "1.2.840.10008.1.2.1"
UNCOMPRESSED = ("1.2.840.10008.1.2", EXPLICIT, "1.2.840.10008.1.2.1.99")  # implicit, explicit, deflated
COLUMNS = (
    *("Photometric Interpretation", "Bits Allocated", "Bits Stored", "High Bit", "Pixel Representation"),
    *("Rescale Slope", "Rescale Intercept", "Rescale Type", "Window Center", "Window Width"),
    *("View Position", "Patient Orientation"),
)


def write_dicom(stored: np.ndarray, syntax: str = EXPLICIT, frame: bytes | None = None, **header: Any) -> bytes:
    """A DICOM file of one greyscale image.

    Args:
        stored: Stored values, integers of shape (rows, columns), or (frames, rows, columns).
        syntax: UID of the transfer syntax. With a compressed one `frame` is the compressed image, except where
            pydicom can compress by itself (RLE, and JPEG-LS with pyjpegls).
        header: Elements by DICOM keyword; `None` leaves one out. Default: MONOCHROME2, 12 of 16 bits, unsigned.
    """
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1")  # computed radiography
    meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    meta.TransferSyntaxUID = UID(syntax if syntax in UNCOMPRESSED else EXPLICIT)
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    defaults: dict[str, Any] = {
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "PixelRepresentation": 0,
    }
    defaults |= {"BitsAllocated": 16, "BitsStored": 12, "Rows": stored.shape[-2], "Columns": stored.shape[-1]}
    defaults["HighBit"] = header.get("BitsStored", 12) - 1
    header = defaults | header
    for name, value in header.items():
        if value is not None and name != "PixelData":
            setattr(data, name, value)
    kind = f"<{'i' if header['PixelRepresentation'] else 'u'}{header['BitsAllocated'] // 8}"
    data.PixelData = header.get("PixelData", stored.astype(kind).tobytes())
    data["PixelData"].VR = "OW" if header["BitsAllocated"] == 16 else "OB"
    if frame is not None:
        data.PixelData = encapsulate([frame])
        data["PixelData"].VR = "OB"
        meta.TransferSyntaxUID = UID(syntax)
    elif syntax != meta.TransferSyntaxUID:
        data.compress(syntax, generate_instance_uid=False)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def stored_values(image: np.ndarray, header: dict[str, Any]) -> np.ndarray:
    """Stored values such that a viewer which follows the header shows `image`, 8-bit grey."""
    top = (1 << header["BitsStored"]) - 1
    low, high = 0.0, float(top)
    if window := first_window(header):
        centre, width = window
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    grey = image / 255.0
    if header["PhotometricInterpretation"] == "MONOCHROME1":
        grey = 1 - grey
    return np.clip(np.rint(low + grey * (high - low)), 0, top).astype(np.uint16)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity of two 8-bit grey images (Wang et al. 2004: 11 × 11 Gaussian window, sigma 1.5)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights /= weights.sum()

    def blur(image: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            views = np.lib.stride_tricks.sliding_window_view(image, 11, axis=axis)
            image = views @ weights
        return image

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, both = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    quality = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(quality.mean())


def read_headers(path: Path) -> Counter[tuple[tuple[str, Any], ...]]:
    """The distinct header combinations of the table, as DICOM elements, and how often each occurs."""
    found: Counter[tuple[tuple[str, Any], ...]] = Counter()
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    for row in csv.DictReader(io.StringIO(text, newline="")):
        header: dict[str, Any] = {}
        for column in COLUMNS:
            value = "\\".join(row[column].strip("[] ").replace("'", "").split(", "))
            name = column.replace(" ", "")
            if name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
                header[name] = int(value)
            elif value:
                header[name] = value
        found[tuple(header.items())] += 1
    return found


def first_window(header: dict[str, Any]) -> tuple[float, float] | None:
    """(centre, width) of the first window, in values of the image."""
    if "WindowWidth" not in header:
        return None
    return tuple(float(str(header[name]).split("\\")[0]) for name in ("WindowCenter", "WindowWidth"))  # type: ignore


def header_class(header: dict[str, Any]) -> str:
    """What a combination has in common with others: all but the numbers of its window and its view."""
    window = first_window(header)
    share = window[1] / ((1 << header["BitsStored"]) - 1) if window else 0
    width = "no window" if not window else "full window" if share >= 0.99 else "window"
    kind = header.get("RescaleType", "no rescale")
    return f"{header['PhotometricInterpretation']}, {header['BitsStored']} bits, {kind}, {width}"


def main() -> None:
    parser = argparse.ArgumentParser(description="structural similarity of DICOM files read back")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of PNG radiographs")
    parser.add_argument("--headers", type=Path, required=True, help="table of header values, CSV or CSV.gz")
    parser.add_argument("--size", type=int, default=512, help="longer side of the test images")
    parser.add_argument("--combinations", type=int, default=4, help="most combinations written of each class")
    options = parser.parse_args()
    paths = [path for folder in options.images for path in sorted(folder.glob("*.png"))]
    images = [np.asarray(shrink(read_radiograph(path), options.size)) for path in paths]
    if not images:
        parser.error(f"no PNG file in {', '.join(map(str, options.images))}")

    alike = [np.asarray(read_radiograph(image.astype(np.float32))) for image in images]
    classes: dict[str, list[tuple[dict[str, Any], int]]] = defaultdict(list)
    for combination, count in read_headers(options.headers).items():
        classes[header_class(dict(combination))].append((dict(combination), count))
    print(f"{len(images)} images of {options.size} pixels; similarity 1 = equal")
    print(f"{'':84} {'to the source':>17} {'stretched alike':>17}")
    print(f"{'class':56} {'headers':>8} {'distinct':>8} {'written':>8}" + f" {'median':>8} {'min':>8}" * 2)
    everything: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.dcm"
        for name, combinations in sorted(classes.items(), key=lambda item: -sum(n for _, n in item[1])):
            # Spread over the widths of the windows, the narrowest and the widest among them.
            combinations.sort(key=lambda item: ((first_window(item[0]) or (0, 0))[1], str(item)))
            chosen = np.unique(np.linspace(0, len(combinations) - 1, options.combinations).astype(int))
            scores = []
            for header in (combinations[i][0] for i in chosen):
                for image, stretched in zip(images, alike, strict=True):
                    path.write_bytes(write_dicom(stored_values(image, header), **header))
                    back = np.asarray(read_radiograph(path))
                    scores.append((similarity(back, image), similarity(back, stretched)))
            everything += scores
            print_row(name, sum(n for _, n in combinations), len(combinations), scores)
    print_row("all", sum(n for rows in classes.values() for _, n in rows), sum(map(len, classes.values())), everything)


def print_row(name: str, total: int, distinct: int, scores: list[tuple[float, float]]) -> None:
    figures = " ".join(f"{np.median(column):8.4f} {min(column):8.4f}" for column in zip(*scores, strict=True))
    print(f"{name:56} {total:8,} {distinct:8,} {len(scores):8,} {figures}")


if __name__ == "__main__":
    main()
