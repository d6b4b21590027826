"""Is the chat template of this model, does it hand over to the model, and does an answer end?"""

import re

from handscroll.doctor.finding import Absent, Cannot, Check, Fault, Seen
from handscroll.doctor.runtime import Runtime, Words

_MARKS = re.compile(r"<[|｜][^<>|｜]{1,40}[|｜]>|</?(?:start|end)_of_turn>|</?s>")
ASKED, SAID = "What did the keeper count?", "She counted ships."


def run(runtime: Runtime) -> Seen:
    words = runtime.speaks()
    if not words.template:
        raise Absent("the checkpoint has no chat template")
    user, answer = {"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}
    try:
        waiting, plain = words.render([user]), words.render([user], answer=False)
        whole = words.render([user, answer, {"role": "user", "content": "And then?"}])
    except Cannot as error:
        return Seen("it cannot be rendered", (_fails(str(error)),))
    faults = [fault for fault in (_content(whole), _turn(waiting, plain), _end(runtime, words, whole)) if fault]
    if fault := _marks(words, whole):
        faults.append(fault)
    return Seen(f"a question is {len(words.trusted(waiting))} tokens in it", tuple(faults))


def _content(whole: str) -> Fault | None:
    if all(text in whole for text in (ASKED, SAID)):
        return None
    return Fault(
        "what users and assistants say does not arrive in the rendered text",
        "the model answers something else than what was asked",
        "take the template of the model's authors (chat_template.jinja or tokenizer_config.json)",
    )


def _turn(waiting: str, plain: str) -> Fault | None:
    """Whether something tells the model that it is its turn: a generation prompt, or a mark behind the question."""
    if waiting != plain or waiting.rstrip() != waiting[: waiting.find(ASKED) + len(ASKED)].rstrip():
        return None
    return Fault(
        "the template writes nothing behind a question, with or without add_generation_prompt",
        "the model goes on with the question instead of answering it",
        "add a generation prompt to the template: {% if add_generation_prompt %} and the assistant's header",
    )


def _end(runtime: Runtime, words: Words, whole: str) -> Fault | None:
    """Whether the token behind an answer is one that ends it."""
    if not runtime.stops:
        return None
    behind = whole.partition(SAID)[2]
    known = {number: text for text, number in words.special.items()}
    known |= {one: words.token(one) for one in (words.roles.get("eos"),) if one is not None}
    first = next((number for number in words.trusted(behind) if number in known), None)
    if first in runtime.stops:
        return None
    named = ", ".join(f"{one} {words.token(one)}" for one in sorted(runtime.stops)[:4])
    says = "no special token" if first is None else f"{known[first]} (number {first})"
    return Fault(
        f"behind an answer the template writes {says}, and generation stops at {named or 'nothing'}",
        "answers do not end: the model plays both sides of the conversation until max_tokens",
        "add the end of a turn to eos_token_id in generation_config.json, or take the template that belongs to this "
        "model",
    )


def _marks(words: Words, whole: str) -> Fault | None:
    """Marks that look like special tokens and fall apart: all of them, or none is of this model."""
    marks = list(dict.fromkeys(_MARKS.findall(whole)))
    torn = [mark for mark in marks if len(words.trusted(mark)) != 1]
    if not marks or len(torn) < len(marks):
        return None
    count = len(words.trusted(torn[0]))
    return Fault(
        f"the template writes {', '.join(torn[:3])}, which the tokenizer does not know: {torn[0]} is {count} tokens",
        "the model sees odd punctuation where turns should begin and end; it answers, but badly, and does not stop",
        "the template belongs to another model: take the one of this checkpoint's authors",
    )


def _fails(error: str) -> Fault:
    return Fault(
        f"a question, an answer and another question cannot be rendered: {error}",
        "chat fails",
        "take the template of the model's authors",
    )


CHECK = Check("Does the chat template fit the model, hand over to it and end its answers?", run)
