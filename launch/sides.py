"""The sides of a comparison as they are given on the command line, found on disk. No torch."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from ..profiles.analysis.compared import ComparedRun, Side, UnfitError, compared_run
from ..profiles.runfolder import RunFolder
from ..profiles.sweepfolder import SweepFolder, SweepPlan
from .errors import ConfigError, Exit
from .validation import unknown

HINT = "give run folders, several by commas, a pattern, a folder of runs, or SWEEP:CELL"


def find_side(letter: str, text: str) -> Side:
    """The runs that `text` names: a run folder, several by commas, a pattern, a folder of run folders, or a cell of a
    sweep as SWEEP:CELL.

    A run that is named by itself and cannot be compared is refused; of those found in a pattern, a folder or a cell it
    is left out by name, unless it trained something else. Raises ConfigError.
    """
    if not text.strip():
        raise ConfigError(f"{letter}: names nothing", hint=HINT)
    parts = [text] if Path(text).exists() or _cell_of(text) else text.split(",")
    runs: list[ComparedRun] = []
    left_out: dict[str, str] = {}
    cells = set()
    for part in parts:
        folders, alone = _folders(letter, part)
        cell = _cell_of(part)
        cells.add(cell[1] if cell else None)
        for folder in folders:
            try:
                runs.append(compared_run(RunFolder(folder)))
            except UnfitError as error:
                if alone or error.trained_else:
                    raise ConfigError(f"{letter}: {error}", hint=error.hint) from error
                left_out[folder.name] = str(error)
        if cell:
            left_out.update(_without_folder(*cell))
    if not runs:
        raise ConfigError([f"{letter}: {text}: no run there can be compared", *left_out.values()], hint=HINT)
    # A copied folder is the same run.
    ids = [run.run_id for run in runs]
    twice = sorted({run.name for run in runs if ids.count(run.run_id) > 1})
    if twice:
        raise ConfigError(f"{letter}: {', '.join(twice)} is given twice; a run is no repeat of itself", hint=HINT)
    cell = cells.pop() if len(cells) == 1 else None
    side = Side(spec=text, runs=tuple(runs), cell=cell, left_out=left_out)
    if apart := side.unlike():
        raise ConfigError(f"{letter}: its runs are not repeats of one configuration: {apart}", hint=HINT)
    return side


def _cell_of(text: str) -> tuple[SweepFolder, str] | None:
    """`SWEEP:CELL` as a sweep's folder and a cell's name."""
    place, colon, cell = text.rpartition(":")
    return (SweepFolder(Path(place).resolve()), cell) if colon and SweepFolder.is_one(Path(place)) else None


def _folders(letter: str, text: str) -> tuple[list[Path], bool]:
    """Run folders, and whether it is one that was named by itself."""
    if cell := _cell_of(text):
        return _of_cell(letter, *cell), False
    path = Path(text)
    if (path / "run.json").is_file():
        return [path.resolve()], True
    if SweepFolder.is_one(path):
        cells = ", ".join(each.name for each in _plan(letter, SweepFolder(path)).cells)
        raise ConfigError(
            f"{letter}: {text} is a sweep's folder, which holds {cells}", hint=f"name a cell: {text}:CELL"
        )
    if path.is_dir():
        found = _unique(each for each in sorted(path.iterdir()) if (each / "run.json").is_file())
        if not found:
            raise ConfigError(f"{letter}: {text}: holds no run.json, and no run folder", hint=HINT)
        return found, False
    if glob.has_magic(text):
        found = _unique(Path(each) for each in sorted(glob.glob(text)) if (Path(each) / "run.json").is_file())
        if not found:
            raise ConfigError(f"{letter}: {text}: matches no run folder", hint=HINT)
        return found, False
    raise ConfigError(f"{letter}: {text}: no such run folder", hint=HINT)


def _unique(paths: Iterable[Path]) -> list[Path]:
    """Folders by their own path: a link such as `latest` is the folder that it leads to."""
    return list(dict.fromkeys(path.resolve() for path in paths))


def _plan(letter: str, sweep: SweepFolder) -> SweepPlan:
    try:
        return sweep.plan()
    except ValueError as error:
        raise ConfigError(f"{letter}: {error}") from error


def _of_cell(letter: str, sweep: SweepFolder, name: str) -> list[Path]:
    cells = {cell.name: cell for cell in _plan(letter, sweep).cells}
    if name not in cells:
        raise ConfigError(f"{letter}: {unknown(f'{sweep.path.name}, cell', name, cells)}")
    if (why := cells[name].refused) is not None:
        raise ConfigError(f"{letter}: cell {name} was refused: {why}")
    attempts, _ = sweep.attempts()
    found = [sweep.run(attempt) for (cell, _), attempt in sorted(attempts.items()) if cell == name]
    return [run.path.resolve() for run in found if run is not None]


def _without_folder(sweep: SweepFolder, name: str) -> dict[str, str]:
    """Attempts at the cell that left no run folder, each with its cause."""
    attempts, _ = sweep.attempts()
    return {
        f"{name}, repeat {repeat}": f"{name}, repeat {repeat}: exit code {attempt.exit_code}"
        f" ({Exit(attempt.exit_code).meaning if attempt.exit_code in list(Exit) else 'unknown'})"
        f"{': ' + attempt.cause if attempt.cause else ', and its folder is not there'}"
        for (cell, repeat), attempt in sorted(attempts.items())
        if cell == name and sweep.run(attempt) is None
    }
