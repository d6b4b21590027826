"""Long training steps, reading and decoding on one GPU, beside transformers on the same card.

python -m bench.gpu [--jobs CASE,CASE,...] [--out FILE]   (without --jobs: lists the cases)

Every case is a fresh process with random weights (speed and memory only). A case is SHAPE:SYSTEM:JOB:TOKENS, such as
8b:chunk-outer:step:300000, 8b:transformers:step:65536, 8b:handscroll:decode:131072. Training of shape 8b is of LoRA
adapters (rank 8, four attention projections) on frozen bfloat16 weights, that of 0.5b of all parameters in mixed
precision. Shares are of the speed of a large bfloat16 product (steps and reading; a step is counted as two forward
passes and a backward, which is what recomputing costs anybody) and of the speed of a large copy, both measured first.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

SHAPES = {
    "8b": {"vocab": 128256, "width": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "head_size": 128, "mlp": 14336},
    "0.5b": {"vocab": 151936, "width": 896, "layers": 24, "heads": 14, "kv_heads": 2, "head_size": 64, "mlp": 4864},
    "tiny": {"vocab": 1024, "width": 256, "layers": 4, "heads": 4, "kv_heads": 2, "head_size": 64, "mlp": 512},
}
ADAPTED = ("8b",)  # shapes that are trained through adapters
TIED = ("0.5b",)
STRATEGIES = {
    "plain": {"strategy": "plain"},
    "checkpoint": {"strategy": "checkpoint"},
    "chunk-outer": {"strategy": "chunk-outer", "chunk": 2048, "mlp_tile": 1024},
    "chunk-outer-wide": {"strategy": "chunk-outer", "chunk": 8192},
    "layer-outer": {"strategy": "layer-outer", "chunk": 8192},
    "layer-outer-host": {"strategy": "layer-outer", "chunk": 8192, "offload": "host"},
}
PEERS = ("transformers", "transformers-chunked", "transformers-static")
NEW = 48  # decoded tokens that are timed


def matrices(shape: dict) -> int:
    """Numbers in the projections of all layers."""
    inner, shared = shape["heads"] * shape["head_size"], shape["kv_heads"] * shape["head_size"]
    return shape["layers"] * shape["width"] * (2 * inner + 2 * shared + 3 * shape["mlp"])


def operations(name: str, job: str, tokens: int) -> float:
    """Multiplications and additions that the job cannot do without, causal pairs counted once."""
    shape = SHAPES[name]
    pairs, inner = tokens * tokens / 2, shape["heads"] * shape["head_size"] * shape["layers"]
    head = shape["vocab"] * shape["width"]
    if job == "read":
        return 2.0 * matrices(shape) * tokens + 4 * pairs * inner
    back = 2 if name in ADAPTED else 4
    return ((4 + back) * matrices(shape) + (2 + back) * head) * tokens + (2 * 4 + 10) * pairs * inner


def decoded_bytes(name: str, tokens: int) -> float:
    """Bytes that a new token must read after `tokens`: every weight but the token table, keys and values."""
    shape = SHAPES[name]
    kept = 2 * shape["layers"] * shape["kv_heads"] * shape["head_size"] * tokens
    return 2.0 * (matrices(shape) + shape["vocab"] * shape["width"] + kept)


def ceilings() -> dict:
    """Operations a second of a bfloat16 product of random matrices, bytes a second of a large copy."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    here, there = (torch.empty(1 << 32, dtype=torch.uint8, device="cuda") for _ in "ab")
    product, copy = (_seconds(call) for call in (lambda: a @ b, lambda: there.copy_(here)))
    return {"product": 2 * 8192**3 / product, "copy": 2 * (1 << 32) / copy, "card": torch.cuda.get_device_name()}


def _seconds(call, repeat: int = 10) -> float:
    import torch

    for _ in range(3):
        call()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeat):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeat


def our_model(name: str, length: int, train: bool):
    import torch

    from handscroll.models.llama import Llama, LlamaConfig
    from handscroll.train.lora import LoRA, add_lora

    torch.manual_seed(0)
    shape = SHAPES[name]
    sizes = {key: shape[key] for key in ("vocab", "width", "layers", "heads", "kv_heads", "head_size")}
    positions = {"base": 5e5, "scaling": {"name": "none"}, "context": length, "trained": length}
    config = LlamaConfig(**sizes, mlp_width=shape["mlp"], tied=name in TIED, positions=positions)
    half = not train or name in ADAPTED
    torch.set_default_dtype(torch.bfloat16 if half else torch.float32)
    with torch.device("cuda"):
        model = Llama(config)
    torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    if train and name in ADAPTED:
        model.requires_grad_(False)
        add_lora(model, LoRA(rank=8))
    return model


def their_model(name: str, length: int, train: bool):
    import torch
    import transformers

    torch.manual_seed(0)
    shape = SHAPES[name]
    config = transformers.LlamaConfig(
        vocab_size=shape["vocab"],
        hidden_size=shape["width"],
        intermediate_size=shape["mlp"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_size"],
        max_position_embeddings=length + 1024,
        rope_theta=5e5,
        tie_word_embeddings=name in TIED,
        attn_implementation="sdpa",
    )
    half = not train or name in ADAPTED
    torch.set_default_dtype(torch.bfloat16 if half else torch.float32)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if train:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        if name in ADAPTED:
            import peft

            targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
            model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets))
            model.enable_input_require_grads()
    return model


def our_step(name: str, strategy: str, length: int, tokens):
    import tempfile

    import torch

    from handscroll.data.batch import Batch
    from handscroll.objectives.causal import Causal
    from handscroll.train.step import Memory, Step, build_strategy

    model = our_model(name, length, train=True)
    folder = Path(tempfile.mkdtemp())
    step = Step(build_strategy(Memory(**STRATEGIES[strategy]), model, folder), autocast=torch.bfloat16)

    def run(length: int) -> float:
        model.zero_grad(set_to_none=True)
        loss = step(model, [Batch(tokens[:, :length], tokens[:, 1 : length + 1])], Causal())
        return float(loss.total) / loss.count

    return run


def their_step(name: str, system: str, length: int, tokens):
    import torch
    from torch.utils.checkpoint import checkpoint

    model = their_model(name, length, train=True)
    body = model.get_base_model() if name in ADAPTED else model

    def part(x, y):
        logits = body.lm_head(x).flatten(0, 1).float()
        return torch.nn.functional.cross_entropy(logits, y.flatten(), reduction="sum")

    def run(length: int) -> float:
        model.zero_grad(set_to_none=True)
        here, targets = tokens[:, :length].cuda(), tokens[:, 1 : length + 1].cuda()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=name not in ADAPTED):
            if system == "transformers-chunked":
                hidden = body.model(here, use_cache=False).last_hidden_state
                pairs = zip(hidden.split(2048, 1), targets.split(2048, 1), strict=True)
                loss = sum(checkpoint(part, x, y, use_reentrant=False) for x, y in pairs) / targets.numel()
            else:
                loss = model(input_ids=here, labels=here, use_cache=False).loss
        loss.backward()
        return float(loss)

    return run


def train_case(name: str, system: str, length: int) -> dict:
    import torch

    tokens = torch.randint(0, SHAPES[name]["vocab"], (1, length + 1), generator=torch.Generator().manual_seed(1))
    run = (their_step if system in PEERS else our_step)(name, system, length, tokens)
    run(min(length, 8192))  # kernels and workspaces
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    loss = run(length)
    torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - started, "loss": loss}


def read_case(name: str, system: str, length: int) -> dict:
    import torch

    tokens = torch.randint(0, SHAPES[name]["vocab"], (1, length), device="cuda")
    if system in PEERS:
        from transformers import DynamicCache

        model = their_model(name, length, train=False).eval()

        def run(length: int):
            model(tokens[:, :length], past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1)
    else:
        from handscroll.generate.prefill import prefill, prefill_chunk
        from handscroll.nn.marks import Marks

        model = our_model(name, length, train=False).eval()

        def run(length: int):
            cache = model.new_cache(length)
            hidden = prefill(
                model, tokens[:, :length], Marks.run(0, length), cache, length, prefill_chunk(model.device)
            )
            model.logits(hidden)

    with torch.inference_mode():
        run(min(length, 16384))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        run(length)
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - started}


def decode_case(name: str, system: str, length: int) -> dict:
    """Seconds of a new token, the likeliest each time, over a cache of random keys."""
    import torch

    shape = SHAPES[name]
    room = length + NEW + 8
    keys, values = (
        torch.randn(1, shape["kv_heads"], length, shape["head_size"], device="cuda").bfloat16() for _ in "kv"
    )
    if system in PEERS:
        from transformers import DynamicCache, StaticCache

        model = their_model(name, room, train=False).eval()
        static = system == "transformers-static"
        cache = StaticCache(config=model.config, max_cache_len=room) if static else DynamicCache()
        for layer in range(shape["layers"]):
            cache.update(keys, values, layer, {"cache_position": torch.arange(length, device="cuda")})
        call = torch.compile(model.forward, mode="reduce-overhead") if static else model.forward

        def step(token, number: int):
            at = torch.tensor([[length + number]], device="cuda")
            more = {"cache_position": at[0]} if static else {}
            return call(token, past_key_values=cache, use_cache=True, position_ids=at, **more).logits[:, -1]
    else:
        from handscroll.nn.marks import Marks

        model = our_model(name, room, train=False).eval()
        cache = model.new_cache(room)
        for layer in range(shape["layers"]):
            cache.append(layer, keys, values, Marks.run(0, length))
        cache.commit()

        def step(token, number: int):
            marks = Marks.run(length + number, 1)
            hidden = model.hidden(model.embed(token, marks), marks, model.mask(), cache, room)
            return model.logits(hidden)[:, -1]

    del keys, values
    times, token = [], torch.tensor([[5]], device="cuda")
    with torch.no_grad():
        for number in range(NEW + 4):
            torch.cuda.synchronize()
            started = time.perf_counter()
            token = step(token, number).argmax(dim=-1, keepdim=True)
            token.item()
            times.append(time.perf_counter() - started)
    times = sorted(times[8:])
    return {"seconds": times[len(times) // 2]}


JOBS = {"step": train_case, "read": read_case, "decode": decode_case}


def one(case: str) -> None:
    import torch

    name, system, job, tokens = case.split(":")
    result = JOBS[job](name, system, int(tokens))
    peak = {"peak_gib": torch.cuda.max_memory_allocated() / 2**30, "held_gib": torch.cuda.max_memory_reserved() / 2**30}
    print(json.dumps(result | peak))


def line(case: str, result: dict, top: dict) -> str:
    name, _, job, text = case.split(":")
    tokens, seconds = int(text), result["seconds"]
    if job == "decode":
        share = f"{decoded_bytes(name, tokens) / seconds / top['copy']:.0%} of the memory bound"
        speed = f"{1e3 * seconds:.2f} ms a token"
    else:
        share = f"{operations(name, job, tokens) / seconds / top['product']:.0%} of the matrix peak"
        speed = f"{seconds:.1f} s, {tokens / seconds:,.0f} tokens/s"
    return f"{case:<40} {speed:<32} {share:<28} peak {result['peak_gib']:.1f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default="", help="cases, separated by commas")
    parser.add_argument("--out", default="", help="append results to this file, one JSON object a line")
    parser.add_argument("--timeout", type=float, default=540.0, help="seconds for a case")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one)
        return
    if not options.jobs:
        print(
            f"shapes {', '.join(SHAPES)}; jobs {', '.join(JOBS)}; systems handscroll (read, decode), {', '.join(PEERS)}"
        )
        print(f"and for steps the strategies {', '.join(STRATEGIES)}")
        return
    cases = options.jobs.split(",")
    if any(case.split(":")[1] in PEERS for case in cases) and importlib.util.find_spec("transformers") is None:
        sys.exit("the peer is missing: pip install transformers peft")
    top = ceilings()
    print(f"{top['card']}: product {top['product'] / 1e12:.0f} TFLOP/s, copy {top['copy'] / 1e12:.2f} TB/s", flush=True)
    import torch

    torch.cuda.empty_cache()
    environment = os.environ | {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    for case in cases:
        command = [sys.executable, "-m", "bench.gpu", "--one", case]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment, timeout=options.timeout
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["killed"])[-1]
                print(f"{case:<40} failed: {last[:200]}", flush=True)
                continue
            result = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            print(f"{case:<40} took longer than {options.timeout:.0f} s", flush=True)
            continue
        print(line(case, result, top), flush=True)
        if options.out:
            with Path(options.out).open("a") as file:
                file.write(json.dumps({"case": case, **top, **result}) + "\n")


if __name__ == "__main__":
    main()
