"""A second exact policy is served wherever the default is, or refused for a reason that its attributes give."""

import json
import re
import shutil
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pytest
import torch
from typer.testing import CliRunner

from handscroll.base.errors import ConfigError
from handscroll.cache.full import FullCache
from handscroll.cache.int8 import Int8Cache
from handscroll.cache.reading.store import Store
from handscroll.cache.table import POLICIES
from handscroll.cli.main import app
from handscroll.generate.beam import Beams, beam_search
from handscroll.generate.draft import Lookup
from handscroll.generate.engine.engine import Engine
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.lm import load
from handscroll.models.weights import load_model
from tests.cli.material import run
from tests.conformance.families import FORMS
from tests.generate.asking import decode
from tests.generate.readings import text
from tests.models.t5 import save, tokens
from tests.naming import naming

IDS = text(90)
SHORT = Sampling(max_tokens=6)
TEMPLATE = "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}"


@dataclass(eq=False)
class MirrorCache(FullCache):
    """The full cache under another name."""

    policy: ClassVar[str] = "mirror"
    made: ClassVar[int] = 0

    def __post_init__(self):
        super().__post_init__()
        type(self).made += 1


@dataclass(eq=False)
class RoundedCache(Int8Cache):
    """The cache in int8 under another name."""

    policy: ClassVar[str] = "rounded"


@dataclass(eq=False)
class LoneCache(FullCache):
    """An exact cache that is not cut back, shared or saved."""

    policy: ClassVar[str] = "lone"
    rewinds: ClassVar[bool] = False
    saved: ClassVar[bool] = False


@pytest.fixture(autouse=True)
def invented(monkeypatch):
    for kind in (MirrorCache, LoneCache, RoundedCache):
        monkeypatch.setitem(POLICIES, kind.policy, kind)
    monkeypatch.setattr(MirrorCache, "made", 0)


@pytest.fixture
def lm(stretched_folder):
    return load(stretched_folder)


def test_texts_samples_and_drafts_are_those_of_the_default(lm):
    assert lm.generate(IDS, max_tokens=6, policy="mirror") == lm.generate(IDS, max_tokens=6, policy="lone")
    for how in ({"samples": 3, "temperature": 1.0}, {"draft": Lookup(2)}):
        asked = [item.text for item in lm.continuations(IDS, max_tokens=6, policy="mirror", **how)]
        assert asked == [item.text for item in lm.continuations(IDS, max_tokens=6, **how)]
        with pytest.raises(ConfigError, match=naming("'lone'", "shared", "'full'", "'int8'", "'mirror'")):
            lm.continuations(IDS, max_tokens=6, policy="lone", **how)
    assert MirrorCache.made


def test_beams_take_what_is_exact_and_can_be_shared(lm):
    assert lm.beams(IDS, 3, max_tokens=6, policy="mirror") == lm.beams(IDS, 3, max_tokens=6)
    assert MirrorCache.made
    for policy in ("lone", "offload"):
        with pytest.raises(ConfigError, match=naming(f"'{policy}'", "shared", "'full' or 'mirror'")):
            beam_search(lm.model, Request(IDS, SHORT, policy=policy), Beams(3))
    with pytest.raises(ConfigError, match=naming("'int8'", "approximate", "'full' or 'mirror'")):
        beam_search(lm.model, Request(IDS, SHORT, policy="int8"), Beams(3))


def test_saved_readings_of_exact_policies_are_the_same(lm, tmp_path):
    store, prompt = Store(tmp_path), [*IDS, 7]
    reading = lm.read(IDS, store, "book", 100, policy="mirror")
    assert MirrorCache.made and reading.number == lm.read(IDS, store, "again", 100).number
    want = lm.generate(prompt, max_tokens=6)
    for policy in ("full", "mirror"):
        assert store.find(lm.identity(100, policy), torch.tensor(IDS)) is not None
        assert lm.generate(prompt, max_tokens=6, store=store, policy=policy) == want
    assert store.find(lm.identity(100, "int8"), torch.tensor(IDS)) is None
    assert lm.ask("book", "?", store, max_tokens=3)
    for refused in (partial(lm.generate, prompt), partial(lm.read, IDS)):
        with pytest.raises(ConfigError, match=naming("'lone'", "full", "int8", "mirror")):
            refused(store=store, policy="lone")


def test_a_reading_of_another_policy_in_int8_is_saved_and_read(lm, tmp_path):
    store, prompt = Store(tmp_path), [*IDS, 7]
    lm.read(IDS, store, "book", 100, policy="rounded")
    want = lm.generate(prompt, max_tokens=6, policy="int8")
    assert lm.generate(prompt, max_tokens=6, store=store, policy="rounded") == want
    about = store.about(store.find(lm.identity(100, "rounded"), torch.tensor(IDS)).number)
    assert about.kept == torch.int8


def test_a_reading_in_int8_that_does_not_say_so_is_read(lm, tmp_path):
    """One that was made before readings named their dtype."""
    store, prompt = Store(tmp_path), [*IDS, 7]
    lm.read(IDS, store, "book", 100, policy="int8")
    want = lm.generate(prompt, max_tokens=6, store=store, policy="int8")
    for path in tmp_path.rglob("about.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        assert values.pop("rounded") == "int8"
        path.write_text(json.dumps(values), encoding="utf-8")
    assert lm.generate(prompt, max_tokens=6, store=Store(tmp_path), policy="int8") == want


def test_the_engine_keeps_its_own_blocks_and_reads_exact_readings(lm, tmp_path):
    store, engine = Store(tmp_path), Engine(lm.model, blocks=20)
    with pytest.raises(ConfigError, match=naming("the engine", "'mirror'", "keeps keys and values itself")):
        engine.submit(Request(IDS, SHORT, policy="mirror"))
    job = engine.submit(Request([*IDS, 7], SHORT, reading=lm.read(IDS, store, room=100, policy="mirror")))
    list(engine.run())
    assert lm.decode(job.tokens[len(IDS) + 1 :]) == lm.generate([*IDS, 7], max_tokens=6)
    with pytest.raises(ConfigError, match=naming("'int8'", "approximate", "'full' or 'mirror'")):
        engine.submit(Request([*IDS, 7], SHORT, reading=lm.read(IDS, store, room=100, policy="int8")))


def test_an_encoder_decoder_takes_every_exact_cache(tmp_path):
    save("v1.0", tmp_path)
    model, sources = load_model(tmp_path), [tokens(1, count, 11)[0].tolist() for count in (30, 5)]
    long = Sampling(max_tokens=40)

    def written(policy):
        return [[item.token for item in step] for step in decode(model, sources, long, (), policy=policy)]

    want = written("full")
    for policy in ("mirror", "lone", "offload:block=8,recent=8"):
        assert written(policy) == want
    with pytest.raises(ConfigError, match=naming("'int8'", "approximate", "'full'", "'offload'", "'mirror'", "'lone'")):
        decode(model, sources, SHORT, policy="int8")


def test_a_state_takes_no_policy_and_a_budget_none_beside_it(lm):
    with pytest.raises(ConfigError, match="state of constant size"):
        decode(FORMS["lstm"].build(torch.float32), [[1, 2]], SHORT, policy="mirror")
    with pytest.raises(ConfigError, match=naming("kv_budget", "'mirror'")):
        lm.generate(IDS, max_tokens=6, policy="mirror", kv_budget="50%")


def test_the_command_names_the_cache_and_a_chat_goes_on_from_exact_readings(stretched_folder, tmp_path):
    folder, where = tmp_path / "model", ["--store", tmp_path / "store"]
    shutil.copytree(stretched_folder, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    (tmp_path / "a.py").write_text("import os\n\n\ndef walk(top):\n    return top\n" * 3, encoding="utf-8")
    command = ["generate", folder, "--prompt", "import os", "--max-tokens", "4", "--json"]
    assert json.loads(run(*command, "--cache", "mirror"))["cache"] == {"policy": "mirror", "exact": True, "report": ""}
    assert "cache" not in json.loads(run(*command, "--cache", "full"))
    for policy in ("mirror", "int8"):
        run("read", folder, tmp_path / "a.py", "--save", f"by-{policy}", "--room", "90", "--cache", policy, *where)
    words = ["chat", folder, "--max-tokens", "4", *where, "--reading"]
    run(*words, "by-int8", fails="'by-int8' is kept in 'int8', which is approximate")
    done = CliRunner().invoke(app, [str(word) for word in (*words, "by-mirror")], input="why?\n")
    whole, reused, read, _ = map(int, re.findall(r"\d+", re.findall(r"\[.*re-used.*", done.stderr)[0]))
    assert whole == reused + read and read < 30 < reused
