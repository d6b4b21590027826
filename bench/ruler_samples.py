"""Seconds to generate RULER's thirteen tasks at four lengths, twenty samples each, in both layouts.

python -m bench.ruler_samples MODEL
"""

import sys
import time

from handscroll.evaluate.ruler.bench import bench
from handscroll.evaluate.ruler.exams import Setting, exams
from handscroll.evaluate.ruler.frame import plain
from handscroll.text.tokenizer import Tokenizer

LENGTHS = (4096, 8192, 16_384, 32_768)


def main() -> None:
    tokenizer = Tokenizer.load(sys.argv[1])
    for layout in ("shared", "published"):
        begun, tokens, questions = time.monotonic(), 0, 0
        setting = Setting(lengths=LENGTHS, samples=20, layout=layout)
        for exam in exams(bench(tokenizer), setting, plain(tokenizer)):
            tokens, questions = tokens + exam.tokens, questions + len(exam.questions)
        seconds = time.monotonic() - begun
        print(f"{layout}: {questions:,} samples, {tokens:,} tokens, {seconds:.1f} s")


if __name__ == "__main__":
    main()
