"""The same as `hf-cxr push`; see `--help`."""

import sys

from hf_cxr.cli.parser import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
