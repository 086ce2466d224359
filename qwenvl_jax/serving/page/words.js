// The words of the page in English and Chinese, and the language in which it is shown.

const WORDS = {
  en: {
    skip: "Skip to the question",
    options: "Options",
    temperature: "Temperature",
    temperatureNote: "0 always takes the most likely word.",
    longest: "Longest answer, in tokens",
    newChat: "New chat",
    welcome: "Ask about a picture",
    welcomeText:
      "Add one or several pictures and ask what is in them, where something is, or what is written. Regions that the answer names are drawn on the picture.",
    examples: "Or try one of these",
    conversation: "Conversation",
    pictures: "Pictures of this question",
    picture: "Picture",
    add: "Add pictures",
    question: "Question",
    placeholder: "Ask about your pictures",
    send: "Send",
    stop: "Stop",
    hint: "Enter sends, Shift+Enter begins a line, Esc stops. Pictures can be dropped or pasted anywhere.",
    drop: "Drop the pictures here",
    keyTitle: "This server asks for a key",
    keyText: "It stays in this tab and is forgotten when the tab is closed.",
    key: "Key",
    save: "Use this key",
    close: "Close",
    you: "You",
    model: "Model",
    remove: (name) => `Remove ${name}`,
    numbered: (number) => `Picture ${number}`,
    enlarge: (number) => `Enlarge picture ${number}`,
    regions: (number, count) => `Picture ${number} with ${count} ${count === 1 ? "region" : "regions"}`,
    again: "Another answer",
    copy: "Copy",
    copied: "Copied",
    retry: "Try again",
    stopped: "Stopped.",
    cut: "Cut off at the longest answer.",
    forgotten: (count) => `The chat is long: the first ${count === 1 ? "question was" : `${count} questions were`} left out.`,
    writing: "The answer is being written.",
    done: "The answer is complete.",
    empty: "(no answer)",
    noServer: "The server cannot be reached.",
    broken: "The answer broke off.",
    notPicture: (name) => `${name} is not a picture that this browser can read.`,
    tooMany: (most) => `At most ${most} pictures can be shown in one chat.`,
    tooLarge: "The pictures of this chat are too large together; begin a new chat.",
  },
  zh: {
    skip: "跳到提问框",
    options: "选项",
    temperature: "温度",
    temperatureNote: "0 表示总是选择最可能的词。",
    longest: "回答的最大长度（词元）",
    newChat: "新对话",
    welcome: "看图提问",
    welcomeText: "添加一张或多张图片，询问图中有什么、某物在哪里，或写了什么字。回答中提到的区域会画在图片上。",
    examples: "或者试试这些",
    conversation: "对话",
    pictures: "本次提问的图片",
    picture: "图片",
    add: "添加图片",
    question: "问题",
    placeholder: "询问您的图片",
    send: "发送",
    stop: "停止",
    hint: "回车发送，Shift+回车换行，Esc 停止。图片可以拖放或粘贴到任何位置。",
    drop: "把图片放在这里",
    keyTitle: "此服务器需要密钥",
    keyText: "密钥只保存在此标签页中，关闭后即被清除。",
    key: "密钥",
    save: "使用此密钥",
    close: "关闭",
    you: "您",
    model: "模型",
    remove: (name) => `移除${name}`,
    numbered: (number) => `图片 ${number}`,
    enlarge: (number) => `放大图片 ${number}`,
    regions: (number, count) => `图片 ${number}，含 ${count} 个区域`,
    again: "换一个回答",
    copy: "复制",
    copied: "已复制",
    retry: "重试",
    stopped: "已停止。",
    cut: "已达到回答的最大长度。",
    forgotten: (count) => `对话较长：最早的 ${count} 个问题未被使用。`,
    writing: "正在写回答。",
    done: "回答完成。",
    empty: "（没有回答）",
    noServer: "无法连接服务器。",
    broken: "回答中断了。",
    notPicture: (name) => `${name} 不是此浏览器可以读取的图片。`,
    tooMany: (most) => `一次对话最多显示 ${most} 张图片。`,
    tooLarge: "此对话的图片总量过大，请开始新对话。",
  },
};

let language = (navigator.language || "en").startsWith("zh") ? "zh" : "en";

// The words under a name, in the present language.
export function say(name, ...values) {
  const words = WORDS[language][name];
  return typeof words === "function" ? words(...values) : words;
}

// Shows the elements below `root` in the present language: data-words is their text, the others are attributes.
export function translate(root) {
  for (const element of root.querySelectorAll("[data-words]")) element.textContent = say(element.dataset.words);
  for (const [key, attribute] of [["label", "aria-label"], ["title", "title"], ["placeholder", "placeholder"]]) {
    for (const element of root.querySelectorAll(`[data-${key}]`)) element.setAttribute(attribute, say(element.dataset[key]));
  }
}

// Changes to the other language and shows the whole page in it.
export function switchLanguage(to = language === "en" ? "zh" : "en") {
  language = to;
  document.documentElement.lang = language;
  const other = document.getElementById("language");
  other.textContent = language === "en" ? "中文" : "English";
  other.lang = language === "en" ? "zh" : "en";
  other.setAttribute("aria-label", language === "en" ? "切换到中文" : "Switch to English");
  translate(document);
}

