"""The matrix of a sweep: every combination once, on equal terms, refused cells kept with their reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab.launch import strategies
from scalelab.launch.config import RunConfig
from scalelab.launch.devices import Devices
from scalelab.launch.errors import ConfigError
from scalelab.launch.options import Options
from scalelab.launch.sweep.child import arguments
from scalelab.launch.sweep.fairness import gate_steps
from scalelab.launch.sweep.gate import references
from scalelab.launch.sweep.matrix import cells, sweep_id
from scalelab.launch.sweep.options import AXES, RECIPES, Request, SweepOptions, read_recipe, request
from scalelab.launch.sweep.order import interleaved

CPU = Devices("cpu", 0, "a processor", why_no_cuda="none here")
CUDA = Devices("cuda", 4, "a card", memory_bytes=80 * 2**30, compute_capability=(9, 0))


def asked(*argv: str) -> Request:
    values, _, problems = Options("sweep", "", SweepOptions, {}).read(argv)
    return request(values, problems)


some_of = lambda values: st.lists(st.sampled_from(values), min_size=1, max_size=4, unique=True)  # noqa: E731


@settings(deadline=None, max_examples=40)
@given(
    names=some_of(strategies.names()),
    worlds=some_of([1, 2, 4, 8]),
    precisions=some_of(["fp32", "bf16", "fp16"]),
    micro=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    scaling=st.sampled_from(["strong", "weak"]),
)
def test_every_combination_is_there_once_on_equal_terms(
    names: list[str], worlds: list[int], precisions: list[str], micro: int, accumulation: int, scaling: str
) -> None:
    """Strong scaling keeps the global batch, weak the micro-batch, and all else is equal but what strategies lack."""
    found = cells(
        asked(
            f"--strategies={','.join(names)}", f"--gpus={','.join(map(str, worlds))}",
            f"--precisions={','.join(precisions)}", f"--micro-batch={micro}", f"--grad-accumulation={accumulation}",
            f"--scaling={scaling}",
        ),
        CPU,
    )  # fmt: skip
    places = [(each.cell.strategy, each.cell.world_size, each.cell.precision) for each in found]
    assert len(places) == len(set(places)) == len(names) * len(worlds) * len(precisions)
    assert len({each.cell.name for each in found}) == len(found)
    runnable = [each.cell for each in found if each.cell.refused is None]
    assert all(each.cell.refused for each in found if each.cell not in runnable)
    if scaling == "strong":
        assert {cell.global_batch for cell in runnable} <= {micro * accumulation * max(worlds)}
    else:
        assert {cell.micro_batch for cell in runnable} <= {micro}
    assert all(cell.grad_accumulation == accumulation for cell in runnable)
    for cell in runnable:
        assert cell.micro_batch is not None
        assert cell.global_batch == cell.micro_batch * accumulation * cell.world_size
        assert cell.gated
    for option in ("seed", "data", "optimizer", "lr", "model", "reader", "warmup", "clip_norm"):
        assert len({str(cell.config[option]) for cell in runnable}) <= 1


def test_refused_cells_say_why() -> None:
    """One rank's strategy on two, and a precision that a library would silently replace, stay in the matrix."""
    found = {
        each.cell.name: each.cell for each in cells(asked("--strategies=single,zero1,ddp", "--precisions=fp16"), CPU)
    }
    assert "use --gpus 1" in (found["single-fp16-2ranks"].refused or "")
    assert found["zero1-fp16-2ranks"].refused
    assert found["ddp-fp16-2ranks"].refused is None


def test_hardware_that_lacks_refuses_its_cells_alone() -> None:
    """More GPUs than there are: those cells are refused with the way out, the others run."""
    found = {each.cell.name: each.cell.refused for each in cells(asked("--strategies=ddp", "--gpus=4,8"), CUDA)}
    assert found["ddp-fp32-4ranks"] is None
    assert "this machine shows 4" in (found["ddp-fp32-8ranks"] or "")


@settings(deadline=None, max_examples=40)
@given(
    names=st.lists(st.text("abc", min_size=1), unique=True, max_size=6),
    repeats=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_repeats_are_interleaved(names: list[str], repeats: int, seed: int) -> None:
    """Each round has every cell once; more repeats add rounds and change none before them."""
    order = interleaved(names, repeats, seed)
    rounds = [order[start : start + len(names)] for start in range(0, len(order), max(1, len(names)))]
    assert [sorted(each) for each in rounds] == [sorted((n, r) for n in names) for r in range(1, repeats + 1)][
        : len(rounds)
    ]
    assert interleaved(names, repeats + 1, seed)[: len(order)] == order
    assert interleaved(sorted(names, reverse=True), repeats, seed) == order


def test_rounds_have_different_orders() -> None:
    """No cell always follows the same other."""
    names = [f"cell{i}" for i in range(8)]
    order = [name for name, _ in interleaved(names, 4, 0)]
    assert len({tuple(order[start : start + 8]) for start in range(0, 32, 8)}) == 4
    assert interleaved(names, 1, 0) != interleaved(names, 1, 1)


@pytest.mark.fault(46)
@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--strategies=ddp,zerro2"], "--strategies: given 'zerro2', did you mean zero2?"),
        (["--strategies="], "--strategies: given '', allowed a list such as ddp,zero2"),
        (["--strategies=ddp,,zero2"], "allowed a list"),
        (["--strategies=ddp,ddp"], "allowed each value once (ddp comes again)"),
        (["--gpus=1,1"], "allowed each value once (1 comes again)"),
        (["--gpus=0"], "--gpus: given '0', allowed a number at least 1"),
        (["--gpus=1,x"], "--gpus: given 'x', allowed a whole number"),
        (["--precisions=bf61"], "--precisions: given 'bf61', did you mean bf16?"),
        (["--checkpointings=ful"], "did you mean full?"),
        (["--repeats=0"], "--repeats: given '0', allowed a number at least 1"),
        (["--strategy=ddp"], "did you mean --strategies?"),
        (["--scaling=week"], "did you mean weak?"),
        (["--gpus=2,3", "--global-batch=10"], "the nearest that they can is --global-batch 6 or 12"),
        (["--gpus=2,4", "--global-batch=16", "--micro-batch=3"], "leave one of them out"),
        (["--scaling=weak", "--global-batch=8"], "give --micro-batch in place of --global-batch"),
        (["--best-batch", "--global-batch=8"], "leave out --global-batch"),
        (["--best-batch-max=8"], "does nothing without --best-batch"),
        (["--nodes=2", "--rendezvous=a:1"], "a sweep runs on one host"),
        (["--recipe=/nowhere/x.toml"], "no such file"),
        (["--recipe=strategis"], "did you mean strategies?"),
        (["--lr-scaling=linear"], "needs --base-batch"),
    ],
)
def test_what_is_wrong_is_said_with_the_way_out(argv: list[str], part: str) -> None:
    """Lists, recipes and batches that cannot be meant are refused before anything starts."""
    with pytest.raises(ConfigError) as error:
        cells(asked(*argv), CPU)
    assert part in str(error.value)


def test_every_problem_comes_at_once() -> None:
    """Of several lists and of the run's own options."""
    with pytest.raises(ConfigError) as error:
        asked("--strategies=zerro2", "--gpus=0", "--lr=nan", "--nonsense=1")
    assert len(error.value.problems) == 4


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("strategies = [", "not TOML"),
        ("strategeis = ['ddp']", "did you mean strategies?"),
        ("recipe = 'other'", "given 'recipe'"),
        ("gpus = [1, 0]", "--gpus: given '0'"),
        ("strategies = []", "allowed a list"),
        ("steps = 'many'", "--steps: given 'many'"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_recipes_are_read_as_strictly(tmp_path: Path, content: str | bytes, part: str) -> None:
    """A recipe that is damaged or says what no option says is refused by name."""
    path = tmp_path / "my recipe.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as error:
        asked(f"--recipe={path}")
    assert part in str(error.value)


def test_a_recipe_is_options_and_flags_win(tmp_path: Path) -> None:
    """What is typed beside a recipe counts before what it says; tables and dashes are read too."""
    path = tmp_path / "r.toml"
    path.write_text(
        "strategies = ['ddp', 'zero2']\ngpus = 2\nmicro-batch = 3\nrepeats = 5\n[model_option]\nlayers = 2\n"
    )
    found = asked(f"--recipe={path}", "--repeats=1")
    assert (found.axes["strategy"], found.axes["gpus"], found.repeats) == (("ddp", "zero2"), (2,), 1)
    assert found.common == {"micro_batch": 3, "model_option": {"layers": 2}}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_that_come_along_work_and_say_what_for(path: Path) -> None:
    """Each is read, has a cell that can run on some machine, and says its question, hardware, minutes and outcome."""
    found = cells(asked(f"--recipe={path.stem}"), CUDA)
    assert any(each.cell.refused is None for each in found)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Question:", "Hardware:", "Minutes:", "Outcome:"):
        assert any(word in line for line in header), word
    assert read_recipe(path.stem)


def test_every_option_of_a_run_is_one_of_a_sweep() -> None:
    """Axes stand for their option, runs are named after cells; all else is taken over, by name."""
    taken = {"name", *(axis.field for axis in AXES)} - {"gpus"}
    assert set(RunConfig.model_fields) - taken <= set(SweepOptions.model_fields)


def test_the_folder_is_named_after_what_decides_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same matrix in another order or with more repeats goes on in its folder; another batch, device or library
    makes a new one."""

    def named(*argv: str, devices: Devices = CPU) -> str:
        found = asked(*argv)
        return sweep_id(cells(found, devices), found, devices)

    base = named("--strategies=ddp,zero1", "--gpus=1,2")
    for same in (
        ["--strategies=zero1,ddp"],
        ["--repeats=9"],
        ["--out=elsewhere"],
        ["--grace=3"],
        ["--usd-per-gpu-hour=2"],
    ):
        assert named("--strategies=ddp,zero1", "--gpus=1,2", *same) == base
    for other in (["--steps=7"], ["--micro-batch=8"], ["--seed=1"], ["--gpus=2"], ["--scaling=weak"], ["--best-batch"]):
        assert named("--strategies=ddp,zero1", "--gpus=1,2", *other) != base
    assert named("--strategies=ddp,zero1", "--gpus=1,2", devices=Devices("cpu", 0, "another")) != base
    monkeypatch.setattr("scalelab.launch.sweep.matrix.versions", lambda: {"torch": "9"})
    assert named("--strategies=ddp,zero1", "--gpus=1,2") != base


def test_a_changed_model_or_manifest_is_another_sweep(tmp_path: Path) -> None:
    """Runs of the one are none of the other, though all options are the same; changed back, it goes on."""
    model, data = tmp_path / "net.py", tmp_path / "data"
    data.mkdir()

    def named(source: str, manifest: str) -> str:
        model.write_text(source)
        (data / "manifest.json").write_text(manifest)
        found = asked("--strategies=ddp", f"--model={model}", f"--data={data}")
        return sweep_id(cells(found, CPU), found, CPU)

    names = [named(source, manifest) for source in ("a = 1", "a = 2") for manifest in ("{}", "[]")]
    assert len(set(names)) == 4
    assert named("a = 1", "{}") == names[0]


def test_where_the_matrix_has_no_ddp_a_short_run_of_it_is_added() -> None:
    """One for each world and precision that lacks it, as long as the gate looks, with nothing else measured."""
    found = cells(asked("--strategies=zero1,fsdp2", "--gpus=1,2", "--counterfactual", "--checkpointings=full"), CPU)
    extra = references(found, CPU)
    assert [each.cell.world_size for each in extra] == [1, 2]
    for each in extra:
        config = each.cell.config
        assert (config["strategy"], config["warmup"] + config["steps"]) == ("ddp", gate_steps(5))
        assert (config["counterfactual"], config["memory_step"], config["checkpointing"]) == (False, "off", "none")
        peer = next(one.cell for one in found if one.cell.world_size == each.cell.world_size)
        for field in ("global_batch", "micro_batch", "seed", "grad_norm_steps"):
            assert config[field] == peer.config[field]
    assert not references(cells(asked("--strategies=zero1,ddp", "--gpus=1,2"), CPU), CPU)


@settings(deadline=None, max_examples=40)
@given(warmup=st.integers(0, 50))
def test_norms_are_recorded_in_warm_up_alone(warmup: int) -> None:
    """But for two steps at least, without which nothing could be told."""
    (cell,) = (each.cell for each in cells(asked("--strategies=ddp", f"--warmup={warmup}"), CPU))
    assert cell.config["record_grad_norm"]
    assert 2 <= cell.config["grad_norm_steps"] <= max(2, warmup)


@settings(deadline=None, max_examples=40)
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "model_option": st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from([1, "x y", True, None, "1"])),
            "compile": st.booleans(),
            "lr": st.floats(1e-9, 99),
            "data": st.sampled_from(["-rf", "a b", "$(x)", "é"]),
            "steps": st.integers(1, 99),
            "clip_norm": st.none(),
        },
    )
)
def test_a_run_is_handed_what_was_given(values: dict[str, Any]) -> None:
    """Options typed for a run read as the values that they stand for, whatever characters they hold."""
    read, _, problems = Options("run", "", RunConfig, {}).read(arguments(values))
    assert not problems
    assert RunConfig(**read) == RunConfig(**values)
