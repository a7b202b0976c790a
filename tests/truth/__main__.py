"""`make truth`: known causes planted in real runs over gloo, and what was measured of them."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

CHECKS = ("closure", "delays", "stragglers", "wire")


def main() -> int:
    # Before torch is imported: one thread per rank on shared cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tests.truth import checks

    failed = 0
    for name in sys.argv[1:] or CHECKS:
        print(f"== {name} ==", flush=True)
        with tempfile.TemporaryDirectory() as place:
            for line in getattr(checks, name)(Path(place)):
                failed += not line.holds
                print(f"{'ok    ' if line.holds else 'MISSED'} {line.text}", flush=True)
    print(f"{failed} missed" if failed else "all hold")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
