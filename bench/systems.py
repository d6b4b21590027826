"""Reading and decoding with a random 135M Llama: Handscroll and its peers, each in a fresh process.

Not a benchmark itself: `bench.prefill` and `bench.decode` call `measure` in turn for every system.

Random weights are fair for speed and memory and say nothing about quality. Every process builds or loads the model,
warms up, then times; it reports seconds, peak resident memory, and the resident memory after imports.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import foreign

SHAPE = {"vocab": 49152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "head_size": 64, "mlp": 1536}
WEIGHTS = 134_515_008  # numbers that a decoded token reads: all layers, and the table that is also the head
KV_NUMBERS = 2 * SHAPE["layers"] * SHAPE["kv_heads"] * SHAPE["head_size"]  # of a cached token
STEPS = 16  # decoded tokens that are timed


def make_folder(folder: Path) -> None:
    """The model as a Hugging Face folder in bfloat16, with transformers."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=SHAPE["vocab"],
        hidden_size=SHAPE["width"],
        intermediate_size=SHAPE["mlp"],
        num_hidden_layers=SHAPE["layers"],
        num_attention_heads=SHAPE["heads"],
        num_key_value_heads=SHAPE["kv_heads"],
        max_position_embeddings=1 << 17,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    model.bfloat16().save_pretrained(folder)


def handscroll(folder: Path, job: str, length: int, precision: str) -> dict:
    """Prefill through `generate.prefill` as `lm.generate` does it; decoding over a cache filled with random keys."""
    import torch

    from handscroll.cache.table import cache_of
    from handscroll.generate.prefill import prefill
    from handscroll.models.weights import load_model
    from handscroll.nn.marks import Marks
    from handscroll.nn.quantised import quantise

    imported = resident()
    rounded = precision in ("int8", "int4")
    dtype = "bfloat16" if rounded else precision
    model = load_model(folder, getattr(torch, dtype), "cpu")
    if rounded:
        quantise(model, precision)
    cache = cache_of(precision if rounded else "full")(SHAPE["layers"], capacity=length + STEPS + 2)

    @torch.no_grad()
    def step(n: int) -> None:
        marks = Marks.run(length + n, 1)
        tokens = torch.tensor([[n + 5]])
        model.logits(model.hidden(model.embed(tokens, marks), marks, model.mask(), cache, length + STEPS + 2))

    if job == "prefill":
        warm = torch.randint(0, SHAPE["vocab"], (1, 256))
        prefill(model, warm, Marks.run(0, 256), model.new_cache(256), 256)
        tokens = torch.randint(0, SHAPE["vocab"], (1, length))
        seconds = timed(lambda: prefill(model, tokens, Marks.run(0, length), cache, length))
        return {"seconds": seconds, "imported": imported}
    keys, values = (
        torch.randn(1, SHAPE["kv_heads"], length, SHAPE["head_size"]).to(getattr(torch, dtype)) for _ in "kv"
    )
    for layer in range(SHAPE["layers"]):
        cache.append(layer, keys, values, Marks.run(0, length))
    cache.commit()
    return {"seconds": per_step(step), "imported": imported}


def transformers_sdpa(folder: Path, job: str, length: int, dtype: str) -> dict:
    """`transformers` with its SDPA attention and dynamic cache."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    imported = resident()
    kind = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, attn_implementation="sdpa").eval()
    cache = DynamicCache()
    with torch.inference_mode():
        if job == "prefill":
            model(torch.randint(0, SHAPE["vocab"], (1, 256)), past_key_values=DynamicCache(), logits_to_keep=1)
            tokens = torch.randint(0, SHAPE["vocab"], (1, length))
            seconds = timed(lambda: model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1))
            return {"seconds": seconds, "imported": imported}
        for layer in range(SHAPE["layers"]):
            keys, values = (torch.randn(1, SHAPE["kv_heads"], length, SHAPE["head_size"]).to(kind) for _ in "kv")
            cache.update(keys, values, layer)
        return {
            "seconds": per_step(lambda n: model(torch.tensor([[n + 5]]), past_key_values=cache, use_cache=True)),
            "imported": imported,
        }


SYSTEMS: dict[str, tuple[Callable[[Path, str, int, str], dict], str]] = {
    "handscroll bfloat16": (handscroll, "bfloat16"),
    "handscroll float32": (handscroll, "float32"),
    "handscroll int8": (handscroll, "int8"),
    "handscroll int4": (handscroll, "int4"),
    "transformers bfloat16": (transformers_sdpa, "bfloat16"),
    "transformers float32": (transformers_sdpa, "float32"),
}
# q8_0: a scale for every 32 numbers; int4 with its scales, its token table is in int8
BYTES = {"bfloat16": 2, "float32": 4, "int8": 1, "int4": 5 / 8, "f16": 2, "q8_0": 34 / 32}


def bound_bytes(name: str, length: int) -> int:
    """Bytes that decoding one token after `length` must read: weights once, keys and values once."""
    precision, table = name.split()[-1], SHAPE["vocab"] * SHAPE["width"]
    each = BYTES[precision]
    return int(each * (WEIGHTS - table + length * KV_NUMBERS) + (1 if precision == "int4" else each) * table)


def prefill_operations(length: int) -> float:
    """Multiplications and additions of reading `length` tokens, attention counted below the diagonal only."""
    matrices = WEIGHTS - SHAPE["vocab"] * SHAPE["width"]
    attention = 4 * SHAPE["heads"] * SHAPE["head_size"] * SHAPE["layers"] * length * length / 2
    return 2.0 * matrices * length + attention


def read_bandwidth() -> float:
    """Bytes a second that two threads read from memory: the best of five sums over 1 GiB."""
    import torch

    torch.set_num_threads(2)
    block = torch.ones(1 << 28)
    return block.nbytes / min(timed(lambda: block.sum()) for _ in range(5))


def product_speed(dtype: str) -> float:
    """Operations a second of a large matrix product: the best of five of 2,048 x 2,048 x 2,048."""
    import torch

    torch.set_num_threads(2)
    a, b = (torch.randn(2048, 2048).to(getattr(torch, dtype)) for _ in "ab")
    return 2 * 2048**3 / min(timed(lambda: a @ b) for _ in range(6))


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def per_step(step: Callable[[int], object]) -> float:
    """Median seconds of a decoded token, after two that warm up."""
    times = sorted(timed(lambda n=n: step(n)) for n in range(STEPS + 2))[:STEPS]
    return times[len(times) // 2]


def resident() -> float:
    """MiB resident now."""
    return _status("VmRSS")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(name: str, folder: Path, job: str, length: int, peers: str = "") -> dict:
    """One system, once, by this interpreter or by that of the `peers`.

    Seconds of the whole prompt (prefill) or of a token (decode), peak and base memory in MiB.

    Raises:
        SystemExit: it failed; a missing peer is no reason to print our column alone.
    """
    here = [sys.executable, "-m", "bench.systems"]
    command = [*(here if name in SYSTEMS else [peers, foreign.__file__]), name, str(folder), job, str(length)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    if done.returncode:
        raise SystemExit(f"{name} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1][:200]}")
    return json.loads(done.stdout.splitlines()[-1])


def peer(name: str) -> bool:
    return not name.startswith("handscroll")


def parsed(description: str | None) -> argparse.Namespace:
    """The options of a benchmark that calls `alternating`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="2048,8192,32768")
    parser.add_argument("--systems", help="comma-separated; all unless given")
    parser.add_argument("--peers", default="", help="an interpreter with llama.cpp and CTranslate2 (bench/foreign.py)")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    known = {**SYSTEMS, **foreign.SYSTEMS}
    names = (options.systems or ",".join([*SYSTEMS, *(foreign.SYSTEMS if options.peers else ())])).split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--systems: there is no {unknown[0]!r}; there are {', '.join(known)}")
    if not options.peers and any(name in foreign.SYSTEMS for name in names):
        parser.error("llama.cpp and CTranslate2 run in an environment of their own: give its python as --peers")
    if not any(peer(name) for name in names):
        parser.error(
            "--systems names no peer, and all are compared with the fastest: add one, such as one of "
            f"{', '.join(name for name in known if peer(name))}"
        )
    more = [name for name in foreign.BOTH if name not in names and set(foreign.BOTH) & set(names)]
    options.systems = [*names, *more]
    return options


def alternating(job: str, options: argparse.Namespace) -> Iterator[tuple[int, dict[str, list[dict]], dict[str, float]]]:
    """For each length all runs by system, systems in turn, and the ratio of the fastest peer's median to each one's.

    The read bandwidth of a shared machine changes from minute to minute: it is measured before and after every run.
    """
    names = options.systems
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder))
        for name in names:
            if name in foreign.SYSTEMS:
                measure(name, Path(folder), "prepare", 0, options.peers)
        for length in [int(text) for text in options.lengths.split(",")]:
            runs: dict[str, list[dict]] = {name: [] for name in names}
            for _ in range(options.repeat):
                for name in names:
                    before = read_bandwidth()
                    run = measure(name, Path(folder), job, length, options.peers)
                    runs[name].append(run | {"bandwidth": (before + read_bandwidth()) / 2})
                    print(
                        f"{length} {name}: {run['seconds']:.4f} s, prompt {run.get('prefill', 0):.1f} s",
                        file=sys.stderr,
                        flush=True,
                    )
            seconds = {name: typical(got, "seconds") for name, got in runs.items()}
            best = min(filter(peer, names), key=seconds.__getitem__)
            print(f"{length:>8} the fastest peer is {best}", flush=True)
            yield length, runs, {name: seconds[best] / value for name, value in seconds.items()}


def typical(runs: list[dict], what: str) -> float:
    """The median of one number over runs."""
    return statistics.median(run[what] for run in runs)


def main() -> None:
    name, folder, job, length = sys.argv[1:]
    call, dtype = SYSTEMS[name]
    print(json.dumps(call(Path(folder), job, int(length), dtype) | {"peak": _status("VmHWM")}))


if __name__ == "__main__":
    main()
