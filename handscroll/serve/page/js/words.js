// Every word of the page, in English and Chinese. {name} is filled in; a value may be a function of the values.

const many = (one, more) => (values) => (values.count === 1 ? one : more);

const WORDS = {
  "lang.other": ["中文", "English"],
  "lang.switch": ["Show this page in Chinese", "用英文显示本页"],
  "theme.dark": ["Dark", "深色"],
  "theme.light": ["Light", "浅色"],
  "theme.switch": ["Switch between light and dark", "切换浅色与深色"],
  "skip": ["Skip to the content", "跳到正文"],
  "places": ["Places", "导航"],
  "read": ["Read", "阅读"],
  "ask": ["Ask", "提问"],
  "tasks": ["Tasks", "任务"],
  "look": ["Look inside", "透视"],
  "model": ["Model", "模型"],
  "model.loading": ["{name} is being loaded", "正在加载 {name}"],
  "model.failed": ["{name} could not be loaded", "{name} 无法加载"],
  "model.none": ["No model that writes text is served.", "没有可以生成文本的模型。"],
  "model.help": ["Nothing can be read or asked until the server is started with a model that it can load.", "须用能够加载的模型启动服务器，之后才能阅读和提问。"],
  "attention": ["Attention", "注意"],
  "unreachable": ["The server does not answer.", "服务器没有响应。"],
  "unreachable.again": ["The server does not answer. It may have been stopped; this page tries again.", "服务器没有响应，可能已停止；本页会重试。"],
  "error": ["Refused", "被拒绝"],
  "stop": ["Stop", "停止"],
  "cancel": ["Cancel", "取消"],
  "image": ["[picture: {name}]", "［图：{name}］"],
  "copy": ["Copy", "复制"],
  "copied": ["Copied", "已复制"],
  "copy.failed": ["Not copied: select the text instead", "未能复制，请直接选择文本"],
  "close": ["Close", "关闭"],

  "key.title": ["This server needs a key", "此服务器需要密钥"],
  "key.text": ["Whoever runs it can make one: handscroll serve --keys FILE --make-key NAME. The key stays in this tab and is forgotten when you close it.", "服务器的管理者可以生成密钥：handscroll serve --keys FILE --make-key NAME。密钥只保存在此标签页中，关闭即忘。"],
  "key.label": ["Key", "密钥"],
  "key.enter": ["Enter", "进入"],
  "key.again": ["Enter a key", "输入密钥"],
  "key.wrong": ["The server does not know this key.", "服务器不认识这个密钥。"],

  "read.title": ["Give it something to read", "给它一篇长文"],
  "read.subtitle": ["A document is read once, every word of it, and kept. After that only your questions are read, so answers begin soon.", "文档只读一遍，一字不漏，并保存下来；此后只需读您的问题，很快就能开始回答。"],
  "read.drop": ["Drop documents here", "把文档拖到这里"],
  "read.choose": ["Choose files", "选择文件"],
  "read.paste": ["Paste a text", "粘贴文本"],
  "read.kinds": ["Text, Markdown, HTML, PDF, Word, EPUB, tables, code", "纯文本、Markdown、HTML、PDF、Word、EPUB、表格、代码"],
  "read.sending": ["Being sent: {percent}", "正在上传：{percent}"],
  "read.model": ["Waits until the model is loaded", "等待模型加载完毕"],
  "read.others": ["Waits until the files before it have arrived", "等待前面的文件上传完毕"],
  "read.opening": ["Being opened", "正在解析文件"],
  "read.waiting": ["Waits for its turn; {total} tokens", "排队等待；共 {total} 个词元"],
  "read.soon": ["Is about to be read; {total} tokens", "即将开始阅读；共 {total} 个词元"],
  "read.tokens": ["{done} of {total} tokens", "{done} / {total} 词元"],
  "read.speed": ["{speed} tokens a second", "每秒 {speed} 词元"],
  "read.until": ["until {time}, {left} left", "预计 {time} 读完，还需 {left}"],
  "read.memory": ["{used} of {planned} of memory", "内存 {used}，共需 {planned}"],
  "read.stopped": ["Stopped at {done} of {total} tokens", "已在 {done} / {total} 词元处停止"],
  "read.stoppedBefore": ["Stopped; it is not known here how much was read", "已停止；此处不知已读多少"],
  "read.on": ["Read on", "继续读"],
  "read.it": ["Read it", "读入此文档"],
  "read.again": ["Read", "读入"],
  "read.done": ["{name} is read: {tokens} tokens", "《{name}》已读完：{tokens} 个词元"],
  "read.now": ["Being read", "正在阅读"],
  "read.not": ["Not read", "未读入"],
  "read.dismiss": ["Dismiss", "移除"],
  "read.dismissOne": ["Dismiss {name}", "移除《{name}》"],
  "read.kept": ["{done} tokens are kept; reading on begins there.", "已保存 {done} 个词元，可从此处继续。"],
  "read.notes": ["What the file did not give", "文件中未能读出的内容"],
  "paste.title": ["Paste a text", "粘贴文本"],
  "paste.name": ["Name", "名称"],
  "paste.text": ["Text", "文本"],
  "paste.give": ["Read it", "开始阅读"],
  "paste.default": ["Pasted text", "粘贴的文本"],

  "library": ["Library", "书库"],
  "library.empty": ["Nothing has been read yet. What you give is kept here until you delete it, also when the server is restarted.", "还没有读过任何文档。您提供的文档会一直保存在这里，服务器重启后仍在，直到您删除。"],
  "library.name": ["Document", "文档"],
  "library.tokens": ["Tokens", "词元"],
  "library.size": ["Size", "大小"],
  "library.model": ["Read by", "模型"],
  "library.when": ["When", "时间"],
  "library.ask": ["Ask", "提问"],
  "library.askAbout": ["Ask about {name}", "就《{name}》提问"],
  "library.delete": ["Delete", "删除"],
  "library.deleteOne": ["Delete {name}", "删除《{name}》"],
  "library.unread": ["not read", "未读"],
  "library.refused": ["Longer than the window of {model} ({context} tokens): questions are answered from the passages that a search finds, and each answer says how much was read.", "超出 {model} 的窗口（{context} 个词元）：将根据检索到的段落回答，每个回答都会说明读了多少。"],
  "library.refusedBy": ["Longer than the window of {model}: questions are answered from the passages that a search finds, and each answer says how much was read.", "超出 {model} 的窗口：将根据检索到的段落回答，每个回答都会说明读了多少。"],
  "library.failed": ["{model} could not read it", "{model} 未能读完"],
  "delete.title": ["Delete “{name}”?", "删除《{name}》？"],
  "delete.text": ["Its text, its readings and the search index made of it are removed from the disk of the server, and the conversation about it from this page. This cannot be undone.", "服务器磁盘上的正文、阅读结果与检索索引，以及本页中关于它的对话，都会删除，且无法恢复。"],
  "delete.done": ["{name} is deleted", "《{name}》已删除"],
  "delete.keep": ["Keep it", "保留"],

  "choose.several": ["Several documents…", "多篇文档…"],
  "choose.these": ["{count} documents: {names}", "{count} 篇文档：{names}"],
  "choose.title": ["Ask several documents", "就多篇文档提问"],
  "choose.text": ["What fits the window together is read whole, the rest by the passages that a search finds for each question.", "窗口放得下的文档整篇读入，其余按每个问题检索到的段落读入。"],
  "choose.tokens": ["{tokens} tokens", "{tokens} 个词元"],
  "choose.long": ["{tokens} tokens, by passages", "{tokens} 个词元，按段落读"],
  "choose.all": ["All or none", "全选或全不选"],
  "choose.go": ["Ask these", "就这些提问"],

  "ask.title": ["Ask", "提问"],
  "ask.of": ["Document", "文档"],
  "ask.none": ["No document, only the model", "不使用文档，只与模型对话"],
  "ask.empty": ["Ask anything about {name}. All of its {tokens} tokens were read, none is left out.", "请就《{name}》随意提问。全部 {tokens} 个词元都已读入，没有遗漏。"],
  "ask.emptyFree": ["Talk with {model}. Choose a document above to ask about it.", "与 {model} 对话。也可以在上方选择一篇文档来提问。"],
  "ask.emptyLong": ["{name} has {tokens} tokens, more than the window of {context}. A search finds passages for each question, and only they are read; each answer says how many tokens that was.", "《{name}》有 {tokens} 个词元，超出 {context} 的窗口。每次提问会检索相关段落，只读这些段落；每个回答都会说明读了多少词元。"],
  "ask.emptySeveral": ["Ask anything about these {count} documents. What fits the window is read whole, the rest by passages that a search finds; each answer says which.", "请就这 {count} 篇文档提问。窗口放得下的整篇读入，其余按检索到的段落读入；每个回答都会说明。"],
  "ask.coming": ["{name} is being read. You can ask already: a question is asked as soon as it is read.", "正在阅读《{name}》。现在就可以提问：读完后会立即提交。"],
  "ask.unread": ["{name} can be asked about once it is read.", "《{name}》读完后才能提问。"],
  "ask.unready": ["{name} has not been read by {model}, and is not being read.", "{model} 没有读过《{name}》，现在也没有在读。"],
  "ask.failed": ["{model} could not read {name}:", "{model} 未能读完《{name}》："],
  "ask.queued": ["Will be asked as soon as {name} is read.", "《{name}》读完后会立即提问。"],
  "ask.queuedFree": ["Will be asked as soon as the model is loaded.", "模型加载完毕后会立即提问。"],
  "ask.later": ["The question waits, and will be asked by itself", "问题已排队，稍后会自动提问"],
  "ask.takeBack": ["Take it back", "撤回"],
  "ask.question": ["Your question", "您的问题"],
  "ask.placeholder": ["Ask a question", "输入问题"],
  "ask.send": ["Ask", "提问"],
  "ask.keys": ["Enter asks, Shift and Enter begin a new line", "按 Enter 提问，Shift + Enter 换行"],
  "ask.conversation": ["Conversation", "对话"],
  "ask.text": ["Text", "原文"],
  "ask.textOf": ["Text of {name}", "《{name}》的原文"],
  "ask.settings": ["Settings", "设置"],
  "ask.system": ["Instructions (system message)", "指令（系统消息）"],
  "ask.systemNot": ["Instructions stand before the document and would have it read again, so there are none with a document: write them into the question.", "指令位于文档之前，会使文档需要重读，因此有文档时不提供；请写在问题里。"],
  "ask.temperature": ["Temperature", "温度"],
  "ask.temperatureHint": ["0 always takes the likeliest word; empty leaves it to the model.", "0 表示总取最可能的词；留空则用模型的默认值。"],
  "ask.most": ["Longest answer, in tokens", "回答的最大词元数"],
  "ask.clear": ["New conversation", "新对话"],
  "ask.save": ["Save as Markdown", "存为 Markdown"],
  "ask.lives": ["Conversations are kept in this tab, also when you reload it, and are gone when you close it or delete their document.", "对话保存在此标签页中，刷新后仍在；关闭标签页或删除文档后即消失。"],
  "ask.unkept": ["This browser has no room to keep this conversation: it is gone when you reload the page. Save it before.", "浏览器没有空间保存此对话，刷新后即消失。请先保存。"],
  "ask.again": ["Answer again", "重新回答"],
  "ask.edit": ["Edit the question", "修改问题"],
  "ask.why": ["Why this answer?", "为何这样回答？"],
  "ask.inside": ["Look inside", "透视"],
  "ask.thinking": ["What it thought first", "思考过程"],
  "ask.waiting": ["Thinking…", "正在思考…"],
  "ask.waitingLong": ["Thinking… {seconds} s", "正在思考… {seconds} 秒"],
  "ask.interrupted": ["Interrupted when the page was reloaded.", "刷新页面时中断。"],
  "ask.stopped": ["Stopped by you.", "已被您停止。"],
  "ask.length": ["The answer ended at its longest length, {most} tokens; it may be unfinished.", "回答达到最大长度 {most} 个词元而结束，可能不完整。"],
  "ask.notAsked": ["Not asked yet.", "尚未提问。"],
  "ask.notWritten": ["Not complete: the answer was still being written.", "不完整：保存时仍在回答。"],
  "ask.you": ["You", "您"],
  "ask.answered": ["The answer is complete", "回答完毕"],
  "ask.plainModel": ["{model} has no chat template: it answers one question at a time and only continues texts.", "{model} 没有对话模板：它一次只回答一个问题，且只会续写文本。"],

  "contract.read": ["{seen} of {offered} tokens read", "已读 {seen} / {offered} 个词元"],
  "contract.cached": ["{cached} from the cache", "其中 {cached} 来自缓存"],
  "contract.text": ["fingerprint of the text {hash}", "原文指纹 {hash}"],
  "contract.ids": ["fingerprint {hash}", "指纹 {hash}"],
  "contract.first": ["first word after {seconds} s", "{seconds} 秒后开始回答"],

  "contract.tokens": ["{count} tokens", "{count} 个词元"],
  "sources": ["What was read", "读了什么"],
  "sources.whole": ["read whole, {tokens} tokens", "整篇读入，{tokens} 个词元"],
  "sources.wholeKept": ["read whole, {tokens} tokens, {kept} of them from its saved reading", "整篇读入，{tokens} 个词元，其中 {kept} 个来自已保存的阅读"],
  "sources.passages": ["read by passages: {seen} of {tokens} tokens, {count} found", "按段落读入：{seen} / {tokens} 个词元，检索到 {count} 段"],
  "sources.nothing": ["Nothing was read of: {names}. The search found other passages.", "未读：{names}。检索到的是其他段落。"],
  "sources.at": ["from character {start}", "第 {start} 字起"],
  "sources.words": ["{rank}. by words", "词语检索第 {rank}"],
  "sources.vectors": ["{rank}. by vectors", "向量检索第 {rank}"],
  "sources.shown": ["This passage was given to the model", "这一段给模型读过"],

  "retrieval": ["What would a search have found instead?", "换成搜索会找到什么？"],
  "retrieval.working": ["Searching passages, and answering from them alone", "正在检索段落，并只根据它们回答"],
  "retrieval.done": ["The two answers stand side by side", "两个回答已并列"],
  "retrieval.whole": ["From the whole document", "读完整篇"],
  "retrieval.retrieved": ["From the passages of a search", "只读检索到的段落"],
  "retrieval.tokens": ["{seen} of {tokens} tokens ({percent})", "{seen} / {tokens} 个词元（{percent}）"],
  "retrieval.same": ["The answers are the same.", "两个回答相同。"],
  "retrieval.differ": ["The answers differ.", "两个回答不同。"],
  "retrieval.nothing": ["The search finds no passage: nothing in the document shares a word with this question, so there is nothing to answer from.", "检索没有找到任何段落：文档与这个问题没有共同的词，因此无从回答。"],
  "retrieval.none": ["No passage by itself carries the answer from the whole.", "没有哪一段单独支撑读完整篇的回答。"],
  "retrieval.all": [many("The passages hold what the answer from the whole rests on.", "The passages hold all {count} places that the answer from the whole rests on."), "检索到的段落包含整篇回答所依据的全部 {count} 处。"],
  "retrieval.some": ["The passages hold {held} of the {count} places that the answer from the whole rests on.", "整篇回答依据 {count} 处，检索到的段落包含其中 {held} 处。"],
  "retrieval.missing": [many("The passages do not hold what the answer from the whole rests on.", "The passages hold none of the {count} places that the answer from the whole rests on."), "整篇回答所依据的 {count} 处，检索到的段落一处也没有。"],
  "retrieval.passages": [many("The passage that the search passes on", "The {count} passages that the search passes on"), "检索到的 {count} 段"],
  "retrieval.holds": ["the answer rests on it", "回答依据此处"],

  "gauge": ["Context window", "上下文窗口"],
  "gauge.system": ["Instructions", "指令"],
  "gauge.document": ["Document", "文档"],
  "gauge.history": ["Conversation", "对话"],
  "gauge.question": ["Question", "问题"],
  "gauge.answer": ["Kept for the answer", "预留给回答"],
  "gauge.free": ["Free", "空闲"],
  "gauge.of": ["{used} of {context} tokens", "{used} / {context} 词元"],
  "gauge.over": ["{over} tokens too many: shorten the question, or begin a new conversation", "超出 {over} 个词元：请缩短问题或开始新对话"],
  "gauge.less": ["The window leaves {left} tokens for the answer, fewer than {most}", "窗口只剩 {left} 个词元可用于回答，少于 {most}"],

  "why.working": ["Leaving out passages, one by one", "正在逐段遮去原文"],
  "why.workingLong": ["Leaving out passages, one by one: {seconds} s", "正在逐段遮去原文：{seconds} 秒"],
  "why.done": ["The explanation is ready", "解释已就绪"],
  "why.none": ["No passage carries this answer alone: without any one of the {tried} that were tried it stays about as likely.", "没有哪一段单独支撑这个回答：试着遮去的 {tried} 段中，遮去任何一段，回答的可能性都几乎不变。"],
  "why.carry": [many("One passage carries this answer: without it, most of what the document gives the answer is lost.", "{count} passages carry this answer: without each of them, most of what the document gives the answer is lost."), many("有一段支撑起这个回答：遮去它，文档给予回答的大部分依据就会失去。", "有 {count} 段支撑起这个回答：遮去任何一段，文档给予回答的大部分依据就会失去。")],
  "why.together": ["{count} passages carry this answer together: without all of them, most of what the document gives the answer is lost.", "有 {count} 段共同支撑起这个回答：把它们都遮去，文档给予回答的大部分依据就会失去。"],
  "why.several": [many("This answer rests on the document as a whole. Of the passages that were tried, this one matters.", "This answer rests on the document as a whole. Of the passages that were tried, these matter most."), many("这个回答依据整篇文档。试过的各段中，这一段要紧。", "这个回答依据整篇文档。试过的各段中，以下几段最要紧。")],
  "why.many": ["Without it, the answer would be more than {times} times less likely.", "遮去它，回答的可能性会降到不足 1/{times}。"],
  "why.times": ["Without it, the answer would be {times} times less likely.", "遮去它，回答的可能性会降到 1/{times}。"],
  "why.slightly": ["Without it, the answer would be slightly less likely.", "遮去它，回答的可能性会略降。"],
  "why.numbers": ["Numbers", "数字"],
  "why.nat": ["A nat less makes an answer 2.7 times less likely.", "每损失 1 奈特，回答的可能性降为约 1/2.7。"],
  "why.effect": ["{nats} nats lost without it", "遮去后损失 {nats} 奈特"],
  "why.gain": ["{nats} nats more likely without it", "遮去后反而增加 {nats} 奈特"],
  "why.attention": ["{percent} of the attention", "占注意力 {percent}"],
  "why.whole": ["Without the whole document the answer loses {nats} nats.", "遮去整篇文档，回答损失 {nats} 奈特。"],
  "why.free": ["The model would say about the same without reading the document.", "不读这篇文档，模型也会这么说。"],
  "why.agreement": ["Attention and loss put the passages in the same order to {value} (1: the same order, 0: no relation, −1: the reverse).", "按注意力与按损失给各段排序，一致程度为 {value}（1：顺序相同，0：无关，−1：相反）。"],
  "why.show": ["Show in the text", "在原文中显示"],
  "text.loading": ["The text is being fetched", "正在取原文"],
  "text.marked": [many("1 passage marked", "{count} passages marked"), "标出 {count} 段"],
  "text.unmarked": ["Ask “Why this answer?” below an answer, and the passages that carry it are marked here.", "点击回答下方的“为何这样回答？”，支撑它的段落会在这里标出。"],
  "text.given": [many("1 passage was given to the model", "{count} passages were given to the model"), "给模型读了 {count} 段"],
  "text.passages": ["The passages that are read for an answer are marked here.", "回答所读的段落会在这里标出。"],
  "text.nothing": ["Nothing is marked: no single passage carries this answer.", "没有标记：没有哪一段单独支撑这个回答。"],
  "text.next": ["Next mark", "下一处"],
  "text.previous": ["Previous mark", "上一处"],

  "tasks.title": ["Tasks", "任务"],
  "tasks.subtitle": ["Whole documents where they fit. What does not fit is refused with the numbers, never cut.", "能放下就处理整篇文档；放不下会说明数字并拒绝，绝不暗中截断。"],
  "tasks.summarise": ["Summarise", "摘要"],
  "tasks.translate": ["Translate", "翻译"],
  "tasks.classify": ["Classify", "分类"],
  "tasks.complete": ["Code", "代码"],
  "tasks.of": ["What", "对象"],
  "tasks.own": ["A text of your own", "自己的文本"],
  "tasks.unlisted": [many("1 document is not listed, because {model} has not read it whole.", "{count} documents are not listed, because {model} has not read them whole."), "有 {count} 篇文档未列出，因为 {model} 没有把它们整篇读完。"],
  "tasks.text": ["Text", "文本"],
  "tasks.go": ["Begin", "开始"],
  "tasks.result": ["Result", "结果"],
  "tasks.language": ["In which language", "用哪种语言"],
  "tasks.length": ["How long", "篇幅"],
  "tasks.sentence": ["One sentence", "一句话"],
  "tasks.paragraph": ["A paragraph", "一段"],
  "tasks.points": ["Five to ten points", "五到十个要点"],
  "tasks.page": ["About a page", "约一页"],
  "tasks.focus": ["Above all about (may stay empty)", "重点（可不填）"],
  "tasks.into": ["Into", "译成"],
  "tasks.labels": ["Labels, one a line", "类别，每行一个"],
  "tasks.labelsHint": ["The answer is always one of these, word for word.", "回答一定是其中之一，一字不差。"],
  "tasks.labelsDefault": ["praise\ncomplaint\nquestion", "表扬\n投诉\n咨询"],
  "tasks.lines": ["Each line is a text of its own", "每行是一篇独立的文本"],
  "tasks.label": ["Label", "类别"],
  "tasks.share": ["Sureness", "把握"],
  "tasks.before": ["Code before the gap", "空缺之前的代码"],
  "tasks.after": ["Code after the gap (may stay empty)", "空缺之后的代码（可不填）"],
  "tasks.most": ["Longest result, in tokens", "结果的最大词元数"],
  "tasks.needText": ["Give a text first.", "请先提供文本。"],
  "tasks.needLabels": ["Give at least two labels.", "请至少给出两个类别。"],

  "look.title": ["Look inside", "透视"],
  "look.subtitle": ["Where an answer looked, what it rests on, and what the model would have said instead.", "回答看向了哪里，依据是什么，模型本来还会说什么。"],
  "look.empty": ["Ask something first; then “Look inside” below the answer brings you here.", "请先提问，再点击回答下方的“透视”。"],
  "look.map": ["The document, unrolled", "展开的长卷"],
  "look.mapText": ["The height is each passage's share of the answer's attention; the lines below are passages without which the answer is less likely. Zoom with the wheel or + and −, move with the arrows.", "高度表示各段在回答注意力中的份额；下方的线标出遮去后会降低回答可能性的段落。用滚轮或 + − 缩放，用方向键移动。"],
  "look.mapLabel": ["Attention over the document from its beginning to its end", "从头到尾的文档注意力"],
  "look.at": ["Characters {start} to {end} of {total}", "第 {start} 至 {end} 字，共 {total} 字"],
  "look.zoomIn": ["Nearer", "放大"],
  "look.zoomOut": ["Farther", "缩小"],
  "look.all": ["Whole", "全貌"],
  "look.noMap": ["The map needs a document and “Why this answer?”.", "长卷图需要文档，并先点击“为何这样回答？”。"],
  "look.top": ["Where it looked most", "最受关注的段落"],
  "look.words": ["Word by word", "逐词"],
  "look.wordsText": ["The darker a token, the less sure the model was. Choose one to see what it would have said instead.", "颜色越深，模型越没有把握。选择一个词元，看它本来还会说什么。"],
  "look.wordsLabel": ["Tokens of the answer", "回答的词元"],
  "look.noWords": ["For this answer no probabilities were kept.", "此回答没有保留概率。"],
  "look.instead": ["At this place", "此处的候选"],
  "look.others": ["all others together", "其余合计"],
  "look.facts": ["The model", "模型"],
  "fact.context": ["tokens of context", "上下文词元"],
  "fact.chat": ["chat template", "对话模板"],
  "fact.infill": ["fills gaps in code", "可补全代码空缺"],
  "report.title": ["What it finds in a long text", "它能在长文中找到什么"],
  "report.text": ["Sentences with a number are hidden in a text, near its beginning, in its middle and near its end; the model is asked for each number. Then the loss shows how well it predicts the text, by position: where the bars grow, it has lost its place.", "在一篇文本的开头、中间和结尾附近藏入带数字的句子，再逐一向模型询问。随后按位置显示损失，即模型预测文本的好坏：条形变长之处，模型就跟不上了。"],
  "report.longest": ["Longest text, in tokens", "最长文本（词元）"],
  "report.on": ["Measured on", "测量所用文本"],
  "report.own": ["Modules of Python's standard library", "Python 标准库的模块"],
  "report.go": ["Measure", "开始测量"],
  "report.waiting": ["Waits for its turn", "排队等待"],
  "report.left": ["{left} left", "还需 {left}"],
  "report.done": ["The report is ready", "报告已完成"],
  "report.over": ["Measured on: {text}. {count} tokens were read.", "测量所用文本：{text}。共读取 {count} 个词元。"],
  "report.needles": ["Numbers found, by the length of the text and the depth at which they stood", "找到的数字：按文本长度与所在深度"],
  "report.depth": ["Depth", "深度"],
  "report.cell": ["{found} of {all}", "{all} 中 {found}"],
  "report.loss": ["Loss in nats per token, by position; {mean} on average", "各位置的损失（奈特/词元），平均 {mean}"],
  "report.save": ["Save the records", "保存记录"],
  "yes": ["yes", "是"],
  "no": ["no", "否"],
};

const FACTS = { family: "系列", parameters: "参数", "layers x width": "层数 × 宽度", vocabulary: "词表", context: "上下文", "trained length": "训练长度",
  positions: "位置编码", "attention window": "注意力窗口", "KV cache per token": "每词元键值缓存", "KV cache, full context": "整个上下文的键值缓存", experts: "专家", "config keys not used": "未用到的配置项",
  "metadata not used": "未用到的元数据", "position settings": "位置编码的设置", head: "输出头", labels: "类别", state: "状态" };

export const lang = () => (document.documentElement.lang === "zh" ? "zh" : "en");

/** The words for a key, with `values` filled in. */
export function t(key, values = {}) {
  const entry = WORDS[key];
  if (!entry) throw new Error(`no words for ${key}`);
  const found = entry[lang() === "zh" ? 1 : 0];
  const text = typeof found === "function" ? found(values) : found;
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

const locale = () => (lang() === "zh" ? "zh-CN" : "en-GB");

export const number = (value, digits = 0) =>
  new Intl.NumberFormat(locale(), { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);

export const percent = (value, digits = 0) =>
  new Intl.NumberFormat(locale(), { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);

/** Bytes in the unit that a person would use. */
export function bytes(value) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) { value /= 1000; at++; }
  return `${number(value, value < 10 && at > 0 ? 1 : 0)} ${units[at]}`;
}

/** The name of a fact: the server tells it in English. */
export const factName = (name) => (lang() === "zh" ? FACTS[name] ?? name : name);

/** When something was, by its seconds since 1970: today by the clock, otherwise by the date. */
export function when(seconds) {
  const date = new Date(seconds * 1000);
  const today = date.toDateString() === new Date().toDateString();
  const form = today ? { hour: "2-digit", minute: "2-digit" } : { dateStyle: "medium" };
  return new Intl.DateTimeFormat(locale(), form).format(date);
}

export const clock = (date) => new Intl.DateTimeFormat(locale(), { hour: "2-digit", minute: "2-digit", second: "2-digit" }).format(date);

/** A span of time in words. */
export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  const units = lang() === "zh" ? ["小时", "分", "秒"] : ["h", "min", "s"];
  const parts = hours ? [[hours, 0], [minutes, 1]] : minutes ? [[minutes, 1], [whole % 60, 2]] : [[whole, 2]];
  return parts.map(([value, unit]) => `${value} ${units[unit]}`).join(" ");
}
