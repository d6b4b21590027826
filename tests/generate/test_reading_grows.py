"""A reading is kept as it grows: after an interruption or a kill it goes on where it stopped, with the same tokens."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from handscroll.cache.reading.store import Store
from handscroll.cli.main import app
from handscroll.generate import read
from handscroll.generate.prefill import hidden_chunks
from handscroll.lm import LM, load
from handscroll.models.llama import Llama
from handscroll.nn.init import initialise
from tests.generate import readings
from tests.generate.readings import text


@pytest.fixture
def lm(tiny_folder):
    return readings.roomy(tiny_folder)


@pytest.fixture(autouse=True)
def small_and_often(monkeypatch):
    """Chunks of 64 tokens, each of them kept at once."""
    monkeypatch.setattr(read, "hidden_chunks", lambda *given: hidden_chunks(*given[:5], 64))
    monkeypatch.setattr(read, "EVERY", 0.0)
    monkeypatch.setattr(read, "WRITING", 1e9)


def stopping(after):
    def on_read(done, _):
        if done >= after:
            raise KeyboardInterrupt

    return on_read


@pytest.mark.parametrize("policy", ["full", "int8"])
def test_an_interrupted_reading_goes_on_where_it_stopped(lm, tmp_path, policy):
    store, ids, read_now = Store(tmp_path), text(600), []
    with pytest.raises(KeyboardInterrupt):
        lm.read(ids, store, "a", policy=policy, on_read=stopping(400))
    assert store.names() == {}
    assert store.kept(lm.identity(600 + read.ROOM, policy), torch.tensor(ids)) == 448
    grown = lm.read(ids, store, "a", policy=policy, on_read=lambda done, _: read_now.append(done))
    assert read_now[0] == 512 and grown.length == 600
    whole = lm.read(ids, Store(tmp_path / "other"), policy=policy)
    for one, other in zip(grown.spans, whole.spans, strict=True):
        for name in ("keys", "values"):
            joined, plain = (torch.cat([getattr(span, name) for span in spans], dim=2) for spans in (one, other))
            torch.testing.assert_close(joined.float(), plain.float(), rtol=1e-4, atol=1e-4 if policy == "full" else 1.5)
    assert store.size(store.names()["a"][0]) == store.nbytes


def test_what_is_unfinished_is_forgotten_by_its_names_even_after_a_kill(lm, tmp_path, monkeypatch):
    store = Store(tmp_path)
    usual = store.name

    def name(name, number, length):
        if (name, length) == ("a.kept", 320):  # the part is written, and its name is not
            raise SystemExit
        usual(name, number, length)

    monkeypatch.setattr(store, "name", name)
    with pytest.raises(SystemExit):
        read.read(lm.model, lm.tokenizer, store, read.ToRead(torch.tensor(text(600)), "", "a", unfinished="a.kept"))
    assert {about.length for about in store.parts()} == {64, 128, 192, 256, 320}
    for given in store.names():
        store.forget(given)
    assert not list(store.parts())


def test_parts_of_another_process_may_vanish_while_a_text_is_read(lm, tmp_path):
    store, ids = Store(tmp_path), text(600)

    def on_read(done, _):
        if done == 320:
            store.prune()  # nothing has a name yet

    assert lm.read(ids, store, "a", on_read=on_read).length == 600
    reading = store.open(store.names()["a"][0])
    assert reading.tokens.tolist() == ids and store.size(reading.number) == store.nbytes


def test_what_no_name_needs_is_removed_on_request(lm, tmp_path):
    store = Store(tmp_path)
    lm.read(text(200), store, "a")
    with pytest.raises(KeyboardInterrupt):
        lm.read(text(600, seed=1), store, "b", on_read=stopping(400))
    listed = CliRunner().invoke(app, ["readings", "--prune", "--store", str(tmp_path)])
    assert "MB removed" in listed.output, listed.output
    assert store.size(store.names()["a"][0]) == store.nbytes


def test_a_windowed_model_keeps_what_it_read_too(windowed, tmp_path):
    store, ids = Store(tmp_path), text(600)
    with pytest.raises(KeyboardInterrupt):
        windowed.read(ids, store, "a", on_read=stopping(400))
    read_now = []
    grown = windowed.read(ids, store, "a", on_read=lambda done, _: read_now.append(done))
    assert read_now[0] == 448
    new = torch.tensor([text(5, seed=2)])
    want = windowed.model(torch.tensor([[*ids, *new[0].tolist()]]))[0, -5:]
    cache = windowed.model.new_cache(5, **grown.past(torch.device("cpu")))
    torch.testing.assert_close(windowed.model(new, cache=cache)[0], want, rtol=1e-4, atol=1e-4)


@pytest.fixture
def windowed(lm):
    return readings.windowed(lm, 100)


def test_the_reading_of_a_quantised_file_is_asked_from_the_command_line(lm, tmp_path):
    """Its cache is kept in another dtype than the one of the computation, in which the file is loaded again."""
    sizes = {"width": 64, "mlp_width": 96, "heads": 2, "kv_heads": 2, "head_size": 32}
    model = Llama(lm.model.config.model_copy(update=sizes))
    initialise(model, "normal", 2, torch.Generator().manual_seed(0))
    file = LM(model, lm.tokenizer, "x").export_gguf(tmp_path / "a.gguf", "q8_0")
    assert (one := load(file).model).cache_dtype != one.dtype
    (tmp_path / "a.txt").write_text("import os\n" * 40)
    where = ["--store", str(tmp_path / "store")]
    run = CliRunner()
    done = run.invoke(app, ["read", str(file), str(tmp_path / "a.txt"), "--save", "a", "--beyond", *where])
    assert done.exit_code == 0, done.output
    asked = run.invoke(app, ["ask", "a", "why?", "--max-tokens", "4", "--beyond", *where], catch_exceptions=False)
    assert asked.exit_code == 0, asked.output


CODE = """
import sys, time
from handscroll.generate import read
whole = read.hidden_chunks
read.hidden_chunks = lambda *given: whole(*given[:5], 64)
read.EVERY, read.WRITING = 0.0, 1e9
from handscroll.cache.reading.store import Store
from handscroll.lm import load
lm = load(sys.argv[1])
def on_read(done, all):
    print(done, flush=True)
    time.sleep(0.1 if done > 200 else 0)
lm.read(list(range(5, 505)), Store(sys.argv[2]), "a", beyond=True, on_read=on_read)
"""


def test_a_killed_reading_goes_on(lm, tiny_folder, tmp_path):
    command = [sys.executable, "-c", CODE, str(tiny_folder), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    while int(process.stdout.readline()) < 256:  # waits for the next line
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store, read_now = Store(tmp_path), []
    positions = lm.model.config.positions.model_copy(update={"context": 64})
    lm.model.config = lm.model.config.model_copy(update={"positions": positions})
    lm.read(list(range(5, 505)), store, "a", beyond=True, on_read=lambda done, _: read_now.append(done))
    assert read_now[0] >= 256 and store.names()["a"][1] == 500
