// What the tasks say to the model, in English and Chinese. A document stands first and the instruction last, so that what was
// read before is not read again; a text of one's own stands `below` the instruction, which small models follow better.

export const LANGUAGES = [["en", "English", "英文"], ["zh", "Chinese", "中文"], ["de", "German", "德文"], ["fr", "French", "法文"], ["es", "Spanish", "西班牙文"],
  ["pt", "Portuguese", "葡萄牙文"], ["it", "Italian", "意大利文"], ["ru", "Russian", "俄文"], ["ar", "Arabic", "阿拉伯文"], ["ja", "Japanese", "日文"], ["ko", "Korean", "韩文"]];

export const LENGTHS = ["sentence", "paragraph", "points", "page"];
const HOW_LONG = {
  en: { sentence: "in one sentence", paragraph: "in one paragraph of about five sentences", points: "in five to ten bullet points", page: "in about 400 words with short headings" },
  zh: { sentence: "用一句话", paragraph: "用一段话（约五句）", points: "用五到十个要点（列表）", page: "用约六百字并加小标题" },
};

const named = (code, zh) => {
  const [, english, chinese] = LANGUAGES.find(([one]) => one === code);
  return zh ? chinese : english;
};

/** Texts for a Chinese answer are asked for in Chinese, all others in English. */
export function summarise({ length, language, focus }, below) {
  const zh = language === "zh";
  const about = focus.trim();
  if (zh) return `请${HOW_LONG.zh[length]}概括${below ? "下文" : "上文"}。只写文中说到的内容，不要补充；人名与数字保持准确。${about ? `请着重写：${about}。` : ""}请用中文书写。`;
  return `Summarise the text ${below ? "below" : "above"} ${HOW_LONG.en[length]}. Say only what the text says, and keep names and numbers exact.${about ? ` Above all tell: ${about}.` : ""} Write in ${named(language, false)}.`;
}

export function translate({ language }, below) {
  if (language === "zh") return `请把${below ? "下文" : "上文"}全部译成中文，逐段翻译，不遗漏，不添加。人名、数字、代码与 Markdown 格式保持准确。只给出译文。`;
  return `Translate the whole text ${below ? "below" : "above"} into ${named(language, false)}, paragraph by paragraph. Leave nothing out and add nothing. Keep names, numbers, code and Markdown as they are. Answer with the translation only.`;
}

export function classify(labels, zh, below) {
  return zh ? `${below ? "下文" : "上文"}属于哪一类：${labels.join("、")}？只回答类别名称。` : `Which label fits the text ${below ? "below" : "above"} best: ${labels.join(", ")}? Answer with the label only.`;
}
