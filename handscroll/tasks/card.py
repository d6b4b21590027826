"""The model card of a tuned model: what it is for, what it learned from, how well it does, and its limits."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handscroll.metrics.scores import Measured
from handscroll.metrics.table import METRICS

TABLES = {"valid": "held out", "test": "test", "second": "a second data set"}


def card(record: Mapping[str, Any]) -> str:
    """The card in Markdown, with the header that model hubs read, from the record of a run (`result.json`)."""
    recipe, task = record["recipe"], record["recipe"]["task"]
    parts = [_header(record), f"# {Path(record['model']['source']).name}, tuned for {task['name']}\n", _scores(record)]
    data = [f"- {name}: {_table(recipe['data'][name], told)}" for name, told in _given(record)]
    tokens = record["rows"]["train"]
    left = f"left out ({len(tokens['left']):,} examples that were too long). Nothing was cut."
    parts.append(
        "## Data\n\n" + "\n".join(data) + f"\n\nOf the {tokens['offered']:,} tokens of the training rows "
        f"{tokens['trained']:,} had a loss, {tokens['untrained']:,} were read, and {tokens['left_out']:,} were {left}"
        f"\n\n{_licence(recipe['data']['licence'])}\n"
    )
    tuning, best, trained = recipe["tuning"], record["best"], record["weights"]["trained"]
    chosen = f", whose loss on held-out examples was lowest ({best['loss']:.4f})" if best["loss"] is not None else ""
    began = f" It began with the adapter {record['model']['adapter']}." if record["model"].get("adapter") else ""
    parts.append(
        f"## Training\n\nWay '{tuning['way']}': {trained:,} numbers were trained in {record['steps']:,} updates of "
        f"{tuning['batch']} examples ({record['tokens']:,} tokens). The weights are those of update "
        f"{best['step'] or record['steps']:,}{chosen}.{began}\n"
    )
    parts.append(f"Settings of the task:\n\n```json\n{json.dumps(task, indent=2, ensure_ascii=False)}\n```\n")
    parts.append(
        "## Limits\n\nThe scores hold for texts like those of the data, and for no others. The model was not examined "
        f"for bias or for misuse. {record['reach']}\n{_exposure(record.get('exposure'))}"
    )
    return "\n".join(parts)


def _licence(given: str) -> str:
    if given:
        return f"The licence of the data, as it was given: {given}"
    return "No licence of the data was given (`data.licence`); see where they come from."


def _exposure(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return "\nIt was not measured how much of its training answers the model gives away (`tuning.exposure`).\n"
    if not told["rows"]:
        return "\nNo training answer holds a number of four digits or more, so that no exposure was measured.\n"
    return (
        f"\nOf {told['rows']:,} numbers in training answers, the model would guess {told['first']:,} at once among "
        f"{told['among']:,} of their form. They are exposed by {told['bits']:.1f} bits on average, of at most "
        f"{math.log2(told['among']):.1f}; numbers that it never read have {told['unread']:.1f}.\n"
    )


def _header(record: Mapping[str, Any]) -> str:
    source = str(record["model"]["source"])
    return f"---\nbase_model: {json.dumps(source)}\ntags: [handscroll, {record['recipe']['task']['name']}]\n---\n"


def _scores(record: Mapping[str, Any]) -> str:
    if not record["scores"]:
        return "No examples were scored.\n"
    lines = ["| data | system | metric | score | 95 % interval | examples |", "|---|---|---|---|---|---|"]
    for name, systems in record["scores"].items():
        for system, metric, values in [(s, m, values) for s, by in systems.items() for m, values in by.items()]:
            one = Measured(**values)
            cells = (TABLES[name], system, METRICS[metric].said, f"{one.value:.4g}", one.interval, f"{one.count:,}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _given(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, told) for name, told in record["tables"].items() if record["recipe"]["data"].get(name)]


def _table(files: Any, told: Mapping[str, Any]) -> str:
    leakage = f"; {told['leakage']}" if told["leakage"] else ""
    return f"{', '.join(files)}: {told['kept']:,} of {told['read']:,} rows; columns {told['columns']}{leakage}"
