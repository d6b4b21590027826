"""What a benchmark kept counts only under the settings with which it was made."""

import json

import pytest

from bench.kept import claim, difference


def test_a_result_is_taken_up_again_under_its_own_settings_alone(tmp_path):
    result = tmp_path / "work" / "said.json"
    claim(result, {"epochs": 3, "files": ("a", "b")})
    result.write_text("[]", encoding="utf-8")
    claim(result, {"files": ("a", "b"), "epochs": 3})
    with pytest.raises(SystemExit, match="epochs 3, not 5: give another --work, or remove it"):
        claim(result, {"epochs": 5, "files": ("a", "b")})
    with pytest.raises(SystemExit, match="seed None, not 1: take a new file"):
        claim(result, {"epochs": 3, "files": ("a", "b"), "seed": 1}, "take a new file")
    assert json.loads((tmp_path / "work" / "said.json.settings.json").read_text()) == {"epochs": 3, "files": ["a", "b"]}


def test_what_is_not_made_yet_can_be_begun_anew_with_other_settings(tmp_path):
    result = tmp_path / "said.json"
    claim(result, {"model": "typo"})
    claim(result, {"model": "right"})
    result.write_text("[]", encoding="utf-8")
    claim(result, {"model": "right"})
    with pytest.raises(SystemExit, match="model 'right', not 'typo'"):
        claim(result, {"model": "typo"})


def test_a_result_whose_settings_were_not_noted_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(SystemExit, match="not noted"):
        claim(tmp_path / "run", {"epochs": 3})


def test_a_difference_names_the_setting_alone():
    one, other = ({"a": 1, "stages": [{"steps": steps, "mix": {}}, {"steps": 3}]} for steps in (5, 9))
    assert difference(one, other) == "stages.0.steps 5, not 9"
    assert difference(one, one) == "" and difference({}, {"a": [1, 2]}) == "a None, not [1, 2]"
