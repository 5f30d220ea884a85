"""The states of a frozen encoder, computed once and read from a memory map in every epoch.

An encoder that is not trained gives the same states each time; with ViT-B/16 they are three quarters of a step's work.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from hf_cxr.data.collator import CanvasCollator, CanvasDataset
from hf_cxr.models.modeling import Checkpoint
from hf_cxr.utils.files import staging_folder
from hf_cxr.utils.progress import ProgressBar


def encode_once(checkpoint: Checkpoint, canvases: CanvasDataset, folder: Path, batch_size: int) -> np.ndarray:
    """The encoder states of every row: float32, (studies, tokens, hidden), memory-mapped from a file in `folder`.

    The file is named after the encoder's weights and the canvases, so that one of other weights is never taken.
    Each host writes its own. Raises `OSError` where the disk is too small.
    """
    state = PartialState()
    encoder = checkpoint.model.encoder.eval().to(state.device)
    file = folder / f"encoder_states-{_digest(encoder, canvases)}.npy"
    with state.local_main_process_first():
        if not file.is_file():
            _write(encoder, CanvasCollator(checkpoint.image_processor), canvases, file, batch_size)
    return np.load(file, mmap_mode="r")


def _write(encoder, collate: CanvasCollator, canvases: CanvasDataset, file: Path, batch_size: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows, states = range(len(canvases)), None
    with staging_folder(file) as folder:
        for start in ProgressBar(rows[::batch_size], desc="encoding images once"):
            batch = rows[start : start + batch_size]
            pixels = collate([{"canvas": canvases.canvas(row)} for row in batch])["pixel_values"]
            with torch.inference_mode():
                encoded = encoder(pixel_values=pixels.to(encoder.device))[0].float().cpu().numpy()
            if states is None:
                shape = (len(rows), *encoded.shape[1:])
                # A memory map on a full disk ends the process without a word (SIGBUS).
                check_disk_space(file.parent, 4 * int(np.prod(shape)), "the frozen encoder's states")
                states = np.lib.format.open_memmap(folder / "states", mode="w+", dtype=np.float32, shape=shape)
            states[start : start + batch_size] = encoded
        if states is not None:
            states.flush()
        (folder / "states").replace(file)


def check_disk_space(folder: Path, needed: int, what: str) -> None:
    """Raise `OSError` where the disk of `folder` has less than `needed` bytes left for `what`."""
    disk = os.statvfs(folder)
    if needed > (free := disk.f_bavail * disk.f_frsize):
        raise OSError(f"{folder}: {what} need {needed / 1e9:.1f} GB, there are {free / 1e9:.1f}")


def _digest(encoder, canvases: CanvasDataset) -> str:
    digest = hashlib.sha256(f"{canvases.rows._fingerprint} {encoder.config.to_json_string()}".encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
