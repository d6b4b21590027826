"""Is every special token one token, and do the files agree on which token begins, ends and pads?"""

from collections.abc import Iterator

from handscroll.doctor.finding import Check, Fault, Seen
from handscroll.doctor.runtime import Runtime, Words

SHOWN = 5  # broken tokens that are told one by one
ROLES = ("bos", "eos", "pad", "cls", "sep", "mask")


def run(runtime: Runtime) -> Seen:
    words = runtime.speaks()
    broken = list(_broken(words))
    faults, notes = [*broken[:SHOWN]], []
    facts = runtime.facts
    if facts is not None:
        outside = {
            role: one for role, one in words.roles.items() if one is not None and one >= (facts.vocab or 1 << 40)
        }
        faults += [_outside(role, number, facts.vocab) for role, number in outside.items()]
        for role in ("bos", "eos"):
            stated, own = facts.special.get(role, ()), words.roles.get(role)
            if not stated or own is None or own in stated or facts.reads != "forward":
                continue
            say = f"config.json names {_told(words, stated)} as {role}, the tokenizer {_told(words, (own,))}"
            apart = role == "eos" and own not in runtime.stops and not set(stated) & runtime.stops
            if apart:
                faults.append(_apart(say))
            else:
                notes.append(say)
        pad, ends = words.roles.get("pad"), runtime.stops
        if pad is not None and pad in ends:
            notes.append(f"padding and an end token are the same ({_told(words, (pad,))}): mask the loss by position")
    count = len(words.special)
    return Seen(f"{count} special tokens; {count - len(broken)} are one token", tuple(faults), tuple(notes))


def _broken(words: Words) -> Iterator[Fault]:
    """Special tokens that the tokenizer does not find in a text that is trusted."""
    wanted = dict(words.special)
    wanted |= {words.token(one): one for role in ROLES if (one := words.roles.get(role)) is not None}
    for text, number in wanted.items():
        found = words.trusted(text)
        if found != [number]:
            yield Fault(
                f"the special token {text!r} (number {number}) is encoded as {len(found)} tokens: {found[:6]}",
                "prompts that hold it are read as ordinary letters: turns do not begin or end, answers go on and on",
                "declare it in added_tokens of tokenizer.json with its number and special = true, or copy the "
                "tokenizer's files again",
            )


def _told(words: Words, ids: tuple[int, ...]) -> str:
    return ", ".join(f"{number} {words.token(number)}" for number in ids)


def _outside(role: str, number: int, vocab: int) -> Fault:
    return Fault(
        f"the {role} token has number {number:,}, and the model's table has {vocab:,} rows",
        "an error as soon as it is used",
        "the tokenizer belongs to another model, or the table was not resized when the token was added",
    )


def _apart(say: str) -> Fault:
    return Fault(
        f"{say}, and neither is among the tokens that end an answer",
        "answers do not end, or end at once",
        "let eos_token_id (config.json, generation_config.json) and the tokenizer's eos_token name the same token",
    )


CHECK = Check("Is every special token whole, and do the files agree on them?", run)
