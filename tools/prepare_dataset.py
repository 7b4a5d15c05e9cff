"""`gantrain prepare` under its old name, for scripts that call it: python tools/prepare_dataset.py SOURCE --out FOLDER --resolution N"""

import sys

from gantrain.cli import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
