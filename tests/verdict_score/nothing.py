"""`make verify-score`: real verifications of a change that changes nothing, none of which may be called an improvement.

`python -m tests.verdict_score.nothing [FOLDER]` makes what FOLDER lacks (by default in the cache folder): TIMES times
ROUNDS rounds of a run as it is and with `--grace` a second longer, which only a Ctrl-C would notice.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
from scalelab.data.spec import cache_folder
from scalelab.launch.devices import detect
from scalelab.launch.scenarios._contract import SUBJECT
from scalelab.launch.verification import Change, verify
from scalelab.profiles.runfolder import RunFolder

TIMES, ROUNDS, STEPS = 10, 5, 30
COMMAND = ("run", f"--model={SUBJECT}", "--strategy=ddp", "--gpus=2", "--warmup=5", "--memory-step=off")


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else cache_folder().parent / "verify-score"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "scalelab", *COMMAND, f"--steps={STEPS}", f"--out={folder}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = RunFolder(Path(orjson.loads(done.stdout)["run_folder"])).read("run.json")
    assert facts is not None
    improved = 0
    print("| verification | saved | 95 % | verdict |\n|---|---|---|---|", flush=True)
    for number in range(1, TIMES + 1):
        seeded = {**facts, "config": {**facts["config"], "seed": 1000 * number}}
        verified = verify(
            seeded,
            Change("healthy", {"grace": facts["config"]["grace"] + 1}, share=None, ci95=None),
            out=folder,
            rounds=ROUNDS,
            steps=STEPS,
            devices=detect(),
            stream=sys.stderr,
        )
        if verified.bought is None:
            print(f"{verified.folder}: not every run ended well; call it again")
            return 1
        found = verified.bought
        low, high = found["ci95"]
        improved += found["verdict"] == "faster"
        print(f"| {number} | {found['saved_share']:.1%} | {low:.1%} to {high:.1%} | {found['verdict']} |", flush=True)
    print(f"\n{improved} of {TIMES} called an improvement{': MISSED' if improved else ''}")
    return int(improved > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
