"""The same as `hf-cxr evaluate`; see `--help`. (A file named `evaluate.py` would hide the library of that name.)"""

import sys

from hf_cxr.cli.parser import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
