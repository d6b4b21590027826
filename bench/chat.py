"""Chats and questions about documents beside the reference library, with the same template and the same weights.

python -m bench.chat FILE [--talks N] [--passages N] [--skip-passages N]

FILE is a GGUF file of an instruct model. `transformers` reads it by its own code. Talks: of conversations of three
turns in English and Chinese, the ids of every rendered turn are compared, and every token of our greedy answers (in
float32, of the dequantised weights) with the likeliest one of theirs; where they differ, how close the two were.
Passages: of questions about passages of about 2,000 tokens (../shared/data, XQuAD), those that theirs answers right are
asked of our saved readings (of the file as it is), with the same prompt.
"""

import argparse
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import handscroll
from handscroll.base.gguf import read_gguf
from handscroll.cache.reading.store import Store

DATA = Path(__file__).parents[2] / "shared" / "data"
NEW = 24  # tokens of an answer
TALKS = (
    ("What is the capital of France?", "And of Spain?", "Which of the two is larger?"),
    ("Write a Python function that adds two numbers.", "Now make it subtract.", "Add a docstring to it."),
    ("Name three fruits.", "Which of them is yellow?", "Spell it backwards."),
    ("Translate 'good morning' into Chinese.", "And 'good night'?", "How do I say 'thank you'?"),
    ("Who wrote Hamlet?", "When did he live?", "Name another of his plays."),
    ("What does HTTP stand for?", "What is the default port?", "And with TLS?"),
    ("Give me a haiku about rain.", "Make it about snow.", "Which season is that?"),
    ("What is 17 times 3?", "Add 9 to that.", "Is the result prime?"),
    ("Explain recursion in one sentence.", "Give an example.", "What can go wrong with it?"),
    ("  Leading and trailing blanks?  \n", "\n\n", "<b>Is this HTML?</b> {{ x }} [INST] `code`"),
    ("法国的首都是哪里？", "那西班牙呢？", "哪一个城市更大？"),
    ("请用Python写一个求和函数。", "改成求平均值。", "加上注释。"),
    ("说出三种水果。", "哪一种是黄色的？", "它用英语怎么说？"),
    ("《红楼梦》的作者是谁？", "他生活在哪个朝代？", "书里的女主角是谁？"),
    ("什么是递归？一句话回答。", "举个例子。", "有什么缺点？"),
    ("十七乘以三等于多少？", "再加九。", "结果是质数吗？"),
    ("写一句关于秋天的诗。", "改成冬天。", "翻译成英文。"),
    ("你好，你是谁？", "你会说英语吗？", "Say something in English."),
    ("水的沸点是多少？", "在高山上呢？", "为什么？"),
    ("“北京”有几个汉字？", "「上海」呢？", "👍🏽 谢谢！"),
)
SYSTEMS = ("", "You are a terse assistant.", "", "请简短地回答。")


def theirs_of(file: Path) -> tuple[Any, Any]:
    """The reference model and tokenizer of a GGUF file; its template is that of the file."""
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.chat_template = read_gguf(file).metadata["tokenizer.chat_template"]
    return model, tokenizer


def ids_of(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return list(found["input_ids"] if hasattr(found, "keys") else found)


@torch.no_grad()
def compare_talk(lm: Any, model: Any, tokenizer: Any, number: int) -> dict[str, Any]:
    """One conversation: turns with equal ids, equal tokens, and the gap where the likeliest tokens differ."""
    system = SYSTEMS[number % len(SYSTEMS)]
    messages = [{"role": "system", "content": system}] if system else []
    found: dict[str, Any] = {"talk": number, "ids": 0, "turns": 0, "tokens": 0, "gaps": [], "reused": []}
    for text in TALKS[number]:
        messages.append({"role": "user", "content": text})
        reply = lm.chat(messages, max_tokens=NEW)
        ids, ours = ids_of(tokenizer, messages), lm._chat[1].talk.ids
        found["turns"] += 1
        found["ids"] += ours[: len(ids)] == ids
        new = ours[len(ids) :] + ([lm.model.config.eos[0]] if reply.finish == "eos" else [])
        logits = model(torch.tensor([ids + new[:-1]])).logits[0, len(ids) - 1 :]
        for token, row in zip(new, logits, strict=True):
            found["tokens"] += 1
            if int(row.argmax()) != token:
                found["gaps"].append(round(float(row.max() - row[token]), 6))
        found["reused"].append((reply.reused, reply.prompt))
        messages.append({"role": "assistant", "content": str(reply)})
    return found


def passages(file: str, first: int, count: int, size: int) -> list[tuple[str, list[tuple[str, str]]]]:
    """Passages of about `size` characters, each with the questions about one paragraph in its middle."""
    articles = json.loads((DATA / file).read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    found = []
    for number in range(first, count):
        place = 7 * number
        chosen, length = [paragraphs[place]], len(paragraphs[place]["context"])
        others = iter(range(place + 1, len(paragraphs)))
        while length < size:
            one = paragraphs[next(others)]
            chosen.insert(0 if len(chosen) % 2 else len(chosen), one)
            length += len(one["context"])
        asked = [(qa["question"], qa["answers"][0]["text"]) for qa in paragraphs[place]["qas"]]
        found.append(("\n\n".join(one["context"] for one in chosen), asked[:6]))
    return found


@torch.no_grad()
def answered(model: Any, tokenizer: Any, text: str, questions: list[str]) -> list[str]:
    """Their answers; what the questions have in common is read once."""
    prompts = [ids_of(tokenizer, [{"role": "user", "content": f"{text}\n\n{question}"}]) for question in questions]
    shared = min(map(len, prompts)) - 1
    while any(prompt[:shared] != prompts[0][:shared] for prompt in prompts):
        shared -= 1
    before = model(torch.tensor([prompts[0][:shared]]), use_cache=True, logits_to_keep=1).past_key_values
    found = []
    for prompt in prompts:
        cache = copy.deepcopy(before)
        made = model.generate(
            torch.tensor([prompt]), past_key_values=cache, max_new_tokens=2 * NEW, do_sample=False, top_k=None
        )
        found.append(tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True))
    return found


def questions(lm: Any, model: Any, tokenizer: Any, which: tuple[int, int], folder: Path) -> None:
    store = Store(folder)
    for file, size in (("qa_en/xquad_a.en.json", 8600), ("qa_zh/xquad_a.zh.json", 2900)):
        total = theirs_right = both = same = 0
        for number, (text, asked) in enumerate(passages(file, *which, size), which[0]):
            theirs = answered(model, tokenizer, text, [question for question, _ in asked])
            reading = lm.read(text, store, f"p{number}")
            for (question, gold), answer in zip(asked, theirs, strict=True):
                total += 1
                right = gold.lower() in answer.lower()
                mine = lm.ask(f"p{number}", question, store, max_tokens=2 * NEW, plain=True)
                theirs_right += right
                both += right and gold.lower() in mine.lower()
                same += answer.strip() == mine.strip()
            print(f"{file}: passage {number} of {reading.length} tokens; asked {total}, theirs right {theirs_right}, "
                  f"ours of these {both}, the same words {same}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--talks", type=int, default=len(TALKS))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--skip-passages", type=int, default=0, help="passages of each language that are passed over")
    given = parser.parse_args()
    model, tokenizer = theirs_of(given.file)
    if given.talks:
        lm = handscroll.load(given.file, weights="float")
        for number in range(given.first, min(given.first + given.talks, len(TALKS))):
            print(json.dumps(compare_talk(lm, model, tokenizer, number), ensure_ascii=False), flush=True)
        del lm
    if given.passages:
        with tempfile.TemporaryDirectory() as folder:
            which = (given.skip_passages, given.passages)
            questions(handscroll.load(given.file), model, tokenizer, which, Path(folder))


if __name__ == "__main__":
    main()
