"""Chinese questions and answers of the dialogues; the names are those of `templates_en`."""

ONE_PICTURE = ("图中", "这张图里", "图片里", "这张图片里")
NUMBERED = "图{n}"
PAIR = "{first}和{last}"
END = "。"
COUNTS = ("零", "一", "两", "三", "四")
IN_PICTURE = "看{picture}：{question}"

QUESTIONS: dict[str, tuple[str, ...]] = {
    "describe": (
        "{picture}有什么？",
        "请描述一下{picture}的内容。",
        "{picture}的画面是什么样的？",
        "你在{picture}看到了什么？",
        "用一句话说说{picture}的内容。",
        "请简单介绍{picture}的画面。",
        "能给{picture}的内容写一句说明吗？",
    ),
    "describe_next": ("{picture}呢？", "那{picture}呢？", "{picture}又是什么内容？", "再说说{picture}吧。"),
    "where": (
        "{picture}的{name}在哪里？",
        "请找出{picture}的{name}。",
        "在{picture}标出{name}。",
        "请框出{picture}的{name}。",
        "能告诉我{picture}的{name}在什么位置吗？",
        "帮我在{picture}找一下{name}。",
    ),
    "where_it": ("它在哪里？", "它的位置在哪儿？", "请把它框出来。", "能标出来吗？", "具体在什么位置？"),
    "what_at": (
        "{picture}的{box}是什么？",
        "请看{picture}的{box}，那里有什么？",
        "{picture}的区域{box}里是什么？",
        "请描述{picture}框{box}中的内容。",
        "说说{picture}{box}处的内容。",
    ),
    "ground": (
        "请描述{picture}的内容，并标出提到的东西。",
        "描述{picture}的画面，同时给出位置框。",
        "{picture}有什么？请带上位置框。",
    ),
    "list": (
        "你能在{picture}标出哪些东西？",
        "请列出{picture}的几样东西并标出位置。",
        "{picture}能找到什么？请给出框。",
    ),
    "what_else": ("还有别的吗？", "那里还有什么？", "还能标出其他东西吗？", "除此之外还能看到什么？"),
    "read": ("读出{picture}的文字。", "{picture}写了什么？", "请抄下{picture}的文字。", "{picture}的文字是什么？"),
    "read_at": ("{picture}的{quad}写着什么？", "请读出{picture}中{quad}处的文字。", "{picture}{quad}这一行是什么字？"),
    "where_text": (
        "{picture}的“{text}”写在哪里？",
        "请找出{picture}的文字“{text}”。",
        "在{picture}标出“{text}”这行字。",
    ),
    "count": ("我一共发了几张图？", "这里有几张图片？", "到现在有多少张图？", "数一数有几张图。"),
    "which": (
        "哪张图里有{name}？",
        "{name}出现在哪张图里？",
        "请问哪一张图里能看到{name}？",
        "我想找{name}，在哪张图里？",
    ),
    "which_find": ("哪张图里有{name}？请标出来。", "{name}在哪张图的什么位置？", "请在这些图里找到{name}并框出来。"),
    "which_text": ("哪张图里写着“{text}”？", "“{text}”这行字在哪张图里？", "请问在哪张图里能读到“{text}”？"),
    "compare": ("比较一下{pair}。", "{pair}有什么不同？", "{pair}的区别是什么？", "请分别说说{pair}的内容。"),
    "ask": ("{question}",),
}

ANSWERS: dict[str, tuple[str, ...]] = {
    "describe": ("{caption}",),
    "describe_next": ("{caption}",),
    "where": ("{region}", "{region}。", "在这里：{region}。", "已经标出来了：{region}。"),
    "where_many": ("{region}", "{region}。", "都在这里：{region}。"),
    "where_it": ("{region}", "在这里：{region}。", "它在这里：{region}。"),
    "what_at": ("{name}。", "那是{name}。", "这里是{name}。", "框里是{name}。"),
    "ground": ("{segments}",),
    "list": ("{regions}。", "可以标出{regions}。", "我能找到{regions}。"),
    "what_else": ("{regions}。", "还有{regions}。", "另外还有{regions}。"),
    "read": ("{lines}",),
    "read_at": ("{text}", "写着“{text}”。", "文字是“{text}”。"),
    "where_text": ("{line}", "在这里：{line}。", "已经标出来了：{line}。"),
    "count": ("{count}张。", "一共有{count}张图。", "有{count}张。"),
    "which": ("{picture}。", "在{picture}里。", "是{picture}。"),
    "which_find": ("在{picture}里：{region}。", "{picture}：{region}"),
    "which_text": ("{picture}。", "在{picture}里。", "在{picture}里可以读到。"),
    "compare": (
        "{first}：{first_caption}{last}：{last_caption}",
        "{first}的内容是：{first_caption}而{last}的内容是：{last_caption}",
    ),
    "ask": ("{answer}",),
}

CONTINUE = ("请续写下面的文字：\n{text}", "下面这段话接着怎么写？\n{text}", "请把这段文字写完：\n{text}")
