"""A live server on tiny models, as the tests of serving use it."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
import torch
from openai import OpenAI
from safetensors.torch import save_file

from handscroll.lm import LM
from handscroll.models.bert import Bert, BertConfig
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.models.weights import save_model
from handscroll.serve.models import sources
from handscroll.serve.server import make
from handscroll.serve.settings import ServeSettings
from handscroll.text.training import TokenizerConfig, train_tokenizer
from handscroll.text.wordpiece import wordpiece_json

CONTEXT = 2000
TEMPLATE = (
    "{% if tools %}{{ 'tools: ' + tools | tojson + '<|endoftext|>' }}{% endif %}"
    "{% for m in messages %}{{ m.role + ':<|endoftext|>' + m.content + '<|endoftext|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:<|endoftext|>' }}{% endif %}"
)
SPECIAL = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>")
TEXT = "import os\n\n\ndef walk(top):\n    for name in os.listdir(top):\n        yield os.path.join(top, name)\n\n"
SHIP = "# One\n\nThe captain drinks rum.\n\n# Two\n\nThe ship is called Hispaniola, and she sails at dawn.\n\n"
LONG = "".join(f"# Part {n}\n\nThe number of room {n} is {n * 7919 % 1000}.\n{TEXT}\n" for n in range(40))
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(20)), "q", ":"]


def decoder(folder: Path) -> Path:
    """A random Llama with a chat template and tokens for filling in the middle."""
    tokenizer = train_tokenizer([TEXT * 4], TokenizerConfig(vocab=300, special=SPECIAL))
    tokenizer.settings["chat_template"] = TEMPLATE
    tokenizer.settings["eos_token"] = "<|endoftext|>"
    positions = {"base": 10000.0, "scaling": {"name": "none"}, "context": CONTEXT, "trained": CONTEXT}
    config = LlamaConfig(
        vocab=300, width=32, layers=2, heads=2, kv_heads=1, head_size=16, mlp_width=64, positions=positions
    )
    torch.manual_seed(0)
    model = Llama(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
    LM(model, tokenizer, "tiny").save(folder)
    return folder


def adapter(folder: Path) -> Path:
    """A LoRA over that Llama, in PEFT's form."""
    folder.mkdir()
    stream = torch.Generator().manual_seed(1)
    found = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        found[f"{name}.lora_A.weight"] = torch.randn(2, 32, generator=stream)
        found[f"{name}.lora_B.weight"] = torch.randn(32, 2, generator=stream)
    save_file(found, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(about | {"base_model_name_or_path": ""}))
    return folder


def encoder(folder: Path) -> Path:
    """A tiny BERT whose recipe reads 8 tokens."""
    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 2, "heads": 4, "mlp_width": 48}
    save_model(Bert(BertConfig(vocab=len(WORDS), context=64, **sizes)), folder)
    (folder / "tokenizer.json").write_text(wordpiece_json("\n".join(WORDS), {}, ""))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    kind = "sentence_transformers.models."
    listed = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"idx": n, "name": str(n), "path": path, "type": kind + one} for n, (path, one) in enumerate(listed)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8, "do_lower_case": False}))
    return folder


class Live:
    """A server that listens."""

    def __init__(self, server, serving, key: str = "none-is-needed"):
        self.server, self.serving, self.key = server, serving, key
        self.others: list[Live] = []
        bound = server.servers[0].sockets[0].getsockname()
        self.port = bound[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=30)
        self.openai = OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def as_owner(self, key: str) -> "Live":
        """The same server for another key."""
        self.others.append(Live(self.server, self.serving, key))
        return self.others[-1]

    @property
    def engine(self):
        return self.serving.models.all["tiny"].engine

    def until(self, what, seconds: float = 60.0) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.01)


def connected(server: Live) -> socket.socket:
    """A connection without a client's manners."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def idle(server: Live) -> bool:
    """Whether no answer is open and no block is used."""
    engine = server.engine
    return engine.idle and engine.blocks.available == engine.blocks.count and server.serving.admission.open == 0


def read(server: Live, number: str, model: str = "tiny", seconds: float = 60.0) -> dict:
    """Wait until a document is read, or refused."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        about = server.http.get(f"/v1/documents/{number}").json()
        if about["readings"][model]["state"] not in ("waiting", "reading"):
            return about
        time.sleep(0.02 if model == "tiny" else 0.5)
    raise AssertionError("it was not read in time")


@contextmanager
def live(store: Path, models: dict[str, Path], key: str = "none-is-needed", patience: float = 30.0, **settings):
    """A server on these models, until the block ends; `patience` are the seconds that it may take to start."""
    found = sources([f"{name}={path}" for name, path in models.items() if ":" not in name], [
        f"{name}={path}" for name, path in models.items() if ":" in name
    ])  # fmt: skip
    given = {"models": [one.model_dump() for one in found], "store": store, "port": 0, "memory": 8 << 20}
    server, serving = make(ServeSettings.parse({**given, **settings}, "test"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + patience
        while not (server.started and serving.models.state != "loading"):
            assert thread.is_alive() and time.monotonic() < end, "the server did not start"
            time.sleep(0.01)
        assert serving.models.state == "ready", [one.error for one in serving.models.all.values()]
        made = Live(server, serving, key)
        yield made
        for one in (made, *made.others):
            one.http.close()
            one.openai.close()
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"
