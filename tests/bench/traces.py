"""What it takes to read profiler traces: one of 500 MB (uncompressed), in time and memory; and how large the merged
trace of 8 ranks and 5 steps becomes."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson
from scalelab.profiles.analysis.trace.merge import merge
from scalelab.profiles.analysis.trace.reader import read_trace
from scalelab.profiles.analysis.traces import trace_files

SIZE_BYTES = 500_000_000
SECONDS_BOUND, MEMORY_BOUND_BYTES, MERGED_BOUND_BYTES = 20, 1 << 30, 30 << 20
RANKS, STEPS = 8, 5
# A process of its own: its peak is that of the analysis alone.
ANALYSE = """
import resource, sys, time
from pathlib import Path
from scalelab.profiles.analysis.trace.reader import read_trace
from scalelab.profiles.analysis.trace.said import said_by
begin = time.perf_counter()
trace = read_trace(Path(sys.argv[1]))
read = time.perf_counter()
said_by(trace)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(len(trace), read - begin, time.perf_counter() - read, peak)
"""


def large_trace(path: Path, size_bytes: int) -> int:
    """Write a trace of that size as kineto lays it out; of 20 events, 10 are frames of Python, 4 operators, 3 calls of
    the runtime and 3 kernels. Returns the uncompressed bytes."""
    written = index = 0
    with gzip.open(path, "wb", compresslevel=1) as file:
        written += file.write(b'{"schemaVersion": 1, "traceEvents": [\n')
        while written < size_bytes:
            rows = [row for number in range(index, index + 500) for row in _twenty(number)]
            index += 500
            text = b",\n".join(orjson.dumps(row, option=orjson.OPT_INDENT_2) for row in rows)
            written += file.write(text + b",\n")
        written += file.write(b'{"ph": "i", "name": "end"}], "traceName": "large"}\n')
    return written


def _twenty(number: int) -> list[dict[str, object]]:
    at = 1_000.0 * number
    rows: list[dict[str, object]] = []

    def add(category: str, name: str, begin: float, took: float, **args: object) -> None:
        place = {"pid": 0, "tid": 7} if category == "kernel" else {"pid": 4242, "tid": 4242}
        rows.append({"ph": "X", "cat": category, "name": name, **place, "ts": begin, "dur": took, "args": args})

    for depth in range(10):
        name = f"model/layers/block_{number % 97}.py({depth * 17}): forward_{depth}"
        ids = {"Python id": number * 10 + depth, "Python parent id": number * 10 + depth - 1, "Ev Idx": number}
        add("python_function", name, at + depth, 900.0 - depth, **ids)
    for operator in range(4):
        shapes = {"External id": number, "Sequence number": number, "Input Dims": [[256, 512], [512, 512], []]}
        add("cpu_op", f"aten::op_{operator}", at + 100.0 * operator + 50, 90.0, **shapes)
    for launch in range(3):
        ids = {"correlation": number * 3 + launch + 1, "External id": number}
        begin = at + 100.0 * launch + 60
        add("cuda_runtime", "cudaLaunchKernel", begin, 8.0, cbid=211, **ids)
        grid = {"registers per thread": 32, "grid": [80, 1, 1], "block": [128, 1, 1]}
        add("kernel", f"void kernel_{launch}<float, 128>(float*)", begin + 20, 70.0, device=0, stream=7, **ids, **grid)
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "large.pt.trace.json.gz"
        size = large_trace(path, SIZE_BYTES)
        done = subprocess.run([sys.executable, "-c", ANALYSE, str(path)], check=True, capture_output=True, text=True)
        events, read, said, peak = map(float, done.stdout.split())
        reached = read + said <= SECONDS_BOUND and peak <= MEMORY_BOUND_BYTES
        print(
            f"a trace of {size / 1e6:.0f} MB, {events:,.0f} events: read in {read:.1f} s, analysed in {said:.1f} s, "
            f"peak {peak / 2**20:.0f} MiB; bound {SECONDS_BOUND} s and {MEMORY_BOUND_BYTES >> 20} MiB: "
            f"{'reached' if reached else 'MISSED'}"
        )
        command = [sys.executable, "-m", "scalelab", "run", "--model=tiny", "--gpus=2", "--steps=2", "--warmup=1"]
        subprocess.run(
            [*command, f"--profile-steps={STEPS}", f"--out={place}"], check=True, capture_output=True, text=True
        )
        files = trace_files(Path(place) / "latest")
        two = {rank: read_trace(file) for rank, file in files.items()}
        eight = {rank: two[rank % len(two)] for rank in range(RANKS)}
        left_out = merge(eight, {}, Path(place) / "merged.json.gz")
        merged = (Path(place) / "merged.json.gz").stat().st_size
        print(
            f"{RANKS} ranks x {STEPS} steps of tiny under ddp merged: {merged / 2**20:.1f} MiB, {left_out} events "
            f"left out; bound {MERGED_BOUND_BYTES >> 20} MiB: {'reached' if merged <= MERGED_BOUND_BYTES else 'MISSED'}"
        )


if __name__ == "__main__":
    main()
