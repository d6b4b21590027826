"""A length curriculum in one run: positions change at stages, stages end early, and all of it resumes."""

import json
from pathlib import Path

import pytest

from handscroll.base.config import read_recipe
from handscroll.base.errors import CapacityError, ConfigError
from handscroll.base.records import read_records
from handscroll.lm import load
from handscroll.train import planned as planned_module
from handscroll.train.curriculum import Curriculum, Grow
from handscroll.train.recipe import Recipe
from handscroll.train.start import RunOptions, run_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny" / "llama.toml"
GROWING = [
    "threads=1",
    "loop.save_every=7",
    "loop.evaluate_every=0",
    "loop.average=0.5",
    "stages.0.length=64",
    "stages.0.mix={text=1.0}",
    "stages.0.grow={tolerance=50.0,window=3,least=4}",
    "stages.1.length=256",
    "stages.1.steps=12",
    "stages.1.positions={scaling={name='yarn',factor=4.0},base=20000.0}",
    "memory={strategy='chunk-outer',chunk=64}",
]


def recipe(*more):
    return Recipe.parse(read_recipe(RECIPE, [*GROWING, *more]), "recipe")


def test_a_run_grows_and_saves_what_it_grew_into(tmp_path):
    lm, progress = run_recipe(recipe(), tmp_path / "run")
    records = list(read_records(tmp_path / "run" / "records.jsonl"))
    early = [record for record in records if "stage_ended_early" in record]
    assert [record["step"] for record in early] == [4] and early[0]["stage_ended_early"] == 6
    assert progress.step == 16 and progress.skipped == 6 and progress.planned == 22
    assert records[3]["tokens"] == 4 * 8 * 64 and records[4]["tokens"] - records[3]["tokens"] == 8 * 256
    assert all(f"loss_quarter_{quarter}" in records[0] for quarter in (1, 2))
    positions = load(tmp_path / "run" / "model").model.config.positions
    assert (positions.context, positions.trained, positions.base) == (256, 64, 20000.0)
    assert positions.scaling.name == "yarn" and lm.context == 256


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nobody stops."""
    run = tmp_path_factory.mktemp("straight") / "run"
    run_recipe(recipe(), run)
    return run


# Before the stage ends early, in the update with which it ends (4), and in the longer stage.
@pytest.mark.parametrize("cut", [3, 4, 8, *(pytest.param(cut, marks=pytest.mark.long) for cut in (2, 5, 15))])
def test_a_stop_anywhere_leaves_the_bytes_of_a_straight_run(straight, cut, tmp_path):
    class Stop(Exception):
        pass

    def die(record):
        if record["step"] == cut:
            raise Stop

    saved = recipe("loop.save_every=1" if cut % 2 else "loop.save_every=7")
    with pytest.raises(Stop):
        run_recipe(saved, tmp_path / "run", RunOptions(on_record=die))
    run_recipe(saved, tmp_path / "run")
    for name in ("records.jsonl", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (straight / name).read_bytes(), name


def test_flatness_by_hand():
    stages = Curriculum([64, 128], [10, 5], [None, None], [Grow(tolerance=0.1, window=2, least=2), None], stage=0)

    def metrics(second, last):
        return {"loss_quarter_2": (second * 10, 10), "loss_quarter_4": (last * 10, 10)}

    assert stages.flat(0, metrics(2.0, 2.0)) == 0  # fewer updates than the window
    assert stages.flat(1, metrics(2.0, 2.5)) == 0  # mean gap 0.25
    assert stages.flat(2, metrics(2.0, 2.0)) == 0  # mean gap 0.25 still
    assert stages.flat(3, metrics(2.0, 2.05)) == 6  # updates 4 .. 9 are left out
    assert [stages.stage_at(step) for step in (0, 9, 10, 14, 99)] == [0, 0, 1, 1, 1]


def test_wrong_stages_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="factor"):
        run_recipe(recipe("stages.1.positions.scaling.factor=2.0", "stages.0.steps=1"), tmp_path / "a")
    gpt2 = ["model={family='gpt2',sizes={width=48,layers=2,heads=4,mlp_width=96,context=256}}", "stages.0.steps=1"]
    with pytest.raises(ConfigError, match="rotary"):
        run_recipe(recipe(*gpt2), tmp_path / "b")


def test_a_certificate_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    """Refused before it is made; --force makes it all the same."""
    machine = planned_module.this_machine()
    monkeypatch.setattr(planned_module, "this_machine", lambda *given: machine)
    monkeypatch.setattr(planned_module, "resident_bytes", lambda: machine.usable - 1000)
    with pytest.raises(CapacityError, match=r"certificate.* 0 MB.*--certify"):
        run_recipe(recipe("stages.1.steps=1"), tmp_path / "run", RunOptions(certify=True))
    assert not (tmp_path / "run" / "certificate.json").exists()
    run_recipe(recipe("stages.1.steps=1"), tmp_path / "forced", RunOptions(certify=True, force=True))
    assert (tmp_path / "forced" / "certificate.json").exists()


def test_the_certificate_is_shown_kept_and_can_fail(tmp_path, monkeypatch):
    shown = []
    run_recipe(recipe("stages.1.steps=1"), tmp_path / "run", RunOptions(certify=True, show=shown.append))
    kept = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert kept["passed"] and kept["strategy"] == "chunk-outer" and kept["tokens"] == 256 and kept["layers"] == 2
    assert 0 <= kept["float64"] <= 1e-12 and 0 < kept["float32"] <= 1e-5
    assert shown[0].startswith("plan: strategy chunk-outer") and "passed" in shown[1] and "1e-12" in shown[1]

    from handscroll.train.strategies import carry

    monkeypatch.setattr(carry.HeldCarry, "left", lambda self, layer, chunk: None)  # forget carried gradients
    with pytest.raises(ConfigError, match="FAILED"):
        long = recipe("stages.0.length=256", "stages.1.steps=1", "model.sizes.context=256", "stages.1.positions={}")
        run_recipe(long, tmp_path / "broken", RunOptions(certify=True))
    assert not (tmp_path / "broken" / "latest").exists()


def test_growing_by_a_loss_that_is_not_known_by_position_is_refused():
    """Classification has one loss a document; it ended in a KeyError after the first update."""
    values = recipe().model_dump(mode="json")
    rows = {"kind": "labelled", "file": "rows.tsv", "labels": ["a", "b"]}
    stages = [stage | {"mix": {"rows": 1.0}} for stage in values["stages"]]
    changes = {"objective": {"name": "classify"}, "data": {"rows": rows}, "stages": stages, "validation": None}
    with pytest.raises(ConfigError, match="grow looks at losses by position, and objective 'classify' has none"):
        Recipe.parse(values | changes, "recipe")
