"""What a user types is read as meant, and everything wrong in it is said at once with the way out."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scalelab.launch import strategies
from scalelab.launch.cli import run_command
from scalelab.launch.config import RunConfig, build
from scalelab.launch.devices import Devices
from scalelab.launch.errors import ConfigError, PreflightError
from scalelab.launch.make_front import command_line_variables, options
from scalelab.launch.options import Options
from scalelab.launch.plan import resolve
from scalelab.launch.schedule import schedule
from scalelab.launch.text import plain

CPU = Devices("cpu", 0, "a processor", why_no_cuda="none here")
CUDA = Devices("cuda", 2, "a card", memory_bytes=80 * 2**30)


def read(*argv: str) -> RunConfig:
    values, _, problems = Options("run", "", RunConfig, {}).read(argv)
    return build(values, problems)


@pytest.mark.fault(46)
def test_every_problem_is_listed_at_once() -> None:
    """Unknown options, missing values, values out of range and conflicts come in one error, nearest names offered."""
    with pytest.raises(ConfigError) as error:
        read("--stratgy=ddp", "--gpus=0", "--lr=nan", "--precision=bf61", "--steps", "--base-batch=3", "--warmup=x")
    text = str(error.value)
    for part in (
        "did you mean --strategy?",
        "--gpus: given '0', allowed a number at least 1",
        "--lr: given 'nan'",
        "did you mean bf16?",
        "--steps: needs a value",
        "--base-batch does nothing",
        "--warmup: given 'x', allowed a whole number",
    ):
        assert part in text


@pytest.mark.fault(46)
@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--strategy=zerro2"], "did you mean zero2?"),
        (["--lr-scaling=linear"], "needs --base-batch"),
        (["--target=ap_mean>=0.2"], "give --eval-every"),
        (["--target=nonsense", "--eval-every=5"], "METRIC>=NUMBER"),
        (["--probe=off", "--record-grad-norm"], "needs --probe on"),
        (["--probe=off", "--eval-every=5"], "--probe off"),
        (["--model=a.py", "--reader=stream"], "belongs to our own loader"),
        (["--model=a.py", "--eval-every=2"], "needs one of our presets"),
        (["--workers=0", "--prefetch=2"], "needs loader processes"),
        (["--name=a\nb"], "without control characters"),
        (["--model-option=x"], "allowed NAME=VALUE"),
        (["--bucket-mb=0"], "--bucket-mb: given '0', allowed a number more than 0"),
        (["--precision=fp61"], "did you mean fp16?"),
        (["--checkpointing=some"], "allowed full, none, selective"),
        (["--compile=perhaps"], "true or false"),
        (["--accumulation-sync=never"], "allowed each, last"),
    ],
)
def test_conflicts_name_the_way_out(argv: list[str], part: str) -> None:
    """Each combination that cannot be meant is refused with what to do."""
    with pytest.raises(ConfigError) as error:
        read(*argv)
    assert part in str(error.value)


def test_model_options_are_json_or_text() -> None:
    """`layers=24` is a number, `kind=relu` a text."""
    config = read("--model-option=layers=24", "--model-option", "kind=relu", "--model-option=on=true")
    assert config.model_option == {"layers": 24, "kind": "relu", "on": True}


def test_defaults_follow_the_machine() -> None:
    """Two CPU ranks over gloo without CUDA, every card with it, `single` on one."""
    plan = resolve(read(), CPU)
    assert (plan.world_size, plan.config.model, plan.config.launcher) == (2, "tiny", "fork")
    plan = resolve(read(), CUDA)
    assert (plan.world_size, plan.config.model, plan.config.launcher) == (2, "base", "torchrun")
    assert resolve(read("--strategy=single"), CUDA).world_size == 1
    assert None not in (plan.config.micro_batch, plan.config.steps, plan.config.workers, plan.config.prefetch)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--strategy=single", "--gpus=2"], ["one model copy", "--strategy ddp"]),
        (["--precision=tf32"], ["CUDA tensor cores", "bf16"]),
        (["--strategy=zero3", "--precision=fp16"], ["no fp16 on CPU", "fsdp2"]),
        (["--strategy=zero1", "--overlap"], ["CUDA streams", "--overlap true"]),
        (["--strategy=fsdp2", "--bucket-mb=5", "--overlap=false"], ["--bucket-mb: fsdp2", "--overlap: fsdp2"]),
        (["--strategy=zero2", "--engine=accelerate"], ["--engine accelerate", "native only"]),
        (["--strategy=zero2", "--grad-accumulation=2", "--accumulation-sync=last"], ["at 'each' only", "ddp or fsdp2"]),
        (
            ["--strategy=zero1", "--grad-accumulation=2", "--accumulation-sync=each"],
            ["at 'last' only", "zero2 or zero3"],
        ),
        (["--strategy=zero1", "--precision=fp16", "--engine=accelerate"], ["no fp16", "native only"]),
    ],
)
def test_what_would_be_replaced_in_silence_is_refused(argv: list[str], parts: list[str]) -> None:
    """Every combination that cannot work, or that a library would ignore, is named with the way out, all at once."""
    with pytest.raises(ConfigError) as error:
        resolve(read(*argv), CPU)
    for part in parts:
        assert part in str(error.value)


def test_options_left_open_follow_the_strategy() -> None:
    """Each strategy reduces when it can, and has the buckets and overlap that it obeys; a resolved config resolves."""
    for name in strategies.names():
        gpus = "--gpus=1" if name == "single" else "--gpus=2"
        plan = resolve(read(f"--strategy={name}", gpus, "--grad-accumulation=2"), CPU)
        strategy = strategies.load(name)
        assert plan.setting.accumulation_sync == strategy.accumulation_syncs[0]
        assert (plan.setting.bucket_mb is None) == ("bucket_mb" not in strategy.knobs)
        assert (plan.setting.overlap is None) == ("overlap" not in strategy.knobs)
        assert resolve(plan.config, CPU).setting == plan.setting


def test_a_card_that_cannot_compute_in_a_precision_is_refused() -> None:
    """bf16 and TF32 need compute capability 8.0; without it torch would emulate or ignore them."""
    old = Devices("cuda", 2, "an old card", memory_bytes=16 * 2**30, compute_capability=(7, 0))
    for precision in ("bf16", "tf32", "bf16-params"):
        with pytest.raises(PreflightError, match=r"compute capability 7\.0"):
            resolve(read(f"--precision={precision}"), old)
    assert resolve(read("--precision=fp16"), old).setting.precision == "fp16"


@pytest.mark.fault(65)
def test_a_library_that_is_missing_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 3 with pip's line, for the strategies and engines that need it; the others run."""
    find, absent = importlib.util.find_spec, ("deepspeed", "accelerate")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    with pytest.raises(PreflightError, match="deepspeed is not installed: pip install deepspeed"):
        resolve(read("--strategy=zero2"), CPU)
    with pytest.raises(PreflightError, match="pip install accelerate"):
        resolve(read("--strategy=ddp", "--engine=accelerate"), CPU)
    assert resolve(read("--strategy=fsdp2"), CPU).world_size == 2


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one the run is refused before it starts, naming what was looked for."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(PreflightError, match=r"C\+\+ compiler, found none \(g\+\+"):
        resolve(read("--compile"), CPU)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PreflightError, match="no-such-compiler"):
        resolve(read("--compile"), CPU)


def test_a_dry_run_plans_for_hardware_that_is_elsewhere() -> None:
    """Any number of ranks on any device; what this machine lacks is a note."""
    plan = resolve(read("--device=cuda", "--gpus=64", "--precision=bf16"), CPU, dry_run=True)
    assert (plan.setting.device, plan.world_size) == ("cuda", 64)
    assert "not on this machine" in plan.notes[0]
    assert resolve(read("--gpus=64"), CUDA, dry_run=True).world_size == 64
    with pytest.raises(ConfigError, match="one model copy"):
        resolve(read("--strategy=single", "--gpus=64"), CUDA, dry_run=True)


@pytest.mark.fault(47)
def test_lacking_hardware_is_preflight_and_impossible_is_usage() -> None:
    """More cards than there are is exit 3; what no machine can do is exit 2."""
    with pytest.raises(PreflightError, match="2 CUDA device"):
        resolve(read("--gpus=3"), CUDA)
    with pytest.raises(PreflightError, match="none here"):
        resolve(read("--device=cuda"), CPU)
    with pytest.raises(ConfigError, match="one model copy"):
        resolve(read("--strategy=single", "--gpus=2"), CPU)
    with pytest.raises(ConfigError, match="pinned memory"):
        resolve(read("--pin"), CPU)
    with pytest.raises(ConfigError, match="did you mean tiny"):
        resolve(read("--model=tinny"), CPU)


@pytest.mark.fault(48)
@given(gpus=st.integers(1, 9), accumulation=st.integers(1, 4), batch=st.integers(1, 200))
def test_a_global_batch_divides_or_the_nearest_is_offered(gpus: int, accumulation: int, batch: int) -> None:
    """The batch asked for is the batch trained with, else the refusal offers ones that divide."""
    config = read(f"--gpus={gpus}", f"--grad-accumulation={accumulation}", f"--global-batch={batch}")
    per_step = gpus * accumulation
    if batch % per_step == 0:
        assert resolve(config, CPU).global_batch == batch
        return
    with pytest.raises(ConfigError) as error:
        resolve(config, CPU)
    offered = str(error.value).rpartition("nearest that can is ")[2].split(" or ")
    assert offered
    assert all(int(value) % per_step == 0 for value in offered)


def test_learning_rate_rises_and_scales() -> None:
    """Linear warm-up from 0 to the scaled rate, then constant."""
    config = read("--lr=1", "--lr-warmup-steps=4", "--lr-scaling=linear", "--base-batch=8", "--warmup=2")
    rates = [step.lr for step in schedule(config, steps=4, samples=1, global_batch=16)]
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


names = st.from_regex(r"[A-Z_]{1,8}", fullmatch=True)
values = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@given(st.dictionaries(names, values, max_size=4))
def test_makeflags_give_back_what_was_typed(variables: dict[str, str]) -> None:
    """Spaces, quotes, dollars, backslashes and newlines of a value come through make's quoting."""
    quoted = " ".join(
        f"{name}=" + value.replace("$", "$$").replace("\\", "\\\\").replace(" ", "\\ ")
        for name, value in variables.items()
    )
    assert command_line_variables(f"s -j4 -- {quoted}") == variables


def make(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The project's own Makefile, its environment rules left out, with this Python, and under no other make."""
    root = Path(__file__).parents[2]
    freeze = next(line for line in (root / "Makefile").read_text().splitlines() if line.startswith("$(foreach"))
    recipe = f"{freeze}\nrun:\n\t@{sys.executable} -m scalelab.launch.make_front run\n"
    (tmp_path / "Makefile").write_text(recipe)
    environment = {**os.environ, "NAME": "from the environment"}
    for own in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        environment.pop(own, None)
    return subprocess.run(
        ["make", "run", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.fault(60)
def test_make_hands_values_on_unread(tmp_path: Path) -> None:
    """No shell and no make function reads a value; the environment's variables take no part."""
    marker = tmp_path / "marker"
    name = f"a; touch {marker} $(shell touch {marker}) `touch {marker}` 'q' [x]"
    done = make(tmp_path, f"NAME={name}", "DRY_RUN=1", "MODEL=nano", "JSON=1")
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
    assert name in done.stdout
    assert "from the environment" not in make(tmp_path, "DRY_RUN=1", "MODEL=nano").stdout


def test_make_refuses_unknown_variables_with_the_nearest(tmp_path: Path) -> None:
    """A typo is named, and the command's own exit code is said since make hides it."""
    assert "did you mean STRATEGY?" in make(tmp_path, "STRATAGY=zero2").stderr
    assert "exit code 3" in make(tmp_path, "DEVICE=cuda").stderr


def test_make_lists_no_fifty_names_beside_the_nearest(tmp_path: Path) -> None:
    told = make(tmp_path, "STRATGY=zero2").stderr
    assert "did you mean STRATEGY?" in told
    assert "MICRO_BATCH" not in told
    assert "exit code 2 (bad usage or config)" in told


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("1", True),
        ("Yes", True),
        ("on", True),
        ("true", True),
        ("", False),
        ("0", False),
        ("no", False),
        ("OFF", False),
    ],
)
def test_makes_flags_are_on_or_off(value: str, said: bool) -> None:
    assert options("DRY_RUN", value) == (["--dry-run"] if said else [])


def test_make_refuses_a_flag_that_is_neither(tmp_path: Path) -> None:
    """By name, before anything is run."""
    done = make(tmp_path, "DRY_RUN=maybe", "MODEL=nano")
    assert "DRY_RUN: given 'maybe', allowed 1, true, yes, on, 0, false, no, off, or nothing" in done.stderr
    assert ("exit code 2" in done.stderr, done.stdout) == (True, "")


def test_exit_codes_and_json_on_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors go to stderr with their remedy, and to stdout as JSON when asked."""
    assert run_command(["rnu"]) == 2
    assert "did you mean run?" in capsys.readouterr().err
    assert run_command(["run", "--gpus=0", "--json"]) == 2
    out = capsys.readouterr().out
    assert '"exit_code":2' in out
    assert run_command(["--help"]) == 0
    assert run_command(["run", "--help"]) == 0


@pytest.mark.fault(60)
@given(st.text(max_size=60))
def test_printed_text_has_no_control_characters(text: str) -> None:
    """Nothing from outside moves the cursor, colours the screen or turns the direction of writing."""
    assert not {c for c in plain("\x1b[31m" + text + "\x1b]0;x\x07\u202e") if ord(c) < 32 and c not in "\t\n"}
    assert "\u202e" not in plain(text)
