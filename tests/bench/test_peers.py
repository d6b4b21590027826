"""A peer gets its best setting, and a comparison without a peer is refused before anything is measured."""

import pytest

from bench import foreign, gguf, systems


@pytest.fixture
def parsed(monkeypatch):
    def run(*more):
        monkeypatch.setattr("sys.argv", ["bench.decode", *more])
        return systems.parsed("")

    return run


def test_a_comparison_without_a_peer_is_refused(parsed, capsys):
    with pytest.raises(SystemExit):
        parsed("--systems", "handscroll int8,handscroll bfloat16")
    assert "--systems names no peer" in capsys.readouterr().err
    assert parsed("--systems", "handscroll int8,transformers float32").systems[0] == "handscroll int8"


@pytest.mark.parametrize("name", foreign.BOTH)
def test_llama_cpp_is_measured_with_flash_attention_and_without(parsed, name):
    found = parsed("--systems", f"handscroll int8,{name}", "--peers", "python").systems
    assert set(foreign.BOTH) <= set(found) and len(found) == 3
    assert len(set(parsed("--peers", "python").systems)) == len(systems.SYSTEMS) + len(foreign.SYSTEMS)
    assert all(systems.bound_bytes(one, 8) == systems.bound_bytes("llama.cpp f16", 8) for one in foreign.BOTH)


def test_the_fastest_peer_is_named_and_every_ratio_is_against_it(monkeypatch, parsed, capsys):
    seconds = {"handscroll int8": 1.0, "llama.cpp f16": 3.0, "llama.cpp flash f16": 2.0}
    monkeypatch.setattr(systems, "make_folder", lambda folder: None)
    monkeypatch.setattr(systems, "read_bandwidth", lambda: 1.0)
    monkeypatch.setattr(systems, "measure", lambda name, *given: {"seconds": seconds[name]})
    options = parsed("--systems", "handscroll int8,llama.cpp f16", "--peers", "python", "--lengths", "512")
    ((length, _, ratios),) = systems.alternating("decode", options)
    assert length == 512 and ratios == {"handscroll int8": 2.0, "llama.cpp f16": 2 / 3, "llama.cpp flash f16": 1.0}
    assert "the fastest peer is llama.cpp flash f16" in capsys.readouterr().out


def test_a_file_is_compared_with_the_faster_setting_for_each_job():
    points = {"handscroll": {"seconds": 1.0, "prefill": 1.0}}
    points |= {"llama.cpp": {"seconds": 3.0, "prefill": 2.0}, "llama.cpp flash": {"seconds": 2.0, "prefill": 5.0}}
    assert gguf.against(points) == "decoding 2.00x of llama.cpp flash, prefill 2.00x of llama.cpp"
