"""Fixtures shared by all tests. Real reports and images are not part of the project: tests that use them skip,
saying so, where the folder is absent. `HF_CXR_SHARED_DATA` names it; the default is `../shared/data`."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    root = Path(os.environ.get("HF_CXR_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real data folder {root} is absent (set HF_CXR_SHARED_DATA)")
    return root


@pytest.fixture(scope="session")
def iu(shared_data: Path) -> Path:
    """The Kaggle form of the Indiana collection: two CSVs and a handful of images."""
    return shared_data / "iu"
