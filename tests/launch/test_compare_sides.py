"""What makes a side of a comparison: runs, patterns, cells of a sweep; and what is no side, by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from scalelab.profiles.runfolder import RunFolder
from scalelab.profiles.sweepfolder import Attempt, Cell, SweepFolder, SweepPlan

from tests.launch.test_compare import made, refused, side, told


def status(path: Path, state: str, code: int | None, cause: str = "") -> str:
    RunFolder(path).write("status.json", {"state": state, "exit_code": code, "cause": cause})
    return str(path)


def newer(path: Path) -> None:
    RunFolder(path).write("run.json", {"schema": 99})


def half_written(path: Path) -> None:
    text = (path / "run.json").read_bytes()
    (path / "run.json").write_bytes(text[: len(text) // 2])


def without_steps(path: Path) -> None:
    for rank in (path / "ranks").iterdir():
        rank.unlink()


def older(path: Path) -> None:
    facts = RunFolder(path).read("run.json")
    del facts["config"]["micro_batch"]
    RunFolder(path).write("run.json", facts)


UNFIT = {
    "still running": lambda path: status(path, "running", None),
    "exit code 5: rank 1 died": lambda path: status(path, "failed", 5, "rank 1 died"),
    "interrupted: it was killed": lambda path: status(path, "interrupted", None, "it was killed"),
    "interrupted, exit code 130": lambda path: status(path, "interrupted", 130),
    "written by a newer scalelab": newer,
    "not JSON": half_written,
    "no measured step": without_steps,
    "older scalelab": older,
    "no status.json": lambda path: (path / "status.json").unlink(),
}


@pytest.mark.parametrize("why", UNFIT)
def test_a_run_that_cannot_be_compared_is_refused_by_name(
    why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named by itself it is refused; among others of a folder it is left out by name, and the rest is compared."""
    good, bad = made(tmp_path / "good", 1.0), made(tmp_path / "b", 1.0)
    UNFIT[why](bad)
    text = refused(str(good), str(bad))
    assert ("did not finish well" in text) == (why[:5] in ("still", "exit ", "inter", "no me"))
    assert bad.name in text
    assert why in text
    assert "no run there can be compared" in refused(str(good), str(bad.parent))
    for seconds in (1.0, 1.1):
        made(tmp_path / "b", seconds)
    found = told(capsys, str(good), str(bad.parent))
    assert why in found["b"]["left_out"][bad.name]
    assert len(found["b"]["runs"]) == 2


def test_sides_by_commas_patterns_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each names the same runs; `latest` is no run of its own; a run is no repeat of itself."""
    a = side(tmp_path / "a", 1.0, 1.1, 1.2)
    b = str(made(tmp_path / "b", 1.0))
    paths = [str(path) for path in sorted((tmp_path / "a").iterdir()) if not path.is_symlink()]
    names = [[run["run_id"] for run in told(capsys, each, b)["a"]["runs"]] for each in (a, f"{a}/*", ",".join(paths))]
    assert len(names[0]) == 3
    assert names[0] == names[1] == names[2]
    assert "given twice" in refused(f"{paths[0]},{paths[0]}", b)
    assert "on both sides" in refused(a, paths[1])
    with_comma = tmp_path / "c,d"
    assert len(told(capsys, side(with_comma, 1.0, 1.1), b)["a"]["runs"]) == 2


def test_places_that_hold_no_run(tmp_path: Path) -> None:
    """None there, an empty folder, a pattern without a match, a file: each by name."""
    run = str(made(tmp_path / "a", 1.0))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for place, why in (("none", "no such"), ("empty", "holds no run.json"), ("*x*", "matches no"), ("file", "no such")):
        text = refused(run, str(tmp_path / place))
        assert why in text
        assert place in text
    assert "names nothing" in refused(run, " ")


def test_runs_of_a_side_that_are_no_repeats(tmp_path: Path) -> None:
    """What they do not share is named, with both values and runs."""
    run = str(made(tmp_path / "a", 1.0))
    mixed = side(tmp_path / "b", 1.0)
    made(tmp_path / "b", 1.0, strategy="zero3")
    text = refused(run, mixed)
    assert "strategy is" in text
    assert "zero3" in text
    made(tmp_path / "c", 1.0)
    made(tmp_path / "c", 1.0, facts={"device_name": "another"})
    assert "device_name is" in refused(run, str(tmp_path / "c"))


def sweep(tmp_path: Path, times: dict[str, list[float]], **attempts: tuple[int, str]) -> Path:
    """A sweep of cells of one strategy each; `attempts` gives the exit code and cause of a cell's first repeat."""
    folder = tmp_path / "sweep-ab12"
    folder.mkdir()
    cells = [
        Cell(
            name=name, strategy=name, precision="fp32", world_size=2, micro_batch=4, grad_accumulation=1,
            global_batch=8, config={}, refused=None if times[name] else "no such hardware",
        )
        for name in times
    ]  # fmt: skip
    repeats = max(map(len, times.values()))
    order = [(name, repeat) for repeat in range(repeats) for name in times]
    plan = SweepPlan(
        sweep_id="ab12", created_utc="", command=[], scaling="strong", repeats=repeats, seed=0, cells=cells, order=order
    )
    (folder / "sweep.json").write_text(plan.model_dump_json())
    with (folder / "attempts.jsonl").open("w") as lines:
        for name, repeat in order:
            if repeat >= len(times[name]):
                continue
            code, cause = attempts.get(name, (0, None)) if repeat == 0 else (0, None)
            run = made(folder, times[name][repeat], strategy=name)
            lines.write(
                Attempt(
                    cell=name, repeat=repeat, run=run.name, exit_code=code, cause=cause, started_utc="", seconds=1
                ).model_dump_json()
                + "\n"
            )
    return folder


def test_cells_of_a_sweep_are_paired_by_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine that changes from round to round hides nothing: within rounds the effect is plain."""
    drift = [1.0, 1.4, 0.7, 1.2, 2.0, 0.9]
    noise = [0.005, -0.005, 0.002, -0.004, 0.001, 0.003]
    b = [value * (1.05 + part) for value, part in zip(drift, noise, strict=True)]
    folder = sweep(tmp_path, {"ddp": drift, "zero3": b})
    found = told(capsys, f"{folder}:ddp", f"{folder}:zero3")
    assert found["verdict"]["word"] == "slower"
    assert found["verdict"]["method"] == "rounds"
    assert found["a"]["cell"] == "ddp"
    unpaired = told(capsys, side(tmp_path / "x", *drift), side(tmp_path / "y", *b))
    assert unpaired["verdict"]["word"] == "cannot tell"


def test_cells_that_cannot_be_compared(tmp_path: Path) -> None:
    """A refused cell, one that is not there, one that trained something else, and the sweep's folder itself."""
    parity = "loss parity: loss of step 3 is 2.0, expected 1.0"
    folder = sweep(tmp_path, {"ddp": [1.0, 1.0], "zero3": [1.0, 1.0], "fsdp2": []}, zero3=(8, parity))
    assert "was refused: no such hardware" in refused(f"{folder}:ddp", f"{folder}:fsdp2")
    assert "did you mean zero3" in refused(f"{folder}:ddp", f"{folder}:zer3")
    assert "name a cell" in refused(f"{folder}:ddp", str(folder))
    assert parity in refused(f"{folder}:ddp", f"{folder}:zero3")
    # Also by its folder: it has no speed that means anything.
    attempt = SweepFolder(folder).attempts()[0]["zero3", 0]
    assert attempt.run is not None
    assert parity in refused(f"{folder}:ddp", str(folder / attempt.run))


def test_a_copied_folder_is_no_repeat(tmp_path: Path) -> None:
    """Neither beside its original nor on the other side."""
    run = made(tmp_path / "a", 1.0, facts={"run_id": "20260101T000000Z-x-ffffff"})
    other = str(made(tmp_path / "b", 1.0))
    copy = shutil.copytree(run, tmp_path / "a" / "copy")
    assert "given twice" in refused(f"{run},{copy}", other)
    assert "on both sides" in refused(str(run), str(run))
    told = refused(str(run), str(copy))
    assert f"{run.name} and copy are one run" in told
