"""A server under load: a soak, clients that go away, slow clients, overload, and prompts of ten megabytes.

python -m bench.serve_load [--model MODEL] [--seconds 90] [--disconnects 500] [--slow 200] [--threads 1] [--only NAME]

Each part runs against a fresh `handscroll serve` process with eight keys, and client and server share the processors.
The model is the packaged starter unless another one is named; it finds what its prompt says, so that the answers of the
soak hold the planted words of their own client, and would hold those of another if something were mixed up.

- soak: eight clients for `--seconds`, each with its own key, its own document and its own secret numbers: statuses,
  foreign secrets, the slope of resident memory over the second half, open files, threads, blocks, latencies.
- gone: requests whose client closes at a random moment, ten at once: the seconds until no block is used.
- slow: half-sent heads, half-sent bodies and answers that are not read, and the 99th percentile of eight good clients
  with and without them, in turns.
- overload: as many clients as there are places and ten times as many, who wait as they are told, in turns: statuses,
  the median of the answers per second of both, and the seconds until a request is answered as before.
- large: bodies of ten megabytes, while `/health` is asked every few milliseconds.
"""

import argparse
import asyncio
import json
import random
import re
import ssl
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from bench.served import Process, ours
from handscroll.serve.keys import make_key

STARTER = Path(__file__).parents[1] / "handscroll" / "starter"
CLIENTS = 8
FILLER = "The rain fell on the hill and the river ran on to the sea. "
NAMES = ("amber", "birch", "cedar", "delta", "ember", "flint", "grove", "haven")
PLACES = 16  # answers that the server of the overload lets in


@dataclass
class Client:
    """One of eight, with its own key and secret."""

    name: str
    key: str
    secret: str
    document: str = ""

    def told(self, text: str) -> bool:
        """Whether a text says the secret, to which the model adds digits. Five digits within a name of random
        hexadecimal signs say nothing."""
        return re.search(rf"(?:^|(?<=[\s\"])){self.secret}", text) is not None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def prompt(self) -> str:
        fact = f"The secret number of {self.name} is {self.secret}.\n"
        return f"{FILLER * 6}\n{fact}{FILLER * 6}\nThe secret number of {self.name} is"


@dataclass
class Seen:
    """What the clients of a part saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    own: int = 0
    foreign: list[str] = field(default_factory=list)
    last: float = 0.0  # when the last answer was there


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def completion(client: Client, **more) -> dict:
    return {"model": "model", "prompt": client.prompt, "max_tokens": 8, "temperature": 0} | more


def gauge(text: str, name: str) -> float:
    """A value of the text of /metrics; the name with its labels."""
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


async def idle(http: httpx2.AsyncClient, client: Client) -> bool:
    """Whether no answer is open and no block is used."""
    text = (await http.get("/metrics", headers=client.headers)).text
    used = gauge(text, 'handscroll_blocks{model="model",state="used"}')
    return used == 0 and gauge(text, "handscroll_open_answers") == 0


async def until_idle(http: httpx2.AsyncClient, client: Client, patience: float = 60.0) -> float:
    """Seconds until the server is idle."""
    begun = time.monotonic()
    while not await idle(http, client):
        if time.monotonic() > begun + patience:
            raise SystemExit(f"the server is not idle after {patience:g} s")
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


# ----------------------------------------------------------------------------------------------------------- the soak


async def soak(server: Process, clients: list[Client], options: argparse.Namespace) -> None:
    limits = httpx2.Limits(max_connections=4 * CLIENTS)
    seen, about = Seen(), server.about
    async with httpx2.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:
        for client in clients:
            await given(http, client)
            await one_round(http, client, clients, seen, random.Random(0))
        await until_idle(http, clients[0])
        before = (about.num_fds(), about.num_threads(), about.memory_info().rss)
        seen, memory, end = Seen(), list[tuple[int, float]](), time.monotonic() + options.seconds
        watching = asyncio.create_task(watch(about, seen, memory))
        await asyncio.gather(*(ask_on(http, client, clients, seen, end) for client in clients))
        watching.cancel()
        await until_idle(http, clients[0])
        for client in clients:
            (await http.delete(f"/v1/documents/{client.document}", headers=client.headers)).raise_for_status()
    await asyncio.sleep(1.0)
    after = (about.num_fds(), about.num_threads(), about.memory_info().rss)
    third = len(seen.seconds) // 3
    print(f"soak: {sum(seen.statuses.values()):,} requests in {options.seconds:g} s, statuses {dict(seen.statuses)}")
    print(f"soak: answers with their own secret {seen.own:,}, with a foreign one {len(seen.foreign)}")
    for said in seen.foreign[:3]:
        print(f"soak: foreign: {said}")
    print(f"soak: memory {before[2] / 2**20:.0f} MiB, {after[2] / 2**20:.0f} at the end; "
          f"{slope(memory):+.2f} MB per 1,000 requests over the second half")  # fmt: skip
    print(f"soak: open files {before[0]}, {after[0]} at the end; threads {before[1]}, {after[1]}; blocks in use 0")
    print(f"soak: p99 {percentile(seen.seconds[:third], 0.99):.3f} s in the first third, "
          f"{percentile(seen.seconds[-third:], 0.99):.3f} s in the last", flush=True)  # fmt: skip


async def given(http: httpx2.AsyncClient, client: Client) -> None:
    """Upload the document of a client, and wait until it is read."""
    text = f"{FILLER * 8}\nThe secret number of {client.name} is {client.secret}.\n{FILLER * 4}"
    files = {"file": (f"{client.name}.txt", text.encode())}
    made = await http.post("/v1/documents", files=files, headers=client.headers)
    client.document = made.raise_for_status().json()["id"]
    while True:
        found = (await http.get(f"/v1/documents/{client.document}", headers=client.headers)).json()
        state = found["readings"]["model"]["state"]
        if state == "read":
            return
        if state not in ("waiting", "reading"):
            raise SystemExit(f"the document was not read: {found['readings']}")
        await asyncio.sleep(0.05)


async def ask_on(http, client: Client, clients: list[Client], seen: Seen, end: float) -> None:
    dice = random.Random(client.name)
    while time.monotonic() < end:
        await one_round(http, client, clients, seen, dice)


async def one_round(http, client: Client, clients: list[Client], seen: Seen, dice: random.Random) -> None:
    """One request of a random kind."""
    kind = dice.choice(("whole", "stream", "several", "document", "list", "wrong"))
    begun, said = time.monotonic(), ""
    if kind == "stream":
        body = completion(client, stream=True)
        async with http.stream("POST", "/v1/completions", json=body, headers=client.headers) as answer:
            events = [line[6:] async for line in answer.aiter_lines() if line.startswith("data: {")]
            said = "".join(one["text"] for event in events for one in json.loads(event)["choices"])
            status = answer.status_code
    else:
        answer = await request(http, kind, client)
        said, status = answer.text, answer.status_code
    seen.statuses[status] += 1
    seen.seconds.append(time.monotonic() - begun)
    seen.own += client.told(said)
    seen.foreign += [said for other in clients if other is not client and other.told(said)]


def request(http: httpx2.AsyncClient, kind: str, client: Client) -> Awaitable[httpx2.Response]:
    headers = client.headers
    if kind == "list":
        return http.get("/v1/documents", headers=headers)
    if kind == "document":
        body = {"question": f"The secret number of {client.name} is", "max_tokens": 8, "temperature": 0}
        return http.post(f"/v1/documents/{client.document}/ask", json=body, headers=headers)
    more = {"several": {"n": 2, "temperature": 0.5}, "wrong": {"max_tokens": -1}}.get(kind, {})
    return http.post("/v1/completions", json=completion(client, **more), headers=headers)


async def watch(about, seen: Seen, memory: list[tuple[int, float]]) -> None:
    while True:
        await asyncio.sleep(0.5)
        memory.append((len(seen.seconds), about.memory_info().rss / 1e6))


def slope(memory: list[tuple[int, float]]) -> float:
    """MB per 1,000 requests, by least squares over the second half."""
    half = memory[len(memory) // 2 :]
    if len({count for count, _ in half}) < 2:
        return float("nan")
    return 1000 * statistics.linear_regression([one for one, _ in half], [size for _, size in half]).slope


# ------------------------------------------------------------------------------------------------- clients that go away


async def gone(server: Process, clients: list[Client], options: argparse.Namespace) -> None:
    dice, times = random.Random(5), list[float]()
    async with httpx2.AsyncClient(base_url=server.url, timeout=60) as http:
        want = (await http.post("/v1/completions", json=completion(clients[0]), headers=clients[0].headers)).json()
        for _ in range(options.disconnects // 10):
            await asyncio.gather(*(leave(server, dice.choice(clients), dice) for _ in range(10)))
            times.append(await until_idle(http, clients[0]))
        again = (await http.post("/v1/completions", json=completion(clients[0]), headers=clients[0].headers)).json()
        text = (await http.get("/metrics", headers=clients[0].headers)).text
    same = again["choices"][0]["text"] == want["choices"][0]["text"]
    counted = gauge(text, "handscroll_disconnects_total")
    print(f"gone: {10 * len(times)} requests, of which {counted:.0f} were cut off; all blocks free after "
          f"{statistics.median(times):.3f} s, at worst {max(times):.3f} s; the same answer afterwards: {same}",
          flush=True)  # fmt: skip


async def leave(server: Process, client: Client, dice: random.Random) -> None:
    """Ask, and close the connection at a random moment."""
    body = completion(client, max_tokens=200, temperature=1.0, stream=dice.random() < 0.5, n=dice.choice((1, 1, 3)))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head(client, len(data := json.dumps(body).encode())) + data)
    await writer.drain()
    with suppress(TimeoutError):
        async with asyncio.timeout(dice.random() * 0.3):
            await reader.read(1 << 16)
            await asyncio.sleep(1.0)
    writer.transport.abort()


def head(client: Client, size: int) -> bytes:
    lines = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json",
             f"Authorization: Bearer {client.key}", f"Content-Length: {size}")  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


# --------------------------------------------------------------------------------------------------------- slow clients


async def slow(server: Process, clients: list[Client], options: argparse.Namespace) -> None:
    found: dict[bool, list[float]] = {False: [], True: []}
    async with httpx2.AsyncClient(base_url=server.url, timeout=60) as http:
        for turn in range(4):
            slowly = bool(turn % 2)
            crowd = [asyncio.create_task(dawdle(server, clients[0], n)) for n in range(options.slow * slowly)]
            await asyncio.sleep(1.0 if slowly else 0.0)
            seen, end = Seen(), time.monotonic() + options.turn
            await asyncio.gather(*(plainly(http, client, seen, end) for client in clients))
            for one in crowd:
                one.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
            found[slowly] += seen.seconds
            if set(seen.statuses) != {200}:
                raise SystemExit(f"good clients got {seen.statuses}")
    alone, beside = (percentile(found[one], 0.99) for one in (False, True))
    print(f"slow: p99 of good clients {alone:.3f} s alone ({len(found[False])} requests), {beside:.3f} s beside "
          f"{options.slow} slow ones ({len(found[True])}): {beside / alone:.2f}x", flush=True)  # fmt: skip


async def plainly(http: httpx2.AsyncClient, client: Client, seen: Seen, end: float) -> None:
    """Short requests, one after another; who is told to wait does so."""
    while time.monotonic() < end:
        begun = time.monotonic()
        made = await http.post("/v1/completions", json=completion(client), headers=client.headers)
        seen.statuses[made.status_code] += 1
        if made.status_code == 200:
            seen.last = time.monotonic()
            seen.seconds.append(seen.last - begun)
        else:
            await asyncio.sleep(float(made.headers.get("Retry-After", "0.05")))


async def dawdle(server: Process, client: Client, number: int) -> None:
    """A head without end, a body byte by byte, or answers that are not read; again when it is cut off."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
            try:
                if number % 3 == 0:
                    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
                    await reader.read(1)
                elif number % 3 == 1:
                    writer.write(head(client, 1000))
                    for _ in range(1000):
                        writer.write(b" ")
                        await asyncio.sleep(1.0)
                else:
                    asked = f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {client.key}\r\n\r\n"
                    writer.write(asked.encode() * 20)
                    await asyncio.sleep(60.0)
            finally:
                writer.transport.abort()


# ------------------------------------------------------------------------------------------------------------- overload


async def overload(server: Process, clients: list[Client], options: argparse.Namespace) -> None:
    rates, statuses = {PLACES: list[float](), 10 * PLACES: list[float]()}, Counter[int]()
    async with AsyncExitStack() as stack:
        people = await connected(server, 10 * PLACES, stack)
        usual = await once(people[0], clients[0])
        for crowd in (PLACES, 10 * PLACES) * 3:
            seen, begun = Seen(), time.monotonic()
            end = begun + options.turn
            await asyncio.gather(*(plainly(people[n], clients[n % CLIENTS], seen, end) for n in range(crowd)))
            rates[crowd].append(len(seen.seconds) / (seen.last - begun))  # and not until the last who waits gives up
            statuses += seen.statuses
        begun = time.monotonic()
        while await once(people[0], clients[0]) > 2 * usual + 0.05:
            if time.monotonic() > begun + 60:
                raise SystemExit("it did not recover")
        recovered = time.monotonic() - begun
        refused = await refusal(people[0], clients)
    few, many = (statistics.median(found) for found in rates.values())
    told = {crowd: [round(rate, 1) for rate in found] for crowd, found in rates.items()}
    print(f"overload: answers/s by clients, three turns each {told}: {many / few:.0%}; statuses {dict(statuses)}; "
          f"as before after {recovered:.2f} s; a refusal says Retry-After: {refused}", flush=True)  # fmt: skip


async def connected(server: Process, count: int, stack: AsyncExitStack) -> list[httpx2.AsyncClient]:
    """A client of its own for each person: one client that they all share searches its connections at each request,
    and that took as much of the two cores as the server's answers."""
    tls = ssl.create_default_context()
    made = (httpx2.AsyncClient(base_url=server.url, timeout=60, verify=tls) for _ in range(count))
    return [await stack.enter_async_context(one) for one in made]


async def once(http: httpx2.AsyncClient, client: Client) -> float:
    begun = time.monotonic()
    made = await http.post("/v1/completions", json=completion(client), headers=client.headers)
    return time.monotonic() - begun if made.status_code == 200 else float("inf")


async def refusal(http: httpx2.AsyncClient, clients: list[Client]) -> str:
    """The Retry-After of a request beyond the places."""
    asked = [completion(one, max_tokens=200, n=PLACES // 4) for one in clients]
    work = [
        http.post("/v1/completions", json=body, headers=one.headers) for body, one in zip(asked, clients, strict=True)
    ]
    made = await asyncio.gather(*work)
    return next((one.headers["Retry-After"] for one in made if one.status_code == 429), "never refused")


# -------------------------------------------------------------------------------------------------------- large prompts


async def large(server: Process, clients: list[Client], options: argparse.Namespace) -> None:
    client, size = clients[0], 10_000_000
    bodies: dict[str, tuple[str, bytes]] = {
        "a prompt": ("/v1/completions", json.dumps({"model": "model", "prompt": "walk " * (size // 5)}).encode()),
        "messages": ("/v1/chat/completions", json.dumps({
            "model": "model", "messages": [{"role": "user", "content": "walk "}] * (size // 45)}).encode()),
        "token ids": ("/v1/completions", json.dumps({"model": "model", "prompt": [7] * (size // 3)}).encode()),
        "a text to count": ("/v1/count", json.dumps({"model": "model", "text": "walk " * (size // 5)}).encode()),
    }  # fmt: skip
    headers = client.headers | {"Content-Type": "application/json"}
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as http:
        asleep = await beside(server, asyncio.sleep(2.0))
        print(f"large: /health while nothing happens: worst {asleep[0] * 1e3:.0f} ms of {asleep[1]}", flush=True)
        for name, (path, body) in bodies.items():
            worst, count, made = await beside(server, http.post(path, content=body, headers=headers))
            print(f"large: {name} of {len(body) / 1e6:.0f} MB: {made.status_code} {made.text[:90]!r}; "
                  f"/health worst {worst * 1e3:.0f} ms of {count}", flush=True)  # fmt: skip


async def beside(server: Process, work: Awaitable) -> tuple[float, int, httpx2.Response]:
    """The longest that /health took while `work` went on, asked by a process of its own; how often; what it gave."""
    probing = await asyncio.create_subprocess_exec(
        "python3", "-c", PROBE, str(server.port), stdout=asyncio.subprocess.PIPE
    )
    await asyncio.sleep(0.5)
    made = await work
    await asyncio.sleep(0.3)
    probing.terminate()
    text, _ = await probing.communicate()
    worst, count = text.decode().splitlines()[-1].split()
    return float(worst), int(count), made


PROBE = """
import socket, sys, time
peer, worst, count = socket.create_connection(("127.0.0.1", int(sys.argv[1]))), 0.0, 0
while True:
    begun = time.monotonic()
    peer.sendall(b"GET /health HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    if not peer.recv(65536):
        break
    worst, count = max(worst, time.monotonic() - begun), count + 1
    print(worst, count, flush=True)
    time.sleep(0.002)
"""

PARTS: dict[str, tuple[Callable[..., Coroutine[Any, Any, None]], tuple[str, ...]]] = {
    "soak": (soak, ()),
    "gone": (gone, ()),
    "slow": (slow, ()),
    "overload": (overload, ("--waiting", str(PLACES))),
    "large": (large, ()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(STARTER))
    parser.add_argument("--seconds", type=float, default=90.0, help="of the soak")
    parser.add_argument("--disconnects", type=int, default=500)
    parser.add_argument("--slow", type=int, default=200)
    parser.add_argument("--turn", type=float, default=8.0, help="seconds of each turn of slow and overload")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help=f"parts, divided by commas: {','.join(PARTS)}")
    options = parser.parse_args()
    for name in options.only.split(",") if options.only else PARTS:
        part, settings = PARTS[name]
        with tempfile.TemporaryDirectory() as folder:
            keys, dice = Path(folder, "keys.toml"), random.Random(11)
            clients = [Client(one, make_key(keys, one), str(dice.randrange(10_000, 100_000))) for one in NAMES]
            given = ("--keys", str(keys), "--memory", "0.05", *settings)
            with ours(
                options.model, Path(folder, "store"), Path(folder, "log"), *given, threads=options.threads
            ) as one:
                asyncio.run(part(one, clients, options))


if __name__ == "__main__":
    main()
