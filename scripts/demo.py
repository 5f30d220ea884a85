"""The same as `hf-cxr demo`; see `--help`."""

import sys

from hf_cxr.cli.parser import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
