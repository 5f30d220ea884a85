"""What ReXrank runs: copy this file into the folder of a checkpoint. Both forms of the command are documented in
github.com/rajpurkarlab/ReXrank, example_files/submission_tutorial.md and submission_tutorial_round2.md:

    python inference.py studies.json answers.json images/
    python inference.py --input_json_file studies.json --save_json_file answers.json --img_root_dir images/
"""

import argparse
from pathlib import Path

from hf_cxr.evaluation.export import answer_rexrank

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("in_order", nargs="*", help="the three of them, in this order")
    names = ("input_json_file", "save_json_file", "img_root_dir")
    for name in names:
        parser.add_argument(f"--{name}")
    options = parser.parse_args()
    files = options.in_order or [getattr(options, name) for name in names]
    if len(files) != len(names) or None in files:
        parser.error(f"give {', '.join(names)}")
    try:
        answer_rexrank(Path(__file__).resolve().parent, *files)
    except (OSError, ValueError) as error:
        parser.error(str(error))
