"""What a checkpoint brings is exactly the package `hf_cxr.inference`."""

from pathlib import Path

from hf_cxr.inference import remote_code


def test_a_checkpoint_brings_every_file_of_the_package():
    package = Path(remote_code.__file__).parent
    assert {*remote_code.REMOTE_CODE_FILES} == {file.name for file in package.glob("*.py")} - {"__init__.py"}
