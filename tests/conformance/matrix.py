"""Tables for the pages: the capabilities of every family and its checks, made from the checks themselves."""

from handscroll.models.table import FAMILIES
from handscroll.models.table import family as family_of
from tests.conformance.checks import CHECKS, random, settings_of_memory
from tests.conformance.families import FORMS
from tests.conformance.material import learned_by

COLUMNS = (
    "`model_type`",
    "learns",
    "strategies",
    "cache",
    "continues a text",
    "lengthening methods",
    "tested against `transformers`",
)


def checks() -> str:
    """One row a check: what it tests, and which families must refuse instead. A family stands for all its forms."""
    rows = [["check", "what it tests", "refusal is tested for"], ["---"] * 3]
    for name, check in CHECKS.items():
        cannot = {form.family: [] for form in FORMS.values()}
        for form in FORMS.values():
            if not check.can(form):
                cannot[form.family].append(str(form))
        entries = [
            f"`{entry}`"
            for family, found in cannot.items()
            for entry in ([family] if len(found) == len(family_of(family).forms) else found)
        ]
        holds = " ".join((check.run.__doc__ or "").split())
        rows.append([name, holds, ", ".join(entries) or "none"])
    return _table(rows)


def matrix() -> str:
    """One row a family; it counts what any of its forms can do."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for family in FAMILIES:
        forms = [form for form in FORMS.values() if form.family == family]
        tasks = [learned.task.name for form in forms for learned in learned_by(random(form)) if learned.task]
        strategies = settings_of_memory(forms[0])
        ways = forms[0].config.spec.positions[0]
        rows.append(
            [
                f"`{family}`",
                ", ".join(dict.fromkeys(tasks)) or "no",
                ", ".join(sorted(strategies, key=list(STRATEGIES).index)),
                "state"
                if random(forms[0]).spec.recurrent
                else _word(any(CHECKS["pieces"].can(form) for form in forms)),
                _word(any(CHECKS["text"].can(form) for form in forms)),
                ways.words if ways.methods else "no",
                _word(CHECKS["reference"].can(forms[0])),
            ]
        )
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


STRATEGIES = ("plain", "checkpoint", "chunk-outer", "layer-outer", "staged")


def _word(can: bool) -> str:
    return "yes" if can else "no"
