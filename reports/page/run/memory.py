"""What fills the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ... import units
from ..charts import stacked_areas
from ..section import Block, Chart, Column, Number, Paragraph, Section, Table
from ..words import why

PLACE = 70
MIB = 2**20


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    memory = summary["memory"]
    blocks: list[Block] = [_kinds(summary, pictures["kinds"])]
    if (at := memory["peak_at"]) is not None:
        module = f" of {at['module']}" if at["module"] else ""
        blocks.append(
            Paragraph(
                f"The peak is in {at['phase'] or 'no phase'}{module}{_from_begin(at['seconds'])}. "
                f"Source: {memory['source']}."
            )
        )
    else:
        blocks.append(Paragraph(f"Where the peak is, is not known: {why(summary, 'memory.peak_at')}.", "note"))
    blocks.append(_growth(summary, grows=pictures["verdict"]["growth_bytes_per_step"] is not None))
    if memory.get("timeline"):
        blocks.append(_mountain(memory["timeline"]))
    blocks.append(_other(summary))
    if len(memory["per_rank"]) > 1:
        blocks.append(_ranks(pictures["fullest_ranks"], len(memory["per_rank"])))
    return Section("memory", "Memory", blocks)


def _from_begin(seconds: float | None) -> str:
    return "" if seconds is None else f", {units.milliseconds(seconds)} from the step's begin"


def _kinds(summary: Mapping[str, Any], kinds: Mapping[str, Any]) -> Table:
    memory = summary["memory"]
    expected = memory["state_by_law"] or {}
    state, known, peak = memory["state"] or {}, memory["by_kind"]["temporary"] is not None, memory["peak_bytes"]
    columns = [
        Column("kind", "kind", numeric=False),
        Column("at the peak", "peak_bytes"),
        Column("share", "share_of_peak"),
        Column("model state, measured", "state_bytes"),
        Column("by the strategy's law", "law_bytes"),
    ]
    rows = []
    for kind, part in kinds.items():
        count, share = part["bytes"], part["share"]
        rows.append(
            [
                kind,
                Number(units.size(count), count),
                Number(units.percent(share), share, share),
                *(
                    Number(units.size(each.get(kind)) if kind in each else "", each.get(kind))
                    for each in (state, expected)
                ),
            ]
        )
    rows.append(
        [
            "peak",
            Number(units.size(peak), peak),
            Number(units.percent(1.0 if known else None), 1.0 if known else None),
            Number("", None),
            Number("", None),
        ]
    )
    when = "over the run" if memory["source"] == "allocator" else "in a step after the measured ones"
    caption = f"The rank with the highest peak, {when}; kinds sum to the peak"
    if (rank := memory["state_rank"]) is not None:
        caption += f". Model state, measured and by law: rank {rank}, which holds most of it"
    return Table("memory", caption, columns, rows, total=frozenset({len(rows) - 1}))


def _growth(summary: Mapping[str, Any], *, grows: bool) -> Paragraph:
    memory = summary["memory"]
    growth, spread = memory["growth_bytes_per_step"], memory["growth_ci95"]
    if growth is None:
        return Paragraph(f"Whether it grows is not known: {why(summary, 'memory.growth_bytes_per_step')}.", "note")
    if grows:
        made = f", most of it made in {memory['growth_by']}" if memory["growth_by"] else ""
        bounds = f"[{units.size(spread[0])}, {units.size(spread[1])}]"
        return Paragraph(
            f"It grows by {units.size(growth)} a step {bounds}{made}: tensors are kept from step to step.", "warning"
        )
    return Paragraph(f"It does not grow: {units.size(growth)} a step is left behind.")


def _mountain(timeline: Mapping[str, Any]) -> Chart:
    series = {kind: [each / MIB for each in counts] for kind, counts in timeline["by_kind"].items() if any(counts)}
    over = [each * 1e3 for each in timeline["seconds"]]
    caption = (
        f"Bytes of each kind over one step of rank {timeline['rank']}, the rank that held most, {len(over)} instants: "
        "those at which a kind or all together were highest, or all lowest, in their part of the step."
    )
    axes = {"x": "milliseconds from the step's begin", "y": "MiB"}
    return stacked_areas("memory", "Memory over a step", caption, over, series, **axes)


def _other(summary: Mapping[str, Any]) -> Table:
    memory = summary["memory"]
    columns = [Column("what", "what", numeric=False), Column("value", "value"), Column("note", "note", numeric=False)]
    words = {
        "rss_peak_bytes": ("resident memory of the process, peak", units.size),
        "reserved_bytes": ("reserved by the caching allocator", units.size),
        "non_torch_bytes": ("on the card outside of torch (context, NCCL)", units.size),
        "fragmentation": ("fragmentation of the allocator", units.percent),
        "alloc_retries": ("retries of the allocator", units.count),
    }
    rows = [
        [
            words[name][0],
            Number(words[name][1](memory[name]), memory[name]),
            "" if memory[name] is not None else why(summary, f"memory.{name}"),
        ]
        for name in words
    ]
    return Table("memory-process", "Beside the tensors, worst rank", columns, rows)


def _ranks(rows: Sequence[Mapping[str, Any]], of: int) -> Table:
    names = ("peak_bytes", "parameters", "gradients", "optimizer", "rss_peak_bytes")
    titles = ("peak", "parameters", "gradients", "optimizer", "resident, peak")
    columns = [
        Column("rank", "rank"),
        *(
            Column(title, name if name.endswith("bytes") else f"{name}_bytes")
            for title, name in zip(titles, names, strict=True)
        ),
    ]
    cells = [
        [Number(str(row["rank"]), row["rank"]), *(Number(units.size(row[name]), row[name]) for name in names)]
        for row in rows
    ]
    shown = "Ranks by their peak" if len(rows) == of else f"The {len(rows)} of {of:,} ranks with the highest peak"
    return Table("memory-ranks", f"{shown}; parameters, gradients and optimizer are model state", columns, cells)
