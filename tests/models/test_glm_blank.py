"""The original GLM: two-dimensional positions, a text read both ways, blanks filled from left to right."""

import itertools

import numpy as np
import pytest
import torch

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.data.blanks import Blanks, corrupt, draw_spans
from handscroll.data.row import IGNORED
from handscroll.data.sources import TokenSource
from handscroll.evaluate.perplexity import measure
from handscroll.evaluate.samples import Sample
from handscroll.extend.methods import candidates
from handscroll.generate.blanks import fill
from handscroll.generate.engine.engine import Engine
from handscroll.generate.sample import Sampling
from handscroll.lm import load
from handscroll.models.glm_blank import BlankGLM, BlankGLMConfig
from handscroll.nn.blanks import SPAN, SeesText, joined, parted
from handscroll.nn.init import initialise
from handscroll.nn.marks import Extent, Marks
from handscroll.nn.mask import Causal
from handscroll.objectives.blanks import Infill
from handscroll.plan.choose import options
from handscroll.plan.machine import this_machine
from handscroll.plan.workloads import recipe_workloads
from handscroll.text.blanks import BlankTokens
from handscroll.train.recipe import Recipe
from handscroll.train.start import RunOptions, run_recipe
from tests.generate.asking import decode
from tests.naming import naming
from tests.resuming import resumes_to_the_same_bytes

TOKENS = BlankTokens(blank=60, rest=61, start=62, end=63)


def build(**more) -> BlankGLM:
    sizes = {"vocab": 64, "width": 32, "layers": 2, "heads": 4, "mlp_width": 64, "context": 96, "inside": 64}
    model = BlankGLM(BlankGLMConfig.parse(sizes | vars(TOKENS) | more, "test"))
    initialise(model, "normal", 2, torch.Generator().manual_seed(2), std=0.3)
    return model.eval()


def source() -> TokenSource:
    random = np.random.default_rng(5)
    return TokenSource([random.integers(1, 59, size) for size in (40, 5, 300, 90)])


def hidden(model, tokens, positions, segment=None, index=None):
    tokens, positions = torch.as_tensor(tokens)[None], torch.as_tensor(positions)[None]
    index = torch.arange(tokens.shape[1])[None] if index is None else torch.as_tensor(index)[None]
    marks = Marks.of(index, None if segment is None else torch.as_tensor(segment)[None], positions)
    return model.hidden(model.embed(tokens, marks), marks, Infill().mask(model, marks))[0]


def test_the_example_of_the_paper():
    """Figure 2: of x1 .. x6 the spans x3 and x5 x6 are blanked; the second comes first."""
    ids, targets, positions = corrupt(np.array([1, 2, 3, 4, 5, 6]), [(2, 3), (4, 6)], [1, 0], TOKENS, 60)
    assert ids.tolist() == [1, 2, 60, 4, 60, 62, 5, 6, 62, 3]
    assert targets.tolist() == [IGNORED] * 5 + [5, 6, 63, 3, 63]
    place, inside = parted(torch.from_numpy(positions))
    assert place.tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 2, 2]
    assert inside.tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 1, 2]
    assert torch.equal(joined(place, inside), torch.from_numpy(positions))
    marks = Marks.of(torch.arange(10)[None], positions=torch.from_numpy(positions)[None])
    seen = (SeesText() | Causal()).allowed(marks, marks, torch.device("cpu"))[0]
    want = torch.ones(10, 10, dtype=torch.bool).tril()
    want[:, :5] = True
    assert torch.equal(seen, want)


def test_what_the_mask_says_of_blocks_is_what_it_says_of_tokens():
    for near, far in ((0, 9), (SPAN, 3 * SPAN), (3, SPAN + 3)):
        said = SeesText().within(Extent(0, 9), Extent(0, 9, near=near, far=far))
        keys = torch.tensor([[[near, far]]])
        each = SeesText().sees((keys * 0, keys * 0, keys * 0), (keys * 0, keys * 0, keys)).flatten().tolist()
        assert said is (True if all(each) else False if not any(each) else said) and (said in (True, False)) == (
            len(set(each)) == 1
        )


def test_spans_are_a_share_of_the_text_and_of_poisson_length():
    random, lengths = np.random.default_rng(0), []
    for size in [9, 40, 200] * 60:
        spans = draw_spans(random, size, 0.15, 3.0)
        assert sum(last - first for first, last in spans) == max(1, round(0.15 * size))
        assert all(0 <= first < last <= size for first, last in spans)
        assert all(last < following for (_, last), (following, _) in itertools.pairwise(spans))
        lengths += [last - first for first, last in spans[:-1]] if size == 200 else []
    assert np.mean(lengths) == pytest.approx(3.0 / (1 - np.exp(-3.0)), abs=0.35)  # the end of a share is cut


def test_rows_are_functions_of_seed_and_number():
    stream = Blanks(source(), TOKENS, 64, seed=3, document=0.3)
    items = [item for item, _ in zip(stream, range(6), strict=False)]
    again = [item for item, _ in zip(stream.resume(items[2][1]), range(3), strict=False)]
    for (row, _), (want, _) in zip(again, items[3:], strict=True):
        for name in ("tokens", "targets", "positions", "segment"):
            assert np.array_equal(getattr(row, name), getattr(want, name)), name
    assert not np.array_equal(items[0][0].tokens, items[1][0].tokens)
    assert not np.array_equal(Blanks(source(), TOKENS, 64, seed=4).row(0).tokens, items[0][0].tokens)


@pytest.mark.parametrize("document", [0.0, 1.0])
def test_a_row_can_be_put_together_again(document):
    """Every piece of a row, with its spans put back into their blanks, is a piece of the text."""
    texts = source()
    stream = Blanks(texts, TOKENS, 128, seed=1, document=document, longest=40)
    pieces = shuffled = 0
    for number in range(8):
        row = stream.row(number)
        assert row.segment is not None and row.positions is not None
        for segment in range(int(row.segment.max()) + 1):
            here = row.segment == segment
            tokens, targets, where = row.tokens[here], row.targets[here], row.positions[here]
            place, inside = where % SPAN, where // SPAN
            written_order = place[inside == 1].tolist()
            shuffled += written_order != sorted(written_order)
            given, filling = tokens[inside == 0].tolist(), {}
            for at in np.unique(place[inside > 0]):
                written = (inside > 0) & (place == at)
                assert tokens[written][0] == TOKENS.start and targets[written][-1] == TOKENS.end
                assert targets[written][:-1].tolist() == tokens[written][1:].tolist()
                assert inside[written].tolist() == list(range(1, written.sum() + 1))
                filling[at] = tokens[written][1:].tolist()
                assert given[at] == (TOKENS.rest if document else TOKENS.blank)
            whole = [t for at, token in enumerate(given) for t in filling.get(at, [token])]
            assert not {60, 61} & set(whole) and (targets[inside == 0] == IGNORED).all()
            assert any(np.array_equal(text[at : at + len(whole)], whole) for text in texts for at in range(len(text)))
            pieces += 1
    assert pieces > 16 and (shuffled == 0 if document else shuffled > pieces // 3)


@torch.no_grad()
def test_the_text_is_read_both_ways_and_what_fills_it_forwards():
    model = build().double()
    ids, _, positions = corrupt(np.array([1, 2, 3, 4, 5, 6]), [(2, 3), (4, 6)], [1, 0], TOKENS, 60)
    before = hidden(model, ids, positions)
    for changed, first in ((3, 0), (6, 6), (9, 9)):
        other = ids.copy()
        other[changed] = 33
        moved = (hidden(model, other, positions) - before).abs().amax(dim=1) > 1e-9
        assert not moved[:first].any() and moved[first:].all(), changed


@torch.no_grad()
def test_blanks_are_filled_over_the_cache_as_without_it():
    model, prompt = build(), [5, 60, 7, 8, 60, 9, 10]
    found = fill(model, prompt, Sampling(max_tokens=6))
    assert [one.place for one in found] == [1, 4]
    ids, positions = list(prompt), list(range(len(prompt)))
    for one in found:
        written = [62]
        for inside in range(1, 7):
            line = ids + written
            where = positions + [one.place + SPAN * at for at in range(1, inside + 1)]
            best = int(model.logits(hidden(model, line, where)[None])[0, -1].argmax())
            assert best == (63 if inside > len(one.tokens) else one.tokens[inside - 1])
            if best == 63:
                break
            written.append(best)
        assert one.finish == ("eos" if len(one.tokens) < 6 else "length")
        used = 1 + min(5, len(one.tokens))
        ids += written[:used]
        positions += [one.place + SPAN * at for at in range(1, used + 1)]
    assert fill(model, [5, 6], Sampling(max_tokens=3))[0].place == 2  # [gMASK] is appended
    drawn = [fill(model, prompt, Sampling(max_tokens=6, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_it_cannot_do_is_refused():
    model = build()
    assert model.config.describe_positions() == "learned tables of 96 places and 64 inside a blank"
    with pytest.raises(ConfigError, match="two learned tables"):
        candidates(model, "auto", 1000)
    with pytest.raises(ConfigError, match="blanks"):
        decode(model, [[5]], Sampling(max_tokens=2))
    with pytest.raises(ConfigError, match="directions"):
        Engine(model, blocks=8)
    with pytest.raises(CapacityError, match=r"\b63\b"):
        fill(model, [5, 60], Sampling(max_tokens=64))
    with pytest.raises(CapacityError, match="98 tokens"):
        fill(model, [5] * 97, Sampling(max_tokens=2))
    with pytest.raises(DataError, match=r"\b64\b"):
        fill(model, [64], Sampling(max_tokens=2))
    with pytest.raises(ConfigError, match="stop"):
        fill(model, [60], Sampling(max_tokens=2, stop=("x",)))
    with pytest.raises(ConfigError, match="four"):
        build(rest=60)
    with pytest.raises(DataError, match="8 tokens"):
        Blanks(TokenSource([np.arange(1, 5)]), TOKENS, 64, seed=1)


def test_a_recipe_teaches_it_to_fill_blanks(tmp_path):
    special = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sop]", "[eop]"]
    settings = {
        "seed": 1,
        "threads": 2,
        "text": {"files": ["{stdlib}/json/*.py"]},
        "tokenizer": {"train": {"vocab": 320, "special": special}},
        "model": {"family": "glm-blank", "sizes": {"width": 32, "layers": 1, "heads": 2, "mlp_width": 64}},
        "objective": "blanks",
        "data": {"blanks": {"kind": "blanks", "document": 0.25, "longest": 48}},
        "stages": [{"length": 96, "rows": 4, "micro": 2, "steps": 6, "mix": {"blanks": 1.0}}],
        "optimizer": {"name": "adamw", "lr": 0.02},
        "regularise": {"dropout": 0.1},
        "loop": {"save_every": 2},
    }
    recipe = Recipe.parse(settings, "recipe")
    (workload,) = recipe_workloads(recipe)
    assert {one.workload.strategy for one in options(workload, this_machine())} == {
        "plain",
        "checkpoint",
        "layer-outer",
    }
    seen: list[dict] = []
    run_recipe(recipe, tmp_path / "straight", RunOptions(on_record=seen.append))
    assert seen[-1]["loss"] < seen[0]["loss"] - 0.2

    resumes_to_the_same_bytes(recipe, tmp_path / "straight", step=5)
    lm = load(tmp_path / "straight" / "model")
    filled = lm.fill("def [MASK](self):", max_tokens=5)
    assert filled.startswith("def ") and filled.endswith("(self):") and "[MASK]" not in filled
    # Of 94 tokens in a blank at most 256 are asked for unless told; only the two blanks are no ordinary text.
    assert lm.fill("import [MASK]\n").startswith("import ")
    assert lm.fill("a [sop] b <|endoftext|> [MASK]", max_tokens=1).startswith("a [sop] b <|endoftext|> ")
    with pytest.raises(ConfigError, match="directions"):
        measure(lm, [Sample(list(range(20)), "made", 0)], "as it is")
    with pytest.raises(ConfigError, match="'blanks'"):
        Recipe.parse(settings | {"data": {"blanks": {"kind": "text"}}}, "recipe")
    for sizes, said in (({"context": 40}, naming(48, 50)), ({"inside": 49}, naming(96, 49))):  # whole rests
        small = settings["model"] | {"sizes": settings["model"]["sizes"] | sizes}
        with pytest.raises(CapacityError, match=said):
            run_recipe(Recipe.parse(settings | {"model": small}, "recipe"), tmp_path / "small")
        assert not (tmp_path / "small" / "recipe.json").exists()
    plain = settings | {"tokenizer": {"train": {"vocab": 320}}}
    with pytest.raises(ConfigError, match="lacks"):
        run_recipe(Recipe.parse(plain, "recipe"), tmp_path / "plain")
