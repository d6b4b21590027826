"""Offloaded caches: exact where they say so, bounded in memory, and what retrieval attends and misses."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.cache.files import DiskPages
from handscroll.cache.full import FullCache
from handscroll.cache.offload import OffloadCache
from handscroll.cache.reading.store import Store
from handscroll.cache.retrieval import RetrievalCache
from handscroll.cache.table import cache_of, footprint
from handscroll.cli.main import app
from handscroll.generate.prefill import hidden_chunks
from handscroll.generate.sample import Sampling
from handscroll.lm import load
from handscroll.models.llama import Llama
from handscroll.nn.attend import attend
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Window
from tests.generate.asking import decode
from tests.generate.material import TEXT
from tests.naming import naming

EXACT = [
    "offload",
    "offload:block=16,recent=0",
    "offload:block=7,recent=20,place=host",
    "retrieval:block=16,blocks=1000,recent=3",
]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def lm(tiny_folder):
    return load(tiny_folder)


@pytest.fixture
def windowed(lm):
    """The same weights, the second layer under a window of 50 tokens."""
    model = Llama(lm.model.config.model_copy(update={"windows": (None, 50)}))
    model.load_state_dict(lm.model.state_dict())
    return model


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits(model, ids, cache, prompt, chunk=64):
    """Logits (T, V): a prompt in chunks, then token by token."""
    marks, parts = Marks.run(0, len(ids)), []
    for first, last, step in ((0, prompt, chunk), (prompt, len(ids), 1)):
        tokens, part = torch.tensor([ids[first:last]]), marks.part(first, last)
        parts += [model.logits(h)[0] for _, _, h in hidden_chunks(model, tokens, part, cache, 400, step)]
    return torch.cat(parts)


def filled(cache, keys, values, chunk=50):
    """A cache of one layer with (1, K, S, E) keys and values."""
    for first in range(0, keys.shape[2], chunk):
        part = slice(first, min(first + chunk, keys.shape[2]))
        cache.append(0, keys[:, :, part], values[:, :, part], Marks.run(first, part.stop - first))
        cache.commit()
    return cache


@pytest.mark.parametrize("policy", EXACT)
@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_exact_policies_are_the_full_cache(lm, policy, chunk):
    ids = lm.encode(TEXT)[:260]
    want = logits(lm.model, ids, FullCache(lm.model.config.layers), 230, chunk)
    cache = cache_of(policy)(lm.model.config.layers)
    torch.testing.assert_close(logits(lm.model, ids, cache, 230, chunk), want, rtol=1e-5, atol=1e-5)
    assert cache.length == 260


@pytest.mark.parametrize("policy", [*EXACT, "retrieval:block=8,blocks=8,recent=0"])
def test_windows_are_kept(lm, windowed, policy):
    """A window of 50 tokens lies in at most 8 blocks of 8; the first layer, which sees all, reads all it may."""
    windowed.layers[0].attention.window = Window(60)
    ids = lm.encode(TEXT)[:260]
    want = logits(windowed, ids, FullCache(2), 230)
    assert not torch.allclose(want, logits(lm.model, ids, FullCache(2), 230), atol=1e-3)
    torch.testing.assert_close(logits(windowed, ids, cache_of(policy)(2), 230), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", EXACT)
def test_rows_of_different_lengths_are_those_alone(lm, policy):
    ids = lm.encode(TEXT)
    prompts = [ids[:200], ids[50:110], ids[20:190]]

    def tokens(batch, **how):
        steps = decode(lm.model, batch, Sampling(max_tokens=12), beyond=True, **how)
        found = [[] for _ in batch]
        for step in steps:
            for new in step:
                found[new.row].append(new.token)
        return found

    want = [tokens([prompt])[0] for prompt in prompts]
    assert tokens(prompts, policy=policy, chunk=64) == want


def test_memory_is_that_of_the_newest_tokens(lm):
    ids = lm.encode(TEXT)[:330]
    cache, sizes = OffloadCache(2, block=16, recent=16), []
    for first in range(0, 330, 30):
        logits(lm.model, ids[first : first + 30], cache, 30) if not first else lm.model(
            torch.tensor([ids[first : first + 30]]), cache=cache
        )
        sizes.append(cache.nbytes)
    per_token = lm.model.config.spec.cache_bytes(1, 4)
    assert cache.filed == cache._stored * per_token == 304 * per_token
    buffers = 48 * per_token  # recent and two blocks
    assert buffers <= max(sizes) <= buffers + 2 * 304 * per_token // 2  # and what the last run was read into


class OnDevice(torch.Tensor):
    """Stands for a tensor on a GPU: numpy cannot see it until it is copied to the CPU."""

    @classmethod
    def __torch_function__(cls, function, types, given=(), more=None):
        assert function is not torch.Tensor.numpy, "this tensor is on a device"
        if function is torch.Tensor.cpu:
            return given[0].as_subclass(torch.Tensor)
        return super().__torch_function__(function, types, given, more or {})


def test_pages_on_disk_are_copied_from_and_to_the_device(tmp_path):
    keys, values = random(1, 2, 8, 3), random(1, 2, 8, 3, seed=1)
    pages = DiskPages(4, tmp_path, torch.device("cpu"))
    pages.write(0, 0, keys.as_subclass(OnDevice), values.as_subclass(OnDevice))
    assert all(map(torch.equal, pages.run(0, 0, 2), (keys, values)))
    pages.device = torch.device("meta")  # nothing can be read there, but it shows where tensors are
    found = (pages.run(0, 0, 2), pages.pick(0, torch.tensor([[[1], [0]]])))
    assert {(part.device.type, part.shape[2]) for both in found for part in both} == {("meta", 8), ("meta", 4)}
    for both in found:
        pages.release(both)
    assert pages.nbytes == 2 * keys.nbytes  # one buffer on the host, which was used again


@pytest.mark.parametrize("policy", ["offload", "retrieval"])
def test_the_footprint_depends_on_where_the_tokens_are(lm, policy):
    def made(place, device):
        return footprint(f"{policy}:block=32{place}", lm.model.config, 4, device)

    token = lm.model.config.spec.cache_bytes(1, 4)
    for device in ("cpu", "cuda"):
        disk = made(",place=disk", device)
        assert disk.filed == token and disk.each < token
        where = {"each": disk.each + token} if device == "cpu" else {"hosted": token}
        on_host = disk.model_copy(update={"filed": 0} | where)
        assert made(",place=host", device) == on_host
        assert made("", device) == (disk if device == "cpu" else on_host)


@pytest.mark.parametrize("policy", ["offload:block=16,recent=5", "retrieval:block=16,blocks=4,recent=5,place=host"])
def test_offloaded_caches_are_copied_and_cut_like_full_ones(lm, policy):
    ids, new = lm.encode(TEXT)[:150], torch.tensor([[5, 9, 3]])
    cache, full = cache_of(policy)(2), FullCache(2)
    for each in (cache, full):
        logits(lm.model, ids, each, 150, 40)
    want = lm.model(new, cache=full.clone())
    for copy in (cache.clone(), cache.take_rows(torch.tensor([0])), cache):
        torch.testing.assert_close(lm.model(new, cache=copy), want, rtol=1e-5, atol=1e-5)
        for length in (150, 101, 96, 3, 0):
            copy.trim(length)
            part = full.clone()
            part.trim(length)
            assert copy.length == length
            got, expected = (lm.model(new, cache=c) for c in (copy, part))
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
            copy.trim(length)
        single = lm.model(torch.tensor([[5]]), cache=copy)
        torch.testing.assert_close(single, lm.model(torch.tensor([[5]])), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="cannot be shared"):
        cache.branch()


def test_nothing_is_left_behind(lm, tmp_path):
    before = opened()
    lm.generate(TEXT, policy=f"offload:block=16,recent=0,folder={tmp_path}", max_tokens=3, beyond=True)
    stream = lm.stream(TEXT, policy=f"retrieval:block=16,folder={tmp_path}", max_tokens=30, beyond=True)
    next(stream)
    assert opened() > before and not list(tmp_path.iterdir())
    stream.close()
    del stream
    assert opened() == before and not list(tmp_path.iterdir())


def opened() -> int:
    """Files that this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def limited(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_full_disk_is_an_error_and_the_cache_stays_usable(tmp_path):
    """In a process of its own, which may write no file larger than 300 KB."""
    code = """
import resource, sys, torch
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
from handscroll.base.errors import CapacityError
from handscroll.cache.offload import OffloadCache
from handscroll.nn.marks import Marks
cache = OffloadCache(2, block=64, recent=0, folder=sys.argv[1])
x = torch.randn(1, 2, 256, 64)
def forward():
    spans = [cache.append(layer, x, x, Marks.run(cache.length, 256)) for layer in range(2)]
    cache.commit()
    return spans
forward()
try:
    forward()
except CapacityError as error:
    print(error)
spans = cache.append(0, x[:, :, :1], x[:, :, :1], Marks.run(256, 1))
assert cache.length == 256 and torch.equal(spans[0].keys, x) and spans[-1].marks.length == 1
"""
    said = limited(code, tmp_path)
    assert "needs 262,144 bytes more (524,288 written)" in said and "name another folder (folder=...)" in said
    assert not list(tmp_path.iterdir())


def test_memory_of_the_process_is_bounded(tmp_path):
    """150 MB of keys and values: a full cache holds them, an offloaded one some megabytes, also while it attends."""
    code = """
import sys, torch
from handscroll.base.allocator import trim
from handscroll.cache.table import cache_of, footprint
from handscroll.nn.attend import attend
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
def grown(policy):
    cache, x = cache_of(policy)(3), torch.randn(1, 4, 512, 64)
    trim()  # what the run before left in the heap is no part of the base
    base, peak = anonymous(), 0
    for first in range(0, 24576, 512):
        for layer in range(3):
            cache.append(layer, x, x, Marks.run(first, 512))
        cache.commit()
        peak = max(peak, anonymous() - base)
    q, new = torch.randn(1, 8, 1, 64), x[:, :, :1]
    for layer in range(3):
        marks = Marks.run(24576, 1)
        spans = cache.append(layer, new, new, marks)
        if hasattr(cache, "select"):
            spans = cache.select(layer, q, spans, Causal(), marks, 0.125)
        attend(q, spans, Causal(), marks)
        peak = max(peak, anonymous() - base)
    return round(peak)
torch.set_grad_enabled(False)
where = f"folder={sys.argv[1]}"
grown("offload:" + where)
print(grown("offload:" + where), grown("retrieval:measure=1," + where), grown("full"))
"""
    offload, retrieval, full = map(int, limited(code, tmp_path).split())
    assert full > 140 and offload < 60 and retrieval < 70, (offload, retrieval, full)


def test_retrieval_attends_exactly_to_what_it_chose():
    """Against dense float64 attention: the output over the chosen blocks, and the recall as the share of the mass."""
    keys, values, q = random(1, 2, 330, 16), random(1, 2, 330, 16, seed=1), random(1, 6, 1, 16, seed=2) * 2
    cache = filled(RetrievalCache(1, block=8, blocks=5, recent=10, measure=1), keys[:, :, :329], values[:, :, :329])
    marks = Marks.run(329, 1)
    spans = cache.append(0, keys[:, :, 329:], values[:, :, 329:], marks)
    found = cache.select(0, q, spans, Causal(), marks, 0.25)
    assert sum(span.marks.length for span in found) == 5 * 8 + 330 - cache._stored
    chosen = cache._choose(0, q * 0.25, list(range(cache._stored // 8)))
    assert bool((chosen[:, :, 0] == 0).all()) and bool((chosen.diff(dim=-1) > 0).all())
    seen = torch.zeros(1, 2, 330, dtype=torch.bool)
    seen[:, :, cache._stored :] = True
    for head in range(2):
        for block in chosen[0, head].tolist():
            seen[0, head, block * 8 : block * 8 + 8] = True
    scores = q.double() @ keys.double().repeat_interleave(3, 1).mT * 0.25
    masked = scores.masked_fill(~seen.repeat_interleave(3, 1)[:, :, None], -math.inf)
    out, _ = attend(q, found, Causal(), marks, scale=0.25)
    want = masked.softmax(-1) @ values.double().repeat_interleave(3, 1)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    cache.commit()
    share = (masked.logsumexp(-1) - scores.logsumexp(-1)).exp().mean()
    assert cache.recall is not None and cache.recall.tokens == 1
    assert cache.recall.mean == cache.recall.worst == pytest.approx(float(share), rel=1e-5)
    assert 0.1 < share < 0.9


def test_retrieval_under_a_window_reads_its_edge_too():
    """Blocks before the window are no candidates; the one that its edge cuts is read in addition, under the mask."""
    keys, values, q = random(1, 1, 400, 16), random(1, 1, 400, 16, seed=1), random(1, 2, 1, 16, seed=2) * 2
    cache = filled(RetrievalCache(1, block=8, blocks=3, recent=10), keys[:, :, :399], values[:, :, :399])
    marks, mask = Marks.run(399, 1), Causal() & Window(130)  # sees 270 .. 399, so block 33 (264 .. 271) in part
    found = cache.select(0, q, cache.append(0, keys[:, :, 399:], values[:, :, 399:], marks), mask, marks, 0.25)
    whole = list(range(34, cache._stored // 8))
    chosen = cache._choose(0, q * 0.25, whole)[0, 0].tolist()
    assert len(chosen) == 3 and chosen[0] == 34 and set(chosen) <= set(whole)
    seen = torch.zeros(400, dtype=torch.bool)
    seen[cache._stored :] = seen[270:272] = True
    for block in chosen:
        seen[block * 8 : block * 8 + 8] = True
    scores = (q.double() @ keys.double().mT * 0.25).masked_fill(~seen, -math.inf)
    out, _ = attend(q, found, mask, marks, scale=0.25)
    torch.testing.assert_close(out.double(), scores.softmax(-1) @ values.double(), rtol=1e-5, atol=1e-5)


def test_retrieval_finds_a_needle():
    """One key that fits the query, far back and in one head only: its block is read, and nearly all mass with it."""
    keys, values, q = random(1, 2, 2000, 32) * 0.3, random(1, 2, 2000, 32, seed=1), random(1, 4, 1, 32, seed=2)
    keys[0, 1, 777] = q[0, 3, 0] * 3
    cache = filled(RetrievalCache(1, block=16, blocks=2, recent=16, measure=1), keys, values)
    marks = Marks.run(2000, 1)
    spans = cache.append(0, keys[:, :, :1], values[:, :, :1], marks)
    out, _ = attend(q, cache.select(0, q, spans, Causal(), marks, 32**-0.5), Causal(), marks)
    want, _ = attend(q, spans, Causal(), marks, 32**-0.5, "eager")
    torch.testing.assert_close(out[0, 3], want[0, 3], rtol=0.05, atol=0.1)
    torch.testing.assert_close(out[0, 3, 0], values[0, 1, 777], rtol=0.1, atol=0.1)
    assert (out - want)[0, :2].abs().max() > 0.05  # the other kv head has no needle, and reads a small part


def test_recall_is_one_where_the_mass_is_and_less_where_it_is_not(lm):
    """A real model: reports grow with what is read, and only forwards of one token are approximated."""
    ids, said = lm.encode(TEXT)[:300], []
    for blocks in (1, 6, 14):
        policy = f"retrieval:block=16,blocks={blocks},recent=0,measure=1"
        cache = cache_of(policy)(2)
        got = logits(lm.model, ids, cache, 290, 64)
        torch.testing.assert_close(got[:290], logits(lm.model, ids, FullCache(2), 290, 64)[:290], rtol=1e-5, atol=1e-5)
        assert cache.recall.tokens == 10
        said.append(cache.recall.mean)
    assert 0.05 < said[0] < said[1] < said[2] < 1


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        ("retrieval:blocks=0", "blocks=0"),
        ("retrieval:block=0", "block=0"),
        ("offload:recent=-1", "recent=-1"),
        ("retrieval:measure=-2", "measure=-2"),
        ("offload:block=x", naming("'block=x'", "'offload'")),
        ("offload:blocks=3", naming("'blocks=3'", "'block'")),
        ("offload:place=moon", naming("place=moon", "disk", "host")),
        ("offload:folder=/no/such", "folder=/no/such"),
        ("retrival", naming("'retrival'", "'retrieval'")),
        ("full:block=3", naming("'block=3'", "'full'")),
    ],
)
def test_what_is_refused(lm, policy, match):
    with pytest.raises(ConfigError, match=match):
        lm.generate("import", policy=policy, max_tokens=1)


@pytest.mark.parametrize("policy", ["int4", "offload"])
def test_gradients_are_refused(lm, policy):
    with torch.enable_grad(), pytest.raises(ConfigError, match="gradient"):
        lm.model(torch.tensor([[5, 6]]), cache=cache_of(policy)(2))


def test_a_reading_is_not_kept_in_an_offloaded_cache(lm, tmp_path):
    with pytest.raises(ConfigError, match="'offload'"):
        lm.read(TEXT, Store(tmp_path), policy="offload", beyond=True)


def test_a_folder_that_takes_no_files(lm):
    with pytest.raises(CapacityError, match="/proc"):
        lm.generate(TEXT, policy="offload:block=16,recent=0,folder=/proc", max_tokens=1, beyond=True)


def test_the_command_reports_recall(tiny_folder, tmp_path):
    (tmp_path / "prompt").write_text(TEXT)
    command = ["generate", str(tiny_folder), "--prompt", "-", "--max-tokens", "4", "--beyond"]
    exact = CliRunner().invoke(app, [*command, "--cache", "offload:block=16"], input=TEXT)
    part = CliRunner().invoke(app, [*command, "--cache", "retrieval:block=16,blocks=2,recent=8"], input=TEXT)
    assert exact.exit_code == part.exit_code == 0, part.stderr
    assert "approximate" not in exact.stderr and "approximate: --cache retrieval" in part.stderr
    assert "recall of the attention mass" in part.stderr and "(1 tokens measured)" in part.stderr
