"""Saved readings: the same tokens as reading anew, shared beginnings, damage, foreign models, owners, room."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError
from handscroll.cache.reading import files
from handscroll.cache.reading.store import Store
from handscroll.cli.main import app
from handscroll.generate.sample import Sampling
from handscroll.models.fingerprint import fingerprint
from handscroll.nn.positions.rotary import Rotary
from tests.generate import readings
from tests.generate.asking import decode
from tests.naming import naming

TEXT = "import os\n\n\ndef walk(top):\n    for name in os.listdir(top):\n        yield os.path.join(top, name)\n\n" * 6


@pytest.fixture
def lm(tiny_folder):
    return readings.roomy(tiny_folder)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "readings")


@pytest.mark.promise("R11")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_answer_from_a_reading_is_that_of_reading_anew(lm, store, dtype):
    lm.model.to(getattr(torch, dtype))
    lm.read(TEXT, store, "code")
    question = "What does walk do?"
    answer = lm.ask("code", question, store, max_tokens=40)
    ids = lm.encode(TEXT) + lm.encode(f"\n\nQuestion: {question}\nAnswer:", special=False)
    assert answer == lm.generate(ids, max_tokens=40) and answer
    assert answer == "".join(lm.ask_stream("code", question, store, max_tokens=40))


@pytest.mark.parametrize("policy", ["int4", "offload", "retrieval:recent=32", "h2o:budget=64"])
def test_a_store_beside_a_policy_that_keeps_no_reading_is_refused(lm, store, policy):
    """Nothing could be found there, and all would be read again in silence."""
    with pytest.raises(ConfigError, match=naming("int4" if policy == "int4" else policy, "full", "int8")):
        lm.generate(TEXT, store=store, policy=policy, max_tokens=2)


def test_logits_after_a_reading_equal_those_without(lm, store):
    """Cached equals uncached to 1e-5, over two parts."""
    ids = torch.tensor(lm.encode(TEXT))
    lm.read(ids[:200], store)
    reading = lm.read(ids, store)
    assert len(reading.spans[0]) == 2 and reading.length == len(ids)
    new = torch.randint(0, 500, (1, 9), generator=torch.Generator().manual_seed(0))
    cache = lm.model.new_cache(9, **reading.past(torch.device("cpu")))
    assert cache.length == len(ids)
    got = lm.model(new, cache=cache, length=1000)[0]
    want = lm.model(torch.cat([ids[None], new], dim=1), length=1000)[0, -9:]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_what_is_shared_is_not_read_again(lm, store, monkeypatch):
    ids = lm.encode(TEXT)
    lm.read(ids[:150], store, "short")
    counted = readings.reads(lm, monkeypatch)
    lm.read(ids, store, "long")
    assert sum(counted) == len(ids) - 150
    counted.clear()
    lm.read(ids, store, "again")  # all of it is there
    lm.read(ids[:100], store, "shorter")  # the beginning of another
    assert sum(counted) == 0
    assert store.names()["shorter"] == (store.names()["short"][0], 100)
    other = ids[:120] + [5, 6, 7] * 30  # leaves the saved text in its middle
    lm.read(other, store, "other")
    assert sum(counted) == 90
    counted.clear()
    assert lm.ask("shorter", "?", store, max_tokens=4) == lm.generate(
        ids[:100] + lm.encode("\n\nQuestion: ?\nAnswer:", special=False), max_tokens=4
    )


def test_generate_finds_the_longest_beginning(lm, store, monkeypatch):
    ids = lm.encode(TEXT)
    want = lm.generate(ids, max_tokens=20)
    lm.read(ids[:120], store)
    lm.read(ids[:180], store)
    counted = readings.reads(lm, monkeypatch)
    assert lm.generate(ids, max_tokens=20, store=store) == want
    assert sum(counted) - 1 == len(ids) - 180 + 19  # one more embed checks the length
    counted.clear()
    lm.generate(ids[:180], max_tokens=1, store=store)  # the last token is read again: logits come from it
    assert sum(counted) - 1 == 1


def test_little_in_common_is_not_worth_it(lm, store):
    ids = lm.encode(TEXT)
    lm.read(ids[:200], store)
    reading = lm.read(ids[:63] + [7] * 100, store)
    assert len(reading.spans[0]) == 1


def test_rows_of_a_batch_share_a_reading(lm, store):
    ids = lm.encode(TEXT)
    reading = lm.read(ids, store)
    prompts = [[*ids, 5, 6], [*ids, 9, 9, 9, 8], [*ids, 3]]
    sampling = Sampling(max_tokens=6)

    def rows(prompts, reading=None):
        found = {}
        for step in decode(lm.model, prompts, sampling, reading=reading):
            for new in step:
                found.setdefault(new.row, []).append(new.token)
        return found

    assert rows(prompts, reading) == rows(prompts)
    with pytest.raises(DataError, match="reading"):
        rows([ids], reading)
    with pytest.raises(DataError, match="reading"):
        rows([[4, *ids]], reading)


def test_a_length_dependent_scaling_is_read_for_its_bucket(lm, store, monkeypatch):
    """Another bucket means other keys: the text is read again, and the answer is exact."""
    values = lm.model.config.positions.model_dump() | {
        "scaling": {"name": "dynamic-ntk", "factor": 64.0, "original": 64}
    }
    config = lm.model.config.model_copy(update={"positions": Rotary.model_validate(values)})
    lm.model.config = config
    ids = lm.encode(TEXT)
    lm.read(ids, store, "code", room=20)
    assert lm.identity(len(ids) + 6) == lm.identity(len(ids) + 20) != lm.identity(len(ids) + 3000)
    counted = readings.reads(lm, monkeypatch)
    prompt = [*ids, 5]
    assert lm.generate(prompt, max_tokens=5, store=store) == lm.generate(prompt, max_tokens=5)
    counted.clear()
    lm.generate(prompt, max_tokens=3000, stop=("\n",), store=store)
    assert sum(counted) > len(ids)
    reading = store.open(store.names()["code"][0])
    with pytest.raises(ConfigError, match="shorter"):
        lm.ask("code", "?", store, max_tokens=3000)
    lm.ask("code", "?", store, max_tokens=3000, stop=("e", " ", "\n"), again=True)
    with pytest.raises(ConfigError, match="length"):
        decode(lm.model, [prompt], Sampling(max_tokens=3000), reading=reading)


def test_every_flipped_bit_and_cut_is_found(lm, store):
    lm.read(TEXT, store, "code")
    (folder,) = (store.folder / "parts").iterdir()
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises((CheckpointError, ConfigError)):
                lm.ask("code", "?", store, max_tokens=1)
        path.write_bytes(whole[:-1])
        with pytest.raises((CheckpointError, ConfigError)):
            lm.ask("code", "?", store, max_tokens=1)
        path.write_bytes(whole)
    lm.ask("code", "?", store, max_tokens=1)


def test_a_text_that_leaves_two_readings_early_goes_on_from_the_right_one(lm, store):
    """B goes on from A at 150; C shares 100 tokens with both: it goes on from A, since B's own begin later."""
    ids = lm.encode(TEXT)
    lm.read(ids, store)
    lm.read(ids[:150] + [5] * 70, store)
    third = ids[:100] + [9] * 80
    reading = lm.read(third, store)
    assert [span.marks.length for span in reading.spans[0]] == [100, 80]
    assert lm.generate([*third, 7], max_tokens=9, store=store) == lm.generate([*third, 7], max_tokens=9)


def test_a_damaged_reading_is_passed_over_and_written_anew(lm, store, caplog):
    """`generate` reads anew, `read` repairs, nothing else in the store is touched."""
    ids = lm.encode(TEXT)
    lm.read(ids, store, "code")
    lm.read([5, *ids], store, "other")
    number = store.names()["code"][0]
    path = store.folder / "parts" / number / "layer-000.bin"
    whole = path.read_bytes()
    path.write_bytes(b"\x01" + whole[1:])
    assert lm.generate([*ids, 7], max_tokens=5, store=store) == lm.generate([*ids, 7], max_tokens=5)
    assert "skipped" in caplog.text
    lm.read(ids, store, "code")
    assert path.read_bytes() == whole
    (store.folder / "parts" / number / "about.json").write_text("{")
    (store.folder / "names" / "broken.json").write_text("[1")
    assert [about.number for about in store.parts()] == [store.names()["other"][0]]
    lm.ask("other", "?", store, max_tokens=1)
    lm.read(ids, store, "code")
    lm.ask("code", "?", store, max_tokens=1)


def test_a_beginning_that_is_evicted_while_the_text_is_read(lm, store, monkeypatch):
    """The mapped files stay readable, and the new reading keeps all of it."""
    ids = lm.encode(TEXT)
    lm.read(ids[:150], store, "first")
    save = Store.save

    def late(self, *arguments):
        self.forget("first")
        return save(self, *arguments)

    monkeypatch.setattr(Store, "save", late)
    reading = lm.read(ids, store, "whole")
    assert len(reading.spans[0]) == 1 and store.names().keys() == {"whole"}
    monkeypatch.undo()
    assert lm.ask("whole", "?", store, max_tokens=9) == lm.generate(
        ids + lm.encode("\n\nQuestion: ?\nAnswer:", special=False), max_tokens=9
    )


def test_forgetting_takes_what_only_it_went_on_from(lm, store):
    ids = lm.encode(TEXT)
    lm.read(ids[:100], store, "first")
    lm.read(ids[:200], store, "second")
    store.forget("first")  # the second goes on from it
    assert len(list(store.parts())) == 2
    store.forget("second")
    assert list((store.folder / "parts").iterdir()) == []


def test_a_foreign_model_is_refused(lm, store):
    lm.read(TEXT, store, "code")
    before = float(lm.model.head[3, 3].detach())
    with torch.no_grad():
        lm.model.head[3, 3] += 0.5
    with pytest.raises(ConfigError, match=naming("'code'", "model")):
        lm.ask("code", "?", store)
    assert store.find(lm.identity(500), torch.tensor(lm.encode(TEXT))) is None
    with torch.no_grad():
        lm.model.head[3, 3] = before
    lm.ask("code", "?", store, max_tokens=1)
    config = lm.model.config
    lm.model.config = config.model_copy(update={"norm_eps": 1e-3})
    with pytest.raises(ConfigError, match="model"):
        lm.ask("code", "?", store)
    lm.model.config = config
    lm.model.to(torch.bfloat16).to(torch.float32)
    with pytest.raises(ConfigError, match="model"):
        lm.ask("code", "?", store)
    lm.model.to(torch.bfloat16)
    with pytest.raises(ConfigError, match=naming("model", "dtype")):
        lm.ask("code", "?", store)


def test_a_fingerprint_follows_every_write(lm):
    before = fingerprint(lm.model)
    assert fingerprint(lm.model) == before
    with torch.no_grad():
        lm.model.layers[1].mlp.up.weight[0, 0] += 1
    assert fingerprint(lm.model) != before


@pytest.mark.promise("R34")
def test_owners_do_not_see_each_other(lm, tmp_path, monkeypatch):
    ann, bob = (Store(tmp_path, owner) for owner in ("ann", "bob"))
    lm.read(TEXT, ann, "code")
    assert bob.names() == {} and ann.names().keys() == {"code"}
    counted = readings.reads(lm, monkeypatch)
    lm.read(TEXT, bob, "code")
    assert sum(counted) == len(lm.encode(TEXT))
    assert ann.names()["code"][0] != bob.names()["code"][0]


def test_the_least_recently_used_goes_first(lm, tmp_path):
    ids = lm.encode(TEXT)
    each = lm.model.config.spec.cache_bytes(1, 4) * 100
    store = Store(tmp_path, limit=int(3.5 * each))
    for number in range(3):
        lm.read([number + 5, *ids[:99]], store, f"text-{number}")
        os.utime(store.folder / "used" / store.names()[f"text-{number}"][0], (number, number))
    store.open(store.names()["text-0"][0])  # used now
    lm.read([9, *ids[:99]], store, "text-3")
    assert store.nbytes <= store.limit
    with pytest.raises(CheckpointError, match="'text-1'"):
        lm.ask("text-1", "?", store)
    lm.ask("text-0", "?", store, max_tokens=1)
    with pytest.raises(CapacityError, match="limit"):
        lm.read(ids * 2, store)


def test_what_others_go_on_from_is_kept(lm, tmp_path):
    ids = lm.encode(TEXT)
    each = lm.model.config.spec.cache_bytes(1, 4) * 100
    store = Store(tmp_path, limit=int(2.5 * each))
    lm.read(ids[:100], store, "first")
    lm.read(ids[:200], store, "second")  # goes on from the first
    with pytest.raises(CapacityError, match="reading"):
        lm.read(ids[:300], store)
    lm.read([5, *ids[:99]], store, "third")  # evicts the second, which nothing goes on from
    assert {name for name in store.names() if _there(store, name)} == {"first", "third"}
    store.forget("first")
    assert not _there(store, "first") and store.nbytes == each


def _there(store, name):
    try:
        store.named(name)
    except (CheckpointError, ConfigError):
        return False
    return True


def test_wrong_use_is_refused(lm, store):
    with pytest.raises(ConfigError, match="'cod'"):
        lm.ask("cod", "?", store)
    lm.read(TEXT, store, "code")
    with pytest.raises(ConfigError, match="'code'"):
        lm.ask("cod", "?", store)
    with pytest.raises(ConfigError, match=naming("{question}")):
        lm.ask("code", "?", store, template="hello")
    with pytest.raises(ConfigError, match="letters"):
        lm.read(TEXT, store, "../code")
    with pytest.raises(CapacityError, match=r"\b4096\b"):
        lm.read(list(range(5, 400)) * 20, store)
    with pytest.raises(DataError, match="nothing"):
        lm.read([], store)


def test_a_kill_while_saving_leaves_no_half_reading(lm, store, monkeypatch):
    """The folder appears as a whole or not at all; what a kill left is not taken for a reading."""
    (store.folder / "parts" / "abc.tmp-1-00000000").mkdir()
    (store.folder / "parts" / "abc.tmp-1-00000000" / "manifest.json").write_text("{}")
    whole = list(lm.encode(TEXT))

    def stops(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_chunks", stops)
    with pytest.raises(CheckpointError, match="No space left"):
        lm.read(TEXT, store, "code")
    assert list(store.parts()) == [] and store.names() == {}
    monkeypatch.undo()
    lm.read(whole, store)
    assert len(list((store.folder / "parts").iterdir())) == 1  # what kills left is gone


def test_the_command_reads_asks_and_lists(tiny_folder, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text(TEXT + "\nprint('more')\n" * 9)
    where = ["--store", str(tmp_path / "store")]
    run = CliRunner()
    first = run.invoke(app, ["read", str(tiny_folder), str(tmp_path / "a.txt"), "--save", "a", "--beyond", *where])
    assert first.exit_code == 0 and "a: " in first.output and "earlier reading" not in first.output, first.output
    second = run.invoke(app, ["read", str(tiny_folder), str(tmp_path / "b.txt"), "--save", "b", "--beyond", *where])
    assert "from an earlier reading" in second.output
    answers = [run.invoke(app, ["ask", "b", "why?", "--max-tokens", "9", "--beyond", *where]).stdout for _ in range(2)]
    assert answers[0] == answers[1] and len(answers[0]) > 1
    cut = run.invoke(app, ["ask", "b", "why?", "--max-tokens", "2", "--beyond", *where])
    assert "[cut after 2 tokens: --max-tokens]" in cut.stderr and "cut" not in cut.stdout
    listed = run.invoke(app, ["readings", *where])
    assert "a" in listed.output and "float32" in listed.output
    run.invoke(app, ["readings", "--forget", "b", *where])
    assert Store(tmp_path / "store").names().keys() == {"a"}


def test_a_name_belongs_to_the_folder_that_read_it(tiny_folder, tmp_path):
    """Also where the same weights had read the same text from another folder, which is gone by now."""
    (tmp_path / "a.txt").write_text(TEXT)
    where, run = ["--beyond", "--store", str(tmp_path / "store")], CliRunner()
    for name in ("first", "second"):
        folder = shutil.copytree(tiny_folder, tmp_path / name)
        done = run.invoke(app, ["read", str(folder), str(tmp_path / "a.txt"), "--save", name, *where])
        assert done.exit_code == 0, done.output
    store = Store(tmp_path / "store")
    assert [store.named(name)[0].source for name in ("first", "second")] == [str(tmp_path / "first"), str(folder)]
    shutil.rmtree(tmp_path / "first")
    told = run.invoke(app, ["ask", "second", "why?", "--max-tokens", "2", *where])
    assert told.exit_code == 0, told.output
    lost = run.invoke(app, ["ask", "first", "why?", "--max-tokens", "2", *where])
    assert isinstance(lost.exception, CheckpointError) and "--model" in str(lost.exception)
    found = run.invoke(app, ["ask", "first", "why?", "--max-tokens", "2", "--model", str(folder), *where])
    assert found.exit_code == 0 and found.stdout == told.stdout
    record = store.folder / "names" / "second.json"
    kept = {name: value for name, value in json.loads(record.read_text()).items() if name in ("number", "length")}
    record.write_text(json.dumps(kept))  # as earlier versions wrote it
    assert store.named("second")[0].source == str(tmp_path / "first")


def test_an_approximate_reading_says_so(tiny_folder, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    where, run = ["--store", str(tmp_path / "store")], CliRunner()
    for cache in ("int8", "full"):
        asks = ["ask", cache, "why?", "--max-tokens", "2", "--beyond", *where]
        done = [
            run.invoke(app, ["read", str(tiny_folder), str(tmp_path / "a.txt"), "--save", cache, "--cache", cache,
                             "--beyond", *where]),
            run.invoke(app, asks),
        ]  # fmt: skip
        for told in done:
            assert told.exit_code == 0, told.output
            assert ("approximate" in told.stderr and "int8" in told.stderr) == (cache == "int8")
    rows = [line.split() for line in run.invoke(app, ["readings", *where]).output.splitlines()]
    assert {row[0]: row[4] for row in rows if row and row[0] in ("int8", "full")} == {"int8": "int8", "full": "full"}


def test_two_processes_may_save_at_once(lm, tiny_folder, tmp_path):
    """Processes read overlapping texts into one store; every reading opens."""
    code = (
        "import sys; from handscroll.lm import load; from handscroll.cache.reading.store import Store;"
        "lm = load(sys.argv[1]); n = int(sys.argv[3]); s = Store(sys.argv[2]);"
        "ids = list(range(5, 405)); [lm.read(ids[:k], s, f'r{n}-{k}', beyond=True) for k in (100, 150 + n, 300)]"
    )
    command = [sys.executable, "-c", code, str(tiny_folder), str(tmp_path / "s")]
    running = [subprocess.Popen([*command, str(n)], env=os.environ | {"OMP_NUM_THREADS": "1"}) for n in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    store = Store(tmp_path / "s")
    names = store.names()
    assert len(names) == 6
    for number, length in names.values():
        assert store.open(number).part(length).tokens.tolist() == list(range(5, 5 + length))
