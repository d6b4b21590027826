"""A server that is used hard: eight clients at once, slow clients, bodies that could stop or break the event loop."""

import asyncio
import gc
import json
import random
import threading
import time

import httpx2
import psutil
import pytest

from handscroll.serve.keys import make_key
from tests.serve import material
from tests.serve.material import TEXT, idle

WITH = (1, 5)  # clients with a document
ROUNDS = 8  # of each client; bench/serve_load.py makes thousands, and measures


@pytest.fixture(scope="module")
def server(served_models, tmp_path_factory):
    """A server with eight owners."""
    folder = tmp_path_factory.mktemp("soak")
    keys = [make_key(folder / "keys.toml", f"owner-{n}") for n in range(8)]
    models, settings = {"tiny": served_models["tiny"]}, {"keys": folder / "keys.toml", "room": 200}
    with material.live(folder / "store", models, keys[0], **settings) as made:
        made.keys = keys
        yield made


class Client(threading.Thread):
    """Asks in every way, in an order of its own. Two of them have a document."""

    def __init__(self, server, number: int):
        super().__init__()
        self.server, self.number = server, number
        self.secret = f"canary-{number}-{random.Random(number).randrange(10**9)}"
        self.headers = {"Authorization": f"Bearer {server.keys[number]}"}
        self.kinds = ["whole", "stream", "wrong", "list", *(["text"] if number in WITH else [])]
        self.seen, self.said = [], []
        if number in WITH:
            files = {"file": ("a.txt", f"{TEXT}{self.secret}\n".encode())}
            made = httpx2.post(f"{server.url}/v1/documents", files=files, headers=self.headers, timeout=300)
            self.document = made.json()["id"]

    def run(self):
        dice = random.Random(self.number)
        with httpx2.Client(base_url=self.server.url, headers=self.headers, timeout=300) as http:
            for _ in range(ROUNDS):
                kind = dice.choice(self.kinds)
                made = self.ask(http, kind)
                self.seen.append((kind, made.status_code, made.text))
                if kind in ("whole", "stream"):
                    lines = [one for one in made.text.replace("data: ", "").splitlines() if one.startswith("{")]
                    self.said.append(
                        "".join(choice["text"] for line in lines for choice in json.loads(line)["choices"])
                    )

    def ask(self, http, kind):
        prompt = f"{TEXT}{self.secret}\n"
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0, "echo": True}
        if kind == "text":
            return http.get(f"/v1/documents/{self.document}/text")
        if kind == "list":
            return http.get("/v1/documents")
        more = {"stream": {"stream": True}, "wrong": {"max_tokens": -1}}.get(kind, {})
        return http.post("/v1/completions", json=body | more)


def standing() -> tuple[int, list[str]]:
    """Open files and threads of this process; the web framework's own threads end when they were idle for long."""
    gc.collect()
    named = sorted(one.name for one in threading.enumerate() if not one.name.startswith("AnyIO"))
    return psutil.Process().num_fds(), named


def used(server, clients: list[Client]) -> None:
    """Let the clients ask, all at once."""
    for one in clients:
        one.start()
    for one in clients:
        one.join(300)
    server.until(lambda: idle(server))


@pytest.mark.promise("R23")
def test_eight_clients_mix_nothing_up_and_leave_nothing(server):
    used(server, [Client(server, number) for number in range(8)])  # what is made at the first requests stays
    clients = [Client(server, number) for number in range(8)]
    before = standing()
    used(server, clients)
    files, threads = standing()
    assert threads == before[1] and files <= before[0] + 2, (before, files, threads)
    want = {"whole": 200, "stream": 200, "text": 200, "list": 200, "wrong": 400}
    for client in clients:
        others = [one.secret for one in clients if one is not client]
        assert len(client.seen) == ROUNDS and len(set(client.said)) == 1, set(client.said)
        for kind, status, text in client.seen:
            assert status == want[kind], (kind, status, text)
            assert not [one for one in others if one in text]
            assert kind not in ("whole", "stream", "text") or client.secret in text
    assert not list(server.serving.shelf.drafts.iterdir())


@pytest.mark.promise("R25")
def test_slow_clients_do_not_keep_others_waiting(server):
    """Half heads, half bodies, and answers that nobody reads, more of them than answers may be open."""
    key = server.key
    slow = [material.connected(server) for _ in range(3 * 25)]
    try:
        for number, one in enumerate(slow):
            line = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
            if number % 3 == 0:
                one.sendall(line.encode())
            elif number % 3 == 1:
                one.sendall(f'{line}Content-Length: 100\r\n\r\n{{"model'.encode())
            else:
                one.sendall(
                    f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n".encode() * 3
                )
        for _ in range(5):
            made = server.http.post("/v1/completions", json={"model": "tiny", "prompt": TEXT, "max_tokens": 4})
            assert made.status_code == 200, made.text
        assert server.serving.admission.open == 0
    finally:
        for one in slow:
            one.close()


LARGE = {
    "a text": ("/v1/completions", {"model": "tiny", "prompt": "walk " * 2_000_000}),
    "a Chinese text": ("/v1/completions", {"model": "tiny", "prompt": "走路吧" * 550_000}),
    "a message": (
        "/v1/chat/completions",
        {"model": "tiny", "messages": [{"role": "user", "content": "w" * 10_000_000}]},
    ),
    "a text to count": ("/v1/count", {"model": "tiny", "text": "walk " * 2_000_000}),
}


@pytest.mark.promise("R28")
@pytest.mark.parametrize("kind", LARGE)
def test_ten_megabytes_do_not_stop_the_event_loop(server, kind):
    """The longest that its thread computed between two beats: other processes of the machine do not count."""
    path, body = LARGE[kind]
    data, done = json.dumps(body).encode(), threading.Event()

    async def beats() -> float:
        worst, last = 0.0, time.thread_time()
        while not done.is_set():
            await asyncio.sleep(0.001)
            worst, last = max(worst, time.thread_time() - last), time.thread_time()
        return worst

    watching = asyncio.run_coroutine_threadsafe(beats(), server.serving._beat.get_loop())
    made = server.http.post(path, content=data, headers={"Content-Type": "application/json"})
    done.set()
    assert len(data) > 9_000_000 and made.status_code in (200, 400) and watching.result(10) < 0.1, made.text[:200]
    assert server.http.get("/health").status_code == 200


@pytest.mark.promise("R28")
def test_poisoned_requests_never_end_the_server(server):
    """Two hundred bodies that are no requests: each is refused."""
    dice = random.Random(3)
    whole = json.dumps({"model": "tiny", "prompt": TEXT, "max_tokens": 2, "stop": ["x"], "logit_bias": {"5": 1}})
    made = [
        lambda: whole[: dice.randrange(len(whole))],
        lambda: "".join(dice.choice('[]{}",:0eE-\\u') for _ in range(200)),
        lambda: "[" * dice.randrange(1, 100_000),
        lambda: whole.replace("2", dice.choice(["1e999", "-1", "NaN", "2.5", '"2"', "[]", "9" * 5000])),
        lambda: dice.randbytes(300).decode("latin-1"),
    ]
    for number in range(200):
        body = made[number % 5]().encode("utf-8", "surrogatepass")
        answer = server.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500, (answer.status_code, body[:200])
    assert server.http.get("/health").json() == {"status": "ready"}
