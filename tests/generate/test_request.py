"""The settings of `LM` are those that a request and its sampling have, and a request refuses what excludes itself."""

import typing

import pytest

from handscroll.base.errors import ConfigError
from handscroll.generate.ask import AskSettings
from handscroll.generate.draft import Lookup
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.generate.settings import SamplingSettings, Settings, sampling_of


def test_typed_settings_are_those_of_sampling_and_request():
    assert set(SamplingSettings.__annotations__) == {*Sampling.model_fields, "plain"}
    asked = set(typing.get_type_hints(Settings)) - set(SamplingSettings.__annotations__)
    assert asked - {"store", "kv_budget", "kv_guard"} <= set(Request.__dataclass_fields__)
    assert set(AskSettings.__annotations__) >= set(Sampling.model_fields)


def test_unknown_settings_are_named_with_the_nearest():
    assert sampling_of({"top_k": 3, "temperature": 1.0, "beyond": True}, ("beyond",)).top_k == 3
    for wrong, near in (("max_token", "max_tokens"), ("beyon", "beyond")):
        with pytest.raises(ConfigError, match=f"'{wrong}'.*'{near}'"):
            sampling_of({wrong: 1}, ("beyond",))


@pytest.mark.parametrize(
    "fields",
    [
        {"chunk": 0},
        {"samples": 0},
        {"logprobs": -1},
        {"policy": "fool"},
        {"policy": "int4", "samples": 2},
        {"policy": "h2o:budget=64", "draft": Lookup(2)},
        {"constraint": object(), "sampling": Sampling(stop=("x",))},
        {"constraint": object(), "sampling": Sampling(ignore_eos=True)},
        {"bias": {3: float("inf")}},
        {"bias": {3: float("nan")}},
        {"bias": {3: 1e39}},
        {"bias": {3: -(10**400)}},
    ],
)
def test_what_excludes_itself_is_refused(fields):
    with pytest.raises(ConfigError):
        Request([5], **fields)
