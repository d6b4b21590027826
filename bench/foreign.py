"""llama.cpp and CTranslate2 on the benchmarks' model, run by an interpreter of their own.

Not a benchmark itself: `bench.decode` and `bench.prefill` run it with `--peers PYTHON`, an environment that has them:

    python3 -m venv peers && peers/bin/pip install torch transformers safetensors gguf ctranslate2 llama-cpp-python

llama.cpp in f16 stands there twice, with its flash attention and without: which is faster depends on the length and on
the processor, and a peer gets its best setting.

SYSTEM FOLDER JOB LENGTH -> one line of JSON: seconds, resident MiB after imports, peak MiB. JOB "prepare" writes the
model in the system's own format beside the folder's; the others are those of `bench.systems`.
"""

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

STEPS = 16
BATCH = 512  # tokens that llama.cpp reads at a time; its default, and its best here


def status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def seconds_of(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def llama_cpp(folder: Path, job: str, length: int, kind: str) -> dict[str, float]:
    """llama-cpp-python; weights and cache in one precision. The cache is filled by reading a prompt. A rounded cache
    needs flash attention."""
    flash, kind = kind != "f16", kind.removeprefix("flash ")
    path = folder / f"{kind}.gguf"
    if job == "prepare":
        if not path.exists():  # it serves both settings of flash attention
            write_gguf(folder, path, kind)
        return {}
    import llama_cpp
    import numpy as np

    imported = status("VmRSS")
    cache = {"f16": 1, "q8_0": 8}[kind]  # ggml's numbers of the types
    model = llama_cpp.Llama(
        str(path),
        n_ctx=length + 256,
        n_threads=2,
        n_threads_batch=2,
        n_batch=BATCH,
        n_ubatch=BATCH,
        flash_attn=flash,
        type_k=cache,
        type_v=cache,
        verbose=False,
    )
    random = np.random.default_rng(0)
    model.eval(random.integers(0, model.n_vocab(), 256).tolist())
    model.reset()
    prompt = random.integers(0, model.n_vocab(), length).tolist()
    read = seconds_of(lambda: model.eval(prompt))
    if job == "prefill":
        return {"seconds": read, "imported": imported}
    times = sorted(seconds_of(lambda n=n: model.eval([n + 5])) for n in range(STEPS + 2))[:STEPS]
    return {"seconds": times[len(times) // 2], "imported": imported, "prefill": read}


def ctranslate2(folder: Path, job: str, length: int, kind: str) -> dict[str, float]:
    """CTranslate2's generator; the clock is read whenever it hands out a token."""
    made = folder / f"ctranslate2-{kind}"
    if job == "prepare":
        write_ctranslate2(folder, made, kind)
        return {}
    import ctranslate2 as library
    import numpy as np

    imported = status("VmRSS")
    model = library.Generator(str(made), device="cpu", compute_type=kind, inter_threads=1, intra_threads=2)
    prompt = [f"t{n}" for n in np.random.default_rng(0).integers(3, 49_000, length)]

    def answer(tokens: int, start: list[str] = prompt) -> list[float]:
        """Seconds since the beginning at which each token came."""
        started, came = time.perf_counter(), []
        model.generate_batch(
            [start],
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=lambda _: bool(came.append(time.perf_counter() - started)),
        )
        return came

    answer(2, prompt[:256])
    if job == "prefill":
        return {"seconds": answer(1)[0], "imported": imported}
    came = answer(STEPS + 1)
    times = sorted(b - a for a, b in pairwise(came))
    return {"seconds": times[len(times) // 2], "imported": imported, "prefill": came[0]}


def write_gguf(folder: Path, path: Path, kind: str) -> None:
    """The folder's Llama as GGUF without a vocabulary."""
    import gguf
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv)
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_dimension_count(config["hidden_size"] // heads)
    out.add_rope_freq_base(10_000.0)
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model("no_vocab")
    ours = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    ours |= {"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm"}
    ours |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    ours |= {"post_attention_layernorm": "ffn_norm"}
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name == "lm_head.weight":  # tied
            continue
        numbers = tensor.float().numpy()
        if name not in outer:
            _, _, number, *rest = name.split(".")
            turned = {"q_proj": heads, "k_proj": kv}.get(rest[1])
            if turned is not None:  # llama.cpp rotates neighbours, this format rotates halves
                pairs = numbers.reshape(turned, 2, -1, numbers.shape[1])
                numbers = pairs.swapaxes(1, 2).reshape(numbers.shape)
            target = f"blk.{number}.{ours['.'.join(rest[:-1])]}.weight"
        else:
            target = outer[name]
        if numbers.ndim == 1:
            out.add_tensor(target, numbers)
        elif kind == "f16":
            out.add_tensor(target, numbers.astype("float16"))
        else:
            rounded = gguf.GGMLQuantizationType.Q8_0
            out.add_tensor(target, gguf.quants.quantize(numbers, rounded), raw_dtype=rounded)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def write_ctranslate2(folder: Path, made: Path, kind: str) -> None:
    """The folder's Llama as CTranslate2 has it; it asks for a tokenizer, so the tokens get names t0, t1, ..."""
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer, models

    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    words = {f"t{n}": n for n in range(size)}
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {word: n for word, n in words.items() if n > 2}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    TransformersConverter(str(folder)).convert(str(made), quantization=kind, force=True)


SYSTEMS: dict[str, tuple[Callable[[Path, str, int, str], dict[str, Any]], str]] = {
    "llama.cpp f16": (llama_cpp, "f16"),
    "llama.cpp flash f16": (llama_cpp, "flash f16"),
    "llama.cpp q8_0": (llama_cpp, "q8_0"),
    "CTranslate2 float32": (ctranslate2, "float32"),
    "CTranslate2 int8": (ctranslate2, "int8_float32"),
}
BOTH = ("llama.cpp f16", "llama.cpp flash f16")  # two settings of one peer: they are measured together


if __name__ == "__main__":
    name, folder, job, length = sys.argv[1:]
    call, kind = SYSTEMS[name]
    print(json.dumps(call(Path(folder), job, int(length), kind) | {"peak": status("VmHWM")}))
