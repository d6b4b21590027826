"""A small OpenAI-compatible server over a model of ours, with the faults of real ones."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from handscroll.lm import LM


@contextmanager
def serving(lm: LM | None = None, cut: int = 0, refuse: int = 0, echo: str = "yes", status: int = 400) -> Iterator[str]:
    """The address of a server that counts words as tokens (or those of `lm`).

    `cut`: longer prompts lose their beginning in silence. `refuse`: longer prompts get an error. `echo`: whether
    log-probabilities of prompts come back ("yes"), do not although they are accepted ("no"), or are refused ("error").
    `status` is that of its errors.
    """

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(200, {"data": [{"id": "small"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = asked["prompt"]
            tokens = prompt if isinstance(prompt, list) else lm.encode(prompt) if lm else prompt.split()
            if refuse and len(tokens) > refuse:
                return self.answer(status, {"error": {"message": f"{len(tokens)} tokens are more than {refuse}"}})
            if asked.get("echo") and echo == "error":
                return self.answer(status, {"error": {"message": "echo is not supported"}})
            tokens = tokens[-cut:] if cut else tokens
            known = lm is None and "48213." in tokens
            choice: dict[str, Any] = {"text": " 48213" if known else " unknown", "logprobs": None}
            if asked.get("echo") and echo == "yes":
                losses = (-lm.nll(tokens)).tolist() if lm else [-1.0] * (len(tokens) - 1)
                choice["logprobs"] = {"token_logprobs": [None, *losses, -0.5]}
            return self.answer(200, {"choices": [choice], "usage": {"prompt_tokens": len(tokens)}})

        def answer(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
