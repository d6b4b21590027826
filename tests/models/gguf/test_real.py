"""The real files: logits against `transformers`, ids, greedy text. Skipped where the files are absent."""

import pytest
import torch
import transformers

import handscroll
from handscroll.models.weights import load_model, loaded_dtype
from tests.conftest import shared
from tests.models.gguf.material import real


def text() -> str:
    return shared("text_en/books_valid/stevenson_treasure_island.txt").read_text(encoding="utf-8")[5000:9000]


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    return model(ids, length=ids.shape[1])[0]


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "length"),
    [
        ("gemma3_text", 40),
        pytest.param("gemma3_text", 560, marks=pytest.mark.long),  # past its windows
        pytest.param("qwen2", 64, marks=pytest.mark.long),
    ],
)
def test_logits_are_those_of_the_reference_library(family, length, tmp_path):
    """In float32, of the same dequantised weights, saved as a folder: largest difference 1e-3 (seen: 4e-5)."""
    file = real(family)
    lm = handscroll.load(file, weights="float")
    assert lm.model.config.family == family and loaded_dtype(file) is torch.float32
    ids = torch.tensor([lm.encode(text())[:length]])
    lm.save(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    places = slice(None, None, 9)
    wanted = theirs(ids, logits_to_keep=torch.arange(length)[places]).logits[0]
    del theirs
    assert (logits(lm.model, ids)[places] - wanted).abs().max() < 1e-3
    again = logits(load_model(file, as_stored=True), ids)[places]
    difference = (wanted.softmax(-1) * (wanted.log_softmax(-1) - again.log_softmax(-1))).sum(-1).mean()
    assert difference < 1e-4 and (again.argmax(-1) == wanted.argmax(-1)).float().mean() >= 0.995


def test_qwen_keeps_its_template_and_end_tokens():
    lm = handscroll.load(real("qwen2"))
    assert lm.tokenizer.token(lm.model.config.eos[0]) == "<|im_end|>"
    assert "<|endoftext|>" in {lm.tokenizer.token(end) for end in lm.model.config.eos}
    assert "<|im_start|>" in lm.tokenizer.settings["chat_template"]
    assert lm.tokenizer.frame() == ([], [])
    ids = lm.tokenizer.encode("<|im_start|>user\n你好<|im_end|>", parse=True)
    assert ids == [151644, 872, 198, 108386, 151645]


def test_gemma_begins_with_bos_and_goes_on():
    lm = handscroll.load(real("gemma3_text"))
    assert lm.encode("The capital of France is") == [2, 818, 5279, 529, 7001, 563]
    assert lm.generate("The capital of France is", max_tokens=4).startswith(" ")
