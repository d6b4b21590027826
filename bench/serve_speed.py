"""How soon a server answers about a long document, and how much eight clients get, beside llama-cpp-python's server.

python -m bench.serve_speed MODEL.gguf --text BOOK [--tokens 16384] [--peer PYTHON] [--threads 2] [--new 64]

The book is cut to `--tokens` (the cut is this benchmark's). Both servers get the same requests: the text and a question
in one message, then the text and another question (their prompt cache is on); the times are those until the first text
of a streamed answer. Ours also gets the text as a document: it is read once, asked twice, and asked once more after the
server was stopped and started again. Then one client alone and eight at once ask short questions for long answers
without end tokens being forced: tokens per second are those that the servers count. PEER is an interpreter that has
`llama-cpp-python[server]`. Greedy answers; each server has the machine for itself.
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2

from bench.served import Process, ours, streamed, theirs, uploaded

QUESTIONS = ("Who is speaking here?", "Which place is named first?", "What happens at the end?")
SUBJECTS = ("rivers", "bread", "winter", "maps", "clocks", "horses", "bridges", "salt")
CLIENTS = len(SUBJECTS)


def cut(server: Process, text: str, tokens: int) -> str:
    """The first tokens of a text."""
    ids = server.http.post("/v1/tokenize", json={"model": "model", "text": text[: 8 * tokens]}).json()["tokens"]
    if len(ids) < tokens:
        raise SystemExit(f"the text has {len(ids)} tokens; give one of {tokens} at least")
    return server.http.post("/v1/detokenize", json={"model": "model", "tokens": ids[:tokens]}).json()["text"]


def by_messages(server: Process, name: str, text: str) -> float:
    """The first and the second question, with the text in the message; returns the seconds of the second."""
    first = second = 0.0
    for number, question in enumerate(QUESTIONS[:2]):
        messages = [{"role": "user", "content": f"{text}\n\n{question}"}]
        body = {"model": "model", "messages": messages, "max_tokens": 16, "temperature": 0}
        seconds, _, said = streamed(server, "/v1/chat/completions", body)
        first, second = (seconds, second) if number == 0 else (first, seconds)
        print(
            f"{name:<16} {('first', 'second')[number]} question by messages {seconds:8.2f} s  {said[:50]!r}", flush=True
        )
    return second


def by_document(server: Process, number: str, question: str, when: str) -> float:
    """A question about a document; returns the seconds until the first text."""
    body = {"question": question, "max_tokens": 16, "temperature": 0}
    seconds, _, said = streamed(server, f"/v1/documents/{number}/ask", body)
    print(f"{'handscroll':<16} {when} {seconds:8.2f} s  {said[:50]!r}", flush=True)
    return seconds


def rate(server: Process, clients: int, new: int, document: str = "") -> float:
    """Tokens per second of so many clients, who ask at once."""

    def ask(subject: str) -> int:
        question = f"Write a long story about {subject}."
        body: dict[str, Any] = {"max_tokens": new, "temperature": 0}
        if document:
            made = server.http.post(f"/v1/documents/{document}/ask", json={**body, "question": question})
        else:
            body |= {"model": "model", "messages": [{"role": "user", "content": question}]}
            made = server.http.post("/v1/chat/completions", json=body)
        return made.raise_for_status().json()["usage"]["completion_tokens"]

    with ThreadPoolExecutor(clients) as pool:
        begun = time.monotonic()
        written = sum(pool.map(ask, SUBJECTS[:clients]))
        return written / (time.monotonic() - begun)


def rates(server: Process, name: str, new: int, document: str = "") -> float:
    """The tokens per second of eight clients over those of one."""
    rate(server, 1, 8, document)  # what is built at the first answer is there
    one, eight = rate(server, 1, new, document), rate(server, CLIENTS, new, document)
    what = "over the document" if document else "short questions"
    print(
        f"{name:<16} {what}: one client {one:6.1f} tokens/s, {CLIENTS} clients {eight:6.1f}: {eight / one:.2f}x",
        flush=True,
    )
    return eight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True, help="a book, as plain text")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--peer", default="", help="an interpreter that has llama-cpp-python[server]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer of the many clients")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, log = Path(folder, "store"), Path(folder, "log")
        with ours(options.model, store, log, threads=options.threads) as server:
            text = cut(server, options.text.read_text(encoding="utf-8"), options.tokens)
            print(
                f"{'handscroll':<16} ready after {server.ready:.1f} s; a document of {options.tokens:,} tokens",
                flush=True,
            )
            number, seconds = uploaded(server, "book.txt", text)
            print(f"{'handscroll':<16} document uploaded and read {seconds:8.2f} s", flush=True)
            by_document(server, number, QUESTIONS[0], "first question about it   ")
            by_document(server, number, QUESTIONS[1], "second question about it  ")
            mine = by_messages(server, "handscroll", text)
            many = rates(server, "handscroll", options.new)
            rates(server, "handscroll", options.new, number)
        with ours(options.model, store, log, threads=options.threads) as server:
            by_document(server, number, QUESTIONS[2], "question after a restart  ")
            by_document(server, number, QUESTIONS[1], "another one               ")
        if not options.peer:
            return
        context = options.tokens + 1024
        with theirs(options.peer, options.model, log, context, options.threads) as server:
            print(f"{'llama.cpp':<16} ready after {server.ready:.1f} s", flush=True)
            try:
                second = by_messages(server, "llama.cpp", text)
                their_many = rates(server, "llama.cpp", options.new)
            except httpx2.HTTPError as error:
                print(f"{'llama.cpp':<16} its server did not answer to the end: {error}", flush=True)
                return
        print(
            f"second question by messages: {second / mine:.2f}x as soon; eight clients: {many / their_many:.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
