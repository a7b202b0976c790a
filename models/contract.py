"""The model contract: what a file must define to be trained here. Our own model keeps the same one.

    def build_model(**options) -> torch.nn.Module            # forward(batch) returns a scalar loss
    def example_batch(size: int, **options)                  # nested dict/list/tuple of CPU tensors
    def build_loader(rank, world_size, micro_batch, seed, **options)   # optional: iterable of batches
    def blocks(model) -> list[torch.nn.Module]               # optional: the units to checkpoint and shard
    def branches(model) -> dict[str, list[torch.nn.Module]]  # optional: parts that operations are counted by
    def padded() -> dict[str, tuple[str, ...]]               # optional: what of a batch is padding, by its mask

A function is handed the options that its signature names, or all of them if it takes `**`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    from torch import nn

REQUIRED = ("build_model", "example_batch")
OPTIONAL = ("build_loader", "blocks", "branches", "padded")
# What build_loader and example_batch are called with besides options.
RESERVED = ("rank", "world_size", "micro_batch", "seed", "size", "data")
BUILT_IN = "scalelab.models.driving"


@dataclass(frozen=True)
class ModelSource:
    """A loaded model file with the options it is built with."""

    name: str
    module: ModuleType
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_loader(self) -> bool:
        return hasattr(self.module, "build_loader")

    def build(self) -> nn.Module:
        """The model, on the current default device, its weights drawn from torch's global generator."""
        from torch import nn

        model = self._call("build_model")
        if not isinstance(model, nn.Module):
            raise ModelError(f"{self.name}: build_model returned {_kind(model)}, must return a torch.nn.Module")
        return model

    def example_batch(self, size: int) -> Any:
        """A batch of `size` samples, drawn from torch's global generator."""
        return self._call("example_batch", size)

    def loader(self, *, rank: int, world_size: int, micro_batch: int, seed: int, data: str | None) -> Iterable[Any]:
        """The file's own loader; `data` is handed on when given."""
        fixed = {"rank": rank, "world_size": world_size, "micro_batch": micro_batch, "seed": seed}
        return self._call("build_loader", **fixed, **({} if data is None else {"data": data}))

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The units to checkpoint and shard: the file's own, else those found by repetition.

        Raises ModelError when the file's are not distinct parts of the model, apart from each other.
        """
        if not hasattr(self.module, "blocks"):
            return repeated_blocks(model)
        found = list(self.module.blocks(model))
        names = {id(module): name for name, module in model.named_modules() if module is not model}
        for block in found:
            if id(block) not in names:
                kind = "the model itself" if block is model else _kind(block)
                raise ModelError(f"{self.name}: blocks returned {kind}, must return modules inside the model")
        inside = Counter(id(module) for block in found for module in block.modules())
        if twice := [names[key] for key, count in inside.items() if count > 1]:
            raise ModelError(f"{self.name}: blocks returned {twice[0]} more than once, or blocks inside blocks")
        return found

    def branches(self, model: nn.Module) -> dict[str, list[nn.Module]]:
        """Parts of the model by name, none inside another: the file's own, else the model's direct children."""
        if hasattr(self.module, "branches"):
            return {name: list(parts) for name, parts in self.module.branches(model).items()}
        return {name: [child] for name, child in model.named_children()}

    def padded(self) -> dict[str, tuple[str, ...]] | None:
        """Keys of a batch whose second dimension is padded, by the key that is non-zero where an element is real; None
        where the file does not say."""
        if not hasattr(self.module, "padded"):
            return None
        return {mask: tuple(keys) for mask, keys in self.module.padded().items()}

    def check_options(self) -> None:
        """Raise ModelError for options that no function takes, with the nearest name."""
        taken: set[str] = set()
        for name in (*REQUIRED, "build_loader"):
            if hasattr(self.module, name):
                names, takes_all = _parameters(getattr(self.module, name))
                if takes_all:
                    return
                taken |= names
        taken -= set(RESERVED)
        problems = []
        for option in self.options:
            if option not in taken:
                near = difflib.get_close_matches(option, taken, n=1, cutoff=0.5)
                offer = f"; did you mean {near[0]}?" if near else ""
                allowed = ", ".join(sorted(taken)) or "none"
                problems.append(
                    f"--model-option {option}: no function of {self.name} takes it, allowed {allowed}{offer}"
                )
        if problems:
            raise ModelError("\n".join(problems))

    def _call(self, name: str, *args: Any, **fixed: Any) -> Any:
        function = getattr(self.module, name)
        names, takes_all = _parameters(function)
        chosen = {key: value for key, value in self.options.items() if takes_all or key in names}
        unwanted = {key for key in fixed if not takes_all and key not in names}
        if unwanted:
            raise ModelError(
                f"{self.name}: {name} must take {', '.join(sorted(unwanted))} (see docs/bring-your-own-model.md)"
            )
        return function(*args, **fixed, **chosen)


def load_model(model: str, options: Mapping[str, Any]) -> ModelSource:
    """The source named by `model`: a preset of ours, the path of a .py file, or an importable module.

    Raises ModelError if it is none of these, lacks a required function or has no taker for an option. What the
    file itself raises while it is imported goes through unchanged.
    """
    from .presets import presets

    if model in presets():
        source = ModelSource(model, importlib.import_module(BUILT_IN), {"preset": model, **options})
    elif model.endswith(".py"):
        source = ModelSource(Path(model).stem, _import_file(Path(model)), dict(options))
    else:
        source = ModelSource(model, _import_module(model), dict(options))
    for name in REQUIRED:
        if not callable(getattr(source.module, name, None)):
            raise ModelError(f"{model}: defines no function {name}; a model file needs {' and '.join(REQUIRED)}")
    source.check_options()
    return source


def source_sha256(model: str) -> str | None:
    """SHA-256 of the file that defines `model`: a preset's, the .py file or the module's. What it imports is not in it.
    None where there is no such file to read. A module's parents are imported to find it, the module is not."""
    from .presets import preset_file, presets

    try:
        if model in presets():
            path = preset_file(model)
        elif model.endswith(".py"):
            path = Path(model)
        else:
            found = importlib.util.find_spec(model)
            path = Path(found.origin) if found is not None and found.origin else None
        return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    except Exception:
        # A parent that cannot be imported, a file that cannot be read: its ranks will tell of it.
        return None


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost modules whose class repeats among the children of one ModuleList or Sequential.

    Containers of mixed content (a convolution, an activation, …) do not count: a block has children of its own.
    """
    from torch import nn

    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        if isinstance(module, nn.ModuleList | nn.Sequential):
            counts = Counter(type(child) for child in module)
            alike = [child for child in module if counts[type(child)] > 1 and any(True for _ in child.children())]
            found.extend(alike)
            rest = [child for child in module if child not in alike]
        else:
            rest = list(module.children())
        for child in rest:
            visit(child)

    visit(model)
    return found


def _import_file(path: Path) -> ModuleType:
    """Import a .py file by its path, under a name of its own, with its folder on the path as python would have it."""
    if not path.is_file():
        raise ModelError(f"--model {path}: no such file (looked from {Path.cwd()})")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"scalelab_model_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.resolve().parent) not in sys.path:
        sys.path.append(str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    from .presets import presets

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and not name.startswith(error.name):
            raise
        near = difflib.get_close_matches(name, presets(), n=1, cutoff=0.5)
        offer = f"; did you mean {near[0]}?" if near else ""
        raise ModelError(
            f"--model: given {name!r}, allowed {', '.join(presets())}, the path of a .py file, or a module{offer}"
        ) from None


def _parameters(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """The names a function takes, and whether it takes any."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters}, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
