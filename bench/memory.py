"""Peak memory and time of the exact loss of a long text: Handscroll beside transformers, a fresh process each.

python -m bench.memory BOOK.txt [--lengths 4096,8192] [--peer]
"""

import argparse
import subprocess
import sys

from handscroll.extend.story import STARTER

OURS = """
import resource, sys, time
import handscroll
lm = handscroll.load(sys.argv[1])
ids = lm.encode(open(sys.argv[2], encoding="utf-8").read())[: int(sys.argv[3])]
start = time.time()
loss = float(lm.nll(ids).double().mean())
print(len(ids), f"{loss:.6f}", f"{time.time() - start:.1f}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
PEER = """
import resource, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
text = open(sys.argv[2], encoding="utf-8").read()
ids = torch.tensor([AutoTokenizer.from_pretrained(sys.argv[1])(text).input_ids[: int(sys.argv[3])]])
start = time.time()
with torch.no_grad():
    loss = float(model(ids, labels=ids).loss)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(ids.shape[1], f"{loss:.6f}", f"{time.time() - start:.1f}", peak)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("book")
    parser.add_argument("--model", default=str(STARTER))
    parser.add_argument("--lengths", default="4096,16384")
    parser.add_argument("--peer", action="store_true", help="run transformers too")
    options = parser.parse_args()
    print(f"{'tokens':>8} {'system':<14} {'loss':>9} {'seconds':>8} {'peak MiB':>9}")
    for length in options.lengths.split(","):
        for name, code in (("handscroll", OURS), *((("transformers", PEER),) if options.peer else ())):
            command = [sys.executable, "-c", code, options.model, options.book, length]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{length:>8} {name:<14} failed: {done.stderr.strip().splitlines()[-1][:80]}")
                continue
            tokens, loss, seconds, peak = done.stdout.split()
            print(f"{tokens:>8} {name:<14} {loss:>9} {seconds:>8} {peak:>9}")


if __name__ == "__main__":
    main()
