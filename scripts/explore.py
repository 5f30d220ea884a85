"""The same as `hf-cxr explore`; see `--help`."""

import sys

from hf_cxr.cli.parser import main

if __name__ == "__main__":
    sys.exit(main(["explore", *sys.argv[1:]]))
