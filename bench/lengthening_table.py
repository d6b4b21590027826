"""The tables of `bench.lengthening`: means over seeds, their spread, and every seed."""

import statistics
from collections.abc import Sequence
from typing import Any

FAR = "128-1023"
LEARNED = ("extrapolate", "interpolate")
OURS = {"bert": LEARNED, "gpt2": LEARNED, "t5": ("reach",), "glm": ("yarn",), "lstm": ("none",)}


def tables(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a table a family, and under it the differences of methods seed by seed."""
    families = list(dict.fromkeys(one["family"] for one in results))
    return "\n\n".join(_table(name, [one for one in results if one["family"] == name]) for name in families)


def _table(name: str, results: list[dict[str, Any]]) -> str:
    blocks = list(results[0]["loss"])
    seeds = sorted({one["seed"] for one in results})
    trained = {one["seed"]: _trained(one) for one in results}
    lines = [f"{name}: pre-trained " + "; ".join(f"seed {seed} {trained[seed]}" for seed in seeds), ""]
    lines.append("| method | updates | " + " | ".join(blocks) + f" | {FAR} by seed |")
    lines.append("|" + "---|" * (len(blocks) + 3))
    steps = sorted({one["steps"] for one in results})
    methods = list(dict.fromkeys(one["method"] for one in results))
    for count in steps:
        for method in methods:
            found = {one["seed"]: one["loss"] for one in results if (one["method"], one["steps"]) == (method, count)}
            if not found:
                continue
            cells = [_mean([loss[block] for loss in found.values()]) for block in blocks]
            each = ", ".join(f"{found[seed][FAR]:.3f}" if seed in found else "-" for seed in seeds)
            lines.append(f"| {method} | {count} | " + " | ".join(cells) + f" | {each} |")
    details = sorted({f"seed {one['seed']}: {one['method']} {one['detail']}" for one in results if one["detail"]})
    lines += ["", *([f"candidates: {'; '.join(details)}"] if details else [])]
    return "\n".join([*lines, *_differences(name, results, seeds, max(steps))])


def _trained(one: dict[str, Any]) -> str:
    precision = f" in {one['pretrain_precision']}" if "pretrain_precision" in one else ""
    return f"{one['pretrain_steps']} x {one['pretrain_rows']} rows{precision}"


def _mean(values: list[float]) -> str:
    """The mean and, of several, the standard deviation."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def _differences(name: str, results: list[dict[str, Any]], seeds: list[int], steps: int) -> list[str]:
    """Far loss of every other method minus that of the family's own, at equal updates, seed by seed."""
    far = {(one["method"], one["seed"]): one["loss"][FAR] for one in results if one["steps"] == steps}
    methods, lines = list(dict.fromkeys(method for method, _ in far)), []
    for number, ours in enumerate(OURS[name]):
        for method in [one for one in methods if one not in OURS[name][: number + 1]]:
            both = [seed for seed in seeds if (method, seed) in far and (ours, seed) in far]
            each = ", ".join(f"{far[method, seed] - far[ours, seed]:+.3f}" for seed in both)
            lines += [f"{method} - {ours}, {steps} updates, positions {FAR}: {each}"] if both else []
    return lines
