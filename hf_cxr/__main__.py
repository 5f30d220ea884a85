"""The `hf-cxr` command, also as `python -m hf_cxr`: little is imported before Ctrl-C is one plain line."""

import sys


def main() -> int:
    """Run the command line and return its exit status."""
    try:
        from hf_cxr.cli import parser

        return parser.main()
    except KeyboardInterrupt:  # before the command itself listens
        print("hf-cxr: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
