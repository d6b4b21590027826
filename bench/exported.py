"""Greedy text of exported files: llama.cpp on the GGUF file beside this package on the checkpoint, past its window too.

python -m bench.exported --peer PYTHON [--model FOLDER] [--methods ,pi,ntk] [--to 2048] [--prompt 1200] [--tokens 32]

PYTHON is an interpreter that has llama-cpp-python. The model (the starter) is written as float32 as it is, and
lengthened by each method that llama.cpp computes. Prompts are code of Python's standard library. For each file: prompts
whose whole continuation is equal, and the first difference of the others with the gap of the two tokens in nats.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

METHODS = ",pi,ntk,llama3,yarn"
MODULES = ("argparse.py", "zipfile.py", "typing.py", "tarfile.py", "turtle.py", "subprocess.py")


def llama_cpp(path: str, tokens: int, prompts: list[list[int]]) -> list[list[int]]:
    """Run by PYTHON."""
    import llama_cpp
    import numpy

    longest = max(map(len, prompts)) + tokens
    model = llama_cpp.Llama(path, n_ctx=longest + 8, n_threads=2, n_threads_batch=2, verbose=False)
    found = []
    for prompt in prompts:
        model.reset()
        model.eval(prompt)
        answer: list[int] = []
        while len(answer) < tokens:
            logits = numpy.ctypeslib.as_array(model._ctx.get_logits_ith(-1), shape=(model.n_vocab(),))
            answer.append(int(logits.argmax()))
            model.eval(answer[-1:])
        found.append(answer)
    return found


def prompts_of(lm: Any, length: int) -> list[list[int]]:
    from handscroll.extend.story import _library

    texts = [document.text for document in _library(MODULES)]
    return [lm.encode(text)[500 : 500 + length] for text in texts]


def lengthened(lm: Any, method: str, to: int) -> Any:
    import handscroll

    if not method:
        return lm
    text = str(Path(argparse.__file__))
    return handscroll.extend(lm, to=to, text=text, method=method)


def compared(lm: Any, file: Path, prompts: list[list[int]], options: argparse.Namespace) -> None:
    import torch

    command = [options.peer, "-m", "bench.exported", "--only", str(file), "--tokens", str(options.tokens)]
    done = subprocess.run(command, input=json.dumps(prompts), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"llama.cpp failed on {file.name}: {done.stderr[-2000:]}")
    equal, others = 0, []
    for number, (prompt, theirs) in enumerate(zip(prompts, json.loads(done.stdout.splitlines()[-1]), strict=True)):
        ours = list(lm.continuations(prompt, max_tokens=options.tokens, ignore_eos=True, plain=True)[0].tokens)
        at = next((n for n, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), len(ours))
        equal += at == len(ours)
        if at < len(ours):
            logits = lm.logits(torch.tensor(prompt + ours[:at]), length=len(prompt) + options.tokens)[-1]
            gap = float(logits[ours[at]] - logits[theirs[at]])
            others.append(f"prompt {number} parts at token {at}, gap {gap:.4f}")
    about = "; ".join(others) or "all tokens"
    print(f"{file.name:<16} {equal} of {len(prompts)} equal over {options.tokens} tokens; {about}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.exported", description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default="", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--model", default="")
    parser.add_argument("--to", type=int, default=2048)
    parser.add_argument("--prompt", type=int, default=1200, help="tokens of a prompt, of lengthened models")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--methods", default=METHODS, help="of lengthening; an empty one leaves the model as it is")
    parser.add_argument("--only", help="llama.cpp in this process, on a file; prompts on standard input")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(llama_cpp(options.only, options.tokens, json.loads(sys.stdin.read()))))
        return
    import handscroll
    from handscroll.extend.story import STARTER

    lm = handscroll.load(options.model or STARTER, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        for method in options.methods.split(","):
            made = lengthened(lm, method, options.to)
            file = Path(folder) / f"{method or 'as it is'}.gguf"
            made.export_gguf(file, "f32")
            length = min(options.prompt, made.context - options.tokens - 8)
            compared(made, file, prompts_of(lm, length), options)


if __name__ == "__main__":
    main()
