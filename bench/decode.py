"""Milliseconds a token over a long cache: Handscroll beside its peers on a 135M Llama, two threads.

python -m bench.decode [--lengths 2048,8192,32768] [--systems a,b] [--peers PYTHON] [--repeat 3]

Systems alternate within a length, a fresh process each; medians. "bound" is the share of the memory bound: the bytes of
weights and cache that a token must read, over the read bandwidth measured before and after the run. Ratios are against
the fastest peer of the same length, in any precision; llama.cpp f16 runs with its flash attention and without.
"""

import statistics

from bench.systems import alternating, bound_bytes, parsed, typical


def main() -> None:
    options = parsed(__doc__)
    print(f"{'tokens':>8} {'system':<24} {'ms/token':>9} {'GB/s':>6} {'bound':>6} {'faster than the best peer':>26}")
    for length, runs, ratios in alternating("decode", options):
        for name, got in runs.items():
            seconds = typical(got, "seconds")
            share = statistics.median(bound_bytes(name, length) / run["bandwidth"] / run["seconds"] for run in got)
            speed = typical(got, "bandwidth") / 1e9
            line = f"{length:>8} {name:<24} {1e3 * seconds:>9.1f} {speed:>6.1f} {share:>6.0%} {ratios[name]:>25.2f}x"
            print(line, flush=True)


if __name__ == "__main__":
    main()
