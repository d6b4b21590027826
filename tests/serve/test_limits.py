"""Each limit at N - 1, N, N + 1, far beyond, below nothing, not a number; places and quotas; what arrives slowly."""

import json
import re
import socket
import time

import pytest

from handscroll.serve.admission import Admission
from handscroll.serve.app import application
from handscroll.serve.errors import ApiError
from handscroll.serve.keys import Owner, Quota
from handscroll.serve.settings import Limits
from tests.naming import naming
from tests.serve import material
from tests.serve.material import connected

CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
PLAIN = {"prompt": "a", "max_tokens": 1}
EMBED = {"model": "vectors", "input": "w1"}
HUGE = 10**9


@pytest.fixture(scope="module")
def small(served_models, tmp_path_factory):
    """A server with small limits."""
    limits = {"body": 16384, "upload": 2000, "choices": 6, "each": 4, "texts": 3, "schema_bytes": 300,
              "characters": 500, "head_seconds": 0.5, "body_seconds": 0.5, "stalled_seconds": 0.5, "documents": 2,
              "values": 4100}  # fmt: skip
    with material.live(tmp_path_factory.mktemp("small"), served_models, limits=limits) as made:
        yield made


def numbers(field, least, most, chat=False):
    """Values of a number that are taken and refused."""
    body = CHAT if chat else PLAIN
    more = {"logprobs": True} if field == "top_logprobs" else {}
    base = "/v1/chat/completions" if chat else "/v1/completions"
    for value in (least, most):
        yield base, {**body, **more, field: value}, True
    step = 1 if isinstance(most, int) else 1e-6
    for value in (least - step, most + step, HUGE * 10, -HUGE, float("nan"), float("inf"), "1", True, [1]):
        yield base, {**body, **more, field: value}, False


TABLE = [
    *numbers("temperature", 0, 2.0),
    ("/v1/completions", {**PLAIN, "temperature": 1e-300}, False),
    *numbers("repetition_penalty", 0.01, 10.0),
    ("/v1/completions", {**PLAIN, "temperature": 1.0, "top_p": 1e-9}, True),
    ("/v1/completions", {**PLAIN, "top_p": 0}, False),
    ("/v1/completions", {**PLAIN, "top_p": 1.0001}, False),
    *numbers("top_logprobs", 0, 20, chat=True),
    *numbers("logprobs", 0, 20),
    *numbers("presence_penalty", 0, 0.0),
    *numbers("best_of", 1, 1),
    *numbers("n", 1, 4),
    ("/v1/completions", {**PLAIN, "stop": ["x"] * 16}, True),
    ("/v1/completions", {**PLAIN, "stop": ["x"] * 17}, False),
    ("/v1/completions", {**PLAIN, "stop": ["x" * 256]}, True),
    ("/v1/completions", {**PLAIN, "stop": ["x" * 257]}, False),
    ("/v1/completions", {**PLAIN, "stop": [""]}, False),
    ("/v1/completions", {**PLAIN, "logit_bias": {"5": 100}}, True),
    ("/v1/completions", {**PLAIN, "logit_bias": {"5": 100.5}}, False),
    ("/v1/completions", {**PLAIN, "logit_bias": {"-5": 1}}, False),
    ("/v1/completions", {**PLAIN, "logit_bias": {"5": float("nan")}}, False),
    ("/v1/completions", {**PLAIN, "prompt": ["a"] * 4}, True),
    ("/v1/completions", {**PLAIN, "prompt": ["a"] * 5}, False),
    ("/v1/completions", {**PLAIN, "prompt": ["a"] * 2, "n": 3}, False),
    ("/v1/completions", {**PLAIN, "prompt": [299]}, True),
    ("/v1/completions", {**PLAIN, "prompt": [300]}, False),
    ("/v1/completions", {**PLAIN, "prompt": [HUGE]}, False),
    ("/v1/completions", {**PLAIN, "prompt": [-1]}, False),
    ("/v1/completions", {**PLAIN, "prompt": []}, False),
    ("/v1/completions", {**PLAIN, "max_tokens": material.CONTEXT - 1}, None),
    ("/v1/completions", {**PLAIN, "max_tokens": material.CONTEXT}, False),
    ("/v1/completions", {**PLAIN, "max_tokens": HUGE}, False),
    ("/v1/completions", {**PLAIN, "max_tokens": 0}, False),
    ("/v1/completions", {**PLAIN, "max_tokens": -1}, False),
    ("/v1/completions", {**PLAIN, "seed": 2**63 - 1}, True),
    ("/v1/completions", {**PLAIN, "seed": 2**63}, False),
    ("/v1/chat/completions", {**CHAT, "messages": []}, False),
    ("/v1/chat/completions", {**CHAT, "chat_template_kwargs": {"unread": 1}}, False),
    ("/v1/completions", {**PLAIN, "model": "\ud800"}, False),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "", "content": "a"}]}, False),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "assistant", "content": "a"}]}, False),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "\ud800"}]}, False),
    ("/v1/embeddings", {**EMBED, "input": ["w1"] * 3}, True),
    ("/v1/embeddings", {**EMBED, "input": ["w1"] * 4}, False),
    ("/v1/embeddings", {**EMBED, "input": [" ".join(["w1"] * 6)]}, True),
    ("/v1/embeddings", {**EMBED, "input": [" ".join(["w1"] * 7)]}, False),
    ("/v1/embeddings", {**EMBED, "dimensions": 32}, True),
    ("/v1/embeddings", {**EMBED, "dimensions": 31}, False),
]  # fmt: skip


@pytest.mark.promise("R26")
def test_the_table_of_limits(small):
    for path, body, taken in TABLE:
        if taken is None:
            continue
        begun = time.monotonic()
        sent = json.dumps({"model": "tiny"} | body)
        made = small.http.post(path, content=sent, headers={"Content-Type": "application/json"})
        assert (made.status_code == 200) == taken, (body, made.text)
        if not taken:
            assert 400 <= made.status_code < 500 and made.json()["error"]["message"], body
            assert time.monotonic() - begun < 10, body


@pytest.mark.promise("R26")
def test_a_schema_is_measured_before_it_is_compiled(small):
    for size, taken in ((20, True), (400, False)):
        form = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "title": "x" * size}}}
        made = small.http.post("/v1/chat/completions", json={"model": "tiny", **CHAT, "response_format": form})
        assert (made.status_code == 200) == taken, made.text


def test_deep_bodies_break_nothing(small):
    for depth in (200, 330, 480, 900, 1900):
        tools = '{"a":' * depth + "1" + "}" * depth
        body = json.dumps({"model": "tiny", **CHAT})[:-1] + f', "tools": [{tools}]}}'
        made = small.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert made.status_code in (200, 400, 413), (depth, made.text)


@pytest.mark.promise("R26")
def test_bodies_and_uploads_have_a_size(small):
    head = b'{"model":"tiny","max_tokens":1,"prompt":"'
    json_type = {"Content-Type": "application/json"}
    for size, status in ((16383, 200), (16384, 200), (16385, 413), (100_000, 413)):
        body = head + b'a"' + b" " * (size - len(head) - 3) + b"}"
        assert len(body) == size
        made = small.http.post("/v1/completions", content=body, headers=json_type)
        assert made.status_code == status, (size, made.text)
        parts = (body[at : at + 1000] for at in range(0, size, 1000))  # without a declared size
        assert small.http.post("/v1/completions", content=parts, headers=json_type).status_code == status
    for letters, status in ((100, 201), (501, 413), (3000, 413)):
        made = small.http.post("/v1/documents", files={"file": ("a.txt", b"x" * letters)})
        assert made.status_code == status, made.text
    second = small.http.post("/v1/documents", files={"file": ("b.txt", b"x" * 9)})
    third = small.http.post("/v1/documents", files={"file": ("c.txt", b"x" * 9)})
    assert (second.status_code, third.status_code) == (201, 429)


@pytest.mark.promise("R26")
def test_a_list_of_too_many_values_is_not_parsed(small):
    """The context is 2,000 tokens, so that 4,100 commas are more than anything that could be answered."""
    for count, words in ((4099, naming("4099", "2000")), (4100, naming("4,101", "4,100"))):
        body = {"model": "tiny", "max_tokens": 1, "prompt": [1] * count}  # and two commas between the fields
        made = small.http.post("/v1/completions", json=body)
        assert made.status_code == (400 if count < 4100 else 413), made.text
        assert re.search(words, made.json()["error"]["message"]), made.text
    assert small.http.post("/v1/documents", files={"file": ("a.csv", b"," * 450)}).status_code != 413


@pytest.mark.promise("R25")
def test_slow_heads_and_bodies_are_given_up(small):
    begun = time.monotonic()
    with connected(small) as silent, connected(small) as half, connected(small) as slow:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert silent.recv(100) == b"" and half.recv(100) == b""
        answer = b""
        while piece := slow.recv(1000):  # head and body may come apart
            answer += piece
        assert b"408" in answer.partition(b"\r\n")[0] and b"did not arrive within 0.5 s" in answer
    assert time.monotonic() - begun < 30
    assert small.http.get("/health").status_code == 200


@pytest.mark.promise("R25")
def test_a_client_that_reads_nothing_is_dropped(small):
    """The answer is larger than what the system keeps on the way."""
    with connected(small) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        deaf.sendall(asked * 500)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                deaf.sendall(asked)
            except OSError:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("it was never dropped")
    assert small.http.get("/health").status_code == 200


# What takes no place of an answer: it is done at once, or has places of its own.
FREE = {"/v1/count", "/v1/tokenize", "/v1/detokenize", "/v1/documents/{number}/read", "/v1/documents/{number}/stop"}


@pytest.mark.promise("R28")
def test_while_there_is_no_place_no_body_is_read(small):
    admission, owner = small.serving.admission, small.serving.keys.local
    with admission.answering(owner, small.serving.settings.limits.each):
        paths = {
            route.path for route in application(small.serving)[0].routes if "POST" in getattr(route, "methods", ())
        }
        assert paths > FREE and len(paths) >= 15
        for path in paths - FREE:
            made = small.http.post(path, content=b"{broken", headers={"Content-Type": "application/json"})
            assert made.status_code == 429 and int(made.headers["retry-after"]) >= 1, path
        assert small.http.post("/v1/tokenize", json={"model": "tiny", "text": "a"}).status_code == 200
    made = small.http.post("/v1/completions", content=b"{broken", headers={"Content-Type": "application/json"})
    assert made.status_code == 400


def test_what_would_never_get_a_place_is_not_told_to_wait(small):
    made = small.http.post("/v1/completions", json={"model": "tiny", **PLAIN, "n": 5})
    assert made.status_code == 400 and re.search(naming(5, 4), made.json()["error"]["message"]), made.text


@pytest.mark.promise("R28")
def test_who_comes_to_a_crowd_is_told_to_come_back_after_it():
    now = [0.0]
    admission = Admission(Limits(waiting=4, each=4), lambda: now[0])
    ann, bob = (Owner(name, name, None) for name in "ab")

    def wait() -> int:
        with pytest.raises(ApiError) as it:
            admission.check(bob)
        return int(it.value.headers["Retry-After"])

    with admission.answering(ann, 4):
        # An answer takes a second, as is assumed before there was one, so that four places are free each second.
        assert [wait() for _ in range(12)] == [1] * 4 + [2] * 4 + [3] * 4
        assert [wait() for _ in range(100)][-1] == 11  # and who never comes back does not make it longer
        now[0] = 12.0
        assert wait() == 1  # all came back, or will not


def test_places_and_quotas():
    now = [0.0]
    admission = Admission(Limits(waiting=3, each=2), lambda: now[0])
    ann, bob = (Owner(name, name, Quota(sha256="0" * 64, requests_per_minute=3, tokens_per_day=100)) for name in "ab")
    with admission.answering(ann), admission.answering(ann):
        with pytest.raises(ApiError, match="of this key") as it, admission.answering(ann):
            pass
        assert it.value.status_code == 429 and int(it.value.headers["Retry-After"]) >= 1
        with admission.answering(bob):
            assert admission.open == 3
            with pytest.raises(ApiError, match="at most 3"), admission.answering(bob):
                pass
    assert admission.open == 0
    with admission.answering(ann):
        pass
    with pytest.raises(ApiError, match="3 requests a minute"), admission.answering(ann):
        pass
    now[0] = 61.0
    with admission.answering(ann):
        admission.use(ann, 100)
    with (
        pytest.raises(ApiError, match=r"of this key \(100 tokens a day\) is used up; ask again"),
        admission.answering(ann),
    ):
        pass
    now[0] += 86_400
    with admission.answering(ann):
        pass
    admission.closing = True
    with pytest.raises(ApiError, match="stopping"), admission.answering(bob):
        pass
