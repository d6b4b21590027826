"""Methods: each is what its name says, refuses what it cannot do, and its result is an ordinary folder."""

import json
import math
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

import handscroll
from handscroll.base.errors import ConfigError
from handscroll.extend.methods import apply, candidates
from handscroll.lm import LM
from handscroll.models.weights import load_model, save_model
from handscroll.nn.positions.lengthen_learned import LEARNED, extrapolate, hierarchical, interpolate, tile
from handscroll.nn.positions.lengthen_rotary import METHODS
from handscroll.nn.scaling.table import OWN
from tests.conformance.families import reference, reference_logits, save
from tests.naming import naming

FACTORS = {"long_factor": [4.0] * 4, "short_factor": [1.0] * 4}


@pytest.fixture
def llama(tmp_path):
    return load_model(save(reference("llama"), tmp_path / "llama"))


@pytest.fixture
def gpt2(tmp_path):
    return load_model(save(reference("gpt2"), tmp_path / "gpt2"))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in OWN])
def test_every_method_writes_what_the_reference_reads(method, llama, tmp_path):
    """All candidates of all methods: trained to 64, read at 256 by both."""
    tokens = torch.randint(3, 97, (1, 256), generator=torch.Generator().manual_seed(0))
    entries = candidates(llama, method, 256, FACTORS if method == "longrope" else None)
    assert entries and all(entry.method == method for entry in entries)
    before = llama.config
    for number, entry in enumerate(entries[:3]):
        llama.config = before
        apply(llama, entry)
        assert llama.config.context == 256
        save_model(llama, tmp_path / str(number))
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / str(number), dtype=torch.float32).eval()
        with torch.no_grad():
            got = llama(tokens, length=256)
        assert (got - reference_logits(theirs, tokens)).abs().max() < 1e-4, entry.name
        again = load_model(tmp_path / str(number))
        assert again.config.context == 256


@pytest.mark.parametrize("method", sorted(OWN))
def test_what_only_handscroll_computes_is_refused_elsewhere(method, llama, tmp_path):
    """Every candidate comes back from its folder with the same logits, and no other library loads it."""
    tokens = torch.randint(3, 97, (1, 256), generator=torch.Generator().manual_seed(0))
    entries, before = candidates(llama, method, 256), llama.config
    assert entries and all(entry.method == method for entry in entries)
    for number, entry in enumerate(entries):
        llama.config = before
        apply(llama, entry)
        save_model(llama, tmp_path / str(number))
        again = load_model(tmp_path / str(number))
        assert llama.spec.positions[0].only_ours
        assert again.config == llama.config and again.config.context == 256 and again.config.trained == 64
        with torch.no_grad():
            assert torch.equal(again(tokens, length=256), llama(tokens, length=256))
        with pytest.raises((KeyError, ValueError)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            AutoModelForCausalLM.from_pretrained(tmp_path / str(number), dtype=torch.float32)
    llama.config = before
    assert method not in {entry.method for entry in candidates(llama, "auto", 256)}
    assert method in {entry.method for entry in candidates(llama, "all", 256)}


def test_a_self_extended_checkpoint_is_lengthened_again(llama):
    apply(llama, candidates(llama, "self-extend", 256)[0])
    longer = candidates(llama, "all", 1024)
    assert {entry.method for entry in longer} == {"self-extend"}
    assert all(
        entry.changes["positions"].scaling.reach >= 1024 and entry.changes["positions"].trained == 64
        for entry in longer
    )


def test_slopes_of_bloom(tmp_path):
    """Divided slopes are read back, give other logits, and are refused by the reference; untouched ones are not."""
    model = load_model(save(reference("bloom"), tmp_path / "bloom"))
    tokens = torch.randint(3, 97, (1, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(tokens)
    found = {entry.name: entry for entry in candidates(model, "all", 256)}
    assert list(found) == ["none", "slopes (factor 2)", "slopes (factor 4)"]
    assert [entry.name for entry in candidates(model, "auto", 256)] == ["none"]
    before = model.config
    for name, entry in found.items():
        model.config = before
        apply(model, entry)
        assert (model.config.context, model.config.trained) == (256, 64)
        save_model(model, tmp_path / name)
        again = load_model(tmp_path / name)
        assert again.config.context == 256
        with torch.no_grad():
            assert torch.equal(again(tokens), model(tokens))
            assert torch.equal(model(tokens), plain) == (name == "none")
        if name == "none":
            theirs = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
            assert (reference_logits(theirs, tokens) - plain).abs().max() < 1e-4
        else:
            with pytest.raises((KeyError, ValueError)):
                AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
    with pytest.raises(ConfigError, match=naming("'yarn'", "ALiBi")):
        candidates(model, "yarn", 512)


@pytest.mark.parametrize("method", LEARNED)
def test_learned_tables_go_on(method, gpt2, tmp_path):
    table = gpt2.get_parameter("position_embedding.weight").detach().clone()
    (entry,) = candidates(gpt2, method, 600)
    apply(gpt2, entry)
    longer = gpt2.get_parameter("position_embedding.weight")
    assert longer.shape == (600, 48) and gpt2.config.context == 600 and gpt2.config.trained == 256
    torch.testing.assert_close(longer[0], table[0])
    if method == "interpolate":
        torch.testing.assert_close(longer[-1], table[-1])
    else:
        blocks = {"tile": table, "copy-last-row": table[-1:].expand(256, -1)}
        blocks["hierarchical"] = table + (table[1] - table[0]) * 0.4 / 0.6
        torch.testing.assert_close(longer[:256], table)
        if method == "extrapolate":
            assert not torch.isclose(longer[256:], longer[255]).all(1).any()
        else:
            torch.testing.assert_close(longer[256:512], blocks[method])
    save_model(gpt2, tmp_path / "out")
    tokens = torch.randint(3, 97, (1, 600))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        assert (gpt2(tokens) - reference_logits(theirs, tokens)).abs().max() < 1e-4


def test_interpolation_by_hand():
    table = torch.tensor([[0.0], [1.0], [4.0]])
    torch.testing.assert_close(interpolate(table, 5).flatten(), torch.tensor([0.0, 0.5, 1.0, 2.5, 4.0]))
    torch.testing.assert_close(tile(table, 5).flatten(), torch.tensor([0.0, 1.0, 4.0, 0.0, 1.0]))
    by_hand = torch.tensor([0.0, 1.0, 4.0, 2 / 3, 5 / 3, 14 / 3, 8 / 3])  # 0.4 u_i + 0.6 u_j, u = table / 0.6
    torch.testing.assert_close(hierarchical(table, 7).flatten(), by_hand)


def test_what_goes_round_goes_on():
    turns, noise = torch.tensor([1.0, 3.0, 7.0, 20.0]), torch.Generator().manual_seed(0)
    angles = torch.arange(300, dtype=torch.float64)[:, None] * turns * 2 * math.pi / 63
    planes = torch.linalg.qr(torch.randn(24, 8, generator=noise, dtype=torch.float64))[0].T
    curve = 5.0 + torch.cat([angles.cos(), angles.sin()], dim=1) @ planes
    table = torch.cat([torch.full((1, 24), 9.0, dtype=torch.float64), curve[:63]])  # row 0 is no part of it
    torch.testing.assert_close(extrapolate(table, 301), torch.cat([table[:1], curve]))
    table[1:] += 0.05 * torch.randn(63, 24, generator=noise, dtype=torch.float64)
    longer = extrapolate(table, 301)
    assert torch.equal(longer[:64], table)
    for distance in (1, 2, 5):  # and neighbours stay as like each other, if not where they would be
        near, want = ((x[100 + distance : 300] * x[100 : 300 - distance]).sum(1) for x in (longer - 5.0, curve - 5.0))
        torch.testing.assert_close(near, want, atol=0.8, rtol=0.0)  # of 4


def test_a_table_that_only_turns_around_goes_on():
    """Turns by half a circle: repeated eigenvalues, of which a solver's eigenvectors need not be at right angles."""
    noise = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 5, generator=noise, dtype=torch.float64)
    table = torch.cat([rows[:1], rows[1:2].repeat(31, 1) * (-1.0) ** torch.arange(31)[:, None]])
    longer = extrapolate(table, 80) - table[1:].mean(0)
    want = table[1:2] * (-1.0) ** torch.arange(79)[:, None]
    assert (longer[32:] @ want[31:].T).sign().equal((want[31:] @ want[31:].T).sign())
    assert ((longer[32:] / want[31:] - 1).abs() < 0.1).all()


@pytest.mark.parametrize("table", [torch.ones(8, 4), torch.zeros(8, 4), torch.ones(1, 4), torch.eye(3, 4)])
def test_what_goes_nowhere_stays_there(table):
    longer = extrapolate(table, 20)
    assert torch.equal(longer[: len(table)], table) and longer.isfinite().all()
    assert longer.norm(dim=1).max() <= table.norm(dim=1).max() + 1e-5


def test_two_rows_make_at_most_the_square(gpt2):
    assert {entry.method for entry in candidates(gpt2, "auto", 256**2)} == set(LEARNED)
    assert {entry.method for entry in candidates(gpt2, "auto", 256**2 + 1)} == set(LEARNED) - {"hierarchical"}
    with pytest.raises(ConfigError, match=naming("256 x 256", "65,536", "70,000")):
        candidates(gpt2, "hierarchical", 70_000)


def test_wrong_requests_are_refused(llama, gpt2):
    for model, method, to, words in (
        (llama, "yarm", 256, "'yarn'"),
        (llama, "pi", 64, "longer"),
        (llama, "pi", 32, "longer"),
        (llama, "longrope", 256, "--factors"),
        (llama, "interpolate", 256, "rotary"),
        (gpt2, "yarn", 600, "learned"),
        (gpt2, "tile", 200, "longer"),
    ):
        with pytest.raises(ConfigError, match=words):
            candidates(model, method, to)
    with pytest.raises(ConfigError, match="4 numbers"):
        candidates(llama, "longrope", 256, {"long_factor": [1.0], "short_factor": [1.0] * 4})
    with pytest.raises(ConfigError, match="longrope"):
        candidates(llama, "pi", 256, FACTORS)


def test_a_scaled_checkpoint_is_lengthened_by_its_own_method(tmp_path):
    model = load_model(save(reference("llama", "yarn"), tmp_path))
    (entry,) = candidates(model, "auto", 512)
    assert entry.changes["positions"].scaling.factor == 8.0 and entry.changes["positions"].trained == 64
    with pytest.raises(ConfigError, match="'yarn'"):
        candidates(model, "pi", 512)


def test_provenance_travels_with_the_folder(tiny_folder, tmp_path):
    lm = handscroll.load(tiny_folder)
    longer = handscroll.extend(lm, to=128, method="pi")
    assert isinstance(longer, LM) and lm.context == 64 and longer.context == 128
    longer.save(tmp_path / "x")
    kept = json.loads((tmp_path / "x" / "handscroll.json").read_text())
    assert kept["method"] == "pi" and kept["trained"] == 64 and handscroll.load(tmp_path / "x").provenance == kept
