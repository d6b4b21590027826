"""Is a position past the end of a learned table refused?"""

from handscroll.doctor.finding import Absent, Cannot, Check, Fault, Seen
from handscroll.doctor.runtime import Runtime


def run(runtime: Runtime) -> Seen:
    facts = runtime.facts
    if facts is None:
        raise Cannot("its configuration is not known; the check 'truncation' looks at long prompts from outside")
    if facts.spec is None:
        raise Cannot(f"whether it has a table of positions is not known: {facts.refused}")
    rows = facts.rows
    if rows is None:
        raise Absent("the model has no learned table of positions")
    if not runtime.answers_at(rows - 1):
        raise Cannot(f"it refuses even position {rows - 1:,}, the last of its table")
    if not runtime.answers_at(rows):
        return Seen(f"position {rows:,} is refused; the table has {rows:,} rows")
    fault = Fault(
        f"position {rows:,} is read although the learned table has {rows:,} rows: another row is taken for it",
        "longer texts are read without an error, and everything behind the table is placed wrongly",
        f"refuse or cut texts of more than {rows:,} tokens, or lengthen the table (handscroll extend)",
    )
    return Seen(f"position {rows:,} is answered", (fault,))


CHECK = Check("Is a position past the end of a learned table refused?", run)
