"""The search of LongRoPE's factors: its space, its seeds, the same walk again, and an ordinary checkpoint."""

import itertools
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

import handscroll
from handscroll.base.errors import ConfigError
from handscroll.extend import trials as module
from handscroll.extend.choice import Field
from handscroll.extend.extend import extension
from handscroll.extend.methods import candidates
from handscroll.extend.search import Genome, Search, Species
from tests.conformance.families import reference_logits
from tests.conftest import ROOT

TEXT = [ROOT / "handscroll" / "lm.py", ROOT / "handscroll" / "nn" / "attend.py"]
SMALL = Search(generations=2, children=4, parents=3, windows=2, finalists=2, refine=2)


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return handscroll.load(tiny_folder)


def searched(lm, remember=None, **more):
    return extension(lm, 256, "longrope", text=TEXT, measured=256, search=SMALL, remember=remember, **more)


def test_factors_never_fall_and_stay_within_the_limits():
    genome = Genome.of([-1.0, 0.5, 0.2, 9.0], 7.0, ratio=4.0)
    assert genome.logs == (0.0, 0.5, 0.5, round(math.log(8.0), 4)) and genome.strength == 2.0


def test_a_seed_has_the_frequencies_and_the_attention_of_its_method(lm):
    layer = lm.model.spec.layers[0]
    species = Species(lm.model.spec.positions[0], layer, 256)
    for one in candidates(lm.model, "yarn", 256)[1:4]:
        scaling, base = one.changes["positions"].scaling, one.changes["positions"].base
        made = species.candidate(species.seed(one)).changes["positions"].scaling
        got = made.inverse_frequencies(layer.rotated, base, 256)
        torch.testing.assert_close(got, scaling.inverse_frequencies(layer.rotated, base, 256), rtol=1e-4, atol=0)
        assert made.attention_factor(256) == pytest.approx(scaling.attention_factor(256), abs=1e-3)


def test_the_same_seed_finds_the_same_factors_and_a_killed_search_repeats_nothing(lm, tmp_path, monkeypatch):
    first = searched(lm)
    assert first.candidate.method == "longrope" and first.found.best.long <= first.found.seed.long
    scaling = first.lm.model.config.positions.scaling
    assert all(a <= b for a, b in itertools.pairwise(scaling.long_factor)) and set(scaling.short_factor) == {1.0}
    read, plain = {"windows": 0, "stop": 12}, module.losses

    def counting(*given):
        if read["windows"] == read["stop"]:
            raise KeyboardInterrupt
        read["windows"] += 1
        return plain(*given)

    monkeypatch.setattr(module, "losses", counting)
    with pytest.raises(KeyboardInterrupt):
        searched(lm, tmp_path / "kept")
    read["stop"] = 1 << 30
    again = searched(lm, tmp_path / "kept")
    assert again.lm.model.config == first.lm.model.config and again.found.record() == first.found.record()
    whole, read["windows"] = read["windows"], 0
    searched(lm, tmp_path / "kept")
    assert read["windows"] == 0 and whole > 12, "what was measured is not measured again"


def test_the_result_is_an_ordinary_longrope(lm, tmp_path):
    made = searched(lm)
    made.lm.save(tmp_path / "longer")
    config = json.loads((tmp_path / "longer" / "config.json").read_text())
    assert config["rope_scaling"]["rope_type"] == "longrope" and config["max_position_embeddings"] == 256
    record = json.loads((tmp_path / "longer" / "handscroll.json").read_text())
    assert record["searched"]["measured"] == made.found.genomes and record["read_by"] == "any library"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "longer", dtype=torch.float32).eval()
    tokens = torch.randint(3, 500, (1, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (made.lm.model(tokens, length=256) - reference_logits(theirs, tokens)).abs().max() < 1e-4


def test_a_search_can_join_the_bake_off(lm):
    made = extension(lm, 256, text=TEXT, measured=256, search=SMALL)
    assert {"longrope", "yarn", "none"} <= {row.candidate.method for row in made.outcome.rows}


@pytest.mark.parametrize(("method", "factors"), [("yarn", None), ("longrope", {"long_factor": [1.0]})])
def test_a_search_of_what_is_named_or_given_is_refused(lm, method, factors):
    with pytest.raises(ConfigError, match="--search"):
        Field.of(lm.model.config, method, 256, lm.model.spec.positions[0], factors, searched=True)


def test_a_scaled_checkpoint_is_not_searched(lm):
    longer = handscroll.extend(lm, 256, "pi")
    with pytest.raises(ConfigError, match="scaled already"):
        extension(longer, 512, "longrope", text=TEXT, search=SMALL)
