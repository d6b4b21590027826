"""Needle grids by shared readings against every cell by itself: the same cells, tokens processed and seconds.

    python -m bench.needle_grid handscroll/starter --lengths 15x4096 --depths 15 --samples 2 --dtype float32
    python -m bench.needle_grid MODEL --lengths 8x8192 --depths 8 --samples 1

NxL means N lengths in equal steps up to L; a list (512,1024) is taken as it is. Use float32 where weights are float: in
bfloat16 a near tie of two tokens may fall either way. Cells whose depths fell on one place are one cell: "all cells"
counts it as often as it was asked for, as a run of the plain grid does, with the seconds that it took once; "the
different cells" counts it once. Both ways are kept in the folder --keep as they go, so a long comparison can be stopped
and gone on with; then the seconds are those of the last run, and the table says so.
"""

import argparse
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import handscroll
from handscroll.evaluate.haystack import haystack
from handscroll.evaluate.needle import NeedleGrid, arranged, needle_grid


def lengths_of(text: str) -> tuple[int, ...]:
    if "x" not in text:
        return tuple(map(int, text.split(",")))
    count, longest = map(int, text.split("x"))
    return tuple(round(longest * (number + 1) / count) for number in range(count))


def measured(
    lm: Any, filler: list[int], grid: NeedleGrid, keep: Path | None
) -> tuple[dict[str, Any], list[float], bool]:
    """The record, the seconds of each part, and whether it went on from an earlier run."""
    again, ends = keep is not None and keep.exists(), [monotonic()]
    record = needle_grid(lm, filler, grid, "x", lambda done, parts: ends.append(monotonic()), keep)
    return record, [end - begun for begun, end in pairwise(ends)], again


def of_all(lm: Any, filler: list[int], grid: NeedleGrid, record: dict[str, Any], seconds: list[float]) -> float:
    """The seconds of all cells that were asked for, each by itself, from the seconds of the different ones."""
    took: defaultdict[tuple[int, int], float] = defaultdict(float)
    for part, one in zip(arranged(lm, filler, grid).parts(), seconds, strict=True):
        took[part.lengths[0], part.place] += one
    return sum(took[one["length"], one["place"]] for one in record["outcomes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lengths", default="15x4096")
    parser.add_argument("--depths", type=int, default=15)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--haystacks", type=int, default=1)
    parser.add_argument("--text", nargs="*")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    lengths = lengths_of(given.lengths)
    depths = tuple(number / max(1, given.depths - 1) for number in range(given.depths))
    lm = handscroll.load(given.model, dtype=given.dtype)
    filler = haystack(lm.tokenizer, given.text, max(lengths))
    grid = NeedleGrid(lengths=lengths, depths=depths, samples=given.samples, haystacks=given.haystacks)
    keeps = [given.keep and given.keep / f"{name}.jsonl" for name in ("shared", "alone")]
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    shared, parts, again = measured(lm, filler, grid, keeps[0])
    fast = sum(parts)
    print(f"shared readings: {shared['tokens']:,} tokens, {fast:.1f} s{' (went on)' if again else ''}", flush=True)
    single = grid.model_copy(update={"alone": True})
    alone, parts, again = measured(lm, filler, single, keeps[1])
    slow, plain = sum(parts), of_all(lm, filler, single, alone, parts)
    print(f"cells by themselves: {alone['tokens']:,} tokens, {slow:.1f} s{' (went on)' if again else ''}", flush=True)
    whole = given.samples * len(depths) * sum(length - 1 for length in lengths)
    other = [(a, b) for a, b in zip(shared["outcomes"], alone["outcomes"], strict=True) if a != b]
    shift = [abs(one["at"] - one["depth"]) for one in shared["outcomes"]]
    print(
        f"{len(lengths)} x {len(depths)} cells, {shared['cells']} different, {len(shared['places'])} places, "
        f"{given.samples} samples; depths shifted by {sum(shift) / len(shift):.3f} on average, {max(shift):.3f} at most"
    )
    print(f"cells that differ: {len(other)}")
    print(
        f"tokens: {whole / shared['tokens']:.2f}x fewer than all cells, "
        f"{alone['tokens'] / shared['tokens']:.2f}x fewer than the different cells"
    )
    print(f"time: {plain / fast:.2f}x less than all cells, {slow / fast:.2f}x less than the different cells")
    for length, column in zip(lengths, zip(*shared["accuracy"], strict=True), strict=True):
        print(f"{length:>8,}: " + " ".join(f"{100 * value:>4.0f}" for value in column))


if __name__ == "__main__":
    main()
