"""One exact training step against length: peak memory and time, Handscroll's strategies beside transformers.

python -m bench.long_step [--shape llama-135m|gpt2-small|starter|bert-mini|bert-base] [--lengths 2048,4096,8192]
    [--strategies layer-outer,lstm] [--repeat 3]

Every point is a fresh process with random weights (speed and memory only): build, one step (forward and backward, no
update), peak resident memory and seconds. Systems alternate within a length. The slope is the growth of the peak
per token between the two longest lengths. The peers are transformers with gradient checkpointing as shipped, and the
same with its loss in checkpointed chunks of 1,024 tokens (of an encoder: of the hidden tokens alone).

Encoders learn masked language modelling, 15 % of the tokens hidden, over a learned position table as long as the row.
The systems `lstm` and `lstm-plain` are the recurrent baseline: a two-layer LSTM of about the shape's parameters.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHAPES = {
    "llama-135m": {
        "family": "llama",
        "vocab": 49152,
        "width": 576,
        "layers": 30,
        "heads": 9,
        "kv_heads": 3,
        "mlp": 1536,
    },
    "gpt2-small": {
        "family": "gpt2",
        "vocab": 50257,
        "width": 768,
        "layers": 12,
        "heads": 12,
        "kv_heads": 12,
        "mlp": 3072,
    },
    "starter": {"family": "llama", "vocab": 4096, "width": 256, "layers": 6, "heads": 8, "kv_heads": 2, "mlp": 704},
    "bert-mini": {"family": "bert", "vocab": 30522, "width": 256, "layers": 4, "heads": 4, "kv_heads": 4, "mlp": 1024},
    "bert-base": {
        "family": "bert",
        "vocab": 30522,
        "width": 768,
        "layers": 12,
        "heads": 12,
        "kv_heads": 12,
        "mlp": 3072,
    },
}
MASKED = 0.15
STRATEGIES = {
    "plain": {"strategy": "plain"},
    "checkpoint": {"strategy": "checkpoint"},
    "checkpoint-tile": {"strategy": "checkpoint", "mlp_tile": 1024},
    "chunk-outer": {"strategy": "chunk-outer"},
    "layer-outer": {"strategy": "layer-outer"},
    "staged-2": {"strategy": "staged", "stage_layers": 2},
    "staged-3": {"strategy": "staged", "stage_layers": 3},
    "staged-5": {"strategy": "staged", "stage_layers": 5},
    "chunk-outer-disk": {"strategy": "chunk-outer", "offload": "disk"},
    "layer-outer-disk": {"strategy": "layer-outer", "offload": "disk"},
    "staged-5-disk": {"strategy": "staged", "stage_layers": 5, "offload": "disk"},
}
RECURRENT = {"lstm": {"strategy": "chunk-outer"}, "lstm-plain": {"strategy": "plain"}}
PEERS = ("transformers", "transformers-chunked")
DEFAULT = {
    "llama-135m": "chunk-outer,layer-outer,staged-5,chunk-outer-disk",
    "gpt2-small": "layer-outer,layer-outer-disk",
    "starter": "chunk-outer,layer-outer,lstm",
    "bert-mini": "layer-outer,layer-outer-disk",
    "bert-base": "layer-outer,layer-outer-disk",
}


def lstm(shape: dict, length: int) -> dict:
    """The shape of a two-layer LSTM with about as many parameters as `shape` has (tied tables, no positions)."""
    projections = 2 * shape["width"] ** 2 * (1 + shape["kv_heads"] / shape["heads"])
    layer = projections + (3 if shape["family"] == "llama" else 2) * shape["width"] * shape["mlp"]
    positions = 0 if shape["family"] == "llama" else length
    numbers = shape["layers"] * layer + (shape["vocab"] + positions) * shape["width"]
    # 2 layers x 8 D^2 + V D = numbers
    width = (-shape["vocab"] + (shape["vocab"] ** 2 + 64 * numbers) ** 0.5) / 32
    return {"family": "lstm", "vocab": shape["vocab"], "width": max(16, round(width / 16) * 16), "layers": 2}


def kept_bytes(shape: dict, strategy: dict, bytes_each: int = 4) -> int:
    """Bytes per token that a chunked strategy must keep: stage inputs, and keys, values and their float32 gradients."""
    size = {"chunk-outer": shape["layers"], "layer-outer": 1}.get(strategy["strategy"], strategy.get("stage_layers", 0))
    if not size or strategy.get("offload"):
        return 0
    stages = -(-shape["layers"] // size) + (shape["family"] == "bert")  # an encoder keeps the first inputs too
    kv = shape["kv_heads"] * shape["width"] // shape["heads"]
    return (stages - 1) * shape["width"] * bytes_each + size * 2 * kv * (bytes_each + 4)


def built(shape: dict, length: int) -> tuple[Any, Any, Any]:
    """Handscroll's model of a shape, one row of that many tokens, and what is learned from it."""
    import torch

    from handscroll.data.batch import Batch
    from handscroll.models.bert import Bert, BertConfig
    from handscroll.models.gpt2 import GPT2, GPT2Config
    from handscroll.models.llama import Llama, LlamaConfig
    from handscroll.models.lstm import LSTM, LSTMConfig
    from handscroll.objectives.causal import Causal
    from handscroll.objectives.masked import Masked

    family = shape["family"]
    sizes = {name: shape[name] for name in ("vocab", "width", "layers")}
    if family == "lstm":
        model = LSTM(LSTMConfig(**sizes, trained=length))
    elif family == "llama":
        positions = {"base": 1e5, "scaling": {"name": "none"}, "context": length, "trained": length}
        heads = {"heads": shape["heads"], "kv_heads": shape["kv_heads"], "head_size": shape["width"] // shape["heads"]}
        model = Llama(LlamaConfig(**sizes, **heads, mlp_width=shape["mlp"], tied=True, positions=positions))
    else:
        kinds = {"gpt2": (GPT2, GPT2Config), "bert": (Bert, BertConfig)}
        model = kinds[family][0](
            kinds[family][1](**sizes, heads=shape["heads"], mlp_width=shape["mlp"], context=length)
        )
    tokens = torch.randint(0, shape["vocab"], (1, length + 1))
    if family != "bert":
        return model, Batch(tokens[:, :-1], tokens[:, 1:]), Causal()
    return model, Batch(*hidden_tokens(tokens[:, 1:])), Masked()


def hidden_tokens(tokens: Any) -> tuple[Any, Any]:
    """Input and targets of masked language modelling: 15 % of the tokens are hidden by token 4."""
    import torch

    hidden = torch.rand(tokens.shape) < MASKED
    return tokens.masked_fill(hidden, 4), tokens.masked_fill(~hidden, -100)


def ours(shape: dict, length: int, memory: dict, chunk: int, precision: str, threads: int) -> None:
    import time

    import torch

    from handscroll.nn.init import initialise
    from handscroll.train.step import Memory, Step, build_strategy

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, batch, objective = built(shape, length)
    initialise(model, "normal", shape["layers"], torch.Generator().manual_seed(0))
    settings = dict(memory) | ({} if memory["strategy"] in ("plain", "checkpoint") else {"chunk": chunk})
    with tempfile.TemporaryDirectory(dir=".") as folder:
        strategy = build_strategy(Memory(**settings), model, Path(folder))
        autocast = torch.bfloat16 if precision == "bfloat16" else None
        started = time.perf_counter()
        loss = Step(strategy, autocast=autocast)(model, [batch], objective)
        report(time.perf_counter() - started, float(loss.total) / loss.count)


def peer(shape: dict, length: int) -> tuple[Any, Any, Any]:
    """The model of transformers, its body, and what makes logits of final states."""
    import transformers

    if shape["family"] == "llama":
        config = transformers.LlamaConfig(
            vocab_size=shape["vocab"],
            hidden_size=shape["width"],
            intermediate_size=shape["mlp"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kv_heads"],
            max_position_embeddings=length,
            tie_word_embeddings=True,
            use_cache=False,
        )
        model = transformers.LlamaForCausalLM(config)
        return model, model.model, model.lm_head
    if shape["family"] == "bert":
        config = transformers.BertConfig(
            vocab_size=shape["vocab"],
            hidden_size=shape["width"],
            intermediate_size=shape["mlp"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            max_position_embeddings=length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
        model = transformers.BertForMaskedLM(config)
        return model, model.bert, model.cls
    config = transformers.GPT2Config(
        vocab_size=shape["vocab"],
        n_embd=shape["width"],
        n_layer=shape["layers"],
        n_head=shape["heads"],
        n_positions=length,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    model = transformers.GPT2LMHeadModel(config)
    return model, model.transformer, model.lm_head


def theirs(shape: dict, length: int, chunked: bool, precision: str, threads: int) -> None:
    import time

    import torch
    from torch.utils.checkpoint import checkpoint

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, body, head = peer(shape, length)
    model.gradient_checkpointing_enable()
    model.train()
    tokens = torch.randint(0, shape["vocab"], (1, length))
    labels = tokens
    if shape["family"] == "bert":
        tokens, labels = hidden_tokens(tokens)
    started = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        if chunked:
            hidden, targets = body(tokens).last_hidden_state, labels
            if shape["family"] == "bert":  # the head of the hidden tokens alone
                hidden, targets = (x[labels != -100][None] for x in (hidden, labels))
            else:
                hidden, targets = hidden[:, :-1], labels[:, 1:]

            def part(x, y):
                return torch.nn.functional.cross_entropy(head(x).flatten(0, 1).float(), y.flatten(), reduction="sum")

            pairs = zip(hidden.split(1024, 1), targets.split(1024, 1), strict=True)
            loss = sum(checkpoint(part, x, y, use_reentrant=False) for x, y in pairs) / targets.numel()
        else:
            loss = model(tokens, labels=labels).loss
    loss.backward()
    report(time.perf_counter() - started, float(loss.detach()))


def report(seconds: float, loss: float) -> None:
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak_mib": peak / 1024, "loss": loss}))


def measure(system: str, options: argparse.Namespace, length: int) -> dict | None:
    command = [sys.executable, "-m", "bench.long_step", "--one", system, "--shape", options.shape]
    command += ["--lengths", str(length), "--chunk", str(options.chunk), "--precision", options.precision]
    done = subprocess.run([*command, "--threads", str(options.threads)], capture_output=True, text=True, check=False)
    if done.returncode:
        print(
            f"{length:>8} {system:<22} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1][:90]}", flush=True
        )
        return None
    return json.loads(done.stdout.splitlines()[-1])


def one(options: argparse.Namespace) -> None:
    shape, length = SHAPES[options.shape], int(options.lengths)
    if options.one in PEERS:
        theirs(shape, length, options.one == "transformers-chunked", options.precision, options.threads)
    elif options.one in RECURRENT:
        strategy = RECURRENT[options.one]
        ours(lstm(shape, length), length, strategy, options.chunk, options.precision, options.threads)
    else:
        ours(shape, length, STRATEGIES[options.one], options.chunk, options.precision, options.threads)


def draw(options: argparse.Namespace) -> None:
    """Peak memory against length, one line a system."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = [json.loads(line) for line in Path(options.save).read_text().splitlines()]
    points = [point for point in points if point["shape"] == options.shape]
    figure, axes = pyplot.subplots(figsize=(7.5, 4.4), layout="constrained")
    last: list[tuple[float, float, str, str]] = []
    for system in dict.fromkeys(point["system"] for point in points):
        mine = sorted((point["tokens"], point["peak_mib"] / 1024) for point in points if point["system"] == system)
        style = {"linestyle": "--"} if system in PEERS else {"marker": "o", "markersize": 4}
        (line,) = axes.plot(*zip(*mine, strict=True), **style)
        last.append((mine[-1][1], mine[-1][0], system, line.get_color()))
    height = max(top for top, _, _, _ in last)
    spot = -1.0
    for top, right, system, colour in sorted(last):  # labels at the line ends, pushed apart
        spot = max(top, spot + 0.055 * height)
        axes.annotate(system, (right, top), (1.02 * right, spot), color=colour, fontsize=9, va="center")
    axes.set(xlabel="tokens in one exact training step", ylabel="peak resident memory, GiB", ylim=(0, None))
    axes.set_xlim(0, 1.3 * max(right for _, right, _, _ in last))
    axes.set_title(f"{options.shape}, float32: memory against length", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(options.draw, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-135m")
    parser.add_argument("--lengths", default="2048,4096,8192")
    parser.add_argument("--strategies", default="")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--save", default="", help="append the points to this file, one JSON object a line")
    parser.add_argument("--draw", default="", help="draw the points of --save to this PNG instead of measuring")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options)
        return
    if options.draw:
        draw(options)
        return
    if not options.no_peers and importlib.util.find_spec("transformers") is None:
        sys.exit("the peer is missing: pip install transformers, or say --no-peers")
    systems = [*(() if options.no_peers else PEERS), *(options.strategies or DEFAULT[options.shape]).split(",")]
    print(f"shape {options.shape}, {options.precision}, chunk {options.chunk}, {options.threads} threads")
    print(f"{'tokens':>8} {'system':<22} {'peak MiB':>9} {'seconds':>8} {'against the faster peer':>24}")
    peaks: dict[str, list[tuple[int, float]]] = {}
    for length in [int(text) for text in options.lengths.split(",")]:
        runs: dict[str, list[dict]] = {}
        for _ in range(options.repeat):
            for system in systems:
                result = measure(system, options, length)
                if result is not None:
                    runs.setdefault(system, []).append(result)
        seconds = {system: statistics.median(run["seconds"] for run in got) for system, got in runs.items()}
        best = min((seconds[peer] for peer in PEERS if peer in seconds), default=None)
        for system, got in runs.items():
            peak = statistics.median(run["peak_mib"] for run in got)
            peaks.setdefault(system, []).append((length, peak))
            ratio = "" if best is None else f"{seconds[system] / best:.2f}x the time"
            print(f"{length:>8} {system:<22} {peak:>9.0f} {seconds[system]:>8.1f} {ratio:>24}", flush=True)
            if options.save:
                point = {"shape": options.shape, "system": system, "tokens": length, "peak_mib": peak}
                with Path(options.save).open("a") as file:
                    file.write(json.dumps(point | {"seconds": seconds[system]}) + "\n")
    print(f"\n{'system':<22} {'KB per token':>13} {'must keep':>10}")
    for system, points in peaks.items():
        if len(points) > 1:
            (a, low), (b, high) = points[-2:]
            must = 0 if system in (*PEERS, *RECURRENT) else kept_bytes(SHAPES[options.shape], STRATEGIES[system])
            print(f"{system:<22} {(high - low) * 1048.576 / (b - a):>13.1f} {must / 1000 or '':>10}")


if __name__ == "__main__":
    main()
