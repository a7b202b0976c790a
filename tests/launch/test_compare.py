"""`scalelab compare`: what it says of two sides, what it refuses to hold against each other, and when it fails."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console
from scalelab.launch.cli import run_command
from scalelab.launch.commands.compare import main
from scalelab.launch.errors import ConfigError, Exit
from scalelab.launch.gates import parse_gates
from scalelab.models.contract import source_sha256
from scalelab.profiles.analysis.between import difference
from scalelab.profiles.analysis.causes import causes
from scalelab.profiles.analysis.compared import ComparedRun, Side
from scalelab.profiles.analysis.effects import MEASURES, Against, effect_of, exposed_share
from scalelab.profiles.analysis.steps import ALL_PHASES
from scalelab.profiles.runfolder import RunFolder, appending
from scalelab.profiles.used import MemoryRecord
from scalelab.reports.compare_table import compare_table, verdict_line

from tests.profiles.test_summary import folder_with, run_json, step

RATES = [10.0, 10.2, 9.9, 10.1, 9.8]


def made(
    out: Path,
    seconds: float,
    *,
    spread: list[float] | None = None,
    facts: Any = (),
    samples: int = 4,
    **config: Any,
) -> Path:
    """A finished run, of two ranks unless told, whose measured steps take `seconds`."""
    given = {"seed": 0, "model_option": {}, "checkpointing": "none", **config}
    about = {
        **run_json(2, **given),
        "precision": {"name": "fp32", **dict.fromkeys(("param", "compute", "grad", "reduce", "master"), "fp32")},
        "data": {"manifest_sha256": "abc"},
        "model_sha256": "m1",
        "environment": {"cores": 2, "host": "h", "versions": {"torch": "2.13.0"}},
        "calibration": spread and calibration(spread),
        **dict(facts),
    }
    records = [
        step(0, 9 * seconds, "warmup", samples=samples),
        *(step(index, seconds, samples=samples) for index in range(1, 5)),
        MemoryRecord(step=1, parameters_bytes=100, gradients_bytes=50, optimizer_bytes=200),
    ]
    out.mkdir(parents=True, exist_ok=True)
    return folder_with(out, about, *[records] * about["world_size"]).path


def calibration(rates: list[float]) -> dict[str, Any]:
    spread = {"model": "nano", "strategy": "ddp", "steps": 4, "samples_per_second": rates, "relative_sd": 0.0158}
    return {"name": "here", "made_utc": "2026-01-01T00:00:00Z", "run_spread": spread}


def side(out: Path, *seconds: float, **given: Any) -> str:
    """A folder of like runs."""
    for each in seconds:
        made(out, each, **given)
    return str(out)


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """What `--json` prints, and the exit code under `code`."""
    code = run_command(["compare", *argv, "--json"])
    return {**orjson.loads(capsys.readouterr().out), "code": code}


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as error:
        main(argv)
    return f"{error.value}\n{error.value.hint}"


def test_verdicts_in_words_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slower, faster, no change and cannot tell, each the same on the console as in the twin."""
    a = side(tmp_path / "a", 1.0, 1.01, 0.99)
    for seconds, word in (
        ((1.2, 1.21, 1.22), "slower"),
        ((0.8, 0.81, 0.79), "faster"),
        ((1.01, 1.0, 0.99), "no change"),
        ((1.1, 0.9, 1.04), "cannot tell"),
    ):
        found = told(capsys, a, side(tmp_path / word, *seconds, strategy="zero2"))
        assert found["code"] == Exit.OK
        assert found["verdict"]["word"] == found["effects"]["step_seconds"]["verdict"] == word
        assert word in verdict_line(found)
        low, high = found["verdict"]["ci95"]
        assert low <= found["verdict"]["effect"] <= high
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(compare_table(found))
        assert word in console.export_text()
        assert found["differences"]["strategy"] == ["ddp", "zero2"]
        assert found["repeats"]["needed"] > 1


def test_effects_to_the_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ratios of geometric means; a rate goes the other way; the causes sum to the step's difference."""
    found = told(capsys, side(tmp_path / "a", 1.0, 1.0), side(tmp_path / "b", 2.0, 0.98))
    effects = found["effects"]
    expected = (2.0 * 0.98) ** 0.5
    assert effects["step_seconds"]["effect"] == pytest.approx(expected - 1)
    assert effects["samples_per_second"]["effect"] == pytest.approx(1 / expected - 1)
    assert effects["device_hours_per_million_samples"]["effect"] == pytest.approx(expected - 1)
    assert effects["mfu"] is None
    assert "before its operations were counted" in found["reasons"]["effects.mfu"]
    causes = found["causes"]
    assert causes["whole"]["a"] == pytest.approx(effects["step_seconds"]["a"])
    assert causes["whole"]["b"] == pytest.approx(effects["step_seconds"]["b"])
    for side_ in "ab":
        assert sum(row[side_] for row in causes["rows"]) == pytest.approx(effects["step_seconds"][side_])
    assert sum(row["difference_seconds"] for row in causes["rows"]) == pytest.approx(expected - 1)
    assert causes["rows"][0]["cause"] == "backward"
    assert found["loss"] == {
        "step": 4, "a": 1.0, "b": 1.0, "verdict": "same", "tolerance": 1e-5, "parity_steps": 5, "first_apart": None
    }  # fmt: skip


def test_every_null_has_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run a side and no calibration: no interval, no repeats, and why."""
    found = told(capsys, str(made(tmp_path, 1.0)), str(made(tmp_path, 2.0)))
    assert found["verdict"]["word"] == "cannot tell"
    for path in ("effects.step_seconds.ci95", "repeats.needed", "repeats.sd_between_runs", "effects.mfu"):
        value: Any = found
        for name in path.split("."):
            value = value[name]
        assert value is None
        assert found["reasons"][path]
    assert "doctor --calibrate" in found["reasons"]["repeats.needed"]


def test_phases_that_one_side_does_not_know_are_summed_up(tmp_path: Path) -> None:
    """Exposed communication is part of other phases where it is not known: both sides are told so, and it closes."""
    phases = {"data": 1.0, "forward": 2.0, "backward": 4.0, "optimizer": 1.0, "unattributed": 0.5}
    runs = []
    for known in (False, True):
        parts = {**phases, "backward": 3.0, "comm_exposed": 1.5} if known else phases
        summary = {
            "phases": {**dict.fromkeys(ALL_PHASES), **{name: {"mean": value} for name, value in parts.items()}},
            "step_seconds": {"mean": sum(parts.values())},
            "reasons": {},
        }
        runs.append(ComparedRun(path=tmp_path, facts={}, summary=summary))
    found = causes(runs[:1], runs[1:], "step", difference, lambda path, why: None)
    assert found is not None
    assert {row["cause"] for row in found["rows"]} == {
        "data", "unattributed", "forward + backward + comm_exposed + optimizer"
    }  # fmt: skip
    assert found["rows"][0]["difference_seconds"] == pytest.approx(0.5)
    assert sum(row["difference_seconds"] for row in found["rows"]) == pytest.approx(0.5)


def test_one_run_a_side_is_held_against_the_stored_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beyond what two like runs on this machine differ by there is a verdict, which says where that is from."""
    a = str(made(tmp_path, 1.0, spread=RATES))
    near, far = (str(made(tmp_path, seconds, spread=RATES)) for seconds in (1.08, 1.15))
    assert told(capsys, a, near)["verdict"]["word"] == "cannot tell"
    found = told(capsys, a, far)
    assert found["verdict"]["word"] == "slower"
    assert found["verdict"]["method"] == "stored"
    assert found["repeats"]["source"] == "5 runs of nano under ddp, calibration here of 2026-01-01T00:00:00Z"
    for run in (a, far):
        facts = RunFolder(Path(run)).read("run.json")
        facts["calibration"]["run_spread"]["steps"] = 30
        RunFolder(Path(run)).write("run.json", facts)
    found = told(capsys, a, far)
    assert found["verdict"]["word"] == "cannot tell"
    assert "runs of 4 steps" in found["reasons"]["repeats.needed"]


UNLIKE = {
    "different-data": {"facts": {"data": {"manifest_sha256": "xyz"}}},
    "different-model": {"facts": {"model_sha256": "m2"}},
    "different-precision": {"facts": {"precision": {"name": "bf16", "compute": "bf16"}}},
    "different-batch": {"global_batch": 16},
    "different-device": {"facts": {"device_name": "another processor"}},
}
VALUES = {
    "different-data": ("data.manifest_sha256", "abc", "xyz"),
    "different-model": ("model_sha256", "m1", "m2"),
    "different-precision": ("precision.compute", "fp32", "bf16"),
    "different-batch": ("global_batch", "8", "16"),
    "different-device": ("device_name", "a processor", "another processor"),
}


@pytest.mark.fault(38)
@pytest.mark.parametrize("word", UNLIKE)
def test_what_must_be_shared_is_refused_unless_told(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each by name with both values and the way out; allowed, it is compared, and shown."""
    a, b = str(made(tmp_path, 1.0)), str(made(tmp_path, 1.0, **UNLIKE[word]))
    text = refused(a, b)
    for part in (word, *VALUES[word], f"--allow {word}"):
        assert part in text
    found = told(capsys, a, b, "--allow", word)
    assert found["code"] == Exit.OK
    assert VALUES[word][0] in found["unlike"][word]


def test_model_options_and_parameters_are_part_of_the_model(tmp_path: Path) -> None:
    """Options of a user's model and its number of parameters are compared, also where no hash is known."""
    a = str(made(tmp_path, 1.0, model_option={"layers": 2}))
    assert "model_option.layers is 2" in refused(a, str(made(tmp_path, 1.0, model_option={"layers": 4})))
    small = {"model": {"name": "x", "parameters": 10}}
    assert "model.parameters is 1234" in refused(str(made(tmp_path, 1.0)), str(made(tmp_path, 1.0, facts=small)))
    unknown = {"model_sha256": None}
    text = refused(str(made(tmp_path, 1.0)), str(made(tmp_path, 1.0, facts=unknown, model="other")))
    assert "model is tiny" in text
    assert "model_sha256" not in text


def test_the_file_of_a_model_is_hashed(tmp_path: Path) -> None:
    """A preset's, a .py file's, a module's; what is none has no hash and is no error."""
    path = tmp_path / "mine.py"
    path.write_text("x = 1\n")
    first = source_sha256(str(path))
    path.write_text("x = 2\n")
    assert len({source_sha256("nano"), source_sha256("tiny"), first, source_sha256(str(path))}) == 4
    assert source_sha256("json.decoder")
    for none in ("no.such.module", str(tmp_path / "none.py"), ".", ""):
        assert source_sha256(none) is None


def test_batches_that_differ_are_compared_per_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice the batch in 1.5 times the time is faster."""
    a = side(tmp_path / "a", 1.0, 1.01, 0.99)
    for seconds in (1.5, 1.51, 1.49):
        folder = made(tmp_path / "b", seconds, global_batch=16, micro_batch=8)
        for rank in range(2):
            path = RunFolder(folder).rank_file(rank)
            path.write_bytes(path.read_bytes().replace(b'"samples":4', b'"samples":8'))
    found = told(capsys, a, str(tmp_path / "b"), "--allow", "different-batch")
    assert found["verdict"]["word"] == "faster"
    assert found["verdict"]["effect"] == pytest.approx(-0.25, abs=1e-3)
    assert found["per"] == found["causes"]["per"] == "sample"
    assert found["loss"]["verdict"] is None
    assert found["causes"]["whole"]["difference_seconds"] == pytest.approx(1.5 / 16 - 1 / 8, abs=1e-3)


@pytest.mark.parametrize(
    ("argument", "seconds", "code"),
    [
        ("slower:5%", (1.2, 1.21, 1.19), Exit.GATE_FAILED),
        ("slower:5%", (1.04, 1.041, 1.039), Exit.OK),  # established, and less than 5 %
        ("slower:3%", (1.04, 1.041, 1.039), Exit.GATE_FAILED),
        ("slower:5%", (0.8, 0.81, 0.79), Exit.OK),
        ("slower:5%", (1.5, 1.0, 1.2), Exit.OK),  # cannot be told
        ("cost:5%", (1.2, 1.21, 1.19), Exit.GATE_FAILED),
        ("slower:50%,cost:5%", (1.2, 1.21, 1.19), Exit.GATE_FAILED),
        ("slower:50%, cost:50%", (1.2, 1.21, 1.19), Exit.OK),
    ],
)
def test_gates(
    argument: str, seconds: tuple[float, ...], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 9 where the effect is established and as large as the threshold; else 0, also where it cannot be told."""
    a, b = side(tmp_path / "a", 1.0, 1.001, 0.999), side(tmp_path / "b", *seconds)
    assert run_command(["compare", a, b, "--fail-if", argument, "--json"]) == code
    out, err = capsys.readouterr()
    outcomes = {gate["outcome"] for gate in orjson.loads(out)["gates"]}
    assert ("failed" in outcomes) == (code == Exit.GATE_FAILED)
    if "cannot tell" in outcomes:
        assert "runs a side" in err
        assert "warning" in err


def test_a_gate_on_what_was_not_measured_is_refused(tmp_path: Path) -> None:
    """It would pass whatever comes."""
    a, b = str(made(tmp_path, 1.0)), str(made(tmp_path, 1.0))
    text = refused(a, b, "--fail-if", "memory:10%")
    assert "peak_memory_bytes is not known" in text


@pytest.mark.parametrize("given", ["slower", "slower:5", "slower:-5%", "slow:5%", "slower:5%,", "slower:5%,slower:6%"])
def test_gates_with_a_typo_are_refused_with_what_is_allowed(given: str, tmp_path: Path) -> None:
    """Nothing is read as a gate that it is not."""
    with pytest.raises(ValueError, match="slower:N%, memory:N%, cost:N%"):
        parse_gates(given)
    text = refused(str(made(tmp_path, 1.0)), str(made(tmp_path, 1.0)), "--fail-if", given)
    assert "slower:N%" in text


def test_options_out_of_range(tmp_path: Path) -> None:
    """An unknown word of --allow, a margin that is no share, one side or three: each with what is allowed."""
    run = str(made(tmp_path, 1.0))
    assert "different-data" in refused(run, run, "--allow", "different-everything")
    assert "5%" in refused(run, run, "--margin", "0.05")
    assert "allowed two" in refused(run)
    assert "allowed two" in refused(run, run, run)
    assert "did you mean --fail-if" in refused(run, run, "--fail-iff", "slower:5%")


def test_ranks_that_differ_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shorter step on more ranks may cost more: said beside the verdict."""
    found = told(capsys, str(made(tmp_path, 1.0)), str(made(tmp_path, 0.75, samples=2, facts={"world_size": 4})))
    assert any("2 ranks against 4" in note for note in found["notes"])
    assert found["effects"]["device_hours_per_million_samples"]["effect"] == pytest.approx(0.5)


def test_losses_that_part_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At which step first; with another seed they are not meant to be the same."""
    a, b = made(tmp_path, 1.0), made(tmp_path, 1.0)
    for rank in range(2):
        path = RunFolder(b).rank_file(rank)
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[:2], lines[2].replace(b'"losses":[1.0]', b'"losses":[1.1]'), *lines[3:]]))
    found = told(capsys, str(a), str(b))
    assert found["loss"]["verdict"] == "differs"
    assert found["loss"]["first_apart"] == 2
    found = told(capsys, str(a), str(made(tmp_path, 1.0, seed=7)))
    assert found["loss"]["verdict"] is None
    assert "seed" in found["reasons"]["loss.verdict"]


def test_damaged_lines_do_not_stop_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A half last line is what a kill leaves: the other steps count."""
    a, b = made(tmp_path, 1.0), made(tmp_path, 1.0)
    with appending(RunFolder(b).rank_file(0)) as write:
        write(step(9, 1.0))
    path = RunFolder(b).rank_file(0)
    path.write_bytes(path.read_bytes()[:-20])
    assert told(capsys, str(a), str(b))["code"] == Exit.OK


def test_bytes_are_whole_and_reasons_true_of_the_other_side(tmp_path: Path) -> None:
    """The mean of like counts of bytes is a whole number; of one run against two, the reason says so."""

    def one(seconds: float) -> ComparedRun:
        summary = {
            "memory": {"peak_bytes": 244940508},
            "phases": {"comm_exposed": {"share": 0.1}},
            "step_seconds": {"mean": seconds},
            "reasons": {},
        }
        return ComparedRun(path=tmp_path, facts={}, summary=summary)

    a = Side(spec="a", runs=(one(1.0),), left_out={})
    b = Side(spec="b", runs=(one(1.0), one(1.1)), left_out={})
    against = Against(a, b, None, 0.05, "no spread")
    reasons: dict[str, str] = {}
    (measure,) = (each for each in MEASURES if each.name == "peak_memory_bytes")
    memory = effect_of(measure, against, reasons.__setitem__)
    assert memory is not None
    assert (memory["a"], memory["b"]) == (244940508, 244940508)
    assert isinstance(memory["a"], int)
    exposed_share(against, reasons.__setitem__)
    assert reasons["effects.comm_exposed_share.ci95"].startswith("a side has one run, and the other fewer")
