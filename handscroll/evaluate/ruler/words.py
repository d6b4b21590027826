"""What the tasks are made of: words, numbers, identifiers and names, in English and Chinese, drawn from a seed.

RULER takes its words from a package of 6,000 English ones. Here a few hundred ship, and pairs of them ("calm-harbor")
serve as keys. Where a list needs more words than there are, it goes on with pairs.
"""

import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

ADJECTIVES = """
    able amber ancient angry autumn bare bitter blank bold brave brief bright brisk broad broken busy calm careful
    cheap clean clear clever cloudy coarse cold common cosy crisp crooked curious damp dark dear deep dense distant
    double dry dull dusty eager early earnest easy empty even exact faint fair famous fancy fast fierce final fine firm
    flat fond foreign formal fragile frank free fresh frosty frozen full gentle giant glad golden grand grateful grave
    great grim handsome happy hard harsh heavy hidden hollow honest huge humble hungry icy ideal idle inner jolly keen
    kind large late lazy lean level light likely little lively lonely long loud loyal lucky mad mellow merry mild misty
    modern modest narrow native neat nervous new nimble noble noisy odd old open orange outer pale patient plain polite
    poor proud public pure quick quiet rapid rare raw ready real rich rigid ripe rough round royal rusty sad safe
    salty scarce secret serious severe shallow sharp shiny short shy silent simple slender slow small smooth sober soft
    solid sour spare steady steep stern stiff still strange strict strong subtle sudden sunny sweet swift tall tame
    tender thick thin tidy tight tiny tired tough true usual vague vain vast vivid warm weak weary wet whole wide wild
    wise wooden young
""".split()
NOUNS = """
    acorn actor album alley anchor anvil apron arch arrow artist atlas attic badge bakery balcony banner barge barn
    barrel basin basket battle beach beacon beard belt bench berry blanket blossom board bonnet border bottle boulder
    bowl branch bread brick broom brush bucket buckle bundle butter button cabin cable cake camel camera candle cannon
    canvas captain carbon card cargo carpet carrot cart castle cattle cave cedar ceiling cellar chain chair chalk
    chapel chart cheese cherry chest chimney church cider circle circus clay cliff clock cloth cloud clover coast coat
    cobbler coffee coin collar comb comet compass copper coral corner cottage cotton counter cousin cradle crane crate
    creek cricket crown crystal cup curtain cushion dairy dancer dawn deck deer dish ditch doctor dome donkey door dove
    drawer drum duke dust eagle easel echo edge elbow elder elm ember engine envelope estate fabric farmer feast fence
    fern ferry fiddle field finger flag flame flask fleet flint flood floor flour flute foam fog forge fork fossil
    fountain fox frame friend frog fruit furnace gallery garlic gate gem ghost ginger glacier glass globe glove goat
    gong goose grain granite grape grass gravel guard guest guitar gull hall hammer handle harbor harp harvest hat hawk
    hazel hedge hen herald herb heron hill hinge hive honey hood hook horn horse hotel house hut inlet iron island ivory
    ivy jacket jar jewel journal judge jug kettle key king kite kitten knight knot label lace ladder lake lamb lamp
    lane lantern lark leaf leather ledge lemon lens letter lever lily lime linen lion lizard loaf lobby lock lodge loom
    lumber lute magnet mail mantle map maple marble market marsh mast mayor meadow medal melon merchant metal mill
    mineral mirror mitten monk moon morning moss moth motor mound mountain mouse museum mustard nail napkin needle nest
    net notch novel nurse nut oak oar oasis ocean office olive onion orchard organ otter oven owl oyster paddle page
    painter palace palm panel paper parcel parrot pasture path pearl pebble pedal pen pepper piano pier pigeon pillar
    pillow pilot pine pipe pirate planet plank plaster plate plum pocket poem poet pond pony porch porter potato pottery
    powder prince puddle pump pupil puzzle quarry quartz queen quilt rabbit radio raft rail rain ranch raven razor reed
    reef ribbon rice ridge ring river road robe robin rock rocket roof rope rose ruby rudder rug sack saddle sail
    sailor salad salmon salt sand sandal satin sauce scale scarf school scout screen seal shark sheep shelf shell
    shield ship shirt shoe shop shore shovel shrub sickle signal silk silver singer skirt slate sleeve slope smoke snail
    snow soap sock sofa soldier song soup spark spear sphere spice spider spoon spring spruce square squirrel stable
    stair star statue steam steel stem stone stool storm stove straw stream street string studio sugar summit sun swan
    sword syrup table tailor tank tea teacher temple tent thimble thorn thread throne thunder tide tiger tile timber
    toast tomato torch towel tower town trail train tray treasure tree trunk tulip tunnel turkey turtle valley vase
    vault veil velvet vessel village vine violin wagon wall walnut wave wax weaver well whale wheat wheel whip whistle
    widow willow wind window wine winter wolf wood wool yard yarn
""".split()
ADJECTIVES_ZH = """
    安静 明亮 古老 寒冷 温暖 宽阔 狭窄 高大 矮小 坚硬 柔软 光滑 粗糙 清澈 浑浊 热闹 孤独 勇敢 温柔 骄傲 谦虚 诚实
    聪明 勤劳 懒散 快乐 忧伤
    美丽 朴素 华丽 干净 潮湿 干燥 新鲜 陈旧 遥远 邻近 神秘 普通 奇怪 罕见 常见 轻盈 沉重 缓慢 迅速 平坦 陡峭 深邃
    浅显 浓密 稀疏 甘甜 苦涩
    金色 银色 青色 红色 白色 黑色 紫色 圆形 方形 细长 弯曲 笔直 完整 破碎 空旷 拥挤 朦胧 清晰 宁静 喧闹
""".split()
NOUNS_ZH = """
    山谷 河流 湖泊 森林 草原 海岸 岛屿 沙漠 桥梁 城墙 灯塔 码头 庭院 花园 果园 菜园 农场 牧场 磨坊 作坊 书房 厨房
    阁楼 地窖 走廊 窗户 屋顶
    烟囱 石阶 水井 喷泉 钟楼 宫殿 庙宇 学校 医院 车站 邮局 商店 市场 旅馆 茶馆 饭店 剧院 画廊 书店 图书 地图 信封
    邮票 照片 日记 诗集 词典
    铅笔 毛笔 墨水 砚台 纸张 剪刀 针线 纽扣 围巾 手套 帽子 鞋子 外套 雨伞 灯笼 蜡烛 火柴 炉子 水壶 茶杯 碗筷 盘子
    勺子 瓶子 罐子 篮子 箱子
    柜子 抽屉 镜子 钟表 眼镜 钥匙 铁锁 绳子 梯子 锤子 钉子 斧头 锯子 铲子 扫帚 轮子 马车 帆船 风筝 鼓声 笛子 古琴
    琵琶 棋盘 苹果 梨子 桃子
    葡萄 橘子 柠檬 西瓜 樱桃 核桃 花生 大豆 小麦 玉米 稻谷 茶叶 蜂蜜 食盐 糖果 面包 豆腐 白菜 萝卜 黄瓜 番茄 蘑菇
    竹子 松树 柳树 枫树 桂花
    梅花 荷花 菊花 兰花 骆驼 山羊 绵羊 水牛 白马 黄狗 花猫 松鼠 刺猬 狐狸 老虎 狮子 大象 猴子 熊猫 燕子 麻雀 喜鹊
    乌鸦 老鹰 天鹅 鲤鱼 螃蟹
    乌龟 青蛙 蜻蜓 蝴蝶 蜜蜂 蚂蚁 星星 月亮 太阳 云朵 彩虹 雷声 闪电 霜雪 露珠 春风 秋雨
""".split()
FIRST = """
    Ada Alma Anton Arno Beata Boris Bruno Carla Cora Dario Dora Edith Egon Elsa Emil Erwin Fanny Felix Flora Franz
    Gerda Gustav Hanna Hugo Ida Igor Irma Ivan Jana Jonas Karin Kaspar Laura Leon Lena Ludwig Magda Marco Milan Mira
    Nadia Nils Nora Oskar Otto Paula Pavel Petra Quentin Rita Robert Rosa Rufus Sara Selma Simon Stella Tania Theo Tilda
    Ulrich Vera Viktor Wanda Werner Xenia Yvonne Zita
""".split()
LAST = """
    Adler Almgren Barrow Bexley Carver Castell Dahlin Denholm Eckhart Ellwood Farrow Fenwick Garland Grimsby Hallam
    Harker Iversen Jansson Jessop Keller Kingsley Larkin Lindqvist Marlow Merrick Norling Oakley Ostrom Pemberton
    Quayle Rasmus Redfern Sandoval Selwyn Tarrant Thorne Ulvang Varga Wexford Winslow Yardley Zeller
""".split()
FIRST_ZH = "王 李 张 刘 陈 杨 赵 黄 周 吴 徐 孙 胡 朱 高 林 何 郭 马 罗".split()
LAST_ZH = """
    安平 博文 长青 承志 春生 德明 恩泽 方圆 光远 海涛 浩然 和平 宏图 慧敏 佳音 嘉禾 建国 景行 静宜 俊杰 可心 乐山
    立新 明月 慕白 念慈 佩兰 清源
    如松 若水 少华 思齐 天佑 婉清 文渊 希声 晓东 雅琴 依云 永年 雨田 远航 云舟 泽民 之恒 志高 子衿 自强
""".split()
_STARTS = "Bel Cor Dun El Fal Gar Hol Ist Kel Lan Mar Nor Ost Pel Quar Rav Sel Tor Ul Ver Wil Yar Zel Ash Brim".split()
_MIDDLES = "a e i o u en ar il on er".split()
_ENDS = "ford wick mere stead bury dale holm brook gate haven field moor ton combe cliffe".split()
_STARTS_ZH = "青 白 金 石 云 松 柳 梅 竹 清 明 安 永 长 丰 南 北 东 西 新".split()
_ENDS_ZH = "山镇 水镇 河镇 桥镇 林镇 溪镇 城镇 湾镇 丘镇 泉镇 陵镇 浦镇 岭镇 田镇 平镇".split()

TRIES = 30  # after so many names that are used already, one more is joined to them


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The words of one language; `link` joins an adjective and a noun, `joint` two names."""

    adjectives: Sequence[str]
    nouns: Sequence[str]
    first: Sequence[str]
    last: Sequence[str]
    towns: tuple[Sequence[str], Sequence[str], Sequence[str]]
    link: str
    joint: str

    @property
    def single(self) -> list[str]:
        """All single words, each once."""
        return sorted({*self.adjectives, *self.nouns})


ENGLISH = Vocabulary(ADJECTIVES, NOUNS, FIRST, LAST, (_STARTS, _MIDDLES, _ENDS), "-", "-")
CHINESE = Vocabulary(ADJECTIVES_ZH, NOUNS_ZH, FIRST_ZH, LAST_ZH, (_STARTS_ZH, _STARTS_ZH, _ENDS_ZH), "的", "·")


@dataclass(eq=False)
class Draw:
    """Draws names that no other part of the same text has, from one random stream.

    Two equal keys in one text would make a question that has two right answers.
    """

    random: random.Random
    words: Vocabulary
    used: set[str] = field(default_factory=set)

    def new(self, make: Callable[[], str]) -> str:
        """What `make` gives, made again until it is new; several of them joined, where nearly all are used."""
        parts = 1
        while True:
            for _ in range(TRIES):
                found = self.words.joint.join(make() for _ in range(parts))
                if found not in self.used:
                    self.used.add(found)
                    return found
            parts += 1

    def pair(self) -> str:
        """An adjective and a noun."""
        return self.new(lambda: self._choice(self.words.adjectives) + self.words.link + self._choice(self.words.nouns))

    def number(self, digits: int = 7) -> str:
        return self.new(lambda: str(self.random.randint(10 ** (digits - 1), 10**digits - 1)))

    def identifier(self) -> str:
        """A UUID of version 4."""
        return self.new(lambda: str(uuid.UUID(int=self.random.getrandbits(128), version=4)))

    def letters(self, count: int, alphabet: str) -> str:
        return self.new(lambda: "".join(self.random.choices(alphabet, k=count)))

    def forename(self) -> str:
        """A short name of a person: a first name, in Chinese the whole."""
        if self.words is CHINESE:
            return self.person()
        return self.new(lambda: self._choice(self.words.first))

    def person(self) -> str:
        """A full name."""
        blank = "" if self.words is CHINESE else " "
        return self.new(lambda: self._choice(self.words.first) + blank + self._choice(self.words.last))

    def town(self) -> str:
        """The name of a town that does not exist."""
        return self.new(lambda: "".join(map(self._choice, self.words.towns)))

    def several(self) -> Iterator[str]:
        """Words in a random order: single ones, then pairs."""
        single = self.words.single
        self.random.shuffle(single)
        for word in single:
            if word not in self.used:
                self.used.add(word)
                yield word
        while True:
            yield self.pair()

    def _choice(self, options: Sequence[str]) -> str:
        return self.random.choice(options)
