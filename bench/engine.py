"""Tokens a second of several requests together and of one at a time: the engine and `decode`, 135M Llama, bfloat16.

python -m bench.engine [--requests 8] [--prompt 512] [--new 256] [--repeat 3]

The prompts were read before (the engine finds their blocks; what it reads again of each, at least one block, counts).
Rows: all requests together; one after the other through the same engine; `generate.decode` of each prompt alone,
its prefill not counted; and all together in deterministic mode. Rows take turns; medians. The run fails if the
deterministic mode's tokens or log-probabilities depend on the neighbours.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from bench.systems import SHAPE, make_folder, timed


class Desk:
    """A model, prompts of random tokens, and two engines that have read them."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        import torch

        from handscroll.generate.engine.engine import Engine
        from handscroll.generate.request import Request
        from handscroll.generate.sample import Sampling
        from handscroll.models.weights import load_model

        torch.set_num_threads(2)
        self.model = load_model(folder, torch.bfloat16, "cpu")
        draw = torch.Generator().manual_seed(0)
        shape = (options.requests, options.prompt)
        self.prompts = torch.randint(3, SHAPE["vocab"], shape, generator=draw).tolist()
        self.sampling = Sampling(max_tokens=options.new, ignore_eos=True)
        self.requests = [Request(prompt, self.sampling) for prompt in self.prompts]
        room = 2 * options.requests * (options.prompt + options.new)
        self.engines = {
            strict: Engine(self.model, blocks=-(-room // 32), deterministic=strict) for strict in (False, True)
        }
        for engine in self.engines.values():
            for prompt in self.prompts:
                engine.submit(Request(prompt, Sampling(max_tokens=1)))
            for _ in engine.run():
                pass

    def together(self, strict: bool) -> list[tuple[list[int], list[float]]]:
        """Tokens and log-probabilities of all prompts, answered together."""
        engine = self.engines[strict]
        requests = [engine.submit(request) for request in self.requests]
        for _ in engine.run():
            pass
        return [(request.answer, request.logprobs) for request in requests]

    def in_turn(self, strict: bool = False) -> list[tuple[list[int], list[float]]]:
        """The same, one after the other."""
        engine, found = self.engines[strict], []
        for request in map(engine.submit, self.requests):
            for _ in engine.run():
                pass
            found.append((request.answer, request.logprobs))
        return found

    def decoded(self) -> float:
        """Seconds that `generate.decode` takes for all prompts one after the other, after each one's first token."""
        from handscroll.generate.decode import decode
        from handscroll.generate.request import Request

        seconds = 0.0
        for prompt in self.prompts:
            steps = decode(self.model, [Request(prompt, self.sampling)])
            next(steps)
            started = time.perf_counter()
            for _ in steps:
                pass
            seconds += time.perf_counter() - started
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder))
        desk = Desk(Path(folder), options)
    rows = {
        "together": lambda: timed(lambda: desk.together(False)),
        "one at a time": lambda: timed(desk.in_turn),
        "decode, one at a time": desk.decoded,
        "together, deterministic": lambda: timed(lambda: desk.together(True)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(options.repeat):
        for name, row in rows.items():
            seconds[name].append(row())
    tokens = options.requests * options.new
    rates = {name: tokens / statistics.median(got) for name, got in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:<24} {rate:>7.1f} tokens/s  {rates['together'] / rate:>5.2f}x slower than together", flush=True)
    if desk.together(True) != desk.in_turn(True):
        raise SystemExit("deterministic mode: answers depend on the neighbours")
    print("deterministic mode: tokens and log-probabilities of every request are those of it alone")


if __name__ == "__main__":
    main()
