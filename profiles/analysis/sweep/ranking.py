"""Which cell is cheapest, which is fastest, and which to take; as far as the runs can tell.

A cell is told apart from the best one where the interval of their ratio excludes 1, and is dearer or slower only by the
side that it lies on. Which is best goes by the same ratios: where a run of one failed, they are of the rounds that both
have, so that a round that went ill for one alone makes the other none the better. The best of k was picked for being
best, so each of the k - 1 intervals has a confidence of 1 - 0.05 / (k - 1) (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .cells import HOURS, USD, CellResult, held

RISK = 0.05
MORE = "more --repeats tell"
WORDS = {USD: "USD per million samples", HOURS: "device-hours per million samples", "samples_per_second": "samples/s"}


def ranking(results: Sequence[CellResult], measure: str, *, highest: bool = False) -> dict[str, Any]:
    """Cells from the best by `measure` on. Those of two runs or more are held against the best of them; the verdict is
    `open` where it leads by too few runs to be the one to take."""
    ranked = _ranked(results, measure, highest=highest)
    found: dict[str, Any] = {
        "measure": measure,
        "order": [each.cell.name for each in ranked],
        "best": None,
        "ties": [],
        "against": [],
        "confidence": None,
    }
    if not ranked:
        return {**found, "verdict": "none", "why": "no cell has a figure that can be ranked"}
    best = next((each for each in ranked if each.row["measured_runs"] > 1), ranked[0])
    rest = [each for each in ranked if each is not best]
    several = [each for each in rest if each.row["measured_runs"] > 1]
    confidence = 1 - RISK / max(1, len(several))
    found |= {"best": best.cell.name, "confidence": confidence}
    for each in rest:
        times = held(each, best, measure, confidence)
        verdict = "one run"
        if times["ci95"] is not None and min(each.row["measured_runs"], best.row["measured_runs"]) > 1:
            low, high = times["ci95"]
            verdict = "more" if low > 1 else "less" if high < 1 else "cannot tell"
        found["against"].append(
            {"cell": each.cell.name, "ratio": times["mean"], "interval": times["ci95"], "verdict": verdict}
        )
    worse = ("one run", "less" if highest else "more")
    found["ties"] = [row["cell"] for row in found["against"] if row["verdict"] not in worse]
    ahead = [] if best.row["measured_runs"] < 2 else [each.cell.name for each in ranked[: ranked.index(best)]]
    if ahead:
        return {**found, "verdict": "open", "why": _open(best, ahead, measure)}
    if rest and best.row["measured_runs"] > 1 and best.row[measure]["ci95"] is None:
        figure = f"{best.cell.name} leads with {_figure(best, measure)}"
        why = f"{figure}, but {best.row['reasons'][f'{measure}.ci95']}: {MORE}"
        return {**found, "verdict": "open", "why": why}
    verdict, why = _verdict(best, several, found["ties"], measure, "fastest" if highest else "cheapest")
    if any(_better(each.row[measure]["mean"], best.row[measure]["mean"], highest) for each in several):
        why += "; not so by the means of all runs: it leads in the rounds that both cells have"
    return {**found, "verdict": verdict, "why": why}


def _open(best: CellResult, ahead: list[str], measure: str) -> str:
    """Cells that may well be better, and which runs would tell."""
    led = f"{best.cell.name} leads the cells of several runs with {_figure(best, measure)}"
    if len(ahead) == 1:
        return f"{led}, but {ahead[0]}, of one run, is ahead of it: a second run of that comes first"
    named = f"{', '.join(ahead[:-1])} and {ahead[-1]}"
    return f"{led}, but {named}, of one run each, are ahead of it: second runs of those come first"


def _figure(best: CellResult, measure: str) -> str:
    digits = np.format_float_positional(best.row[measure]["mean"], 4, unique=False, fractional=False, trim="-")
    return f"{digits} {WORDS[measure]}"


def _ranked(results: Sequence[CellResult], measure: str, *, highest: bool) -> list[CellResult]:
    """By how many others are better, two at a time; then by the mean of all runs."""

    def place(each: CellResult) -> tuple[int, float]:
        times = (held(other, each, measure)["mean"] for other in results if other is not each)
        mean = each.row[measure]["mean"]
        return sum(_better(other, 1.0, highest) for other in times), -mean if highest else mean

    return sorted(results, key=place)


def _better(a: float, b: float, highest: bool) -> bool:
    return a > b if highest else a < b


def _verdict(best: CellResult, rest: Sequence[CellResult], ties: list[str], measure: str, what: str) -> tuple[str, str]:
    """`rest` are the others of two runs or more."""
    name, figure = best.cell.name, _figure(best, measure)
    if best.row["measured_runs"] < 2:
        return "quick look", f"{name} leads with {figure}, of one run: a quick look, no verdict; --repeats 3 gives one"
    if not rest:
        return "alone", f"{name} is the only cell of several runs: {figure}"
    if ties:
        others = f"{', '.join(ties[:3])}{f' and {len(ties) - 3} more' if len(ties) > 3 else ''}"
        return "tie", f"{name} leads with {figure}, but its runs do not tell it apart from {others}"
    return "one", f"{name} is {what}: {figure}"


def pareto(results: Sequence[CellResult], cost: str) -> dict[str, Any]:
    """Cells that no other beats in both time and cost, two at a time as in the rankings; placed by their means."""
    points = [
        {
            "cell": each.cell.name,
            "seconds_per_sample": 1 / each.row["samples_per_second"]["mean"],
            "cost": each.row[cost]["mean"],
            "on_front": not any(_beats(other, each, cost) for other in results if other is not each),
        }
        for each in results
    ]
    points.sort(key=lambda point: point["seconds_per_sample"])
    front = [point["cell"] for point in points if point["on_front"]]
    return {"time": "seconds_per_sample", "cost": cost, "points": points, "front": front}


def _beats(a: CellResult, b: CellResult, cost: str) -> bool:
    """Whether `a` is nowhere worse than `b`, and somewhere better."""
    times = 1 / held(a, b, "samples_per_second")["mean"], held(a, b, cost)["mean"]
    return max(times) <= 1 and min(times) < 1


def recommended(results: Sequence[CellResult], cheapest: dict[str, Any], front: Sequence[str]) -> dict[str, Any]:
    """The cheapest cell per sample; among those that are not told apart from it, the fastest by its mean. None that
    another beats in both time and cost."""
    verdict, best, why = cheapest["verdict"], cheapest["best"], cheapest["why"]
    if verdict in ("none", "quick look", "open"):
        return {"cell": None, "verdict": verdict, "why": why}
    names = [name for name in (best, *cheapest["ties"]) if name in front]
    among = [each for each in results if each.cell.name in names]
    if not among:
        return {"cell": None, "verdict": "open", "why": f"{why}; by the means another is both faster and cheaper"}
    taken = max(among, key=lambda each: each.row["samples_per_second"]["mean"])
    if taken.cell.name != best:
        count = 1 + len(cheapest["ties"])
        why = f"{taken.cell.name} is the fastest of {count} cells whose costs are not told apart ({why})"
    elif verdict == "tie" and len(among) > len(cheapest["ties"]):
        why = f"{why}; it is the fastest of them too"
    parity = taken.row["parity"]
    if parity["state"] == "not checked":
        why = f"{why}; {taken.cell.name} was not checked to train what ddp does: {parity['why']}"
    return {"cell": taken.cell.name, "verdict": verdict, "why": why}
