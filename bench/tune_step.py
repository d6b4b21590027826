"""One LoRA step on a long conversation: peak memory and time, over a quantised file here, and with peft + transformers.

python -m bench.tune_step MODEL.gguf [--lengths 2048,4096] [--text FILE] [--memory layer-outer] [--chunk 1024]
    [--systems ours,peft] [--certify]

Every point is a fresh process: load, one forward and backward over a conversation of at most so many tokens, peak
resident memory of the whole process, seconds of the step. The conversation is made of the lines of FILE, asked and
answered in turn (without it: of this package's own documents), by the template of the model, with the loss on the
answers alone; both systems get the same ids and labels. Both adapt query, key, value and output with rank 16.

- ours: the weights stay as they lie in the file, mapped. `--certify` compares the strategy with the plain step first.
- peft: the same weights written out in `--dtype`, with transformers' gradient checkpointing and sdpa attention.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RANK, ALPHA = 16, 32.0
TURN = 200  # characters of a message


def conversation(options: argparse.Namespace, length: int) -> Any:
    """The longest conversation of whole turns that fits."""
    from handscroll.generate.chat import Speaker
    from handscroll.tasks.conversation import encode_conversation
    from handscroll.text.tokenizer import Tokenizer

    text = Path(options.text).read_text(encoding="utf-8") if options.text else _documents()
    parts = [part for at in range(0, len(text), TURN) if (part := text[at : at + TURN].strip())]
    messages = [{"role": ("user", "assistant")[number % 2], "content": part} for number, part in enumerate(parts)]
    speaker = Speaker(Tokenizer.load(options.model))
    low = high = 1  # pairs of turns
    while high < len(messages) // 2 and len(encode_conversation(speaker, messages[: 2 * high])[0]) <= length:
        low, high = high, min(2 * high, len(messages) // 2)
    while low < high:
        middle = (low + high + 1) // 2
        (one,) = encode_conversation(speaker, messages[: 2 * middle])
        low, high = (middle, high) if len(one) <= length else (low, middle - 1)
    (one,) = encode_conversation(speaker, messages[: 2 * low])
    if not 0.9 * length < len(one) <= length:
        sys.exit(f"the text gives conversations of {len(one):,} tokens, not of {length:,}: name a longer --text")
    return one


def _documents() -> str:
    here = Path(__file__).parents[1]
    files = [*sorted((here / "docs").rglob("*.md")), *sorted((here / "handscroll").rglob("*.py"))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def ours(options: argparse.Namespace, length: int) -> None:
    import torch

    from handscroll.data.batch import collate
    from handscroll.lm import load
    from handscroll.objectives.causal import Causal
    from handscroll.train.lora import LoRA, add_lora
    from handscroll.train.step import Memory, Step, build_strategy
    from handscroll.train.strategies.certificate import certify

    torch.set_num_threads(options.threads)
    one = conversation(options, length)
    model = load(options.model).model
    add_lora(model, LoRA(rank=RANK, alpha=ALPHA))
    batch = collate([one.row()])
    chunked = options.memory not in ("plain", "checkpoint")
    memory = Memory.parse(
        {
            "strategy": options.memory,
            "chunk": options.chunk if chunked else 0,
            "stage_layers": options.stage if options.memory == "staged" else 0,
            "mlp_tile": options.mlp_tile,
            "offload": options.offload,
        },
        "memory",
    )
    with tempfile.TemporaryDirectory(dir=".") as folder:
        if options.certify:
            print(certify(model, memory, batch, Causal(), Path(folder)), file=sys.stderr)
            model.zero_grad()
        began = peak()
        autocast = torch.bfloat16 if options.dtype == "bfloat16" else None
        step = Step(build_strategy(memory, model, Path(folder)), autocast=autocast)
        started = time.perf_counter()
        loss = step(model, [batch], Causal(), pulse=_told(options.quiet))
        report(len(one), time.perf_counter() - started, float(loss.total) / loss.count, began)


def _told(quiet: bool) -> Any:
    started, last = time.perf_counter(), [0.0]

    def tell(done: float) -> None:
        now = time.perf_counter()
        if not quiet and now - last[0] > 20:
            last[0] = now
            print(f"  {done:.0%} after {now - started:.0f} s, peak {peak():,.0f} MiB", file=sys.stderr, flush=True)

    return tell


def theirs(options: argparse.Namespace, length: int) -> None:
    import peft
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    one = conversation(options, length)
    dtype = getattr(torch, options.dtype or "bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(options.folder, dtype=dtype, use_cache=False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
    model.train()
    ids = torch.tensor([one.ids])
    labels = torch.where(torch.tensor([one.trained]), ids, -100)
    began, started = peak(), time.perf_counter()
    loss = model(ids, labels=labels).loss
    loss.backward()
    report(len(one), time.perf_counter() - started, float(loss.detach()), began)


def peak() -> float:
    """The peak resident memory of this process in MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def report(tokens: int, seconds: float, loss: float, began: float) -> None:
    print(json.dumps({"tokens": tokens, "seconds": seconds, "peak_mib": peak(), "before_mib": began, "loss": loss}))


def measure(system: str, options: argparse.Namespace, length: int, folder: str) -> dict | None:
    given = {
        name: str(getattr(options, name)) for name in ("memory", "chunk", "stage", "mlp_tile", "offload", "threads")
    }
    given |= {name: value for name in ("text", "dtype") if (value := getattr(options, name))}
    command = [sys.executable, "-m", "bench.tune_step", options.model, "--one", system, "--lengths", str(length)]
    command += [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    command += ["--folder", folder, *["--certify"] * options.certify, *["--quiet"] * options.quiet]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{length:>8} {system:<6} failed with status {done.returncode} (-9: out of memory)", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lengths", default="2048")
    parser.add_argument("--systems", default="ours,peft")
    parser.add_argument("--text", default="")
    parser.add_argument("--memory", default="layer-outer")
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--stage", type=int, default=4, help="layers of a stage of --memory staged")
    parser.add_argument("--mlp-tile", type=int, default=0)
    parser.add_argument("--offload", default="none")
    parser.add_argument(
        "--dtype", choices=("", "float32", "bfloat16"), default="", help="default: as loaded; peft: bfloat16"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--certify", action="store_true")
    parser.add_argument("--quiet", action="store_true", help="no progress of a step")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        (ours if options.one == "ours" else theirs)(options, int(options.lengths))
        return
    print(f"{options.model}, strategy {options.memory}, chunk {options.chunk}, {options.threads} threads")
    print(f"{'limit':>8} {'system':<6} {'tokens':>8} {'peak MiB':>9} {'seconds':>8} {'loss':>7}")
    systems = options.systems.split(",")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        if "peft" in systems:
            from handscroll.lm import load

            load(options.model, weights="float", dtype=options.dtype or "bfloat16").save(folder)
        for length in map(int, options.lengths.split(",")):
            for system in systems:
                found = measure(system, options, length, folder)
                if found is not None:
                    print(
                        f"{length:>8} {system:<6} {found['tokens']:>8,} {found['peak_mib']:>9,.0f} "
                        f"{found['seconds']:>8.1f} {found['loss']:>7.4f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
