"""The shape of the code: who may import whom, what is packaged, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("launch", "models", "data", "profiles", "reports")
# Folder: the parts it may import, itself aside. Deeper rules come first.
ALLOWED = {
    "data": set(),
    "models": {"data"},
    "profiles/analysis": set(),
    "profiles/capture": set(),
    "profiles": set(),
    "reports": {"profiles"},
    "launch": {"data", "models", "profiles", "reports"},
}
NO_TORCH = ("profiles/analysis", "reports")
LINE_BUDGET = 300


def sources() -> list[Path]:
    return [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Modules that a file imports at any depth, relative ones as paths from the root such as `profiles/records`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = path.relative_to(ROOT).parents[node.level - 1] if path.name != "__init__.py" else None
                base = base or path.relative_to(ROOT).parents[node.level - 1]
                modules = [node.module] if node.module else [alias.name for alias in node.names]
                found |= {str(base / module.replace(".", "/")) for module in modules if module}
            elif node.module:
                found.add(node.module)
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_way_of_the_data(path: Path) -> None:
    """A file imports its own part and the parts upstream of it, nothing else of ours."""
    place = path.relative_to(ROOT)
    if place.parts[1] == "entry":
        return
    rule = next(folder for folder in ALLOWED if str(place).startswith(folder + "/"))
    part = place.parts[0]
    for module in imported(path):
        top = module.split("/")[0]
        if top in PARTS and top != part:
            assert top in ALLOWED[rule], f"{place} imports {module}"
        assert not module.startswith("scalelab"), f"{place} imports {module}: inside the package imports are relative"


def test_analysis_does_not_reach_capture() -> None:
    """Between capture and analysis there is the run folder and nothing else."""
    for path in (ROOT / "profiles" / "analysis").rglob("*.py"):
        assert not any("capture" in module for module in imported(path)), path
    for path in (ROOT / "profiles" / "capture").rglob("*.py"):
        assert not any("analysis" in module for module in imported(path)), path


@pytest.mark.parametrize(
    "module",
    [
        "scalelab",
        "scalelab.launch.cli",
        "scalelab.launch.commands.run",
        "scalelab.launch.commands.compare",
        "scalelab.launch.plan",
        "scalelab.launch.supervision.supervisor",
        "scalelab.profiles.analysis.summary",
        "scalelab.reports.table",
        "scalelab.reports.live",
        "scalelab.models.presets",
        "scalelab.data.manifest",
    ],
)
def test_loads_without_torch(module: str) -> None:
    """What answers on the command line and all of analysis and reports start without torch."""
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_laws_load_without_torch() -> None:
    """Every strategy's law can be asked for without torch."""
    script = """
import sys
from scalelab.launch import strategies
from scalelab.launch.setting import Setting
from scalelab.launch.strategies._law import ModelShape, ParameterShape
setting = Setting(world_size=2, device="cpu")
model = ModelShape((ParameterShape((10, 3), 0), ParameterShape((3,))))
for name in strategies.names():
    strategy = strategies.load(name)
    strategy.unsupported(setting) or strategy.law(model, setting)
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_no_torch_in_the_source_of_analysis_and_reports() -> None:
    """Not even a lazy import of torch on the analysis side."""
    for folder in NO_TORCH:
        for path in (ROOT / folder).rglob("*.py"):
            assert not {"torch", "deepspeed"} & {module.split(".")[0] for module in imported(path)}, path


def computed(node: ast.AST) -> str | None:
    """What `node` computes that is more than a change of unit; None where it does not."""
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        return name if name in ("sum", "fmean", "mean", "median", "quantile", "percentile") else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        of_paths = isinstance(node.right, ast.JoinedStr) or ast.unparse(node.left) == "_HERE"
        by_unit = isinstance(node.right, ast.Constant) or ast.unparse(node.right).isupper()
        return None if of_paths or by_unit else ast.unparse(node)
    return None


@pytest.mark.parametrize("path", sorted((ROOT / "reports" / "page").rglob("*.py")), ids=lambda path: path.stem)
def test_pages_compute_nothing(path: Path) -> None:
    """No sums, means or shares in what draws a page: each number in it comes from the summary or the pictures' data."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    # A function of the file's own may be called `mean`, as the column that it fills is.
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    found = {computed(node) for node in nodes} - {None} - own
    assert not found, f"{path.relative_to(ROOT)} computes {', '.join(map(str, found))}"


def test_packages_listed_are_packages_on_disk() -> None:
    """pyproject names every folder with code, and maps each to its place."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {"scalelab"}
    for part in PARTS:
        for folder in {path.parent for path in (ROOT / part).rglob("*.py")}:
            if folder != ROOT / "launch" / "entry":
                on_disk.add("scalelab." + ".".join(folder.relative_to(ROOT).parts))
    assert set(setuptools["packages"]) == on_disk
    assert {name: ROOT / place for name, place in setuptools["package-dir"].items()} == {
        name: ROOT / "launch" / "entry" if name == "scalelab" else ROOT.joinpath(*name.split(".")[1:])
        for name in on_disk
    }


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    """A file is something one can read in one go."""
    assert len(path.read_text().splitlines()) <= LINE_BUDGET


def test_the_loop_owns_no_clock_and_knows_no_strategy() -> None:
    """The step loop is the same for all: no clock, no CUDA, no strategy's name in it."""
    from scalelab.launch import strategies

    source = (ROOT / "launch" / "loop.py").read_text()
    code = "\n".join(ast.unparse(node) for node in ast.parse(source).body[1:])
    for word in ("time", "cuda", "perf_counter", *strategies.names()):
        assert word not in code, word
