"""The same as `hf-cxr prepare`; see `--help`."""

import sys

from hf_cxr.cli.parser import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
