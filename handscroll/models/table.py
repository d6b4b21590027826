"""The table of families: foreign `model_type` -> importer of its configuration and names of its weights."""

from handscroll.base.tables import resolve

FAMILIES: dict[str, str] = {
    "llama": "handscroll.models.foreign:LLAMA",
    "mistral": "handscroll.models.foreign:MISTRAL",
    "qwen2": "handscroll.models.foreign:QWEN2",
    "qwen3": "handscroll.models.foreign:QWEN3",
    "gpt2": "handscroll.models.foreign:GPT2_FAMILY",
    "bloom": "handscroll.models.foreign:BLOOM",
    "bloom-interpolated": "handscroll.models.foreign:BLOOM_INTERPOLATED",
}


def family(name: str):
    """The `Family` of a foreign `model_type`; unknown names are refused with the nearest valid one."""
    return resolve(FAMILIES, name, "model family")
