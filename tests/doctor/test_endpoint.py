"""An endpoint is examined from outside: cut prompts, missing log-probabilities, counts."""

import pytest

from handscroll.base.errors import ConfigError
from handscroll.doctor.across import compare
from handscroll.doctor.examine import diagnose
from handscroll.doctor.probes import probe
from handscroll.doctor.runtimes.endpoint import Endpoint
from handscroll.doctor.runtimes.ours import Ours, OurWords
from tests.doctor.material import ours
from tests.doctor.server import serving


def examined(**faults):
    with serving(**faults) as url:
        return diagnose(Endpoint(url))


def test_a_healthy_endpoint():
    found = examined(refuse=4000)
    assert found.wrong == () and found.status == 0 and found.runtime == "endpoint"
    seen = {one.name: one.seen.what for one in found.of("healthy")}
    assert "refused with an error (status 400)" in seen["truncation"] and "echo" in seen
    assert {one.name: one.why for one in found.of("unexamined")}["repeats"].startswith("log-probabilities belong to")


def test_a_prompt_that_is_cut_in_silence_is_found_by_the_counts():
    found = examined(cut=2048)
    assert found.wrong == ("truncation",)
    (one,) = found.of("wrong")
    assert "2,048 of them were read" in one.seen.faults[0].what and "not answered" in one.seen.faults[0].what


def test_logprobs_that_are_accepted_and_left_out_are_found_and_a_refusal_is_no_fault():
    assert examined(echo="no").wrong == ("echo",)
    found = examined(echo="error")
    assert found.wrong == ()
    (echo,) = [one for one in found.checks if one.name == "echo"]
    assert "status 400" in echo.seen.notes[0]


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_a_server_that_refuses_everything_is_not_healthy(status):
    found = examined(refuse=1, status=status)
    assert found.status == 2 and not found.of("healthy") and not found.wrong
    why = {one.name: one.why for one in found.of("unexamined")}
    assert f"status {status}" in why["echo"] and f"status {status}" in why["truncation"]
    assert "tokens are more than 1" in why["truncation"], "the server's own words"


@pytest.mark.parametrize(
    ("status", "verdict"), [(400, "healthy"), (413, "healthy"), (422, "healthy"), (503, "unexamined")]
)
def test_only_a_refusal_of_the_content_is_one(status, verdict):
    found = {one.name: one for one in examined(refuse=1000, status=status).checks}
    assert found["truncation"].verdict == verdict and found["echo"].verdict == "healthy"
    if verdict == "unexamined":
        assert "read whole" in found["truncation"].why and f"status {status}" in found["truncation"].why
    echo = {one.name: one for one in examined(echo="error", status=status).checks}["echo"]
    assert echo.verdict == verdict


def test_an_endpoint_is_held_against_a_runtime_here_and_told_where_it_leaves():
    lm = ours()
    words = OurWords(lm.tokenizer)
    with serving(lm) as url:
        endpoint, here = Endpoint(url, words=words), Ours(lm)
        ids = probe(here, 60)
        same = compare(here, endpoint, ids)
        assert same.first is None and "agree on all 60 tokens" in same.says
        other = compare(Ours(ours(rope_theta=20.0)), endpoint, ids)
    assert other.first is not None and f"at token {other.first:,}" in other.says
    record = other.record()
    assert record["kind"] == "runtimes" and sum(one["last"] - one["first"] for one in record["ranges"]) == 59


def test_what_is_no_server_is_refused():
    with pytest.raises(ConfigError, match="no address"):
        Endpoint("localhost:8000")
    with pytest.raises(ConfigError, match="lists no models"):
        Endpoint("http://127.0.0.1:9/v1")
