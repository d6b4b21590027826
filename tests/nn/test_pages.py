"""Attention over pages against the oracle, row by row, and rows that do not depend on each other."""

import math
from dataclasses import replace

import pytest
import torch

from handscroll.kernels.formats import FORMATS
from handscroll.kernels.native import calls
from handscroll.kernels.native.library import library, reason
from handscroll.nn import attend as kernels
from handscroll.nn.linear import Linear
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, ChunksBack, Mask, Window
from handscroll.nn.pages import Pages, Past, Row, Table, gathered
from handscroll.nn.quantised import PROJECTIONS, Quantised
from handscroll.nn.span import Span
from tests.masks import First

needs_library = pytest.mark.skipif(library() is None, reason=f"no compiled kernels: {reason()}")
KV, SIZE, PAGE = 2, 32, 8
LENGTHS = (1, 8, 37, 700, 1100)


def pool(dtype, seed=0):
    """Shuffled pages for rows of LENGTHS; what no row owns is not a number."""
    stream = torch.Generator().manual_seed(seed)
    counts = [-(-length // PAGE) for length in LENGTHS]
    order = torch.randperm(sum(counts) + 3, generator=stream).tolist()
    keys, values = (torch.full((KV, len(order) * PAGE, SIZE), math.nan, dtype=dtype) for _ in "kv")
    rows = []
    for length, count in zip(LENGTHS, counts, strict=True):
        pages = [order.pop() for _ in range(count)]
        rows.append(Row(pages, 0, length))
        for token in range(length):
            slot = pages[token // PAGE] * PAGE + token % PAGE
            for x in (keys, values):
                x[:, slot] = torch.randn(KV, SIZE, generator=stream).to(dtype)
    return keys, values, rows


def queries(count, heads=6, dtype=torch.float32):
    return torch.randn(count, heads, 1, SIZE, generator=torch.Generator().manual_seed(9)).to(dtype)


def oracle(q, pages: Pages, mask: Mask):
    found = []
    for number, row in enumerate(pages.table.rows):
        marks = Marks.run(row.start + row.length - 1, 1)
        found.append(kernels.attend(q[number : number + 1], pages.spans(number), mask, marks, 0.2, "eager"))
    return torch.cat([out for out, _ in found]), torch.cat([lse for _, lse in found])


MASKS = [
    Causal(),
    Causal() & Window(20),
    Causal() & Window(600),
    Causal() & (Window(20) | First(4)),
    Causal() & ChunksBack(16, 0, 2),
]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("compiled", [True, False])
def test_every_row_equals_the_oracle(mask, dtype, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(calls, "refuses_pages", lambda *tensors: "not now")
        monkeypatch.setattr(calls, "refuses_decode", lambda *tensors: "not now")
    keys, values, rows = pool(dtype)
    pages = Pages(keys, values, Table(PAGE, rows), [None] * len(rows))
    q = queries(len(rows), dtype=dtype)
    newest = Marks.of(torch.tensor([[row.length - 1] for row in rows]))
    got, got_lse = kernels.attend(q, pages, mask, newest, 0.2)
    want, want_lse = oracle(q, pages, mask)
    limit = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(got, want, rtol=limit, atol=limit)
    torch.testing.assert_close(got_lse, want_lse, rtol=limit, atol=limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_came_before_the_pages(dtype):
    """A saved reading of 50 tokens before two of the rows."""
    keys, values, rows = pool(dtype)
    before = [torch.randn(1, KV, 50, SIZE, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (1, 2)]
    past = Span(before[0], before[1], Marks.run(0, 50))
    rows = [Row(row.pages, 50 * (number % 2), row.length) for number, row in enumerate(rows)]
    pages = Pages(keys, values, Table(PAGE, rows), [Past([past]) if row.start else None for row in rows])
    q = queries(len(rows), dtype=dtype)
    newest = Marks.of(torch.tensor([[row.start + row.length - 1] for row in rows]))
    for mask in (Causal(), Causal() & Window(60)):
        got, _ = kernels.attend(q, pages, mask, newest, 0.2)
        limit = 2e-6 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(got, oracle(q, pages, mask)[0], rtol=limit, atol=limit)


def readings(kept):
    """Two saved readings: one in two parts, 300 and 77 tokens, and one of 130 that begins with the first of them."""
    stream = torch.Generator().manual_seed(3)
    found = []
    for start, count in ((0, 300), (300, 77), (300, 130)):
        pair = [torch.randn(1, KV, count, SIZE, generator=stream).to(kept) for _ in "kv"]
        found.append(Span(*pair, Marks.run(start, count)))
    return [found[0], found[1]], [found[0], found[2]]


def continued(kept, alike):
    """Rows of which the second continues the first reading, the third and fifth the second one."""
    keys, values, rows = pool(kept)
    first, second = readings(kept)
    own = Past([replace(span) for span in second])  # a request may have a view of its own of a reading
    past = [None, Past(first), Past(second), None, own]
    before = [0, 377, 430, 0, 430]
    rows = [Row(row.pages, start, row.length) for row, start in zip(rows, before, strict=True)]
    return Pages(keys, values, Table(PAGE, rows, alike), past)


@needs_library
@pytest.mark.parametrize("mask", [Causal(), Causal() & Window(60), Causal() & Window(500)], ids=str)
@pytest.mark.parametrize(("dtype", "kept"), [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float32, torch.half)])
@pytest.mark.parametrize("alike", [True, False])
def test_rows_that_continue_one_reading_read_it_together(dtype, kept, mask, alike, monkeypatch):
    pages = continued(kept, alike)
    q = queries(len(LENGTHS), 34, dtype)
    newest = Marks.of(torch.tensor([[row.start + row.length - 1] for row in pages.table.rows]))
    asked, decode = [], calls.decode_runs

    def counted(q, runs, *more):
        asked.append((q.shape[2], len(runs.table)))
        return decode(q, runs, *more)

    monkeypatch.setattr(calls, "decode_runs", counted)
    got, lse = kernels.attend(q, pages, mask, newest, 0.2)
    if mask == Causal():
        assert asked == [(1, 2), (2, 2)]  # both parts of a reading in one call, and one call for both of its rows
    want, want_lse = oracle(q, pages, mask)
    limit = 2e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, want, rtol=limit, atol=limit)
    torch.testing.assert_close(lse, want_lse, rtol=limit, atol=limit)
    for order in ([4], [1], [3, 2], [2, 4, 1], [4, 3, 2, 1, 0]) if alike else ():
        few, few_lse = kernels.attend(q[order], pages.part(order), mask, Marks.run(0, 1), 0.2)
        assert torch.equal(few, got[order]) and torch.equal(few_lse, lse[order]), "the same bits in any company"


@needs_library
@pytest.mark.parametrize("size", [16, 48, 64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alike", [True, False])
def test_rows_over_the_same_pages_equal_the_oracle(dtype, size, alike):
    """As many rows as fill several tiles, of all sizes of heads; most share three quarters of their pages."""
    stream = torch.Generator().manual_seed(size)
    keys, values = (torch.randn(KV, 170 * PAGE, size, generator=stream).to(dtype) for _ in "kv")
    common = torch.randperm(120, generator=stream).tolist()
    rows = [Row([*common, *range(120 + 7 * n, 127 + 7 * n)], 0, 120 * PAGE + 50 + n) for n in range(5)]
    rows += [Row(common[:n], 0, n * PAGE - 3) for n in (1, 8, 9)]
    pages = Pages(keys, values, Table(PAGE, rows, alike), [None] * len(rows))
    q = torch.randn(len(rows), 22, 1, size, generator=stream).to(dtype)
    got, lse = kernels.attend(q, pages, Causal(), Marks.run(0, 1), 0.2)
    want, want_lse = oracle(q, pages, Causal())
    limit = 5e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, want, rtol=limit, atol=limit)
    torch.testing.assert_close(lse, want_lse, rtol=limit, atol=limit)
    for n in range(len(rows)) if alike else ():
        alone = kernels.attend(q[[n]], pages.part([n]), Causal(), Marks.run(0, 1), 0.2)[0]
        assert torch.equal(alone, got[[n]])


@needs_library
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_any_company(dtype, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    keys, values, rows = pool(dtype)
    whole = Pages(keys, values, Table(PAGE, rows, alike=True), [None] * len(rows))
    q = queries(len(rows), dtype=dtype)
    assert not calls.refuses_pages(q, keys, values)
    together, lse = kernels.attend(q, whole, Causal(), Marks.run(0, 1), 0.2)
    for order in ([4], [3, 0], [2, 4, 1], [4, 3, 2, 1, 0]):
        got, got_lse = kernels.attend(q[order], whole.part(order), Causal(), Marks.run(0, 1), 0.2)
        assert torch.equal(got, together[order]) and torch.equal(got_lse, lse[order])


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inner", [592, 64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rounded", [True, False])
def test_a_product_has_the_same_bits_for_any_number_of_rows(dtype, inner, bias, rounded):
    """Quantised ones for up to so many rows as `alike` says, and for more than these."""
    stream = torch.Generator().manual_seed(inner)
    layer = Linear(inner, 101, bias=bias).to(dtype)
    layer = Quantised.of(PROJECTIONS["int8"], layer.weight, layer.bias) if rounded else layer
    x = torch.randn(8, inner, generator=stream).to(dtype)
    with torch.no_grad():
        most = calls.alike(FORMATS["int8"].number) if rounded else 8
        few = torch.cat([layer(x[first : first + most]) for first in range(0, 8, most)])
        many = layer(x)
        for count in range(1, 9):
            together = few if count <= most else many
            for first in range(0, 9 - count):
                assert torch.equal(layer(x[first : first + count]), together[first : first + count])


def test_pages_that_follow_are_not_copied():
    whole = torch.arange(2 * 40 * 4, dtype=torch.float32).view(2, 40, 4)
    for pages in ([2, 3, 4], [4, 2, 0], [3]):
        want = torch.cat([whole[:, page * 8 : page * 8 + 8] for page in pages], dim=1)[None]
        for view in (True, False):
            got = gathered(whole, pages, 8, view=view)
            assert torch.equal(got, want)
            shared = got.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
            assert shared == (view and pages != [4, 2, 0])
