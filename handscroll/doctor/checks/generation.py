"""Can the settings of generation be followed, and do they belong to this model?"""

from handscroll.doctor.finding import Absent, Cannot, Check, Fault, Seen
from handscroll.doctor.runtime import Runtime

SMALL = 64  # tokens: a max_length below that cuts every answer


def run(runtime: Runtime) -> Seen:
    facts, given = runtime.facts, dict(runtime.generation)
    if facts is None:
        raise Cannot("its configuration is not known")
    if facts.reads in ("both", "blanks"):
        raise Absent("it does not continue texts")
    faults, notes = [], []
    stated = given.get("eos_token_id")
    ends = [one for one in (stated if isinstance(stated, list) else [stated]) if isinstance(one, int)]
    outside = [one for one in ends if not 0 <= one < (facts.vocab or 1 << 40)]
    if outside:
        faults.append(_outside(outside[0], facts.vocab))
    own = facts.special.get("eos", ())
    if ends and own and not set(ends) & set(own):
        faults.append(_foreign(ends, own))
    if not runtime.stops:
        notes.append("no token ends an answer: it goes on until max_tokens")
    if given.get("do_sample") is False and given.get("temperature") not in (None, 1.0, 0, 0.0):
        notes.append(f"temperature {given['temperature']} has no effect, because do_sample is false")
    longest = given.get("max_length")
    if isinstance(longest, int) and longest < SMALL and longest != 20:  # 20 is the library's old default
        notes.append(f"max_length {longest} cuts answers after {longest} tokens, prompt included")
    count = len(runtime.stops)
    return Seen(f"{count} token(s) end an answer", tuple(faults), tuple(notes))


def _outside(number: int, vocab: int) -> Fault:
    return Fault(
        f"generation_config.json ends answers at token {number:,}, and the model has {vocab:,}",
        "answers do not end",
        "the file belongs to another model: copy the one of this checkpoint",
    )


def _foreign(ends: list[int], own: tuple[int, ...]) -> Fault:
    return Fault(
        f"generation_config.json ends answers at {ends}, config.json at {list(own)}: they have no token in common",
        "answers do not end, or end in the middle of a sentence",
        "one of the two files belongs to another model: make eos_token_id agree",
    )


CHECK = Check("Do the settings of generation belong to this model?", run)
