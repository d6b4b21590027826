"""A beginning that is held in memory: the texts that follow are those of prompts that are read whole."""

import pytest
import torch

from handscroll.base.errors import ConfigError, DataError
from handscroll.generate.asked import replies
from handscroll.generate.read import held
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from tests.generate.material import Letters, loaded, prompts_of

SAMPLING = Sampling(max_tokens=6)


class Printed(Letters):
    fingerprint = "letters"


def said(model, requests):
    return replies(model, Printed(), requests, None, [""] * len(requests))


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3_text", "qwen3"])
def test_rows_of_other_lengths_go_on_from_one_reading(family, tmp_path):
    """Also where layers see a window that is shorter than the beginning, and where a reading serves twice."""
    model = loaded(tmp_path, family, dtype=torch.float64)
    (first,) = prompts_of((40,))
    prompts = [first + some for some in prompts_of((1, 7, 3), seed=2)]
    whole = [said(model, [Request(prompt, SAMPLING)])[0] for prompt in prompts]
    read = []
    reading = held(model, Printed(), first, 60, read.append)
    assert read == [40] and reading.length == 40
    for _ in range(2):
        assert said(model, [Request(prompt, SAMPLING, reading=reading) for prompt in prompts]) == whole


def test_a_reading_belongs_to_its_beginning_and_to_models_with_keys(tmp_path):
    model = loaded(tmp_path)
    (first, other) = prompts_of((20, 25))
    reading = held(model, Printed(), first, 40)
    with pytest.raises(DataError, match="does not continue the reading"):
        said(model, [Request(other, SAMPLING, reading=reading)])
    with pytest.raises(ConfigError, match="reading"):
        held(loaded(tmp_path, "t5"), Printed(), first, 40)
