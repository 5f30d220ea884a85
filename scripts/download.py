"""The same as `hf-cxr download`; see `--help`."""

import sys

from hf_cxr.cli.parser import main

if __name__ == "__main__":
    sys.exit(main(["download", *sys.argv[1:]]))
