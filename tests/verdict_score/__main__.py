"""`make verdict-score`: how often verdicts between runs are wrong, and how often they find an effect, on real runs.

`python -m tests.verdict_score [FOLDER]` makes the runs that FOLDER lacks (by default in the cache folder), draws sides
from them, and ends with exit code 1 when a limit is not held.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from scalelab.data.spec import cache_folder

from tests.verdict_score import runs, score


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else cache_folder().parent / "verdict-score"
    found = runs.pool(folder)
    print(f"{len(found)} runs in {folder}", flush=True)
    if len(found) < runs.LEAST:
        print(f"needs {runs.LEAST}: call it again, it goes on where it stopped")
        return 1
    for line in runs.described(found):
        print(line)
    lines = score.scored(found)
    print("\n| | of | count | 95 % (Clopper-Pearson) | |\n|---|---|---|---|---|")
    for line in lines:
        print(line.row(), flush=True)
    missed = [line for line in lines if line.holds is False]
    print(f"\n{len(missed)} missed" if missed else "\nall hold")
    return bool(missed)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
