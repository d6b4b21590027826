"""Tokens a second of reading a prompt: Handscroll beside its peers on a 135M Llama, two threads.

python -m bench.prefill [--lengths 2048,8192,32768] [--systems a,b] [--repeat 3]

Systems alternate within a length, a fresh process each; medians. "peak" is the share of the speed of a large matrix
product in the same precision, causal work counted. "above" is the peak memory over the resident size after imports.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from bench.systems import SYSTEMS, make_folder, measure, prefill_operations, product_speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="2048,8192,32768")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    speed = {dtype: product_speed(dtype) for dtype in ("bfloat16", "float32")}
    print("matrix product, GFLOP/s: " + ", ".join(f"{name} {value / 1e9:.0f}" for name, value in speed.items()))
    print(f"{'tokens':>8} {'system':<24} {'tokens/s':>9} {'peak':>6} {'above':>9} {'faster than the best peer':>26}")
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder))
        names = options.systems.split(",")
        for length in [int(text) for text in options.lengths.split(",")]:
            runs: dict[str, list[dict]] = {name: [] for name in names}
            for _ in range(options.repeat):
                for name in names:
                    runs[name].append(measure(name, Path(folder), "prefill", length))
            seconds = {name: statistics.median(run["seconds"] for run in got) for name, got in runs.items()}
            best = min(value for name, value in seconds.items() if not name.startswith("handscroll"))
            for name, value in seconds.items():
                share = prefill_operations(length) / value / speed[SYSTEMS[name][1].replace("int8", "bfloat16")]
                above = statistics.median(run["peak"] - run["imported"] for run in runs[name])
                speeds = f"{length / value:>9.0f} {share:>6.0%} {above:>7.0f} M {best / value:>25.2f}x"
                print(f"{length:>8} {name:<24} {speeds}", flush=True)


if __name__ == "__main__":
    main()
