"""Is a beginning-of-text token given where one is expected, and only once?"""

from handscroll.doctor.finding import Absent, Cannot, Check, Fault, Seen
from handscroll.doctor.probes import PASSAGE, trained
from handscroll.doctor.runtime import Runtime, Words

WORSE = 0.5  # nats a token that a missing BOS may cost before it counts as expected
TOKENS = 48


def run(runtime: Runtime) -> Seen:
    words = runtime.speaks()
    bos = words.roles.get("bos")
    if runtime.facts is not None and runtime.facts.reads != "forward":
        raise Absent("it does not continue texts")
    if bos is None:
        raise Absent("there is no token that begins a text")
    ids = words.encode(" ".join(PASSAGE.split()))
    given = ids[:1] == [bos]
    faults = []
    if ids[:2] == [bos, bos]:
        faults.append(_twice(words, bos))
    if words.wants_bos and not given:
        faults.append(_missing(words, bos, "the tokenizer's settings ask for it (add_bos_token)"))
    elif not given and (cost := _cost(runtime, bos)) is not None and cost > WORSE:
        faults.append(_missing(words, bos, f"without it a text costs {cost:.2f} nats a token more"))
    if words.template:
        faults += _in_template(words, bos)
    return Seen(f"{words.token(bos)} is {'given' if given else 'not given, and not expected'}", tuple(faults))


def _cost(runtime: Runtime, bos: int) -> float | None:
    """By how much a short text is worse without BOS, in nats a token; None where the loss means nothing."""
    words = runtime.words
    assert words is not None
    try:
        if not trained(runtime):
            return None
        ids = tuple(words.encode(" ".join(PASSAGE.split()), frame=False)[:TOKENS])
        bare, begun = runtime.logprobs(ids), runtime.logprobs((bos, *ids))
    except Cannot:
        return None
    return float(begun[2:].mean() - bare[1:].mean())


def _in_template(words: Words, bos: int) -> list[Fault]:
    try:
        ids = words.trusted(words.render([{"role": "user", "content": "Hello"}]))
    except Cannot:  # the check 'template' says so
        return []
    if ids[:2] == [bos, bos]:
        return [_twice(words, bos)]
    if words.wants_bos and ids[:1] != [bos]:
        return [_missing(words, bos, "the tokenizer's settings ask for it, and the chat template does not write it")]
    return []


def _missing(words: Words, bos: int, why: str) -> Fault:
    return Fault(
        f"texts do not begin with {words.token(bos)}, although {why}",
        "the first tokens are read badly, and in some models (Gemma) the whole text: the loss doubles",
        "encode with special tokens (add_special_tokens=True), restore the post_processor of tokenizer.json, or write "
        "the token in the template",
    )


def _twice(words: Words, bos: int) -> Fault:
    return Fault(
        f"texts begin with {words.token(bos)} twice",
        "scores and answers are a little worse, most in short prompts",
        "encode a rendered template without special tokens (add_special_tokens=False): the template writes its own",
    )


CHECK = Check("Is the token that begins a text given where it is expected, and once?", run)
