"""The public object: encode, logits, nll, generate, save; bad folders are refused with the reason."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import handscroll
from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError
from handscroll.cache.reading.store import Store
from handscroll.generate.budget import Demand
from handscroll.generate.draft import Lookup
from handscroll.generate.prepare import prepare
from handscroll.generate.sample import Sampling
from tests.conftest import ROOT, shared
from tests.naming import naming


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return handscroll.load(tiny_folder)


def text_ids(lm, count):
    import argparse
    from pathlib import Path

    return lm.encode(Path(argparse.__file__).read_text(encoding="utf-8"))[:count]


def test_nll_is_the_loss_of_the_logits(lm):
    ids = text_ids(lm, 150)
    want = torch.nn.functional.cross_entropy(lm.logits(ids)[:-1], torch.tensor(ids[1:]), reduction="none")
    torch.testing.assert_close(lm.nll(ids), want, atol=1e-5, rtol=1e-5)


def test_nll_in_chunks_equals_nll_at_once(lm, monkeypatch):
    ids = text_ids(lm, 300)
    want = lm.nll(ids)
    monkeypatch.setattr("handscroll.generate.prefill.CHUNK", 37)
    torch.testing.assert_close(lm.nll(ids), want, atol=1e-5, rtol=1e-5)


def test_windowed_nll_is_every_token_read_anew(lm):
    """Against the definition: token t is scored in the window that starts at the multiple of half a window."""
    ids = text_ids(lm, 101)
    window, stride = 16, 8
    got = lm.nll(ids, window=window)
    torch.testing.assert_close(got[: window - 1], lm.nll(ids[:window]), atol=1e-5, rtol=1e-5)
    for target in range(window, len(ids)):
        start = min(((target - window) // stride + 1) * stride, len(ids) - window)
        piece = lm.nll(ids[start : target + 1])
        assert abs(float(got[target - 1] - piece[-1])) < 1e-4, target


@pytest.mark.promise("R7")
@pytest.mark.parametrize("length", [256, 1020])
def test_babyllama_equals_the_reference_library(babyllama, length):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = handscroll.load(babyllama)
    theirs = AutoModelForCausalLM.from_pretrained(babyllama, dtype=torch.float32)
    text = (babyllama / "stories.txt").read_text()[:length]
    ids = lm.encode(text)
    assert ids == AutoTokenizer.from_pretrained(babyllama)(text).input_ids
    with torch.no_grad():
        want = theirs(torch.tensor([ids])).logits[0]
    assert len(ids) >= length and (lm.logits(ids) - want).abs().max() < 1e-4


def test_lengthened_babyllama_equals_the_reference_library(babyllama, tmp_path):
    from transformers import AutoModelForCausalLM

    lm = handscroll.load(babyllama)
    ids = lm.encode((babyllama / "stories.txt").read_text())[:1024]
    # The reference computes dynamic NTK's growing base in float32, which this model amplifies to 2e-4.
    for method, bound in (("ntk", 1e-4), ("llama3", 1e-4), ("yarn", 1e-4), ("dynamic-ntk", 5e-4)):
        longer = handscroll.extend(lm, 1024, method, text=babyllama / "stories.txt", measured=1024)
        longer.save(tmp_path / method)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / method, dtype=torch.float32)
        with torch.no_grad():
            want = theirs(torch.tensor([ids])).logits[0]
        assert (longer.logits(ids) - want).abs().max() < bound, method


def test_generate_streams_what_it_returns(lm):
    settings = {"max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 3}
    whole = lm.generate("def read(", **settings)
    assert "".join(lm.stream("def read(", **settings)) == whole
    assert lm.generate("def read(", **settings) == whole
    assert lm.generate("def read(", **(settings | {"seed": 4})) != whole


def test_a_request_past_the_context_is_refused(lm):
    with pytest.raises(CapacityError, match="64"):
        lm.generate("def read(", max_tokens=64)
    assert isinstance(lm.generate("def read(", max_tokens=70, beyond=True), str)
    with pytest.raises(ConfigError, match="'temperature'"):
        lm.generate("x", temperatur=1)


def test_ids_outside_the_vocabulary_are_refused(lm):
    with pytest.raises(DataError, match="512"):
        lm.nll([1, 2, 512])
    with pytest.raises(DataError, match="two tokens"):
        lm.nll([1])


def test_save_and_load_in_each_dtype(lm, tmp_path):
    ids = text_ids(lm, 40)
    for dtype in ("float32", "bfloat16"):
        made = handscroll.load(lm.source, dtype=dtype)
        made.save(tmp_path / dtype)
        again = handscroll.load(tmp_path / dtype, dtype=dtype)
        assert torch.equal(again.logits(ids), made.logits(ids))
        stored = load_file(tmp_path / dtype / "model.safetensors")["model.embed_tokens.weight"]
        assert stored.dtype == getattr(torch, dtype)


def broken(folder, target, change):
    shutil.copytree(folder, target)
    change(target)
    return target


def edit_config(**changes):
    def change(folder):
        path = folder / "config.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in values.items() if value != "remove"}))

    return change


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def drop_tensor(folder):
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors")


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BROKEN = {
    "truncated": (cut, CheckpointError, "model.safetensors"),
    "missing tensor": (drop_tensor, CheckpointError, "'model.layers.1.mlp.up_proj.weight'"),
    "wrong shape": (edit_config(intermediate_size=100), CheckpointError, "shape"),
    "too many layers": (edit_config(num_hidden_layers=3), CheckpointError, "layers.2"),
    "too few layers": (edit_config(num_hidden_layers=1), CheckpointError, "layers.1"),
    "no config": (lambda f: (f / "config.json").unlink(), CheckpointError, "config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), CheckpointError, "tokenizer"),
    "pickle only": (pickled, CheckpointError, "pickle"),
    "broken json": (lambda f: (f / "config.json").write_text("{"), CheckpointError, "JSON"),
    "unknown family": (edit_config(model_type="lama"), ConfigError, "'llama'"),
    "unknown key": (edit_config(residual_scale=0.5), ConfigError, "residual_scale"),
    "unknown rope": (edit_config(rope_scaling={"rope_type": "yarm", "factor": 2.0}), ConfigError, "yarn"),
    "no size": (edit_config(hidden_size="remove"), ConfigError, "hidden_size"),
    "remote code": (edit_config(auto_map={"AutoModel": "x.y"}, architectures=["TwistedLlama"]), ConfigError, "code"),
    "quantised": (edit_config(quantization_config={"bits": 4}), ConfigError, "quantised"),
    "other activation": (edit_config(hidden_act="relu"), ConfigError, "relu"),
}


@pytest.mark.promise("R30")
@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_refused(case, tiny_folder, tmp_path):
    change, kind, words = BROKEN[case]
    folder = broken(tiny_folder, tmp_path / "x", change)
    with pytest.raises(kind) as error:
        handscroll.load(folder)
    assert words in str(error.value)


def test_names_that_are_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="hub id"):
        handscroll.load(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(ConfigError, match="'bfloat16'"):
        handscroll.load(tmp_path, dtype="bfloat")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        handscroll.load(tmp_path / "file")


def test_a_chinese_classic_goes_through_exactly():
    """Encode and decode are exact, the loss finite, with a tokenizer that saw no Chinese."""
    text = shared("text_zh/classic/mengxi_bitan.txt").read_text(encoding="utf-8")
    lm = handscroll.load(ROOT / "handscroll" / "starter")
    ids = lm.encode(text)
    assert lm.decode(ids) == text
    losses = lm.nll(ids[:2000])
    assert losses.shape == (1999,) and bool(torch.isfinite(losses).all())


MEMORY = """
import sys
import handscroll
from handscroll.plan.machine import peak_bytes
lm = handscroll.load(sys.argv[1])
ids = lm.encode(open(sys.argv[2], encoding="utf-8").read())[:int(sys.argv[3])]
assert len(ids) == int(sys.argv[3]), len(ids)
losses = lm.nll(ids)
print(len(losses), float(losses.mean()), peak_bytes() // 1024)
"""


@pytest.mark.parametrize(("count", "limit"), [(8192, 1 << 20), pytest.param(65536, 2 << 20, marks=pytest.mark.long)])
def test_exact_loss_of_a_book_in_bounded_memory(count, limit):
    """Peak memory in KiB of a fresh process: VmHWM, since what getrusage tells begins at the size of its parent.

    The cache of 65,536 tokens is 200 MB of it.
    """
    book = shared("text_en/books_valid/parkman_the_oregon_trail.txt")
    command = [sys.executable, "-c", MEMORY, str(ROOT / "handscroll" / "starter"), str(book), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    tokens, _, peak = done.stdout.split()
    assert int(tokens) == count - 1 and int(peak) < limit


def test_a_cache_longer_than_the_memory_is_refused_before_anything_is_read(lm, monkeypatch):
    ids = text_ids(lm, 2000)
    monkeypatch.setattr("handscroll.generate.prepare.spare", lambda _: (14_000_000, 10**9))
    monkeypatch.setattr("handscroll.generate.decode.prefill", lambda *_: pytest.fail("something was read"))
    requests = {
        "generate": lambda **how: lm.generate(ids, max_tokens=40_000, beyond=True, **how),
        "continuations": lambda **how: lm.continuations(ids, 4, max_tokens=10_000, beyond=True, **how),
        "beams": lambda **how: lm.beams(ids, 4, max_tokens=10_000, beyond=True, **how),
    }
    for name, request in requests.items():
        with pytest.raises(CapacityError, match=naming("16 MB", "13 MB", "14 MB")) as refused:
            request()
        suited = [words for words in ("--cache offload (", "--cache int8 (") if words in str(refused.value)]
        assert len(suited) == {"generate": 2, "continuations": 1, "beams": 0}[name], str(refused.value)
    monkeypatch.undo()
    assert lm.generate(ids[:50], max_tokens=2)


def test_a_policy_that_takes_more_than_the_full_cache_is_planned_for_short_prompts_too(lm):
    with pytest.raises(CapacityError, match="This fits: "):
        lm.generate("def", policy="offload:block=1000000000", max_tokens=2)


def test_the_cache_of_a_draft_model_is_counted(lm, monkeypatch):
    """A draft as large as the model keeps as much."""
    ids = text_ids(lm, 2000)
    how = {"max_tokens": 40_000, "beyond": True}
    need = Demand(ids, 40_000).bytes("full", lm.model, 1024)
    monkeypatch.setattr("handscroll.generate.prepare.spare", lambda _: (int(1.8 * need), 10**9))
    assert prepare(lm.model, lm.tokenizer, ids, {**how, "draft": Lookup()})
    with pytest.raises(CapacityError, match=naming("36 MB", "32 MB", "26 MB")):
        prepare(lm.model, lm.tokenizer, ids, {**how, "draft": lm.draft(lm)})


def test_questions_turns_and_engines_that_the_memory_does_not_hold_are_refused(lm, monkeypatch, tmp_path):
    store, ids = Store(tmp_path), text_ids(lm, 300)
    lm.read(ids, store, "text", beyond=True)
    talk, plain, asked = lm.conversation(), Sampling(max_tokens=4), []
    "".join(talk.say("def first", plain))
    read = len(talk.ids) - 1  # the last token of a reply is read with the next turn
    refuse, talk.afford = talk.afford, lambda *given: asked.append(given)
    "".join(talk.say("def second", plain))
    ((request, policy, chunk, freed),) = asked
    assert (policy, chunk, request.past, freed) == ("full", 1024, read, 0)
    assert len(request.prompt) + request.new == len(talk.ids)
    talk.afford = refuse
    monkeypatch.setattr("handscroll.generate.prepare.spare", lambda _: (14_000_000, 10**9))
    before = list(talk.ids)
    with pytest.raises(CapacityError, match=naming("15 MB", "13 MB", "14 MB")):
        lm.ask("text", "What?", store, max_tokens=40_000, beyond=True)
    with pytest.raises(CapacityError, match="15 MB"):
        lm.generate([*ids, 5], store=store, max_tokens=40_000, beyond=True)
    with pytest.raises(CapacityError, match=naming("20 MB", "10 MB")):
        lm.engine(20_000_000)
    assert lm.engine(8_000_000, deterministic=True).deterministic
    monkeypatch.setattr("handscroll.generate.prepare.spare", lambda _: (100_000, 10**9))
    with pytest.raises(CapacityError, match="0 MB"):
        talk.say("def third", plain)
    with pytest.raises(CapacityError, match="smaller"):
        lm.engine(1_000_000)
    assert talk.ids == before and asked == asked[:1]
