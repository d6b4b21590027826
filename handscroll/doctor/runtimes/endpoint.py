"""An OpenAI-compatible endpoint as a runtime, as far as it lets one look: completions, echoed log-probabilities, usage.

Requests go to one address that the user names, and nowhere else.
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.doctor.finding import Cannot
from handscroll.doctor.runtime import Ids, Runtime, Words

WAIT = 300.0  # seconds for one answer
_SHOWN = 300  # characters of an answer that an error shows
_CONTENT = (400, 413, 422)  # statuses by which a server refuses what was asked, and not who asks, where or how often


class Refused(Cannot):
    """The server answered with an error; `status` is its number, and the text names it with the server's reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(f"status {status}: {reason or 'no reason is given'}")
        self.status = status

    @property
    def of_content(self) -> bool:
        """Whether the content of the request is refused; other errors are those of keys, addresses and servers."""
        return self.status in _CONTENT


class Endpoint(Runtime):
    """The model `name` behind `url` (".../v1"); the first that the server lists, if no name is given.

    `words` is the tokenizer of the model, if it is here: then prompts are ids and can be compared with other runtimes.
    No prompt is longer than about `longest` tokens.
    """

    kind = "endpoint"
    rounding = 2e-2  # servers compute in 16 bits, and often with quantised weights

    def __init__(self, url: str, name: str = "", words: Words | None = None, key: str = "", longest: int = 8192):
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"the endpoint {url!r} is no address: give one such as http://127.0.0.1:8080/v1")
        self.url, self.words, self.longest, self._key = url.rstrip("/"), words, longest, key
        self.name = name or self._first()
        self.source = f"{self.url} ({self.name})"

    def complete(self, prompt: str | Ids, **settings: Any) -> dict[str, Any]:
        """The answer to one completion request; `settings` are those of the protocol.

        Raises:
            Refused: the server answers with an error. Cannot: it does not answer, or not in the protocol.
        """
        content = prompt if isinstance(prompt, str) else list(prompt)
        found = self._ask("/completions", {"model": self.name, "prompt": content, "temperature": 0, **settings})
        if not isinstance(found.get("choices"), list) or not found["choices"]:
            raise Cannot(f"its answer has no choices: {json.dumps(found)[:_SHOWN]}")
        return found

    def counted(self, prompt: str | Ids) -> int:
        """The number of prompt tokens that the server says it read."""
        usage = self.complete(prompt, max_tokens=1).get("usage") or {}
        if not isinstance(usage.get("prompt_tokens"), int):
            raise Cannot("its answers do not say how many tokens were read (usage.prompt_tokens)")
        return usage["prompt_tokens"]

    def echoed(self, prompt: str | Ids) -> list[float | None]:
        """The log-probabilities of the tokens of a prompt, as the server echoes them; the first has none."""
        answer = self.complete(prompt, max_tokens=1, echo=True, logprobs=1)
        logprobs = answer["choices"][0].get("logprobs") or {}
        found = logprobs.get("token_logprobs")
        if not isinstance(found, list):
            return []
        return found[:-1] if len(found) > 1 else []  # the last one was generated

    def logprobs(self, ids: Ids) -> Tensor:
        try:
            found = self.echoed(ids)
        except Refused as error:
            raise Cannot(f"it refuses to echo log-probabilities of a prompt: {error}") from None
        if len(found) < len(ids):
            raise Cannot(f"it gives log-probabilities of {len(found)} of {len(ids)} prompt tokens")
        return torch.tensor([one if one is not None else 0.0 for one in found[1 : len(ids)]], dtype=torch.float64)

    def _first(self) -> str:
        try:
            listed = self._ask("/models", None).get("data") or [{}]
        except Cannot as error:
            raise ConfigError(f"{self.url} lists no models ({error}): is it an OpenAI-compatible server?") from None
        return str(listed[0].get("id") or "")

    def _ask(self, path: str, content: Mapping[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if content is None else json.dumps(content).encode()
        try:
            with urlopen(Request(self.url + path, data, headers), timeout=WAIT) as answer:
                found = json.loads(answer.read())
        except HTTPError as error:
            raise Refused(error.code, error.read().decode("utf-8", "replace")[:_SHOWN]) from None
        except (URLError, OSError, ValueError) as error:
            raise Cannot(f"{self.url}{path} does not answer: {error}") from None
        if not isinstance(found, dict):
            raise Cannot(f"{self.url}{path} answers with {type(found).__name__} instead of an object")
        return found
