"""The command for vLLM has what it needs beside the folder, and what it cannot compute is refused."""

import json
import math
import shlex

import pytest

from handscroll.base.errors import ConfigError
from handscroll.models.vllm import serving
from tests.conformance.families import FORMS

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def folder(tmp_path, name="llama", **changes):
    form = FORMS[name]
    (tmp_path / "config.json").write_text(json.dumps(form.foreign | changes), encoding="utf-8")
    return tmp_path


def test_a_plain_folder_needs_its_length_alone(tmp_path):
    path = folder(tmp_path, rope_scaling=YARN, max_position_embeddings=256)
    assert serving(path) == (f"vllm serve {path} --max-model-len 256", ())


def test_an_attention_factor_of_its_own_is_given_in_both_forms(tmp_path):
    scaling = YARN | {"beta_fast": 16.0, "truncate": False, "attention_factor": 1.05}
    path = folder(tmp_path, rope_scaling=scaling, max_position_embeddings=256, rope_theta=500.0)
    found = serving(path)
    table = json.loads(shlex.split(found.command)[-1])["rope_parameters"]
    assert table["rope_theta"] == 500.0 and table["beta_fast"] == 16.0 and table["truncate"] is False
    assert table["attention_factor"] == 1.05
    assert table["attn_factor"] * (1 + 0.1 * math.log(4.0)) == pytest.approx(1.05)
    assert "attn_factor" in found.notes[0]


@pytest.mark.parametrize(
    ("scaling", "word"),
    [
        ({"rope_type": "dynamic", "factor": 4.0}, "longest"),
        ({"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}, "long factors"),
    ],
)
def test_what_differs_there_is_said(tmp_path, scaling, word):
    original = {} if scaling["rope_type"] == "dynamic" else {"original_max_position_embeddings": 64}
    path = folder(tmp_path, rope_scaling=scaling | original, max_position_embeddings=64 if not original else 256)
    assert word in serving(path).notes[0]


def test_what_vllm_does_not_compute_is_refused(tmp_path):
    window = {"rope_type": "self-extend", "factor": 4.0, "original_max_position_embeddings": 64}
    path = folder(tmp_path, rope_scaling=window | {"window": 16, "group_size": 8}, max_position_embeddings=256)
    with pytest.raises(ConfigError, match="handscroll serve"):
        serving(path)
    with pytest.raises(ConfigError, match="both directions"):
        serving(folder(tmp_path, "bert"))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="--type bf16"):
        serving(tmp_path / "a.gguf")
