"""How soon an answer begins over a text that was read before: a saved reading against reading anew, 135M Llama.

python -m bench.saved_reading [--lengths 8192,32768] [--dtype bfloat16] [--repeat 3]

Reading: prefill of the whole text to the first token of the answer. Saved: the page cache of the reading's files is
dropped, then the store finds it, verifies every hash, maps it and the model reads the question (16 tokens) to the first
token; the model is loaded and its fingerprint known. "from start": the same in a fresh process, imports, loading of the
model and its fingerprint included. The first 32 greedy tokens of both ways must be equal, or the run fails.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.systems import SHAPE, make_folder, timed

QUESTION = 16


def drop(folder: Path) -> None:
    """Drop the files' pages from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


class Desk:
    """A loaded model, a store, and a text of random tokens with a question after it."""

    def __init__(self, model: Path, store: Path, length: int, dtype: str):
        import torch

        from handscroll.cache.reading.store import Store
        from handscroll.models.weights import load_model

        torch.set_num_threads(2)
        self.model, self.store = load_model(model, getattr(torch, dtype), "cpu"), Store(store)
        draw = torch.Generator().manual_seed(length)
        self.ids = torch.randint(0, SHAPE["vocab"], (length + QUESTION,), generator=draw)
        self.length = length

    def identity(self):
        from handscroll.models.fingerprint import identity

        return identity(self.model, "bench", self.length)

    def read(self) -> None:
        """Read the text and save it."""
        from handscroll.generate.prefill import prefill
        from handscroll.nn.marks import Marks

        cache = self.model.new_cache(self.length)
        prefill(self.model, self.ids[None, : self.length], Marks.run(0, self.length), cache, self.length)
        self.store.save(self.identity(), self.ids[: self.length], cache, None, "bench")

    def answer(self, saved: bool, tokens: int = 1) -> list[int]:
        """The first greedy tokens after the question."""
        from handscroll.generate.decode import decode
        from handscroll.generate.request import Request
        from handscroll.generate.sample import Sampling

        reading = self.store.find(self.identity(), self.ids[:-1]) if saved else None
        assert not saved or (reading is not None and reading.length == self.length)
        request = Request(self.ids.tolist(), Sampling(max_tokens=tokens), ends=frozenset(), reading=reading)
        steps = decode(self.model, [request])
        return [new.token for step in steps for new in step]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="8192,32768")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        model, store, length, dtype = options.one
        print(Desk(Path(model), Path(store), int(length), dtype).answer(saved=True))
        return
    print(f"{'tokens':>8} {'reading':>9} {'saved':>8} {'sooner':>8} {'from start':>11} {'sooner':>8} {'MB':>7}")
    with tempfile.TemporaryDirectory(dir=".") as folder:  # not /tmp, which may be memory
        make_folder(Path(folder) / "model")
        for length in [int(text) for text in options.lengths.split(",")]:
            store = Path(folder) / f"store-{length}"
            desk = Desk(Path(folder) / "model", store, length, options.dtype)
            desk.read()
            fresh, saved, start = [], [], []
            for _ in range(options.repeat):
                fresh.append(timed(lambda desk=desk: desk.answer(saved=False)))
                drop(store)
                saved.append(timed(lambda desk=desk: desk.answer(saved=True)))
                drop(store)
                command = [sys.executable, "-m", "bench.saved_reading", "--one", f"{folder}/model", str(store)]
                started = time.perf_counter()
                subprocess.run([*command, str(length), options.dtype], check=True, capture_output=True)
                start.append(time.perf_counter() - started)
            if desk.answer(True, 32) != desk.answer(False, 32):
                raise SystemExit(f"{length} tokens: the answers differ")
            one, two, three = (statistics.median(times) for times in (fresh, saved, start))
            size = desk.store.nbytes / 1e6
            times = f"{one:>8.2f}s {two:>7.2f}s {one / two:>7.0f}x {three:>10.2f}s {one / three:>7.1f}x"
            print(f"{length:>8} {times} {size:>7.0f}", flush=True)


if __name__ == "__main__":
    main()
