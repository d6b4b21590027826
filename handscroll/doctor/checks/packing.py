"""Do documents that are packed into one row stay apart?"""

from handscroll.doctor.finding import Absent, Cannot, Check, Fault, Seen
from handscroll.doctor.probes import probe, random_ids
from handscroll.doctor.runtime import Runtime, Trial, close, rows_apart

SIZES = (19, 27)


def run(runtime: Runtime) -> Seen:
    facts = runtime.facts
    if facts is not None and facts.spec is not None and facts.spec.recurrent:
        raise Absent("a recurrent model reads one document a row")
    if facts is not None and facts.reads in ("blanks", "source"):
        raise Absent("its rows hold one text and what belongs to it")
    first, second = probe(runtime, SIZES[0]), random_ids(runtime, SIZES[1], seed=1)
    if facts is not None and facts.rows is not None and sum(SIZES) > facts.rows:
        raise Cannot(f"a row of {sum(SIZES)} tokens is longer than its table of positions")
    (alone,) = runtime.read(Trial((second,)))
    found = runtime.read(Trial((first, second), packed=True))[1]
    off = float(rows_apart(found, alone).max())
    what = f"the second of two documents in a row: {close(off, 5 * runtime.rounding)}"
    if off <= 5 * runtime.rounding:
        return Seen(what)
    fault = Fault(
        f"the second of two documents in one row reads otherwise than alone, by up to {off:.2g} of its spread: it sees "
        "the first one, or its positions do not begin anew",
        "training on packed rows teaches the model to look into unrelated documents; packed scores are not those of "
        "the documents",
        "give each document its own positions and segment (here: Marks and SameSegment; in transformers: position_ids "
        "that begin anew, no attention_mask, and an attention implementation that reads them), or do not pack",
    )
    return Seen(what, (fault,))


CHECK = Check("Do documents that are packed into one row stay apart?", run)
