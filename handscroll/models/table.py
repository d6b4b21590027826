"""The table of families: foreign `model_type` -> `Family`. A new family is one file and one line here."""

from handscroll.base.errors import ConfigError
from handscroll.base.tables import resolve

FAMILIES: dict[str, str] = {
    "llama": "handscroll.models.llama:LLAMA",
    "mistral": "handscroll.models.llama:MISTRAL",
    "qwen2": "handscroll.models.llama:QWEN2",
    "qwen3": "handscroll.models.llama:QWEN3",
    "glm": "handscroll.models.glm:GLM_4",
    "glm4": "handscroll.models.glm:GLM_4_0414",
    "gemma2": "handscroll.models.gemma:GEMMA_2",
    "gemma3_text": "handscroll.models.gemma:GEMMA_3",
    "olmo2": "handscroll.models.olmo2:FAMILY",
    "granite": "handscroll.models.granite:FAMILY",
    "smollm3": "handscroll.models.smollm3:FAMILY",
    "phi3": "handscroll.models.phi3:FAMILY",
    "mixtral": "handscroll.models.mixture:MIXTRAL",
    "qwen3_moe": "handscroll.models.mixture:QWEN3_MOE",
    "starcoder2": "handscroll.models.starcoder2:FAMILY",
    "gpt_neox": "handscroll.models.gpt_neox:FAMILY",
    "gpt2": "handscroll.models.gpt2:FAMILY",
    "glm-blank": "handscroll.models.glm_blank:FAMILY",
    "lstm": "handscroll.models.lstm:FAMILY",
    "bloom": "handscroll.models.bloom:BLOOM",
    "t5": "handscroll.models.t5:T5_FAMILY",
    "mt5": "handscroll.models.t5:MT5",
    "t5-interpolated": "handscroll.models.t5:T5_INTERPOLATED",
    "mt5-interpolated": "handscroll.models.t5:MT5_INTERPOLATED",
    "bloom-interpolated": "handscroll.models.bloom:BLOOM_INTERPOLATED",
    "bert": "handscroll.models.bert:BERT",
    "roberta": "handscroll.models.bert:ROBERTA",
    "xlm-roberta": "handscroll.models.bert:XLM_ROBERTA",
    "camembert": "handscroll.models.bert:CAMEMBERT",
    "distilbert": "handscroll.models.distilbert:FAMILY",
    "electra": "handscroll.models.electra:FAMILY",
    "modernbert": "handscroll.models.modernbert:FAMILY",
}


# Explanations for a known `model_type` that is not read.
REFUSED: dict[str, str] = {
    "gemma3": "is a model of pictures and text (its config.json has text_config and vision_config), of which only the "
    "text part could be read: save that part alone, with model_type 'gemma3_text', or take a Gemma 3 of text "
    "(gemma-3-270m, gemma-3-1b, or a GGUF file of any size, which holds the text part)",
}

# Architectures of GGUF files whose name differs from that of the family.
ARCHITECTURES = {"gemma3": "gemma3_text", "gptneox": "gpt_neox", "qwen3moe": "qwen3_moe"}


def family(name: str):
    """The `Family` of a foreign `model_type`; an unknown name is refused, and the error gives the nearest valid one."""
    if not isinstance(name, str):
        raise ConfigError(f"model_type is {name!r}; expected the name of a family")
    if name in REFUSED:
        raise ConfigError(f"model_type '{name}' {REFUSED[name]}")
    return resolve(FAMILIES, name, "model family")
