"""Milliseconds a token over a long cache: Handscroll beside its peers on a 135M Llama, two threads.

python -m bench.decode [--lengths 2048,8192,32768] [--systems a,b] [--repeat 3]

Systems alternate within a length, a fresh process each; medians. "bound" is the share of the memory bound: the bytes of
weights and cache that a token must read, over the measured read bandwidth. Ratios are against the fastest peer of the
same length, in any precision.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from bench.systems import SYSTEMS, bound_bytes, make_folder, measure, read_bandwidth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="2048,8192,32768")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    bandwidth = read_bandwidth()
    print(f"read bandwidth {bandwidth / 1e9:.1f} GB/s")
    print(f"{'tokens':>8} {'system':<24} {'ms/token':>9} {'bound':>6} {'faster than the best peer':>26}")
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder))
        names = options.systems.split(",")
        for length in [int(text) for text in options.lengths.split(",")]:
            runs: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(options.repeat):
                for name in names:
                    runs[name].append(measure(name, Path(folder), "decode", length)["seconds"])
            seconds = {name: statistics.median(got) for name, got in runs.items()}
            best = min(value for name, value in seconds.items() if not name.startswith("handscroll"))
            for name, value in seconds.items():
                share = bound_bytes(name, length) / bandwidth / value
                print(f"{length:>8} {name:<24} {1e3 * value:>9.1f} {share:>6.0%} {best / value:>25.2f}x", flush=True)


if __name__ == "__main__":
    main()
