"""Fixtures shared by all tests. Real reports and images are not part of the project: tests that use them skip,
saying so, where the folder is absent. `HF_CXR_SHARED_DATA` names it; the default is `../shared/data`."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every time, however slow the machine; HYPOTHESIS_PROFILE=default searches at random.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "reproducible"))
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # each more is a process that imports torch

# `make test` gives whole files to its workers, in this order: the longest first, so that the workers end together.
LONGEST = """documentation resume distributed interoperability real_input notebooks push trainer demo run parts parser
hub_faults recipes samples python_face model_card benchmarks prepare""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


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


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared phantom collection: 238 studies of 32-pixel views."""
    from hf_cxr.data.prepare import prepare

    folder = tmp_path_factory.mktemp("phantom") / "dataset"
    prepare("phantom", folder, size=32, num_studies=238, seed=0)
    return folder


@pytest.fixture(scope="session")
def run_folder(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained for a few steps through both stages, evaluated, with its card."""
    from helpers import TINY_RECIPE, write_config

    from hf_cxr.config import parse_arguments
    from hf_cxr.training.run import train

    folder = tmp_path_factory.mktemp("run") / "run"
    config = write_config(
        folder.parent / "config.yaml",
        **TINY_RECIPE,
        dataset=str(phantom_folder),
        output_dir=str(folder),
        findings_pretraining_epochs=1,
        per_device_train_batch_size=16,
        learning_rate=0.001,
        eval_strategy="epoch",
    )
    train(*parse_arguments(config))
    return folder


@pytest.fixture(scope="session")
def talkative_run(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run with weights that write another text for nearly every study, where its own write one for all."""
    from helpers import copy_folder, talkative

    from hf_cxr.models.modeling import load_checkpoint

    run = copy_folder(run_folder, tmp_path_factory.mktemp("talkative") / "run")
    model = talkative(load_checkpoint(str(run)), eyes=2).model
    model.save_pretrained(run)
    return run
