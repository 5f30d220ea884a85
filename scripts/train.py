"""Fine-tune: `accelerate launch scripts/train.py configs/demo.yaml --dataset DIR [--any_argument value]`."""

import sys

from hf_cxr.cli.parser import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
