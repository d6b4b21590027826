"""Does an endpoint that accepts `echo` with `logprobs` really give the log-probabilities of the prompt?

Some servers accept the request and leave them out (llama.cpp#27174); a harness then reports chance.
"""

from handscroll.doctor.finding import Absent, Cannot, Check, Fault, Seen
from handscroll.doctor.probes import PASSAGE
from handscroll.doctor.runtime import Runtime
from handscroll.doctor.runtimes.endpoint import Endpoint, Refused


def run(runtime: Runtime) -> Seen:
    if not isinstance(runtime, Endpoint):
        raise Absent("it is no endpoint")
    prompt = " ".join(PASSAGE.split())[:200]
    try:
        found = runtime.echoed(prompt)
    except Refused as error:
        _check_answers(runtime, prompt, error)
        note = (
            f"status {error.status}: harnesses that need log-probabilities of prompts get an error, not a wrong score"
        )
        return Seen("echo with logprobs is refused", notes=(note,))
    if len([one for one in found if one is not None]) >= 10:
        return Seen(f"log-probabilities of {len(found)} prompt tokens are echoed")
    fault = Fault(
        f"a request with echo and logprobs is accepted, and log-probabilities of {len(found)} prompt tokens come back",
        "evaluation harnesses sum nothing and report exactly chance, without an error",
        "score with a server that echoes them (vLLM), or load the model itself; do not trust loglikelihood tasks here",
    )
    return Seen("no log-probabilities of the prompt", (fault,))


def _check_answers(runtime: Endpoint, prompt: str, refused: Refused) -> None:
    """Raise Cannot unless it is echo with logprobs that is refused, and the prompt is answered without them."""
    if not refused.of_content:
        raise Cannot(f"a request with echo and logprobs is answered with an error of the server: {refused}")
    try:
        runtime.complete(prompt, max_tokens=1)
    except Refused as error:
        raise Cannot(f"the same prompt is refused without echo and logprobs too: {error}") from None


CHECK = Check("Are log-probabilities of a prompt echoed where they are accepted?", run)
