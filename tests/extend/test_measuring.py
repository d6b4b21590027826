"""What a lengthening measures is told beforehand, and counted while it runs."""

import json

import pytest
import torch
from typer.testing import CliRunner

import handscroll
from handscroll.cli.main import app
from handscroll.extend import choice as module
from handscroll.extend.bakeoff import Goal
from handscroll.extend.extend import extension
from handscroll.extend.measuring import Measuring, finalists, own_size, reach
from handscroll.extend.methods import candidates
from handscroll.extend.remembered import Remembered
from handscroll.plan.calibration import Calibration, cache_file, save_calibration
from tests.conftest import ROOT

TEXT = [ROOT / "handscroll" / "lm.py", ROOT / "handscroll" / "nn" / "attend.py"]


@pytest.fixture
def spec(tiny_folder):
    return handscroll.load(tiny_folder).model.spec


@pytest.mark.parametrize("measured", [128, 512])
def test_progress_counts_to_its_total(tiny_folder, measured, monkeypatch):
    monkeypatch.setattr(module, "MINUTE", 0.0)
    heard, told = [], []
    settings = {"text": TEXT, "measured": measured, "progress": lambda *words: heard.append(words)}
    lm = handscroll.load(tiny_folder)
    result = extension(lm, 256, "yarn", on_plan=told.append, **settings)
    done, total = [one[1] for one in heard], {one[2] for one in heard}
    entries = len(module.Field.of(lm.model.config, "yarn", 256, lm.model.spec.positions[0]).entries)
    plan = Measuring.of(entries, lm.model.spec, 256, 64, measured)
    assert done == sorted(done) and total == {done[-1]} == {plan.tokens}
    assert 0 < result.outcome.read <= plan.tokens
    assert len(told) == 1 and f"{entries} candidates on a window of" in told[0] and "--method" in told[0]


def test_methods_that_are_said_to_need_no_measuring_have_one_setting(tiny_folder, spec):
    lm = handscroll.load(tiny_folder)
    said = Measuring.of(22, spec, 256, 64, 512).words(100.0)
    named = said.rpartition("(")[2].partition(", ...")[0].split(", ")
    assert len(named) == 2 and "yarn" not in named
    for method in named:
        assert len(candidates(lm.model, method, 256)) == 1
        assert extension(lm, 256, method).outcome is None


def test_rounds_take_fewer_candidates_to_more_text(spec):
    plan = Measuring.of(22, spec, 256, 64, 512)
    assert [(one.candidates, one.windows, one.tokens, one.leaping) for one in plan.rounds] == [
        (22, 1, 128, True),
        (11, 1, 128, True),
        (6, 1, 128, True),
        (6, 1, 256, False),
        (3, 1, 256, False),
    ]
    more = 64  # short texts that are cut from a real window
    assert plan.tokens == 39 * 128 + 9 * (256 + more) + 5 * 64 + 2 * more
    assert [one.candidates for one in Measuring.of(6, spec, 256, 64, 512).rounds] == [6], "nobody to leave out"
    short = Measuring.of(22, spec, 128, 64, 512)  # a leaping window would be as long as a real one
    assert [(one.candidates, one.windows, one.leaping) for one in short.rounds] == [(22, 1, False), (6, 3, False)]
    assert Measuring.of(22, spec, 256, 64, 512, leaping=False).rounds[0].tokens == 256
    assert [finalists(real, 8192) for real in (4096, 8192, 16384, 40960)] == [6, 4, 3, 3]


def test_a_long_target_reads_what_lies_past_the_trained_length():
    assert reach(512, 4096, 8192) == 4096 and reach(2048, 65536, 8192) == 16384
    assert reach(32768, 65536, 8192) == 40960 and reach(32768, 65536, 65536) == 65536
    assert own_size(32768, 40960) == 2816 and own_size(256, 8192) == 255


def test_a_half_billion_parameters_are_chosen_for_65536_tokens_in_time():
    """The sizes of Qwen2.5-0.5B on an idle machine of two cores, as measured: the plan stays below 40 minutes."""
    from handscroll.base.workload import Workload
    from handscroll.models.llama import LlamaConfig

    positions = {"base": 1e6, "scaling": {"name": "none"}, "context": 32768, "trained": 32768}
    sizes = {"vocab": 151936, "width": 896, "layers": 24, "heads": 14, "kv_heads": 2, "head_size": 64}
    spec = LlamaConfig.parse(sizes | {"mlp_width": 4864, "positions": positions, "tied": True}, "test").spec
    plan = Measuring.of(22, spec, 65536, 32768)
    workload = Workload(kind="generate", spec=spec, length=65536, precision="bfloat16", threads=2)
    assert plan.seconds(workload, Calibration()) < 2400
    every = Measuring.of(22, spec, 65536, 32768, 1 << 20)
    assert every.real == 65536 and every.seconds(workload, Calibration()) > 2400, "who wants all of it can have it"


def test_a_short_measurement_is_not_announced(tiny_folder):
    told = []
    extension(handscroll.load(tiny_folder), 128, "yarn", text=TEXT, measured=128, on_plan=told.append)
    assert not told


def test_longer_windows_and_own_text_take_longer(tiny_folder, spec):
    from handscroll.plan.workloads import checkpoint_workload

    workload = checkpoint_workload(str(tiny_folder), {"kind": "extend", "length": 256, "micro": 1})
    plan = lambda to, own=False: Measuring.of(2, spec, to, 64, to, own).seconds(workload, Calibration())  # noqa: E731
    assert 3.5 < plan(1 << 16) / plan(1 << 15) < 4.1, "attention over long windows"
    assert plan(256, own=True) > plan(256)


def test_quantised_weights_are_forecast_with_their_own_speeds(tmp_path, monkeypatch):
    """Both by the command that lengthens and by its plan."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "MINUTE", 0.0)
    monkeypatch.setattr("handscroll.extend.measuring.clock", "{:.6g}".format)
    speeds = {"product": 1e-6, "product_narrow": 1e-6, "product_quantised": 1e-9}
    slow = Calibration(measured=True, attention=1e-6, attention_narrow=1e-9, **speeds)
    for threads in (0, torch.get_num_threads()):
        save_calibration(slow, cache_file(threads))
    starter = handscroll.load(ROOT / "handscroll" / "starter", dtype="float32")
    to, told, planned = 2 * starter.context, {}, {}
    for weights in ("f32", "q4_0"):
        path = starter.export_gguf(tmp_path / f"{weights}.gguf", weights)
        lm, heard = handscroll.load(path), []
        wanted = module.Wanted(Goal(to, starter.context, 0.1))
        module.Chooser(lm, module.Field(()), wanted, Remembered(None, lm), on_plan=heard.append)._tell(
            Measuring.of(4, starter.model.spec, to, starter.context)
        )
        (told[weights],) = heard
        done = CliRunner().invoke(app, ["plan", "extend", str(path), "--to", str(to), "--json"], catch_exceptions=False)
        planned[weights] = json.loads(done.stdout)["before"]
    for words in (told, planned):
        found = {weights: float(said.partition("about ")[2].partition(" ")[0]) for weights, said in words.items()}
        assert found["f32"] > 100 * found["q4_0"] > 0, words


def test_plans_tell_the_measuring_and_the_seconds_of_a_request(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save_calibration(Calibration(measured=True), cache_file(0))
    run = lambda *words: CliRunner().invoke(app, ["plan", *words], catch_exceptions=False).stdout  # noqa: E731
    assert "measuring: the model writes" in run("extend", str(tiny_folder), "--to", "256")
    assert "measuring: nothing" in run("extend", str(tiny_folder), "--to", "256", "--method", "pi")
    searched = run(
        "extend", str(tiny_folder), "--to", "256", "--method", "longrope", "--search", "--text", str(TEXT[0])
    )
    assert "a search of factors on" in searched and "positions up to 256" in searched
    compared = run("extend", str(tiny_folder), "--to", "256", "--compare", "--text", str(TEXT[0]))
    assert "6 methods on 6 windows of 256 tokens" in compared and "needles" in compared
    told = run("generate", str(tiny_folder), "--prompt-tokens", "100", "--max-tokens", "29")
    assert "time: reading about" in told and "writing about" in told and "30 %" in told
