"""The process in which a tracker's own library runs: `python -m … NAME FOLDER`, what is to be sent on stdin."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    tracker = importlib.import_module(f".{sys.argv[1]}", __package__)
    seen_at = tracker.send(json.load(sys.stdin), Path(sys.argv[2]))
    print(seen_at)


if __name__ == "__main__":
    main()
