"""Files of requests with any value at any key: each line is taken, or named with a reason."""

import json

import pytest

from handscroll.generate.engine.batch import read_requests
from handscroll.lm import load
from tests.hostile import VALUES, all_answered, places, put, sample

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}, "required": ["a"]}
SETTINGS = {"max_tokens": 4, "temperature": 0.9, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 3, "stop": ["x"]}
LINES = [
    {"prompt": "a", **SETTINGS, "repetition_penalty": 1.3, "ignore_eos": True, "priority": 1, "logprobs": 2},
    {"prompt": "a", "json_schema": SCHEMA},
    {"prompt": "a", "regex": "[0-9]+"},
    {"prompt": "a", "choices": ["yes", "no"]},
]
HALVES = [
    '{"prompt": "a", "stop": ["\\ud800"]}',
    '{"prompt": "a", "choices": ["\\ud800"]}',
    '{"prompt": "a", "regex": "\\ud800"}',
    '{"prompt": "a", "json_schema": {"properties": {"\\ud800": {"const": "\\udfff"}}}}',
    '{"messages": [{"role": "user", "content": "\\ud800"}]}',
]
MORE = ["[" * 100_000, '{"prompt": ' + "9" * 5000 + "}", '{"a":' * 100_000, "\ufeff{}", "null", '{"prompt": "\\ud800"}']


@pytest.mark.promise("R19")
@pytest.mark.parametrize("count", [pytest.param(40, id="some"), pytest.param(None, marks=pytest.mark.long, id="all")])
def test_any_value_at_any_key_of_a_request(tiny_folder, tmp_path, count):
    lm = load(tiny_folder)
    engine = lm.engine(int(1e7))
    cases = [json.dumps(put(line, place, value)) for line in LINES for place in places(line) for value in VALUES]
    path = tmp_path / "requests.jsonl"

    def act(line):
        path.write_text(line + "\n", encoding="utf-8")
        read_requests(path, engine, lm.tokenizer)

    all_answered(MORE + HALVES + sample(cases, count), act)
