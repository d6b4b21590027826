"""Is a long prompt read whole, refused, or cut in silence?

A fact stands at the start, sentences follow it, and the prompt doubles. The server's own count (usage.prompt_tokens)
must grow by the same number of tokens for each sentence; where it stops growing, the rest was cut. The fact is asked
for at the end of each prompt, as a second witness.
"""

from handscroll.doctor.finding import Absent, Cannot, Check, Fault, Seen
from handscroll.doctor.runtime import Runtime
from handscroll.doctor.runtimes.endpoint import Endpoint, Refused

FACT = "The password of the lighthouse is 48213.\n"
SENTENCE = "The keeper counted four ships, wrote the hour into the ledger, and looked at the sea again.\n"
ASK = "Question: what is the password of the lighthouse?\nAnswer: the password of the lighthouse is"
SENTENCES = (4, 32, 128, 256, 512, 1024, 2048, 4096, 8192)
MISSING = 0.05  # the share of the tokens that may be counted otherwise


def run(runtime: Runtime) -> Seen:
    if not isinstance(runtime, Endpoint):
        raise Absent("it is no endpoint; the check 'past-end' asks for positions past the end")
    try:
        base, more = runtime.counted(_prompt(1)), runtime.counted(_prompt(3))
    except Refused as error:
        raise Cannot(f"even a prompt of three sentences is answered with an error: {error}") from None
    each = (more - base) / 2
    if each <= 0:
        raise Cannot(f"its count does not grow with the prompt ({base}, then {more} tokens)")
    notes, told, read = _against_ours(runtime, base), "", base
    for count in SENTENCES:
        wanted = base + (count - 1) * each
        if wanted > runtime.longest:
            break
        try:
            answer = runtime.complete(_prompt(count), max_tokens=8)
        except Refused as error:
            if not error.of_content:
                raise Cannot(
                    f"prompts of up to {read:,} tokens are read whole, but one of {round(wanted):,} tokens is answered "
                    f"with an error of the server: {error}"
                ) from None
            told = f"; {round(wanted):,} tokens are refused with an error (status {error.status})"
            break
        read = int((answer.get("usage") or {}).get("prompt_tokens") or 0)
        if read < wanted * (1 - MISSING):
            found = "48213" in str(answer["choices"][0].get("text"))
            return Seen(f"a prompt of {round(wanted):,} tokens is cut", (_cut(round(wanted), read, found),), notes)
    return Seen(f"prompts of up to {read:,} tokens are read whole{told}", notes=notes)


def _prompt(count: int) -> str:
    return FACT + SENTENCE * count + ASK


def _against_ours(runtime: Endpoint, counted: int) -> tuple[str, ...]:
    """How the server's count of a short prompt compares with that of the tokenizer, where it is here."""
    if runtime.words is None:
        return ()
    ours = len(runtime.words.encode(_prompt(1)))
    if ours == counted:
        return ()
    more = "one token fewer (no token that begins a text?)" if counted == ours - 1 else f"{counted - ours:+d} tokens"
    return (f"the server counts {counted} tokens where the tokenizer given gives {ours}: {more}",)


def _cut(wanted: int, read: int, found: bool) -> Fault:
    lost = "the fact at its start was still answered" if found else "the fact at its start was not answered"
    return Fault(
        f"a prompt of about {wanted:,} tokens was accepted, and {read:,} of them were read: the rest was cut without "
        f"an error; {lost}",
        "answers ignore a part of the document, mostly its beginning, and nobody is told",
        f"raise the server's window (num_ctx, n_ctx, --ctx-size, max_model_len) above {wanted:,}, and switch its "
        "truncation off, so that longer prompts are refused",
    )


CHECK = Check("Is a long prompt read whole, or refused, but never cut in silence?", run)
