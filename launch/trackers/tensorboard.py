"""TensorBoard: event files in the run's folder `tensorboard/`, replaced as a whole. Needs no torch and no network."""

from __future__ import annotations

import importlib
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = "tensorboard"
PIP = "pip install tensorboard"
FOLDER = "tensorboard"


def send(told: Mapping[str, Any], folder: Path) -> str:
    """Write the event files; returns their folder."""
    place, made = folder / FOLDER, folder / f".{FOLDER}.{secrets.token_hex(4)}.partial"
    try:
        _write(told, made)
        old = folder / f".{FOLDER}.{secrets.token_hex(4)}.old"
        if place.exists():
            place.rename(old)
        made.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return f"tensorboard --logdir {place}"


def _write(told: Mapping[str, Any], place: Path) -> None:
    from tensorboard.plugins.hparams import summary_v2 as hparams
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    event, summary = _of("event_pb2").Event, _of("summary_pb2").Summary
    rows = sorted((at, int(step), name, value) for name, series in told["series"].items() for step, at, value in series)
    first, last = (rows[0][0], rows[-1][0]) if rows else (0.0, 0.0)
    step = max((row[1] for row in rows), default=0)
    writer = EventFileWriter(str(place))

    def scalar(name: str, value: float, step: int, at: float) -> None:
        told = summary(value=[summary.Value(tag=name, simple_value=value)])
        writer.add_event(event(wall_time=at, step=step, summary=told))

    for at, number, name, value in rows:
        scalar(name, value, number, at)
    for name, value in told["results"].items():
        scalar(f"result/{name}", value, step, last)
    chosen = hparams.hparams_pb(told["config"], trial_id=told["run_id"], start_time_secs=first)
    writer.add_event(event(wall_time=first, step=0, summary=chosen))
    for name, text in (("run", told["run_id"]), ("config", _listed(told["config"]))):
        writer.add_event(event(wall_time=first, step=0, summary=summary(value=[_text(name, text)])))
    writer.close()


def _of(name: str, package: str = "tensorboard.compat.proto") -> Any:
    """A module of TensorBoard's messages, whose names are made when it is imported."""
    return importlib.import_module(f"{package}.{name}")


def _listed(values: Mapping[str, Any]) -> str:
    """As indented lines, which TensorBoard's Markdown shows as they are."""
    return "\n".join(f"    {name} = {' '.join(str(value).split())}" for name, value in values.items())


def _text(name: str, text: str) -> Any:
    """A text for TensorBoard's text plugin."""
    summary, shape = _of("summary_pb2"), _of("tensor_shape_pb2").TensorShapeProto
    content = _of("plugin_data_pb2", "tensorboard.plugins.text").TextPluginData(version=0).SerializeToString()
    plugin = summary.SummaryMetadata.PluginData(plugin_name="text", content=content)
    tensor = _of("tensor_pb2").TensorProto(
        dtype=_of("types_pb2").DataType.DT_STRING,
        string_val=[text.encode()],
        tensor_shape=shape(dim=[shape.Dim(size=1)]),
    )
    metadata = summary.SummaryMetadata(plugin_data=plugin)
    return summary.Summary.Value(tag=f"{name}/text_summary", metadata=metadata, tensor=tensor)
