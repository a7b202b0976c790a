"""Where calibrations are kept: a file each, by name and date, in the user's cache folder. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from ..data.spec import cache_folder
from ..profiles.calibration import Calibration
from ..profiles.storage import replace_file, writing
from . import environment


def folder() -> Path:
    """`calibrations` beside the cached datasets."""
    return cache_folder().parent / "calibrations"


def store(calibration: Calibration) -> Path:
    """Keep `calibration`; returns its file. Raises OutputError when it cannot be written."""
    date = re.sub(r"[^0-9TZ]", "", calibration.made_utc)
    path = folder() / f"{calibration.name}-{date}.json"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, orjson.dumps(calibration.model_dump(), option=orjson.OPT_INDENT_2) + b"\n")
    return path


def read() -> tuple[list[Calibration], dict[Path, str]]:
    """Every calibration that can be read, the newest first, and why the others cannot."""
    found, broken = [], {}
    try:
        paths = sorted(folder().glob("*.json"))
    except (OSError, RuntimeError) as error:  # a cache folder that is another's, or no home to have one in
        return [], {Path("calibrations"): str(error)}
    for path in paths:
        try:
            found.append(Calibration.model_validate_json(path.read_bytes()))
        except OSError as error:
            broken[path] = str(error)
        except ValidationError as error:
            first = error.errors()[0]
            broken[path] = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    return sorted(found, key=lambda calibration: calibration.made_utc, reverse=True), broken


def fitting(device: str, device_name: str, ranks: int | None = None) -> Calibration | None:
    """The newest for a machine like this one with that device; of those with as many `ranks` where there are any."""
    cores = environment.available_cores()
    found = [each for each in read()[0] if each.fits(device=device, device_name=device_name, cores=cores)]
    return next((each for each in found if each.ranks == ranks), found[0] if found else None)


def for_run(device: str, device_name: str, ranks: int) -> dict[str, Any] | None:
    """The same for a run's run.json."""
    found = fitting(device, device_name, ranks)
    return None if found is None else found.model_dump()
