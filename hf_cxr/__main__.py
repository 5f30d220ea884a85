"""`python -m hf_cxr` is the `hf-cxr` command."""

import sys

from hf_cxr.cli.parser import main

sys.exit(main())
