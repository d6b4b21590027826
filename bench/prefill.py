"""Tokens a second of reading a prompt: Handscroll beside its peers on a 135M Llama, two threads.

python -m bench.prefill [--lengths 2048,8192,32768] [--systems a,b] [--peers PYTHON] [--repeat 3]

Systems alternate within a length, a fresh process each; medians. "peak" is the share of the speed of a large matrix
product in the same precision, causal work counted. "above" is the peak memory over the resident size after imports.
Ratios are against the fastest peer; llama.cpp f16 runs with its flash attention and without.
"""

from bench.systems import alternating, parsed, prefill_operations, product_speed, typical


def main() -> None:
    options, speed = parsed(__doc__), {dtype: product_speed(dtype) for dtype in ("bfloat16", "float32")}
    print("matrix product, GFLOP/s: " + ", ".join(f"{name} {value / 1e9:.0f}" for name, value in speed.items()))
    print(f"{'tokens':>8} {'system':<24} {'tokens/s':>9} {'peak':>6} {'above':>9} {'faster than the best peer':>26}")
    for length, runs, ratios in alternating("prefill", options):
        for name, got in runs.items():
            seconds, above = typical(got, "seconds"), typical(got, "peak") - typical(got, "imported")
            share = prefill_operations(length) / seconds / speed["float32" if name.endswith("float32") else "bfloat16"]
            speeds = f"{length / seconds:>9.0f} {share:>6.0%} {above:>7.0f} M {ratios[name]:>25.2f}x"
            print(f"{length:>8} {name:<24} {speeds}", flush=True)


if __name__ == "__main__":
    main()
