"""The page of an explanation: the answer, the passages that it needs, and the text with what the answer looked at."""

from collections.abc import Mapping, Sequence
from typing import Any

from handscroll.report.page import Facts, Figure, Marked, Page, Section, Table, Text
from handscroll.report.palette import HEAT_STEPS

BINS, WIDE, HIGH = 240, 720, 34  # columns of the map, and its size in pixels
SHOWN = 160  # characters of a passage in a table


def explanation_page(
    record: Mapping[str, Any], question: str, name: str, provenance: Mapping[str, str] | None = None
) -> Page:
    """The page of a record of `handscroll.explain.why.Explanation`."""
    marks, causes = record["marks"], [one for one in record["marks"] if one["marked"]]
    causes.sort(key=lambda one: -one["effect"])
    facts = [
        (f"{record['rests']:.1f} nats", "what the answer loses without the text"),
        (f"{record['together']:.1f} nats", f"what it loses without the {len(causes)} marked passages"),
        (f"{record['read']:,}", "tokens of the text, none of them read again"),
    ]
    answer = [record["answer"].strip()]
    if record.get("finish") == "length":
        answer.append(f"Only the first {len(record['steps']):,} tokens of the answer are explained: it was cut there.")
    sections = [
        Section("The answer", question, [Text(answer), Facts(facts)]),
        Section("The passages that it needs", _needed(causes), [_table(marks)] if _tried(marks) else []),
        Section(
            "Where it looked",
            "The answer's attention over the text, from its beginning to its end; lines stand for marked passages.",
            [Figure(_map(marks), "", _said(causes, marks), _map(marks, 320))],
        ),
    ]
    if any(step["others"] for step in record["steps"]):
        sections.append(Section("Other words", "What else might have stood at each place.", [_steps(record["steps"])]))
    most = max((one["attention"] for one in marks), default=0.0) or 1.0
    parts = [(one["text"], one["attention"] / most, one["marked"]) for one in marks]
    sections.append(Section("The text", "The darker a passage, the more the answer looked at it.", [Marked(parts)]))
    return Page(f"Why this answer? {name}", "", sections, provenance or {})


def _tried(marks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted((one for one in marks if one["effect"] is not None), key=lambda one: -one["effect"])


def _needed(causes: Sequence[Mapping[str, Any]]) -> str:
    if not causes:
        return "Without none of the passages that were tried the answer becomes much less likely, so none is marked."
    return "Each was left out in turn; the answer's log-probability says what that costs."


def _table(marks: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for one in _tried(marks):
        text = " ".join(one["text"].split())
        short = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
        rows.append([short, f"{one['effect']:+.2f}", f"{one['attention']:.1%}", "yes" if one["marked"] else "no"])
    return Table(["passage", "nats lost", "attention", "marked"], rows)


def _steps(steps: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            repr(step["text"]),
            f"{step['probability']:.0%}",
            ", ".join(f"{text!r} {share:.0%}" for text, share in step["others"]),
        ]
        for step in steps
    ]
    return Table(["said", "probability", "instead"], rows, "token by token", folded=len(rows) > 12)


def _map(marks: Sequence[Mapping[str, Any]], width: int = WIDE) -> str:
    """A strip of the text: each column is as dark as the attention on its characters; marked passages have a line."""
    end = max((one["end"] for one in marks), default=1)
    bins = [0.0] * min(BINS, width // 2)
    for one in marks:
        first, last = (
            one["start"] * len(bins) // end,
            max(one["start"] * len(bins) // end, (one["end"] - 1) * len(bins) // end),
        )
        for at in range(first, last + 1):
            bins[at] += one["attention"] / (last - first + 1)
    most, each = max(bins) or 1.0, width / len(bins)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HIGH}">']
    for at, value in enumerate(bins):
        step = round(value / most * HEAT_STEPS)
        parts.append(
            f'<rect x="{at * each:.2f}" y="8" width="{each + 0.3:.2f}" height="{HIGH - 8}" fill="var(--heat-{step})"/>'
        )
    for one in marks:
        if one["marked"]:
            parts.append(
                f'<rect x="{one["start"] / end * width:.1f}" y="0" width="3" height="{HIGH}" fill="var(--accent)"/>'
            )
    return "".join([*parts, "</svg>"])


def _said(causes: Sequence[Mapping[str, Any]], marks: Sequence[Mapping[str, Any]]) -> str:
    places = ", ".join(f"character {one['start']:,}" for one in causes) or "nowhere"
    return f"A strip of the text in {len(marks):,} passages; marked at {places}."
