"""`make bench`: what the project's own machinery costs, against plain PyTorch and plain webdataset, with spread."""

from __future__ import annotations

import importlib
import os
import sys

BENCHES = ("loop", "measuring", "analysis", "report", "traces", "loader", "strategies", "quality")


def main() -> None:
    # Before torch is imported: one thread per rank on shared cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in sys.argv[1:] or BENCHES:
        print(f"== {name} ==", flush=True)
        importlib.import_module(f"{__package__}.{name}").main()


if __name__ == "__main__":
    main()
