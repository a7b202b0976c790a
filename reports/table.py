"""The table at the end of a run: a summary in a person's words. Computes nothing but units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from . import units
from .trace import trace_table
from .units import model, told

CAUSES = {
    "free_wire": "communication (a free wire)",
    "cached_batch": "input (one cached batch)",
    "no_optimizer": "the optimizer's update",
    "no_recompute": "recomputing activations",
}
SYNCS_SHOWN = 3
_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def run_table(summary: Mapping[str, Any], ended: Sequence[str] = ()) -> RenderableType:
    """Throughput, where the step goes, and model state, from a summary.json; first how it `ended` if not well."""
    memory = [] if summary["strategy"] == "own" else [_memory(summary)]
    return Group(
        Text(),
        *(Text(line, style="bold red") for line in ended),
        _headline(summary),
        *(Text(f"damaged: {line}", style="bold yellow") for line in summary["damage"]),
        *([] if not any(summary["phases"].values()) else [_phases(summary)]),
        *_communication(summary),
        *_tail(summary),
        *([trace_table(summary)] if summary["trace"] is not None else []),
        *memory,
        *_rest(summary),
    )


def _headline(summary: Mapping[str, Any]) -> Text:
    parameters = summary["model"]["parameters"]
    size = "" if parameters is None else f" ({parameters:,} parameters)"
    ranks = f"{summary['world_size']} x {summary['device']}" + (", oversubscribed" if summary["oversubscribed"] else "")
    own = summary["strategy"] == "own"
    how = ["its own loop"] if own else [summary["strategy"], summary["precision"]["name"]]
    how += [f"{summary['checkpointing']} checkpointing"] if summary["checkpointing"] not in (None, "none") else []
    how += ["compiled"] if summary["compile"] else []
    how += [f"through {summary['engine']}"] if summary["engine"] not in ("own", "native") else []
    line = f"{model(summary['model']['name'])}{size}  {'  '.join(how)}  {ranks}"
    return Text(line, style="bold")


def _phases(summary: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("phase")
    for name in ("mean ms", "median ms", "share"):
        table.add_column(name, justify="right")
    table.add_column("")
    for name, row in summary["phases"].items():
        if row is None:
            table.add_row(name, "-", "-", "-", style="dim")
        else:
            cells = (f"{row['mean'] * 1e3:.1f}", f"{row['median'] * 1e3:.1f}", f"{row['share']:.1%}")
            table.add_row(name, *cells, "█" * round(row["share"] * 30))
    step = summary["step_seconds"]
    if step["mean"] is not None:
        median = "-" if step["median"] is None else f"{step['median'] * 1e3:.1f}"
        table.add_section()
        table.add_row("step", f"{step['mean'] * 1e3:.1f}", median, "100.0%", _interval(step["ci95"], 1e3, "ms"))
    return table


def _communication(summary: Mapping[str, Any]) -> list[Text]:
    comm = summary["comm"]
    if summary["world_size"] == 1 or comm["exposed_seconds"] is None:
        return []
    payload = ", ".join(f"{kind} {size(count)}" for kind, count in comm["payload_bytes_per_step"].items() if count)
    lines = [f"{units.counted(round(comm['calls_per_step']), 'collective')} a step, payload {payload or 'nothing'}"]
    if comm["waiting_seconds"] is not None:
        parts = ", ".join(f"{name} {_ms(comm[f'{name}_seconds'])}" for name in ("waiting", "transfer", "queued"))
        lines.append(f"exposed {_ms(comm['exposed_seconds'])} a step: {parts}")
    else:
        lines.append(f"why communication was exposed is not known: {summary['reasons']['comm.waiting_seconds']}")
    if comm["alone_seconds"] is not None:
        of, share = summary["calibration"], comm["bus_bandwidth_share"]
        doubts = "".join(f"; {doubt}" for doubt in of["doubts"])
        here = "" if share is None else f"; here they had {share:.0%} of that bus bandwidth"
        lines.append(
            f"on this machine at rest they take {_ms(comm['alone_seconds'])} one after the other (calibration "
            f"{of['name']} of {of['made_utc']}{doubts}){here}"
        )
    if (late := comm["straggler"]) is not None:
        lines.append(
            f"rank {late['rank']} is late, from its {late['cause']} on: {_ms(late['excess_seconds'])} a step more of "
            f"its own than the others, last in {late['share']:.0%} of the steps"
        )
    return [Text(line) for line in lines]


def _tail(summary: Mapping[str, Any]) -> list[RenderableType]:
    if summary["counterfactual"] is None:
        return []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("without it a step saves")
    table.add_column("ms", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("", style="yellow")
    for cause, row in summary["counterfactual"].items():
        spread = _interval(row["ci95"], 1e3, "ms")
        table.add_row(CAUSES[cause], f"{row['headroom_seconds'] * 1e3:.1f}", spread, told(row["ci95"]))
    if (cost := summary["overhead"]) is not None:
        table.add_section()
        spread = _interval(cost["ci95"], 100, "%")
        table.add_row("measuring, share of the bare step", f"{cost['share_of_step']:.2%}", spread, told(cost["ci95"]))
        if cost["calls_share_of_step"] is not None:
            table.add_row("in the probe's own calls, timed", f"{cost['calls_share_of_step']:.2%}", "")
    return [table]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _memory(summary: Mapping[str, Any]) -> Group:
    memory = summary["memory"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("memory, worst rank", "at the peak", "model state", "law"):
        table.add_column(name, justify="left" if name.startswith("memory") else "right")
    expected = memory["state_by_law"] or {}
    state, known = memory["state"] or {}, memory["by_kind"]["temporary"] is not None
    for kind, count in memory["by_kind"].items():
        if count or kind in expected or kind in state:
            cells = (size(state[kind]) if kind in state else "", size(expected[kind]) if kind in expected else "")
            table.add_row(kind, size(count if known else None), *cells)
    lines = []
    if known:
        table.add_section()
        table.add_row("peak", size(memory["peak_bytes"]), "", "")
    if (at := memory["peak_at"]) is not None:
        where = f" of {at['module']}" if at["module"] else ""
        lines.append(f"the peak is in {at['phase'] or 'no phase'}{where} (steps followed by storage; docs/memory.md)")
    elif known:
        lines.append(f"where the peak is, is not known: {summary['reasons']['memory.peak_at']}")
    else:
        lines.append(f"memory at the peak is not known: {summary['reasons']['memory.peak_at']}")
    if memory["growth_ci95"] is not None and memory["growth_ci95"][0] > 0:
        made = f", most of it made in {memory['growth_by']}" if memory["growth_by"] else ""
        lines.append(
            f"GROWS by {size(memory['growth_bytes_per_step'])} a step{made}: tensors are kept from step to step"
        )
    return Group(*([table] if table.row_count else []), *map(Text, lines))


def _rest(summary: Mapping[str, Any]) -> list[Text]:
    lines = [
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not known: {why}"
        for why, names in _unknown_phases(summary).items()
    ]
    throughput, steps = summary["throughput"], summary["steps"]
    if not any(summary["phases"].values()) and summary["step_seconds"]["mean"] is not None:
        lines.append(f"a step takes {_ms(summary['step_seconds']['mean'])}")
    if throughput["samples_per_second"] is not None:
        spread = f" {_interval(throughput['ci95'], 1, '')}" if throughput["ci95"] else ""
        lines.append(
            f"{throughput['samples_per_second']:.2f} samples/s{spread} in this run, "
            f"{units.counted(steps['measured'], 'step')} after {steps['warmup']} of warm-up, global batch "
            f"{summary['global_batch']}"
        )
        hours = summary["cost"]["device_hours_per_million_samples"]
        lines.append(f"{hours:.1f} device-hours per million samples on {summary['cost']['device_kind']}")
        lines += _money(summary["cost"])
    elif (why := summary["reasons"]["throughput.samples_per_second"]) not in _unknown_phases(summary):
        lines.append(f"samples/s are not known: {why}")
    lines += _syncs(summary)
    lines += _cards(summary["utilization"])
    lines.append(_efficiency(summary))
    if summary["steps"]["skipped"]:
        skipped = units.counted(summary["steps"]["skipped"], "update")
        lines.append(f"{skipped} skipped: a gradient overflowed and the loss scale was halved")
    if (data := summary.get("data")) and data["skipped_samples"]:
        first, damaged = data["skipped"][0]["message"], units.counted(data["skipped_samples"], "damaged sample")
        lines.append(f"{damaged} left out ({data['policy']}), the first: {first}")
    if not_finite := summary["steps"].get("loss_not_finite"):
        trained = units.counted(len(summary["loss"] or []), "step")
        lines.append(f"WARNING: the loss was not finite in {not_finite} of {trained}")
    losses = [loss for loss in summary["loss"] or [] if loss is not None]
    if losses:
        lines.append(
            f"loss {losses[0]:.3f} -> {losses[-1]:.3f} over {units.counted(len(losses), 'step')}, mean over ranks"
        )
    quality = summary["quality"]
    if quality["best"] is not None:
        lines.append(f"held-out {quality['metric']}: best {quality['best']:.3f}")
    for event in summary["events"]:
        failed = f", {event['failed']} of them FAILED" if event["failed"] else ""
        took = "" if event["seconds"] is None else f", {event['seconds']:.3g} s in all"
        lines.append(f"{event['kind']}: {event['count']} x{failed}{took}, outside the steps")
    return [Text(line) for line in lines]


def _money(cost: Mapping[str, Any]) -> list[str]:
    """What samples cost, as the run's page says it; nothing where no price is known."""
    if (usd := cost["usd_per_million_samples"]) is None:
        return []
    spread, hour = units.interval(cost.get("usd_ci95")), units.usd(cost["usd_per_gpu_hour"])
    return [
        f"{' '.join(filter(None, (units.usd(usd), spread)))} per million samples, at {hour}: {cost['price_source']}"
    ]


def _syncs(summary: Mapping[str, Any]) -> list[str]:
    """Where the host waits for its GPU, or would."""
    verb = "the host waits" if summary["device"] == "cuda" else "on a GPU the host would wait"
    rows = [sync for sync in summary["host_syncs"] or [] if sync["source"]]
    return [
        f"{verb} {sync['calls_per_step']} x a step for {sync['operator']}, {sync['source']}"
        for sync in rows[:SYNCS_SHOWN]
    ]


def _cards(utilization: Mapping[str, Any]) -> list[str]:
    """What the cards did over the measured steps, as far as they say it; nothing where there are none."""
    parts = []
    if (busy := utilization["gpu_percent"]) is not None:
        parts.append(f"a kernel ran {busy:.0f}% of the time")
    if (power := utilization["power_watts"]) is not None:
        parts.append(f"{power:.0f} W a card")
    if (joules := utilization["joules_per_sample"]) is not None:
        how = utilization["energy_source"]["method"].replace("_", " ")
        parts.append(f"{joules:.3g} J a sample by {how}")
    if (clock := utilization["sm_clock_mhz"]) is not None:
        parts.append(f"SM clock {clock:.0f} MHz")
    if (held := utilization["throttled_share"]) is not None and held["any"] > 0:
        names = ", ".join(f"{name} {share:.0%}" for name, share in held.items() if name != "any")
        parts.append(f"clocks held down in {held['any']:.0%} of the readings ({names})")
    return [f"GPU: {', '.join(parts)}"] if parts else []


def _efficiency(summary: Mapping[str, Any]) -> str:
    found = summary["utilization"]
    if found["mfu"] is None:
        return f"MFU is not known: {summary['reasons']['utilization.mfu']}"
    peak = found["peak"]
    peaks = f"{peak['flops_per_second'] / 1e12:.4g} TFLOP/s in {peak['dtype']}"
    of = f"{peaks}, {units.peak_of(summary['device'], peak['devices'])}"
    again = f", HFU {found['hfu']:.2%}" if found["hfu"] != found["mfu"] else ""
    useful = "" if found["useful_fraction"] is None else f"; {found['useful_fraction']:.1%} of it was no padding"
    return f"MFU {found['mfu']:.2%}{again} of {of} ({peak['source']}){useful}"


def _unknown_phases(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of phases by why they are not known."""
    found: dict[str, list[str]] = {}
    for name in (name for name, row in summary["phases"].items() if row is None):
        found.setdefault(summary["reasons"][f"phases.{name}"], []).append(name)
    return found


def _interval(bounds: list[float] | None, scale: float, unit: str) -> str:
    """The spread of a mean within the run."""
    return "" if bounds is None else f"[{bounds[0] * scale:.4g}, {bounds[1] * scale:.4g}]{' ' if unit else ''}{unit}"


def size(count: float | None) -> str:
    """Bytes in the largest binary unit that leaves at least 1; `-` for unknown."""
    if count is None:
        return "-"
    for factor, unit in _UNITS:
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} B"
