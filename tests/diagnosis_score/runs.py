"""Every scenario run for real, with its fault and without: which runs there are to be, and which there are."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from scalelab.launch import devices, environment
from scalelab.launch.errors import ScalelabError
from scalelab.launch.scenarios import _run, scenarios
from scalelab.launch.scenarios._contract import Scenario
from scalelab.profiles.analysis.diagnosis.diagnose import diagnose
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.summary import analyse
from scalelab.profiles.runfolder import RunFolder

from tests.support.command import Forked

# Rules and strengths were set on seeds 0 and 1, and on what 100 to 102, 200 and 201 had shown.
TUNED_ON, SCORED = (0, 1), (300, 301, 302, 303)
# Of healthy runs enough to see one false alarm in forty.
HEALTHY_SEEDS = 14
LIMIT_SECONDS = 3600
BOOK = "runs.jsonl"


@dataclass(frozen=True)
class Key:
    """One run: of a scenario with a seed on so many ranks, with its fault or without."""

    scenario: str
    seed: int
    world_size: int
    removed: bool

    def __str__(self) -> str:
        return f"{self.scenario} seed {self.seed}, {self.world_size} rank(s){', without' if self.removed else ''}"


@dataclass(frozen=True)
class Row:
    """What came of a run: its folder in the score's, or why there is none."""

    key: Key
    folder: str | None
    failed: str | None = None


def here() -> tuple[dict[str, Scenario], dict[str, str]]:
    """Scenarios that this machine can have, and why it cannot have the others."""
    device = devices.detect().kind
    found: dict[str, Scenario] = {}
    lacks: dict[str, str] = {}
    for name, each in scenarios().items():
        why = f"needs {' or '.join(each.devices)}" if device not in each.devices else each.why_not()
        if why is None:
            found[name] = each
        else:
            lacks[name] = why
    return found, lacks


def wanted(found: dict[str, Scenario], seeds: Sequence[int]) -> list[Key]:
    """Every run there is to be: seed by seed, the fault and its removal one after the other."""
    keys: list[Key] = []
    healthy = [seeds[0] + more for more in range(HEALTHY_SEEDS if len(seeds) > 2 else len(seeds))]
    for seed in sorted({*seeds, *healthy}):
        for name, each in found.items():
            if seed not in (healthy if each.remove is None else seeds):
                continue
            for world_size in each.world_sizes:
                sides = (False,) if each.remove is None else (False, True)
                keys += [Key(name, seed, world_size, removed) for removed in sides]
    return keys


def made(folder: Path) -> dict[Key, Row]:
    """The runs that are there."""
    found: dict[Key, Row] = {}
    if (folder / BOOK).is_file():
        for line in (folder / BOOK).read_bytes().splitlines():
            try:
                read = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # half a line: that run is made again
            row = Row(Key(**read["key"]), read["folder"], read["failed"])
            if row.folder is None or (folder / row.folder / "run.json").is_file():
                found[row.key] = row
    return found


_start_run = _run.start_run


def _quickly_started(prefix: Sequence[str], options: Sequence[str]) -> Any:
    """A run forked from what has been imported, which saves five seconds of ten; one within something, as it is."""
    return _start_run(prefix, options) if prefix else Forked(["run", *options])


def make(folder: Path, keys: Sequence[Key], found: dict[str, Scenario]) -> dict[Key, Row]:
    """Make those of `keys` that `folder` lacks, as far as the time allows; all that are there then."""
    _run.start_run = _quickly_started
    folder.mkdir(parents=True, exist_ok=True)
    begin, device, there = time.monotonic(), devices.detect().kind, made(folder)
    todo = [key for key in keys if key not in there or there[key].failed is not None]
    for number, key in enumerate(todo, start=1):
        if time.monotonic() - begin > LIMIT_SECONDS:
            break
        print(f"[{number}/{len(todo)}] {key}", file=sys.stderr, flush=True)
        try:
            made_in = _run.run_scenario(
                found[key.scenario],
                seed=key.seed,
                world_size=key.world_size,
                device=device,
                out=folder,
                say=lambda text: None,
                removed=key.removed,
            )
            row = Row(key, made_in.path.name)
        except (ScalelabError, OSError, subprocess.SubprocessError) as error:
            row = Row(key, None, str(error)[-500:])
            print(f"failed: {row.failed}", file=sys.stderr, flush=True)
        with (folder / BOOK).open("ab") as book:
            book.write(orjson.dumps(asdict(row)) + b"\n")
        there[key] = row
    return there


def diagnosed(folder: Path, row: Row) -> dict[str, Any]:
    """The diagnosis of a run, by the rules of now."""
    assert row.folder is not None
    place = RunFolder(folder / row.folder)
    run = load_run(place)
    return diagnose(run, analyse(place, run))


def kind() -> str:
    """What decides the runs, as a short hash: the code that makes them, libraries and machine. Runs of another kind
    are no runs of this score."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for place in ("launch", "models", "data", "profiles/capture"):
        for path in sorted((root / place).rglob("*.py")):
            digest.update(path.read_bytes())
    here = devices.detect()
    digest.update(orjson.dumps([environment.versions(), here.kind, here.name, environment.available_cores()]))
    return digest.hexdigest()[:10]
