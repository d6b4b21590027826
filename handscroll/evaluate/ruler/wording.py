"""What the tasks say, in English and Chinese.

The parts and their order are those of RULER: what is asked for, the text, the question, and how the answer begins.
The sentences are our own. `about` stands before a text that belongs to one task, `{where}` is "following" there;
where several tasks share a text, it stands after it, with the question.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """The sentences of one language."""

    stop: str  # what ends a sentence
    blank: str  # what stands between two sentences, and between two words
    comma: str
    last: str  # between the last two of a list
    below: str
    above: str
    kinds: dict[str, tuple[str, str]]  # of values: one, several
    intro: dict[str, str]  # by kind of shared text
    needle: str
    needle_about: str
    needle_one: tuple[str, str]  # question, beginning of the answer
    needle_all: tuple[str, str]
    noise: str
    chain_about: str
    chain: tuple[str, str]
    common_about: str
    common: tuple[str, str]
    coded_about: str
    coded: tuple[str, str]
    document: str
    documents_about: str
    documents: tuple[str, str]
    lives: str
    lives_about: str
    lives_ask: tuple[str, str]
    goes: str
    takes: str
    drops: str
    facts_about: str
    facts: tuple[tuple[str, str], ...]  # for one, two and three facts
    alike_about: str
    alike_title: str
    alike: str
    alike_kinds: tuple[str, ...]
    ordinals: tuple[str, ...]
    parts: dict[str, str]  # headings in a text of several lists
    example: str  # a solved example before the question: {example}

    def listed(self, names: list[str]) -> str:
        """Names as a list in a sentence."""
        if len(names) < 2:
            return "".join(names)
        return self.comma.join(names[:-1]) + self.last + names[-1]


ENGLISH = Wording(
    stop=".",
    blank=" ",
    comma=", ",
    last=", and ",
    below="following",
    above="above",
    kinds={"numbers": ("number", "numbers"), "uuids": ("identifier", "identifiers")},
    intro={
        "prose": "Read these documents with care. Facts of several sorts are hidden in them; questions come at the end."
        "\n\n",
        "needles": "Read these lines with care. A question about them comes at the end.\n\n",
        "lists": "Read these notes, lists and codes with care. A question about them comes at the end.\n\n",
    },
    needle="One of the secret {kinds} of {key} is: {value}.",
    needle_about="Secret {kinds} are hidden in the {where} text, and a question asks for them.",
    needle_one=(
        "What is the secret {kind} of {keys} that the text gives?",
        "The secret {kind} of {keys} that the text gives is",
    ),
    needle_all=(
        "What are all the secret {kinds} of {keys} that the text gives?",
        "The secret {kinds} of {keys} that the text gives are",
    ),
    noise="The rain is soft. The road is long. The lamp is lit. On we walk. Home we come again.",
    chain_about="Follow the assignments of variables that are hidden in the {where} text.",
    chain=(
        "Question: Which variables have the value {value} in the end? Find all of them.",
        "Answer: By the assignments in the text, {count} variables have the value {value}:",
    ),
    common_about="In the {where} numbered list some words stand more often than others, and a question asks which.",
    common=(
        "Question: Which {count} words stand most often in the numbered list?",
        "Answer: The {count} words that stand most often in the list are:",
    ),
    coded_about="Count how often each coded word stands in the {where} coded text.",
    coded=(
        "Question: Which three coded words stand most often in the coded text? Leave out the dots '...', and explain "
        "nothing.",
        "Answer: The three coded words that stand most often are:",
    ),
    document="Document {number}:\n",
    documents_about="Answer the question by the {where} documents. Give the answer only, and no other words.",
    documents=("Question: {question}", "Answer:"),
    lives="In the evening {name} often walks the dog past {landmark}.",
    lives_about="The {where} text tells what somebody does.",
    lives_ask=("Question: Which person has been to {place}? Give the name only.", "Answer: The person is"),
    goes="{name} went to the {place}.",
    takes="{name} picked up the {thing}.",
    drops="{name} put down the {thing}.",
    facts_about="The {where} text tells, among other things, where people go and what they carry.",
    facts=(
        ("Question: Where is {name} in the end?", "Answer: {name} is in the"),
        ("Question: Where is the {thing} in the end?", "Answer: The {thing} is in the"),
        ("Question: Where was the {thing} before the {place}?", "Answer: Before the {place}, the {thing} was in the"),
    ),
    alike_about="The {where} documents hold several pieces with the same title.",
    alike_title="{kind} about {topic}\n",
    alike="Write the {ordinal} {kind} about {topic} again, word for word. Begin with {prefix} and add nothing else.",
    alike_kinds=("A poem", "A letter", "A note", "A recipe"),
    ordinals=("first", "second", "third", "fourth"),
    parts={"noise": "Notes:\n", "common": "List of words:\n", "coded": "Coded text:\n"},
    example="An example first.\n{example}\n",
)

CHINESE = Wording(
    stop="。",
    blank="",
    comma="、",
    last="和",
    below="下面",
    above="上面",
    kinds={"numbers": ("数字", "数字"), "uuids": ("编号", "编号")},
    intro={
        "prose": "请仔细阅读下面的文档，其中藏着几类事实，最后会提问。\n\n",
        "needles": "请仔细阅读下面的各行，最后会提问。\n\n",
        "lists": "请仔细阅读下面的笔记、词表和密文，最后会提问。\n\n",
    },
    needle="“{key}”的一个秘密{kind}是：{value}。",
    needle_about="{where}的文字里藏着一些秘密{kinds}，问题会问到它们。",
    needle_one=("文中给出的“{keys}”的秘密{kind}是什么？", "文中给出的“{keys}”的秘密{kind}是"),
    needle_all=("文中给出的“{keys}”的所有秘密{kinds}是什么？", "文中给出的“{keys}”的所有秘密{kinds}是"),
    noise="雨是轻的。路是长的。灯是亮的。我们向前走。我们又回家。",
    chain_about="请跟踪{where}文字里隐藏的变量赋值。",
    chain=(
        "问题：最后哪些变量的值是{value}？请全部找出。",
        "回答：按文中的赋值，值为{value}的变量有{count}个：",
    ),
    common_about="{where}的编号词表里，有些词出现得比别的词多，问题会问是哪些。",
    common=("问题：编号词表里出现最多的{count}个词是哪些？", "回答：词表里出现最多的{count}个词是："),
    coded_about="请数一数{where}密文里每个暗语出现的次数。",
    coded=(
        "问题：密文里出现最多的三个暗语是哪些？不算“...”，也不用解释。",
        "回答：出现最多的三个暗语是：",
    ),
    document="文档{number}：\n",
    documents_about="请根据{where}的文档回答问题，只写答案，不写别的。",
    documents=("问题：{question}", "回答："),
    lives="傍晚，{name}常带着狗经过{landmark}。",
    lives_about="{where}的文字里写了某人做的事。",
    lives_ask=("问题：谁到过{place}？只写姓名。", "回答：这个人是"),
    goes="{name}去了{place}。",
    takes="{name}拿起了{thing}。",
    drops="{name}放下了{thing}。",
    facts_about="{where}的文字里提到人们去了哪里、拿着什么。",
    facts=(
        ("问题：{name}最后在哪里？", "回答：{name}在"),
        ("问题：{thing}最后在哪里？", "回答：{thing}在"),
        ("问题：{thing}到{place}之前在哪里？", "回答：到{place}之前，{thing}在"),
    ),
    alike_about="{where}的文档里有几篇同题的文字。",
    alike_title="关于{topic}的{kind}\n",
    alike="请把关于{topic}的{ordinal}{kind}一字不差地再写一遍。以{prefix}开头，不写别的。",
    alike_kinds=("诗", "信", "便条", "菜谱"),
    ordinals=("第一篇", "第二篇", "第三篇", "第四篇"),
    parts={"noise": "笔记：\n", "common": "词表：\n", "coded": "密文：\n"},
    example="先看一个例子。\n{example}\n",
)

WORDINGS = {"en": ENGLISH, "zh": CHINESE}

# NoLiMa's idea: who knows the world connects the two, and no word does. (landmark, city, country)
LANDMARKS = {
    "en": (
        ("the Eiffel Tower", "Paris", "France"),
        ("the Colosseum", "Rome", "Italy"),
        ("the Brandenburg Gate", "Berlin", "Germany"),
        ("the Prado Museum", "Madrid", "Spain"),
        ("the Acropolis", "Athens", "Greece"),
        ("Big Ben", "London", "England"),
        ("the Statue of Liberty", "New York", "the United States"),
        ("the Hagia Sophia", "Istanbul", "Turkey"),
        ("the Forbidden City", "Beijing", "China"),
        ("the Burj Khalifa", "Dubai", "the Emirates"),
        ("the Taj Mahal", "Agra", "India"),
        ("the statue of Christ the Redeemer", "Rio de Janeiro", "Brazil"),
        ("the Charles Bridge", "Prague", "the Czech Republic"),
        ("the Little Mermaid", "Copenhagen", "Denmark"),
        ("the Red Square", "Moscow", "Russia"),
        ("the Atomium", "Brussels", "Belgium"),
        ("the Rijksmuseum", "Amsterdam", "the Netherlands"),
        ("the Schoenbrunn Palace", "Vienna", "Austria"),
    ),
    "zh": (
        ("埃菲尔铁塔", "巴黎", "法国"),
        ("斗兽场", "罗马", "意大利"),
        ("勃兰登堡门", "柏林", "德国"),
        ("普拉多博物馆", "马德里", "西班牙"),
        ("卫城", "雅典", "希腊"),
        ("大本钟", "伦敦", "英国"),
        ("自由女神像", "纽约", "美国"),
        ("圣索菲亚大教堂", "伊斯坦布尔", "土耳其"),
        ("故宫", "北京", "中国"),
        ("哈利法塔", "迪拜", "阿联酋"),
        ("泰姬陵", "阿格拉", "印度"),
        ("救世基督像", "里约热内卢", "巴西"),
        ("查理大桥", "布拉格", "捷克"),
        ("红场", "莫斯科", "俄罗斯"),
        ("兵马俑", "西安", "中国"),
        ("外滩", "上海", "中国"),
        ("西湖", "杭州", "中国"),
        ("布达拉宫", "拉萨", "中国"),
    ),
}
PLACES = {
    "en": "kitchen garden office hallway bedroom cellar library workshop attic garage".split(),
    "zh": "厨房 花园 办公室 走廊 卧室 地窖 图书室 工作间 阁楼 车库".split(),
}
THINGS = {
    "en": "apple lantern football kettle umbrella hammer violin basket".split(),
    "zh": "苹果 灯笼 足球 水壶 雨伞 锤子 小提琴 篮子".split(),
}
# Sentences of the pieces that are alike: {a} is a pair of words, {n} a word.
VERSES = {
    "en": (
        "Over the {n} hangs a {a}.",
        "Nobody told the {n} about the {a}.",
        "Take one {n} and leave the {a} behind.",
        "In the morning the {n} was gone, and a {a} stood there.",
        "I wrote to the {n} twice and thought of the {a}.",
        "The {n} waits by the {a} until the evening.",
    ),
    "zh": (
        "{n}上面挂着{a}。",
        "没有人把{a}的事告诉{n}。",
        "拿一件{n}，把{a}留下。",
        "早上{n}不见了，那里立着{a}。",
        "我给{n}写了两次信，心里想着{a}。",
        "{n}在{a}旁边一直等到傍晚。",
    ),
}
# Invented documents by kind, and what can be asked of one: (text, ((question, field), ...)).
DOCUMENTS = {
    "en": {
        "observatory": (
            "The {name} Observatory stands on a hill near {town}. It was opened in {year} by the astronomer {person}. "
            "Its largest mirror measures {number} centimetres, and school classes may visit it on Thursdays.",
            (
                ("In which year was the {name} Observatory opened?", "year"),
                ("Which astronomer opened the {name} Observatory?", "person"),
                ("How many centimetres does the largest mirror of the {name} Observatory measure?", "number"),
            ),
        ),
        "bridge": (
            "The {name} Bridge crosses the river in {town}. It was designed by {person} and finished in {year}. With "
            "its {number} lamps it is a favourite of painters and photographers.",
            (
                ("Who designed the {name} Bridge?", "person"),
                ("In which year was the {name} Bridge finished?", "year"),
                ("How many lamps does the {name} Bridge have?", "number"),
            ),
        ),
        "town": (
            "{town} is a market town of about {number} inhabitants. It received its charter in {year}. The words of "
            "its anthem were written by {person}, and its fair is known for a {thing}.",
            (
                ("Who wrote the words of the anthem of {town}?", "person"),
                ("In which year did {town} receive its charter?", "year"),
            ),
        ),
    },
    "zh": {
        "observatory": (
            "{name}天文台建在{town}附近的山上，{year}年由天文学家{person}启用。它最大的镜面直径{number}厘米，学生可以在星期四参观。",
            (
                ("{name}天文台是哪一年启用的？", "year"),
                ("{name}天文台由哪位天文学家启用？", "person"),
                ("{name}天文台最大的镜面直径是多少厘米？", "number"),
            ),
        ),
        "bridge": (
            "{name}大桥在{town}跨过河面，由{person}设计，{year}年建成。桥上有{number}盏灯，画家和摄影师都喜欢它。",
            (
                ("{name}大桥是谁设计的？", "person"),
                ("{name}大桥是哪一年建成的？", "year"),
                ("{name}大桥上有多少盏灯？", "number"),
            ),
        ),
        "town": (
            "{town}是一座约有{number}人的集镇，{year}年设镇。镇歌的歌词由{person}所写，庙会以{thing}闻名。",
            (("{town}镇歌的歌词是谁写的？", "person"), ("{town}是哪一年设镇的？", "year")),
        ),
    },
}
# Questions over two documents: what is asked of the town in which the place of the first document stands.
HOPS = {
    "en": {
        "observatory": (
            ("Who wrote the words of the anthem of the town near which the {name} Observatory stands?", "person"),
            ("When did the town near which the {name} Observatory stands receive its charter?", "year"),
        ),
        "bridge": (
            ("Who wrote the words of the anthem of the town where the {name} Bridge crosses the river?", "person"),
            ("When did the town where the {name} Bridge crosses the river receive its charter?", "year"),
        ),
    },
    "zh": {
        "observatory": (
            ("{name}天文台附近的镇，镇歌的歌词是谁写的？", "person"),
            ("{name}天文台附近的镇是哪一年设镇的？", "year"),
        ),
        "bridge": (
            ("{name}大桥所在的镇，镇歌的歌词是谁写的？", "person"),
            ("{name}大桥所在的镇是哪一年设镇的？", "year"),
        ),
    },
}
