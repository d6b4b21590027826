"""A GGUF file run as it is, beside llama.cpp on the same file: two threads, a fresh process a point.

python -m bench.gguf FILE [--lengths 512,8192,32768] [--peer PYTHON] [--text BOOK]

PYTHON is an interpreter that has llama-cpp-python. Of each length: seconds until the model is ready, from the start of
the process; tokens a second of reading a prompt of that length; milliseconds a token of decoding after it; peak memory.
llama.cpp runs with its flash attention and without, and each ratio is against the faster of the two.
With --text, the distance of the compiled products from dequantised float32 weights over 2,000 tokens of a book: for
many rows at a time and for few.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

STARTED = time.perf_counter()
STEPS, CHUNK, TOKENS, FEW = 24, 512, 2000, 16


def status(field: str) -> float:
    """MiB of a line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def prompt_of(length: int, vocab: int) -> list[int]:
    """The same random tokens for every system."""
    return [(7919 * n * n + 104_729 * n + 31) % (vocab - 1000) for n in range(length)]


def llama_cpp(path: str, length: int, flash: bool) -> dict[str, float]:
    import llama_cpp

    model = llama_cpp.Llama(
        path,
        n_ctx=length + 64,
        n_threads=2,
        n_threads_batch=2,
        n_batch=CHUNK,
        n_ubatch=CHUNK,
        flash_attn=flash,
        verbose=False,
    )
    ready = time.perf_counter() - STARTED
    tokens = prompt_of(length, model.n_vocab())
    started = time.perf_counter()
    model.eval(tokens)
    read = time.perf_counter() - started
    times = []
    for n in range(STEPS):
        started = time.perf_counter()
        model.eval([1000 + n])
        times.append(time.perf_counter() - started)
    return {"ready": ready, "prefill": read, "seconds": sorted(times)[STEPS // 2], "peak": status("VmHWM")}


def handscroll(path: str, length: int) -> dict[str, float]:
    import torch

    import handscroll as library
    from handscroll.generate.prefill import prefill
    from handscroll.nn.marks import Marks

    torch.set_num_threads(2)
    model = library.load(path).model
    ready = time.perf_counter() - STARTED
    tokens = torch.tensor([prompt_of(length, model.config.vocab)])
    cache, times = model.new_cache(capacity=length + STEPS), []
    with torch.no_grad():
        started = time.perf_counter()
        prefill(model, tokens, Marks.run(0, length), cache, length + STEPS, CHUNK)
        read = time.perf_counter() - started
        for n in range(STEPS):
            started = time.perf_counter()
            marks = Marks.run(length + n, 1)
            embedded = model.embed(torch.tensor([[1000 + n]]), marks)
            model.logits(model.hidden(embedded, marks, model.mask(), cache, length + STEPS)).argmax()
            times.append(time.perf_counter() - started)
    return {
        "ready": ready,
        "prefill": read,
        "seconds": sorted(times)[STEPS // 2],
        "peak": status("VmHWM"),
        "cache": cache.nbytes / 2**20,
    }


def distance(path: str, book: str) -> None:
    """Mean KL in nats from the model of dequantised float32 weights, and the share of equal top tokens."""
    import torch

    import handscroll as library
    from handscroll.generate.prefill import hidden_chunks
    from handscroll.nn.marks import Marks

    def hidden(lm, chunk):
        cache, tokens = lm.model.new_cache(capacity=TOKENS), torch.tensor([ids])
        chunks = hidden_chunks(lm.model, tokens, Marks.run(0, TOKENS), cache, TOKENS, chunk)
        return torch.cat([part for _, _, part in chunks], dim=1)

    def compare(name, chunk):
        """Logits in runs of `chunk` tokens too: they go through the product for many rows, or that for few."""
        states, total, equal = hidden(stored, chunk), 0.0, 0
        for first in range(0, TOKENS, chunk):
            want = wide.model.logits(exact[:, first : first + chunk]).double().log_softmax(-1)
            got = stored.model.logits(states[:, first : first + chunk]).double().log_softmax(-1)
            total += float((want.exp() * (want - got)).sum())
            equal += int((want.argmax(-1) == got.argmax(-1)).sum())
        print(
            f"{Path(book).name} {name}: KL {total / TOKENS:.2e} nats, top token equal {equal / TOKENS:.2%}", flush=True
        )

    with torch.no_grad():
        stored, wide = library.load(path), library.load(path, dtype="float32", weights="float")
        ids = stored.encode(Path(book).read_text(encoding="utf-8")[20_000:40_000])[:TOKENS]
        exact = hidden(wide, CHUNK)
        compare("many rows", 250)
        compare("few rows", FEW)


PEERS = {"llama.cpp": partial(llama_cpp, flash=False), "llama.cpp flash": partial(llama_cpp, flash=True)}
SYSTEMS: dict[str, Callable[[str, int], dict[str, float]]] = {"handscroll": handscroll, **PEERS}


def measured(python: str, system: str, path: str, length: int) -> dict[str, float]:
    """One point in a process of its own."""
    command = [python, "-m", "bench.gguf", path, "--only", system, "--lengths", str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{system} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def against(points: Mapping[str, Mapping[str, float]]) -> str:
    """How much faster than the best setting of the peer, for decoding and for reading, and which setting that was."""
    found = []
    for what, said in (("seconds", "decoding"), ("prefill", "prefill")):
        best = min(PEERS, key=lambda name: points[name][what])
        found.append(f"{said} {points[best][what] / points['handscroll'][what]:.2f}x of {best}")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.gguf", description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--lengths", default="512,8192,32768")
    parser.add_argument("--peer", default="", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--text", default="", help="a book: the distance from dequantised weights, nothing else")
    parser.add_argument("--only", choices=SYSTEMS, help="one point in this process, as a line of JSON")
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    if options.only:
        print(json.dumps(SYSTEMS[options.only](options.file, lengths[0])))
        return
    if options.text:
        distance(options.file, options.text)
        return
    size = Path(options.file).stat().st_size / 2**20
    print(f"file {size:.0f} MiB")
    for length in lengths:
        points = {"handscroll": measured(sys.executable, "handscroll", options.file, length)}
        if options.peer:
            points |= {name: measured(options.peer, name, options.file, length) for name in PEERS}
        for name, got in points.items():
            read = length / got["prefill"]
            print(
                f"{length:>6} {name:<15} ready {got['ready']:>5.2f} s, prefill {read:>6.1f} tokens/s, "
                f"decode {1e3 * got['seconds']:>6.1f} ms, peak {got['peak']:>5.0f} MiB"
                + (f" (cache {got['cache']:.0f})" if "cache" in got else ""),
                flush=True,
            )
        if options.peer:
            print(f"{length:>6} {against(points)}", flush=True)


if __name__ == "__main__":
    main()
