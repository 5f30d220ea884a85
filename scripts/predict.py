"""The same as `hf-cxr predict`; see `--help`."""

import sys

from hf_cxr.cli.parser import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
