"""The table of families: foreign `model_type` -> its file's `Family` (a file and a line here are a new family)."""

from handscroll.base.tables import resolve

FAMILIES: dict[str, str] = {
    "llama": "handscroll.models.llama:LLAMA",
    "mistral": "handscroll.models.llama:MISTRAL",
    "qwen2": "handscroll.models.llama:QWEN2",
    "qwen3": "handscroll.models.llama:QWEN3",
    "glm": "handscroll.models.glm:GLM_4",
    "glm4": "handscroll.models.glm:GLM_4_0414",
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
}


def family(name: str):
    """The `Family` of a foreign `model_type`; unknown names are refused with the nearest valid one."""
    return resolve(FAMILIES, name, "model family")
