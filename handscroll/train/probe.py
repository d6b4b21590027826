"""Measures real runs of a `Workload` on random tokens, in a new process, to calibrate and to check the planner.

`python -m handscroll.train.probe` reads a request from standard input and answers with one line of JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field

from handscroll.base.config import Config
from handscroll.base.errors import CapacityError
from handscroll.base.workload import MEMORY, Workload
from handscroll.data.batch import Batch
from handscroll.data.stream import State, Stream
from handscroll.models.bert import Bert, BertConfig
from handscroll.models.gpt2 import GPT2, GPT2Config
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.models.lstm import LSTM, LSTMConfig
from handscroll.models.model import Decoder
from handscroll.models.t5 import T5, T5Config
from handscroll.nn.init import initialise
from handscroll.nn.quantised import PROJECTIONS, Quantised
from handscroll.objectives.causal import Causal
from handscroll.objectives.masked import Masked
from handscroll.objectives.objective import Objective
from handscroll.plan.calibration import Calibration, save_calibration
from handscroll.plan.duration import PACKED, count
from handscroll.plan.machine import peak_bytes
from handscroll.plan.memory import fixed_parts, phases
from handscroll.train.loop import Callbacks, train
from handscroll.train.lora import MLP_TARGETS, TARGETS, LoRA, add_lora
from handscroll.train.optim import Optimizer
from handscroll.train.regularise import Regularise
from handscroll.train.run import Loop, Run
from handscroll.train.schedule import Schedule
from handscroll.train.step import Memory

DOCUMENTS = 4  # documents in a packed row of random tokens
LEAST = 0.01  # smallest fitted speed, as a fraction of its known ratio
DRAW = 0.01  # weight of the known ratios, counted in runs that spend all their time on one speed


class Measured(Config):
    """The measured memory and time of a run.

    `peak`: peak resident bytes of the process (VmHWM). `gpu`: bytes of the GPU (its context and the memory that torch
    reserved). `seconds`: the time of each update.
    """

    peak: int = Field(gt=0)
    gpu: int = Field(default=0, ge=0)
    seconds: tuple[float, ...]

    @property
    def update(self) -> float:
        """Seconds of a typical update: the fastest one after the first, which is a warm-up."""
        return min(self.seconds[1:] or self.seconds)


def measure(workload: Workload, timeout: float = 600.0) -> Measured:
    """Run `workload.steps` updates, and the checkpoint after them, in a new process.

    Raises:
        CapacityError: the process died. In most cases the system killed it because it used too much memory.
    """
    return Measured.model_validate(_ask({"run": workload.model_dump()}, workload.threads, timeout))


def calibrate(threads: int = 0, keep: bool = True) -> Calibration:
    """Measure this machine: the memory of a bare process, and the speeds in 16 small runs. It takes half a minute."""
    calibration = Calibration.model_validate(_ask({"calibrate": True}, threads, 600.0))
    if keep:
        save_calibration(calibration)
    return calibration


def _ask(request: dict[str, Any], threads: int, timeout: float) -> dict[str, Any]:
    count = threads or os.cpu_count() or 1
    environment = os.environ | {"OMP_NUM_THREADS": str(count)}
    done = subprocess.run(
        [sys.executable, "-m", "handscroll.train.probe"],
        input=json.dumps(request | {"threads": count}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]
        raise CapacityError(f"the measured run ended with status {done.returncode}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


class RandomBatches(Stream[list[Batch]]):
    """Updates of random tokens in the workload's shape. Packed rows hold four documents."""

    def __init__(self, workload: Workload):
        self.workload = workload

    def identity(self) -> State:
        return {"stream": "random"}

    def _items(self, position: State | None) -> Iterator[tuple[list[Batch], State]]:
        generator, number = torch.Generator().manual_seed(0), 0
        while True:
            number += 1
            yield [self._batch(generator) for _ in range(self.workload.micro)], {"number": number}

    def _batch(self, generator: torch.Generator) -> Batch:
        if self.workload.spec.encoder:
            source, target = (self._row(side, generator) for side in self.workload.sides)
            return replace(target, source=source)
        return self._row(self.workload, generator)

    @staticmethod
    def _row(workload: Workload, generator: torch.Generator) -> Batch:
        shape = (workload.rows, workload.length)
        tokens, targets = (torch.randint(0, workload.spec.vocab, shape, generator=generator) for _ in range(2))
        if workload.targets < 1:
            targets[torch.rand(shape, generator=generator) >= workload.targets] = -100
        if not workload.packed:
            return Batch(tokens, targets)
        index = torch.arange(shape[1])
        size = -(-shape[1] // DOCUMENTS)
        segment, places = index // size, index % size
        targets = targets.masked_fill(places == size - 1, -100)
        index, segment, places = (column.expand(shape).contiguous() for column in (index, segment, places))
        return Batch(tokens, targets, index, segment, places)


def build(workload: Workload) -> Decoder:
    """A model with random weights in a workload's shape, on its device and in its dtypes."""
    spec, length = workload.spec, workload.length
    layer = spec.layers[0]
    sizes: dict[str, Any] = {"vocab": spec.vocab, "width": spec.width, "layers": len(spec.layers), "tied": spec.tied}
    attention: dict[str, Any] = sizes | {"heads": layer.heads, "mlp_width": layer.mlp_width}
    positions = spec.reaching(length).positions[0]
    model: Decoder
    if spec.recurrent:
        model = LSTM(LSTMConfig(**sizes, trained=length))
    elif spec.encoder:
        mlp: Any = "gated-gelu" if layer.gated else "relu"
        attention |= {"encoder_layers": len(spec.encoder), "head_size": layer.head_size, "mlp": mlp, "start": 0}
        model = T5(T5Config(**attention))
    elif spec.reads == "both":
        model = Bert(BertConfig(**attention, context=positions.context))
    elif positions.rows:
        model = GPT2(GPT2Config(**attention, context=positions.context))
    else:
        rotary: Any = {"base": 1e4, "scaling": {"name": "none"}, "context": length, "trained": length}
        heads: dict[str, Any] = {"kv_heads": layer.kv_heads, "head_size": layer.head_size}
        model = Llama(LlamaConfig(**attention, **heads, windows=spec.windows, positions=rotary))
    initialise(model, "normal", len(spec.layers), torch.Generator().manual_seed(0))
    if workload.lora:
        targets = (*TARGETS, *MLP_TARGETS)[: workload.lora_targets]
        add_lora(model, LoRA(rank=workload.lora, targets=targets, tables=workload.tables, frozen=workload.frozen))
    return model.to(workload.device)


def measure_here(workload: Workload) -> Measured:
    """Do the same as `measure`, but in this process. Its peak of resident memory may come from earlier work."""
    card = workload.device == "cuda"
    if card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = tuple(train_here(workload))
    gpu = 0
    if card:
        free, total = torch.cuda.mem_get_info()
        gpu = total - free - torch.cuda.memory_reserved() + torch.cuda.max_memory_reserved()
    return Measured(peak=peak_bytes(), gpu=gpu, seconds=seconds)


def train_here(workload: Workload) -> list[float]:
    """Train on random tokens in this process. Returns the seconds of each update."""
    found: list[float] = []
    memory = Memory(**{name: getattr(workload, name) for name in MEMORY})
    with tempfile.TemporaryDirectory(dir=os.environ.get("HANDSCROLL_PROBE_FOLDER")) as folder:
        run = Run(
            Path(folder),
            build(workload),
            Optimizer(name=workload.optimizer),
            Schedule(),
            Loop(steps=workload.steps, precision=workload.precision, average=0.99 if workload.average else 0.0),
            memory,
            Regularise(dropout=0.1 if workload.dropout else 0.0),
        )
        updates, objective = (
            RandomBatches(workload),
            cast(Objective, Masked() if workload.spec.reads == "both" else Causal()),
        )
        train(run, updates, objective, Callbacks(on_record=lambda record: found.append(record["seconds"])))
    return found


def _calibrated(threads: int) -> Calibration:
    tiny = _small(width=32, layers=1, length=64, steps=2)
    train_here(tiny)
    held = sum(fixed_parts(tiny).values()) + max(sum(phase.values()) for phase in phases(tiny).values())
    base = peak_bytes() - held
    runs = [one for precision in ("float32", "bfloat16") for one in _timed(precision)]
    times = [min(train_here(one)[1:]) for one in runs]
    read = {"weights": _read_once(), "product_quantised": _quantised_once()}
    return fitted(runs, times, Calibration(base=base, threads=threads, measured=True, **read))


def _read_once() -> float:
    """The seconds in which a new token reads a byte of weights: the product of a matrix that no cache holds."""
    matrix, vector, times = torch.randn(8192, 4096), torch.randn(4096), []
    for _ in range(10):
        begun = perf_counter()
        torch.mv(matrix, vector)
        times.append(perf_counter() - begun)
    return min(times) / matrix.nbytes


def _quantised_once() -> float:
    """The seconds of an operation of a product with weights in a number format: those of four to eight bits are about
    as fast as each other."""
    layer, x, times = Quantised.of(PROJECTIONS["int8"], torch.randn(4096, 1024)), torch.randn(512, 1024), []
    for _ in range(10):
        begun = perf_counter()
        layer(x)
        times.append(perf_counter() - begun)
    return min(times) / (2 * x.numel() * len(layer.raw))


def _small(width: int, layers: int, length: int, vocab: int = 512, **changes: Any) -> Workload:
    heads = max(1, width // 64)
    sizes: dict[str, Any] = {"width": width, "layers": layers, "heads": heads, "kv_heads": heads, "vocab": vocab}
    sizes |= {"head_size": width // heads, "mlp_width": 8 * width // 3 // 16 * 16, "tied": True}
    positions: Any = {"base": 1e4, "scaling": {"name": "none"}, "context": length, "trained": length}
    spec = LlamaConfig(**sizes, positions=positions).spec
    return Workload.model_validate({"spec": spec, "length": length, "strategy": "plain", "steps": 3} | changes)


def _timed(precision: str) -> list[Workload]:
    """Runs that spend different shares of time on products, attention, activations, calls and the optimiser.

    None of them is in the benchmark. An update takes about 0.1 to 0.6 seconds. With shorter updates the fit would
    count the time of records and timers as time of calls.
    """
    return [
        _small(256, 6, 768, precision=precision, rows=2),
        _small(128, 4, 4096, precision=precision),
        _small(64, 10, 1536, precision=precision, strategy="chunk-outer", chunk=128),
        _small(448, 4, 1536, precision=precision, strategy="checkpoint"),
        _small(512, 2, 128, vocab=24_000, precision=precision),
        _small(128, 2, 1024, vocab=24_000, precision=precision, optimizer="sgd"),
        _small(128, 6, 2048, precision=precision, rows=2, packed=True),
        _small(192, 8, 512, precision=precision, rows=4, strategy="layer-outer", chunk=256),
    ]


def fitted(runs: Sequence[Workload], times: Sequence[float], start: Calibration) -> Calibration:
    """Fit the speeds by least squares of the relative error over measured runs. No speed becomes zero.

    The fit is a ridge regression towards `start`, in units of (speed / its start), by coordinate descent on the normal
    equations. Speeds that the runs cannot separate keep the ratios of `start`, scaled to this machine.
    """
    names = ["product", "product_narrow", "attention", "attention_narrow", "activation", "call", "traffic"]
    known = np.array([getattr(start, name) for name in names])
    rows, left = [], []
    for run, time in zip(runs, times, strict=True):
        work, narrow = count(run), run.precision == "bfloat16"
        pair = (0.0, 1.0) if narrow else (1.0, 0.0)
        both = [total * on for total in (work.products, work.attention) for on in pair]
        both[1] += work.narrow_products
        rows.append([*both, work.activations, work.calls, work.traffic])
        left.append(time - work.read * PACKED * start.weights)
    shares = np.array(rows) * known / np.array(left)[:, None]  # shares of the measured time, at the speeds of `start`
    pace = float(np.median(1 / shares.sum(axis=1)))
    shares, known = shares * pace, known * pace
    gram, aim = shares.T @ shares, shares.sum(axis=0)
    gram, aim = gram + np.eye(len(names)) * DRAW, aim + DRAW
    x = np.ones(len(names))
    for _ in range(20_000):
        for at in range(len(names)):
            x[at] = max(LEAST, x[at] + (aim[at] - gram[at] @ x) / gram[at, at])
    return start.model_copy(update={name: float(value) for name, value in zip(names, x * known, strict=True)})


def main() -> None:
    import handscroll.train.start  # noqa: F401 - a real run also has the readers and tokenizers in memory

    request = json.loads(sys.stdin.read())
    torch.set_num_threads(request["threads"])
    if "calibrate" in request:
        sys.stdout.write(_calibrated(request["threads"]).model_dump_json() + "\n")
        return
    sys.stdout.write(measure_here(Workload.model_validate(request["run"])).model_dump_json() + "\n")


if __name__ == "__main__":
    main()
