"""Loss by position of the best candidate of every position method, on text that did not choose it.

python -m bench.long_reading MODEL --choose FILE --prove FILE [--to 1024] [--windows 8]
"""

import argparse

from handscroll.evaluate.perplexity import measure
from handscroll.evaluate.samples import read_windows
from handscroll.extend.extend import extension
from handscroll.extend.trials import applied
from handscroll.lm import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--choose", required=True)
    parser.add_argument("--prove", required=True)
    parser.add_argument("--to", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=8)
    options = parser.parse_args()
    lm = load(options.model)
    outcome = extension(lm, options.to, "all", text=options.choose).outcome
    assert outcome is not None
    samples = read_windows([options.prove], lm.tokenizer, options.to, options.windows)
    step = options.to // 4
    print("| method | " + " | ".join(f"{first}-{first + step}" for first in range(0, options.to, step)) + " |")
    print("|---|" + "---|" * 4)
    for row in outcome.rows:
        with applied(lm.model, row.candidate):
            losses = measure(lm, samples, row.candidate.name)
        means = [losses.mean(first, first + step) for first in range(0, options.to, step)]
        print(f"| {row.candidate.name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
