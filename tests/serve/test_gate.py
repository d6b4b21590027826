"""Who may call what: keys, hosts, origins, and endpoints that say nothing about it."""

import hashlib
import logging

import httpx2
import psutil
import pytest
from fastapi.routing import APIRoute

from handscroll.base.errors import ConfigError
from handscroll.serve.app import application
from handscroll.serve.gate import host_of, is_loopback
from handscroll.serve.keys import Keys, make_key, read_keys
from handscroll.serve.policy import policy_of
from handscroll.serve.server import make
from handscroll.serve.settings import ServeSettings
from tests.serve import material

OPEN = {"/", "/health", "/page/{name:path}"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@pytest.fixture(scope="module")
def locked(served_models, tmp_path_factory):
    """A server that asks for keys: those of ann and of bob."""
    folder = tmp_path_factory.mktemp("locked")
    keys = {name: make_key(folder / "keys.toml", name) for name in ("ann", "bob")}
    with material.live(folder / "store", {"tiny": served_models["tiny"]}, keys["ann"], keys=folder / "keys.toml") as it:
        it.bob = it.as_owner(keys["bob"])
        yield it


def routes(server):
    app, _ = application(server.serving)
    return [route for route in app.router.routes if isinstance(route, APIRoute)]


@pytest.mark.promise("R29")
def test_every_endpoint_names_its_policy(server):
    app, _ = application(server.serving)
    assert {route.path for route in routes(server)} >= {"/v1/chat/completions", "/v1/documents/{number}/ask"}
    for route in app.router.routes:
        assert policy_of(route) == ("open" if route.path in OPEN else "key"), route.path


@pytest.mark.promise("R29")
def test_an_endpoint_without_a_policy_is_reached_by_nobody(server, monkeypatch):
    from handscroll.serve.routes import about

    monkeypatch.delattr(about.metrics, "policy")
    made = server.http.get("/metrics")
    assert made.status_code == 403 and made.json()["error"]["code"] == "no_policy"


@pytest.mark.promise("R29")
def test_the_matrix_of_keys_and_methods(locked):
    key = locked.key
    wrong = {
        "none": {},
        "empty": {"Authorization": ""},
        "foreign": {"Authorization": "Bearer hs-not-a-key-of-this-server"},
        "nearly": {"Authorization": f"Bearer {key[:-1]}"},
        "another scheme": {"Authorization": f"Basic {key}"},
        "as a query": {},
    }
    with httpx2.Client(base_url=locked.url) as client:
        for route in routes(locked):
            path = route.path.replace("{number}", "doc-0").replace("{name:path}", "tiny")
            path = path.replace("/page/tiny", "/page/index.html")
            for method in METHODS:
                taken = method in (route.methods or ())
                for name, headers in wrong.items():
                    query = {"api_key": key, "key": key} if name == "as a query" else None
                    made = client.request(method, path, headers=headers, params=query)
                    want = 200 if route.path in OPEN and taken else 401
                    assert made.status_code == want, (method, path, name, made.text)
                made = client.request(method, path, headers={"Authorization": f"Bearer {key}"})
                assert (made.status_code == 405) == (not taken and not other(locked, path, method)), (method, path)
                assert made.status_code not in (401, 403, 500)
        assert client.get("/nothing").status_code == 401
    assert locked.http.get("/nothing").status_code == 404


def other(server, path, method) -> bool:
    """Whether another route takes this method at the same path."""
    return any(route.path_regex.fullmatch(path) and method in route.methods for route in routes(server))


HOSTS = """
evil.com localhost.evil.com 127.0.0.1.evil.com evil.com:80 localhost.:80 0.0.0.0 10.0.0.1 8.8.8.8 [2001:db8::1]
2130706433 0x7f.1 127.1 127.0.0.1@evil.com localhost@evil.com localhost:80:80 evil localhost%00.evil.com [::1%25a] ::
127.0.0.1.nip.io localtest.me localhost6 LOCALHOST.evil 127.0.0.1/evil evil.com#localhost evil.com?localhost .localhost
localhost, localhost;evil *.localhost xn--localhost 127.0.0.01 1.0.0.127 169.254.169.254 metadata [::ffff:8.8.8.8]
""".split()
ORIGINS = """
null http://evil.com https://localhost http://localhost http://127.0.0.1 http://127.0.0.1:1 file:// http://localhost.evil.com
chrome-extension://abc https://evil.com http://[::1] http://127.0.0.1.evil.com:8000 * http:// javascript:alert(1) data:
""".split()


@pytest.mark.promise("R32")
def test_no_hostile_host_is_taken(server):
    for host in HOSTS:
        made = server.http.get("/health", headers={"Host": host})
        assert made.status_code == 403, host
    for host in ("localhost", "127.0.0.1", f"127.0.0.1:{server.port}", "[::1]:80", "LocalHost:9", "127.0.0.2"):
        assert server.http.get("/health", headers={"Host": host}).status_code == 200, host


@pytest.mark.promise("R32")
def test_pages_of_other_origins_get_nothing(server):
    for origin in ORIGINS:
        made = server.http.post("/v1/completions", headers={"Origin": origin}, json={"model": "tiny", "prompt": "a"})
        assert made.status_code == 403, origin
        assert not any(name.startswith("access-control") for name in made.headers)
    for site in ("cross-site", "same-site"):
        made = server.http.get("/", headers={"Sec-Fetch-Site": site})
        assert made.status_code == 403 and "None" not in made.text
    assert server.http.get("/", headers={"Origin": server.url}).status_code == 200
    assert server.http.get("/", headers={"Sec-Fetch-Site": "none"}).status_code == 200


def test_who_is_lost_is_shown_the_way(server):
    assert "GET /openapi.json" in server.http.get("/nothing").json()["error"]["message"]
    for more in ({}, {"headers": {"Content-Type": "application/json"}}):
        made = server.http.post("/v1/completions", **more)
        assert made.status_code == 400 and "no body: send a JSON object" in made.json()["error"]["message"], made.text


def test_every_answer_carries_the_headers_that_keep_pages_harmless(server):
    for path in ("/", "/health", "/nothing", "/v1/models"):
        headers = server.http.get(path).headers
        csp = headers["content-security-policy"]
        assert "default-src 'none'" in csp and "unsafe" not in csp and "http" not in csp
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == (
            "no-cache" if path == "/" else "no-store"
        )
        assert "server" not in headers


@pytest.mark.promise("R29")
def test_a_server_that_others_reach_needs_a_key(served_models, tmp_path, monkeypatch):
    models = [{"name": "tiny", "source": str(served_models["tiny"])}]
    for host in ("0.0.0.0", "::", "192.168.1.2", "myhost"):
        with pytest.raises(ConfigError, match="there is no key"):
            make(ServeSettings.parse({"models": models, "store": tmp_path, "host": host}, "test"))
    monkeypatch.setenv("HANDSCROLL_KEY", "short")
    with pytest.raises(ConfigError, match="at least 16"):
        make(ServeSettings.parse({"models": models, "store": tmp_path}, "test"))
    monkeypatch.setenv("HANDSCROLL_KEY", "long-enough-to-be-a-key")
    make(ServeSettings.parse({"models": models, "store": tmp_path, "host": "0.0.0.0"}, "test"))


@pytest.mark.promise("R29")
def test_it_listens_at_one_address_and_nowhere_else(served_models, tmp_path):
    def listening() -> set:
        return {one.laddr for one in own.net_connections("inet") if one.status == psutil.CONN_LISTEN}

    own = psutil.Process()
    before = listening()
    with material.live(tmp_path, {"tiny": served_models["tiny"]}) as server:
        assert listening() - before == {("127.0.0.1", server.port)}
    assert listening() <= before


@pytest.mark.promise("R27")
def test_every_endpoint_is_in_the_schema(server):
    paths = server.http.get("/openapi.json").json()["paths"]
    listed = {(path.replace("{name}", "{name:path}"), method.upper()) for path, one in paths.items() for method in one}
    there = {(one.path, method) for one in routes(server) for method in one.methods}
    assert there - listed == {("/", "GET"), ("/page/{name:path}", "GET")} and listed <= there


@pytest.mark.promise("R33")
def test_keys_are_kept_as_hashes_and_found_by_their_owner(tmp_path):
    file = tmp_path / "keys.toml"
    key = make_key(file, "ann")
    make_key(file, "bob")
    assert key not in file.read_text() and hashlib.sha256(key.encode()).hexdigest() in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="already"):
        make_key(file, "ann")
    keys = Keys.load(file, b"salt")
    assert keys.find(f"Bearer {key}").name == "ann" and keys.find(f"bearer {key}").name == "ann"
    assert keys.find(f"Bearer {key} x") is None and keys.find(None) is None
    assert keys.find(f"Bearer {key}").number != Keys.load(file, b"other").find(f"Bearer {key}").number
    file.write_text('[ann]\nsha256 = "abc"\n')
    with pytest.raises(ConfigError, match="sha256"):
        read_keys(file)


@pytest.mark.promise("R33")
def test_no_secret_is_logged(locked, caplog):
    secret, said = locked.key, "the-canary-of-a-prompt"
    with caplog.at_level(logging.DEBUG):
        locked.openai.completions.create(model="tiny", prompt=said, max_tokens=2)
        locked.http.get("/v1/models", params={"key": secret})
        locked.http.get(f"/v1/documents/{secret}")
        httpx2.post(
            f"{locked.url}/v1/completions", headers={"Authorization": f"Bearer {secret}x"}, json={"prompt": said}
        )
    own = [one.getMessage() for one in caplog.records if one.name.startswith(("handscroll", "uvicorn", "fastapi"))]
    assert any("ann POST /v1/completions 200" in line for line in own)
    assert not [line for line in own if secret in line or said in line]
    metrics = locked.http.get("/metrics").text
    assert secret not in metrics and said not in metrics


def test_the_name_in_a_host_header():
    assert [host_of(one) for one in ("a:80", "A", "[::1]:80", "[::1]", "::1")] == ["a", "a", "::1", "::1", "::1"]
    assert is_loopback("localhost") and is_loopback("::1") and not is_loopback("0.0.0.0") and not is_loopback("host")


@pytest.mark.promise("R34")
def test_owners_and_users_share_no_beginning(locked):
    body = {"model": "tiny", "prompt": material.TEXT * 3, "max_tokens": 1}

    def cached(client, **more) -> int:
        made = client.post("/v1/completions", json=body | more).json()
        return made["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(locked.http) == 0 < cached(locked.http)
    assert cached(locked.bob.http) == 0 < cached(locked.bob.http)
    assert cached(locked.http, user="one") == 0 < cached(locked.http, user="one")
    assert cached(locked.http, user="two") == 0
