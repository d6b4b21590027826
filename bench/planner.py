"""The planner against real runs: forecast and measurement of many configurations, a fresh process each.

python -m bench.planner [--seed N --runs 64 --families llama,gpt2] [--threads 2] [--only TEXT] [--json FILE] [--probe]
python -m bench.planner --device cuda --seed N [--runs 64]

Without --seed: the written list, by which the heap's shares in plan/forecast.py were set. With --seed: configurations
drawn at random (shape, strategy, chunk, precision, optimiser, options), by which nothing was set. --families may name
bert, t5 and lstm too: encoders under masked language modelling, encoder-decoders under span corruption, recurrent
models. None is among the runs that calibrate the machine (train/probe.py). Prints a table and the errors' median, 95th
percentile and worst, of memory and of time. With --device cuda: memory of the GPU (context and what torch reserved),
larger runs, in one process.
"""

import argparse
import json
import os
import random
from pathlib import Path
from statistics import median
from typing import Any

from handscroll.base.errors import CapacityError
from handscroll.base.spec import ModelSpec
from handscroll.base.workload import CHUNKED, Workload
from handscroll.models.bert import BertConfig
from handscroll.models.gpt2 import GPT2Config
from handscroll.models.llama import LlamaConfig
from handscroll.models.lstm import LSTMConfig
from handscroll.models.t5 import T5Config
from handscroll.plan.choose import fits
from handscroll.plan.duration import operations
from handscroll.plan.forecast import predict
from handscroll.plan.machine import SAFETY, Machine, this_machine
from handscroll.train.probe import calibrate, measure, measure_here

PAPER = Machine(memory=1 << 37, disk=1 << 40, gpu=1 << 37)  # of which a forecast on a GPU asks nothing

SHAPES = {
    "llama 1M": {
        "family": "llama",
        "layers": 4,
        "width": 128,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 32,
        "mlp_width": 352,
        "vocab": 2048,
        "tied": True,
    },
    "llama 5M": {
        "family": "llama",
        "layers": 6,
        "width": 256,
        "heads": 8,
        "kv_heads": 8,
        "head_size": 32,
        "mlp_width": 688,
        "vocab": 1024,
        "tied": True,
    },
    "llama 15M": {
        "family": "llama",
        "layers": 8,
        "width": 384,
        "heads": 6,
        "kv_heads": 3,
        "head_size": 64,
        "mlp_width": 1024,
        "vocab": 4096,
        "tied": True,
    },
    "llama 40M": {
        "family": "llama",
        "layers": 8,
        "width": 512,
        "heads": 8,
        "kv_heads": 2,
        "head_size": 64,
        "mlp_width": 1408,
        "vocab": 16384,
    },
    "llama 135M": {
        "family": "llama",
        "layers": 30,
        "width": 576,
        "heads": 9,
        "kv_heads": 3,
        "head_size": 64,
        "mlp_width": 1536,
        "vocab": 49152,
        "tied": True,
    },
    "gpt2 3M": {
        "family": "gpt2",
        "layers": 4,
        "width": 192,
        "heads": 6,
        "kv_heads": 6,
        "head_size": 32,
        "mlp_width": 768,
        "vocab": 4096,
        "tied": True,
    },
    "gpt2 30M": {
        "family": "gpt2",
        "layers": 6,
        "width": 512,
        "heads": 8,
        "kv_heads": 8,
        "head_size": 64,
        "mlp_width": 2048,
        "vocab": 16384,
        "tied": True,
    },
    "gpt2 124M": {
        "family": "gpt2",
        "layers": 12,
        "width": 768,
        "heads": 12,
        "kv_heads": 12,
        "head_size": 64,
        "mlp_width": 3072,
        "vocab": 50257,
        "tied": True,
    },
}


def spec_of(family: str, length: int, sizes: dict[str, Any]) -> ModelSpec:
    """The spec of a Llama or a GPT-2 of these sizes for rows of `length` tokens."""
    if family == "gpt2":
        names = ("layers", "width", "heads", "mlp_width", "vocab")
        return GPT2Config(**{name: sizes[name] for name in names}, context=length).spec
    positions: Any = {"base": 1e4, "scaling": {"name": "none"}, "context": length, "trained": length}
    return LlamaConfig(**sizes, positions=positions).spec


FAMILIES = ("llama", "llama", "gpt2")
RUNS_DRAWN = 64
KNOWN = ("llama", "gpt2", "bert", "t5", "lstm")
RUNS = """
llama 1M: length=256
llama 1M: length=1024 rows=4
llama 1M: length=4096 precision=bfloat16
llama 1M: length=8192
llama 1M: length=4096 rows=2 strategy=checkpoint
llama 1M: length=8192 strategy=checkpoint precision=bfloat16
llama 1M: length=16384 strategy=chunk-outer chunk=1024
llama 1M: length=32768 strategy=layer-outer chunk=2048 precision=bfloat16 steps=2
llama 1M: length=16384 strategy=layer-outer chunk=4096 packed=1
llama 1M: length=8192 strategy=staged stage_layers=2 chunk=512 precision=bfloat16
llama 1M: length=8192 strategy=chunk-outer chunk=512 offload=disk
llama 1M: length=2048 rows=2 packed=1 average=1
llama 1M: length=2048 dropout=1 optimizer=lamb
llama 5M: length=512 rows=4 optimizer=adafactor
llama 5M: length=2048 optimizer=sgd
llama 5M: length=4096 strategy=checkpoint
llama 5M: length=1024 strategy=checkpoint rows=4 precision=bfloat16
llama 5M: length=8192 strategy=chunk-outer chunk=1024
llama 5M: length=8192 strategy=layer-outer chunk=512
llama 5M: length=16384 strategy=staged stage_layers=2 chunk=2048 precision=bfloat16 steps=2
llama 5M: length=8192 strategy=layer-outer chunk=1024 offload=disk
llama 5M: length=1024 micro=3 precision=bfloat16
llama 5M: length=2048 packed=1 strategy=chunk-outer chunk=512
llama 5M: length=1024 lora_rank=8 rows=2
llama 15M: length=512 rows=2
llama 15M: length=1024 optimizer=sgd
llama 15M: length=2048 optimizer=adafactor precision=bfloat16
llama 15M: length=2048 strategy=checkpoint
llama 15M: length=1024 strategy=checkpoint packed=1 rows=2 precision=bfloat16
llama 15M: length=4096 strategy=chunk-outer chunk=512
llama 15M: length=4096 strategy=layer-outer chunk=1024 precision=bfloat16
llama 15M: length=4096 strategy=staged stage_layers=4 chunk=512
llama 15M: length=2048 strategy=chunk-outer chunk=512 offload=disk
llama 15M: length=1024 rows=2 packed=1
llama 15M: length=1024 lora_rank=8 strategy=checkpoint
llama 15M: length=2048 lora_rank=16 precision=bfloat16
llama 15M: length=1024 dropout=1
llama 15M: length=1024 mlp_tile=256
llama 15M: length=2048 mlp_tile=512 strategy=checkpoint precision=bfloat16
llama 15M: length=512 micro=3 optimizer=muon
llama 40M: length=512
llama 40M: length=1024 precision=bfloat16 optimizer=muon
llama 40M: length=1024 strategy=checkpoint average=1
llama 40M: length=2048 strategy=chunk-outer chunk=512 precision=bfloat16
llama 40M: length=2048 strategy=layer-outer chunk=512
llama 40M: length=2048 strategy=staged stage_layers=4 chunk=1024 optimizer=sgd
llama 40M: length=1024 lora_rank=8 strategy=layer-outer chunk=256
gpt2 3M: length=256 rows=4
gpt2 3M: length=2048
gpt2 3M: length=4096 strategy=checkpoint precision=bfloat16
gpt2 3M: length=8192 strategy=chunk-outer chunk=1024
gpt2 3M: length=8192 strategy=layer-outer chunk=1024 precision=bfloat16
gpt2 3M: length=4096 strategy=staged stage_layers=2 chunk=512 packed=1
gpt2 3M: length=1024 rows=2 dropout=1 precision=bfloat16
gpt2 30M: length=512 rows=2
gpt2 30M: length=1024 precision=bfloat16 optimizer=muon
gpt2 30M: length=2048 strategy=layer-outer chunk=512
gpt2 30M: length=1024 strategy=checkpoint average=1
gpt2 30M: length=2048 strategy=chunk-outer chunk=512 precision=bfloat16
gpt2 30M: length=1024 lora_rank=8
gpt2 124M: length=256 optimizer=adafactor steps=2
gpt2 124M: length=512 strategy=checkpoint precision=bfloat16 steps=2
gpt2 124M: length=512 strategy=chunk-outer chunk=256 optimizer=sgd steps=2
llama 135M: length=256 precision=bfloat16 steps=2
llama 135M: length=512 strategy=checkpoint steps=2
llama 135M: length=1024 lora_rank=8 precision=bfloat16 strategy=chunk-outer chunk=256 steps=2
"""


def workloads(threads: int) -> list[tuple[str, Workload]]:
    """The configurations by name."""
    found = []
    for line in RUNS.strip().splitlines():
        name, _, rest = line.partition(": ")
        values: dict = {"strategy": "plain", "steps": 3, "threads": threads}
        for item in rest.split():
            key, _, text = item.partition("=")
            values[key] = int(text) if text.isdigit() else text
        sizes = dict(SHAPES[name])
        values["spec"] = spec_of(sizes.pop("family"), values["length"], sizes)
        values["lora"] = values.pop("lora_rank", 0)
        values = {
            key: bool(value) if key in ("packed", "average", "dropout") else value for key, value in values.items()
        }
        found.append((line, Workload.model_validate(values)))
    return found


def drawn(
    seed: int, runs: int, threads: int, machine: Machine, families: tuple[str, ...] = FAMILIES
) -> list[tuple[str, Workload]]:
    """Random configurations, each forecast to take 0.3 to 12 s an update and at most 6 GB."""
    dice, found = random.Random(seed), []
    while len(found) < runs:
        workload = _draw(dice, threads, families)
        forecast = predict(workload, machine)
        if 0.3 < forecast.seconds < 12 and forecast.host < 6e9:
            found.append((_named(workload), workload))
    return found


def drawn_for_a_gpu(seed: int, runs: int) -> list[tuple[str, Workload]]:
    """Random configurations that take a GPU some seconds and 2 to 60 GB."""
    dice, found = random.Random(seed), []
    while len(found) < runs:
        size, kv, groups = dice.choice([64, 128]), dice.choice([2, 4, 8]), dice.choice([1, 2, 4])
        width, lora = kv * groups * size, dice.random() < 0.4
        strategy = dice.choice(["plain", "checkpoint", "chunk-outer", "layer-outer", "staged"])
        chunked, length = strategy in CHUNKED, 512 * round(2 ** dice.uniform(1, 7))
        sizes = {
            "layers": dice.randint(4, 24),
            "width": width,
            "heads": kv * groups,
            "kv_heads": kv,
            "head_size": size,
            "mlp_width": 128 * round(dice.uniform(2, 4) * width / 128),
            "vocab": round(2 ** dice.uniform(13, 17)),
            "tied": dice.random() < 0.5,
        }
        workload = Workload(
            device="cuda",
            spec=spec_of("llama", length, sizes),
            lora=8 if lora else 0,
            strategy=strategy,
            length=length,
            steps=2,
            precision="bfloat16",
            frozen="bfloat16" if lora and dice.random() < 0.7 else "float32",
            optimizer=dice.choice(["adamw", "adam", "sgd"]),
            chunk=min(dice.choice([1024, 2048, 4096, 8192]), length) if chunked else 0,
            stage_layers=dice.randint(2, max(2, sizes["layers"] // 2)) if strategy == "staged" else 0,
            offload="host" if chunked and dice.random() < 0.15 else "none",
            mlp_tile=512 if dice.random() < 0.15 else 0,
        )
        small = workload.parameters < 6e8 and workload.trainable < 1.2e8  # made on the CPU, and written at the end
        if small and operations(workload) < 2.5e14 and 2e9 < predict(workload, PAPER).gpu < 6e10:
            found.append((_named(workload), workload))
    return found


def _named(workload: Workload) -> str:
    spec = workload.spec
    name = "t5" if spec.encoder else spec.family
    sizes = f"{name} {workload.parameters / 1e6:.0f}M ({len(spec.layers)} x {spec.width}): "
    shown = workload.model_dump(exclude_defaults=True, exclude={"spec", "threads", "steps", "lora"})
    lora = [f"lora={workload.lora}"] if workload.lora else []
    return sizes + " ".join([*lora, *(f"{name}={value}" for name, value in shown.items())])


def _draw(dice: random.Random, threads: int, families: tuple[str, ...]) -> Workload:
    drawn, size = dice.choice(families), dice.choice([32, 64])
    family = {"bert": "gpt2", "t5": "llama"}.get(drawn, drawn)
    kv, groups = dice.randint(1, 6), dice.randint(1, 3) if drawn == "llama" else 1
    width = kv * groups * size
    length = 64 * round(2 ** dice.uniform(2, 8))
    sizes = {
        "layers": dice.randint(2, 16),
        "width": width,
        "heads": kv * groups,
        "kv_heads": kv,
        "head_size": size,
        "mlp_width": 4 * width if family == "gpt2" else 32 * round(dice.uniform(2, 4) * width / 32),
        "vocab": round(2 ** dice.uniform(9, 15.6)),
        "tied": family == "gpt2" or dice.random() < 0.5,
    }
    lora = dice.choice([4, 16]) if dice.random() < 0.15 else 0
    strategy = dice.choice(["plain", "checkpoint", "chunk-outer", "layer-outer", "staged"])
    if drawn in ("bert", "t5", "lstm"):
        spec, strategy = _other(dice, drawn, sizes, length)
        lora = 0 if drawn == "lstm" else lora
    else:
        spec = spec_of(family, length, sizes)
    chunked = strategy in CHUNKED
    return Workload(
        spec=spec,
        lora=lora,
        strategy=strategy,
        length=length,
        steps=3,
        threads=threads,
        rows=dice.choice([1, 1, 1, 2, 4]),
        micro=dice.choice([1, 1, 1, 1, 3]),
        precision=dice.choice(["float32", "bfloat16"]),
        optimizer=dice.choice(["adamw", "adamw", "adam", "sgd", "adafactor", "lamb", "muon"]),
        chunk=min(dice.choice([256, 512, 1024, 2048]), length) if chunked else 0,
        stage_layers=dice.randint(2, max(2, len(spec.layers) // 2)) if strategy == "staged" else 0,
        offload="disk" if chunked and dice.random() < 0.2 else "none",
        packed=dice.random() < 0.25,
        average=dice.random() < 0.1,
        dropout=dice.random() < 0.1,
        mlp_tile=256 if dice.random() < 0.1 and drawn != "lstm" else 0,
        targets=0.15 if drawn == "bert" else 1.0,
    )


def _other(dice: random.Random, name: str, drawn: dict[str, Any], length: int) -> tuple[ModelSpec, Any]:
    """The spec of a family whose layers do not read a text from left to right by attention, and a strategy for it."""
    sizes = {field: drawn[field] for field in ("layers", "width", "vocab")}
    tied = dice.random() < 0.7
    if name == "lstm":
        config = LSTMConfig(**sizes, tied=tied, trained=length)
        return config.spec, dice.choice(["plain", "plain", "chunk-outer", "checkpoint"])
    sizes |= {"heads": drawn["heads"], "mlp_width": 4 * drawn["width"]}
    strategy = dice.choice(["plain", "checkpoint", "layer-outer", "layer-outer"])
    if name == "bert":
        return BertConfig(**sizes, tied=True, context=length).spec, strategy
    gated: Any = dice.choice(["gated-gelu", "relu"])
    sizes |= {"encoder_layers": sizes["layers"], "layers": dice.randint(1, sizes["layers"])}
    sizes["mlp_width"] = (3 if gated == "gated-gelu" else 4) * drawn["width"]
    config = T5Config(**sizes, head_size=drawn["head_size"], mlp=gated, tied=tied, scaled=tied, start=0)
    return config.spec, strategy


def summary(errors: list[float]) -> str:
    """Median, 95th percentile and worst of absolute shares."""
    sizes = sorted(abs(error) for error in errors)
    at = min(len(sizes) - 1, round(0.95 * (len(sizes) - 1)))
    return f"median {median(sizes):.1%}, 95th percentile {sizes[at]:.1%}, worst {sizes[-1]:.1%}"


def on_gpu(chosen: list[tuple[str, Workload]]) -> None:
    """Forecast and measurement of GPU memory."""
    errors = []
    for line, workload in chosen:
        forecast, measured = predict(workload, PAPER), measure_here(workload)
        errors.append(forecast.gpu / measured.gpu - 1)
        parts = " ".join(f"{name}={size / 1e6:.0f}" for name, size in forecast.parts.items())
        sizes = f"{forecast.gpu / 1e6:9.0f} {measured.gpu / 1e6:9.0f} {errors[-1]:+7.1%}"
        print(f"{sizes} {min(measured.seconds):7.2f} s  {line} [{forecast.phase}: {parts}]", flush=True)
    print(f"\n{len(errors)} runs; memory: {summary(errors)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="by default as many as there are processors")
    parser.add_argument("--only", help="configurations whose line holds this")
    parser.add_argument("--json", type=Path, help="append one record a configuration; those in it are not run again")
    parser.add_argument("--seed", type=int, help="draw the configurations with this seed")
    parser.add_argument("--runs", type=int, help=f"with --seed: how many to draw, by default {RUNS_DRAWN}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs --seed")
    parser.add_argument("--families", help=f"with --seed: draw from these, of {', '.join(KNOWN)}")
    parser.add_argument("--probe", action="store_true", help="calibrate first")
    options = parser.parse_args()
    cuda, idle = options.device == "cuda", ()
    if options.seed is None:
        if cuda:
            parser.error("--device cuda draws its configurations: give --seed N")
        idle, why = ("runs", "families"), "draws configurations, which needs --seed N"
    elif cuda:
        idle, why = ("threads", "only", "json", "families", "probe"), "has no meaning with --device cuda"
    if given := [name for name in idle if getattr(options, name) not in (None, False)]:
        parser.error(f"--{given[0]} {why}")
    options.families = tuple(options.families.split(",")) if options.families else FAMILIES
    if wrong := set(options.families) - set(KNOWN):
        parser.error(f"--families: {', '.join(sorted(wrong))} is not drawn; there are {', '.join(KNOWN)}")
    options.runs = RUNS_DRAWN if options.runs is None else options.runs
    options.threads, options.only = options.threads or 0, options.only or ""
    return options


def kept(path: Path | None, threads: int) -> dict[str, dict[str, Any]]:
    """The records of a file that were measured with so many threads, by their configurations."""
    lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
    return {one["line"]: one for one in map(json.loads, lines) if one.get("threads") == threads}


def main() -> None:
    options = arguments()
    if options.device == "cuda":
        on_gpu(drawn_for_a_gpu(options.seed, options.runs))
        return
    if options.probe:
        print(f"calibration: {calibrate(options.threads)}")
    machine, threads = this_machine(threads=options.threads), options.threads or os.cpu_count() or 1
    known = kept(options.json, threads)
    memory, time, under, died = [], [], [], []
    print(
        f"{'predicted':>9} {'measured':>9} {'error':>7}   {'predicted':>9} {'measured':>9} {'error':>7}  (MB, seconds)"
    )
    chosen = workloads(options.threads)
    if options.seed is not None:
        chosen = drawn(options.seed, options.runs, options.threads, machine, options.families)
    for line, workload in chosen:
        if options.only not in line:
            continue
        forecast = predict(workload, machine)
        if line not in known:
            try:
                measured = measure(workload)
            except CapacityError as error:
                died.append((line, fits(forecast, machine)))
                print(f"{line}: {error}")
                continue
            known[line] = {"line": line, "threads": threads, "peak": measured.peak, "seconds": measured.seconds}
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(known[line]) + "\n")
        peak, seconds = known[line]["peak"], min(known[line]["seconds"][1:])
        memory.append(forecast.host / peak - 1)
        time.append(forecast.seconds / seconds - 1)
        under.append(peak > forecast.host / SAFETY)
        print(
            f"{forecast.host / 1e6:9.0f} {peak / 1e6:9.0f} {memory[-1]:+7.1%}   {forecast.seconds:9.2f} {seconds:9.2f} "
            f"{time[-1]:+7.1%}  {line}",
            flush=True,
        )
    chunked = sum(workload.strategy in CHUNKED for _, workload in chosen)
    print(f"\n{len(memory)} runs ({chunked} of all in chunks)")
    print(f"memory: {summary(memory)}; over the safety margin: {sum(under)}")
    print(f"time:   {summary(time)}")
    print(f"accepted and died: {sum(accepted for _, accepted in died)}; died: {len(died)}")


if __name__ == "__main__":
    main()
