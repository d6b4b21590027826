"""Greedy text from a GGUF file: ours, llama.cpp's and that of the dequantised float32 weights, on 20 prompts.

python -m bench.greedy FILE --peer PYTHON [--tokens 48]

PYTHON is an interpreter that has llama-cpp-python. For each prompt: the number of equal tokens at the beginning, and at
the first difference the gap in nats between the two tokens by the float32 weights. A gap below 0.05 is a near-tie.
"""

import argparse
import json
import subprocess
import sys

from bench import exported

PROMPTS = (
    "def fibonacci(n):",
    "The capital of France is",
    "# Read a CSV file and print the mean of each column\nimport csv\n",
    "Once upon a time there was a miller who had",
    "SELECT name, COUNT(*) FROM orders",
    "Photosynthesis is the process by which",
    "To be, or not to be, that is",
    "The three laws of motion say that",
    "class Stack:\n    def __init__(self):",
    "A good letter of application begins",
    "中国的首都是",
    "从前有一个小村庄，村里住着",
    "光合作用是指",
    "太史公曰：",
    "请写一封感谢信，内容是",
    "牛顿第一定律指出",
    "春眠不觉晓，",
    "# 计算两个数的最大公约数\ndef gcd(a, b):",
    "人工智能的发展",
    "如何学习一门外语？首先",
)
TIE = 0.05  # nats


def handscroll(path: str, tokens: int) -> dict[str, list]:
    import torch

    import handscroll as library
    from handscroll.generate.decode import decode
    from handscroll.generate.request import Request
    from handscroll.generate.sample import Sampling

    stored, wide = library.load(path), library.load(path, dtype="float32", weights="float")
    settings = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)

    def greedy(lm: library.LM, ids: list[int]) -> list[int]:
        return [item.token for step in decode(lm.model, [Request(ids, settings)]) for item in step]

    ids = [stored.encode(prompt) for prompt in PROMPTS]
    found = {"ids": ids, "ours": [greedy(stored, x) for x in ids], "float32": [greedy(wide, x) for x in ids]}
    peers = json.loads(sys.stdin.readline())
    gaps: list[list[float | None]] = []
    with torch.no_grad():
        for prompt, ours, exact, theirs in zip(ids, found["ours"], found["float32"], peers, strict=True):
            gaps.append([])
            for got in (ours, theirs):
                at = alike(got, exact)
                gaps[-1].append(None)
                if at < tokens:
                    logits = wide.model(torch.tensor([prompt + exact[:at]]))[0, -1].log_softmax(-1)
                    gaps[-1][-1] = float(logits[exact[at]] - logits[got[at]])
    return found | {"gaps": gaps}


def llama_cpp(path: str, tokens: int) -> list[list[int]]:
    """What llama.cpp says to the prompts (token ids) of standard input; run by PYTHON."""
    return exported.llama_cpp(path, tokens, json.loads(sys.stdin.readline()))


def alike(got: list[int], want: list[int]) -> int:
    """Equal tokens at the beginning."""
    return next((n for n, pair in enumerate(zip(got, want, strict=True)) if pair[0] != pair[1]), len(want))


def call(python: str, system: str, options: argparse.Namespace, given: object) -> object:
    command = [python, "-m", "bench.greedy", options.file, "--tokens", str(options.tokens), "--only", system]
    done = subprocess.run(command, input=json.dumps(given) + "\n", capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{system} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.greedy", description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--peer", default="", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--only", choices=("handscroll", "llama.cpp"), help="one system in this process, as JSON")
    options = parser.parse_args()
    if options.only:
        run = handscroll if options.only == "handscroll" else llama_cpp
        print(json.dumps(run(options.file, options.tokens)))
        return
    if not options.peer:
        raise SystemExit("give --peer: an interpreter that has llama-cpp-python")
    from handscroll import load

    lm = load(options.file)
    theirs = call(options.peer, "llama.cpp", options, [lm.encode(prompt) for prompt in PROMPTS])
    ours = call(sys.executable, "handscroll", options, theirs)
    totals = {"handscroll": [0, 0], "llama.cpp": [0, 0]}
    for prompt, gaps in zip(PROMPTS, ours["gaps"], strict=True):
        parts = []
        for name, gap in zip(totals, gaps, strict=True):
            totals[name][0] += gap is None
            totals[name][1] += gap is not None and gap < TIE
            parts.append(f"{name} " + ("equal" if gap is None else f"differs, gap {gap:.3f} nats"))
        print(f"{prompt.splitlines()[0][:30]!r}: " + "; ".join(parts))
    for name, (equal, ties) in totals.items():
        print(f"{name}: {equal} of {len(PROMPTS)} equal to float32, {ties} more part at a near-tie")


if __name__ == "__main__":
    main()
