// The chat: its turns, the question that is being written, and the answer that comes.

import { byPicture, figureOf, light, parse, pictureMeant, shapesIn, showText, words } from "./answer.js";
import { pictureOf, readPicture } from "./pictures.js";
import { Refused, ask, get, storeKey } from "./stream.js";
import { say, switchLanguage } from "./words.js";

const byId = (id) => document.getElementById(id);
const question = byId("question");

const chat = []; // turns: {role, text, pictures} and of the model {notes, failed}
let pending = []; // pictures of the next question
let settings = { model: "", max_pictures: 16, max_body_bytes: 32 << 20, needs_key: false };
let writing = null; // the AbortController of the answer that comes

// ---- The question.

async function addFiles(files) {
  for (const file of files) {
    if (picturesShown().length + pending.length >= settings.max_pictures) return tell(say("tooMany", settings.max_pictures));
    try {
      pending.push(await readPicture(file));
    } catch {
      tell(say("notPicture", file.name || say("picture")));
    }
    showPending();
  }
}

function showPending() {
  const first = picturesShown().length;
  byId("shown").replaceChildren(
    ...pending.map((picture, index) => {
      const item = document.createElement("li");
      const image = document.createElement("img");
      image.src = picture.url;
      image.alt = say("numbered", first + index + 1);
      const remove = document.createElement("button");
      remove.type = "button";
      remove.textContent = "×";
      remove.setAttribute("aria-label", say("remove", image.alt));
      remove.onclick = () => {
        pending.splice(index, 1);
        showPending();
        question.focus();
      };
      item.append(image, remove);
      return item;
    }),
  );
  fit();
}

function fit() {
  question.style.height = "auto";
  question.style.height = `${Math.min(question.scrollHeight, 200)}px`;
  byId("send").disabled = !question.value.trim() && !pending.length;
}

function send() {
  const text = question.value.trim();
  if (writing || (!text && !pending.length)) return;
  chat.push({ role: "user", text, pictures: pending });
  pending = [];
  question.value = "";
  showPending();
  answer();
}

// ---- The answer.

async function answer(options = {}) {
  const turn = { role: "assistant", text: "", pictures: [], notes: [], failed: "" };
  const body = JSON.stringify({ ...request(), ...options });
  chat.push(turn);
  writing = new AbortController();
  const element = show(turn);
  element.setAttribute("aria-busy", "true");
  setWriting(true);
  try {
    if (body.length > settings.max_body_bytes) throw new Refused(say("tooLarge"), 413);
    const end = await ask(JSON.parse(body), writing.signal, (text) => {
      turn.text += text;
      draw(turn, element);
    });
    if (end.reason === "length") turn.notes.push("cut");
    if (end.forgotten) turn.notes.push(["forgotten", end.forgotten]);
  } catch (error) {
    if (error.name === "AbortError") turn.notes.push("stopped");
    else turn.failed = error instanceof Refused ? error.message : say(turn.text ? "broken" : "noServer");
    if (error.status === 401) byId("key-dialog").showModal();
  }
  writing = null;
  setWriting(false);
  if (!chat.includes(turn)) return; // a new chat has begun
  element.removeAttribute("aria-busy");
  showAll();
  tell(turn.failed || say("done"), false);
}

function request() {
  const messages = chat.map(({ role, text, pictures }) => {
    if (role === "assistant") return { role, content: text };
    const shown = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
    return { role, content: [...shown, ...(text ? [{ type: "text", text }] : [])] };
  });
  const temperature = Number(byId("temperature").value);
  const longest = Math.max(1, Math.round(Number(byId("longest").value)) || 512);
  return { model: settings.model, messages, temperature, max_tokens: longest };
}

// Asks the last question again. If the same words would come again, they are drawn at random.
function again(drawn) {
  if (writing) return;
  chat.pop();
  showAll();
  const temperature = Number(byId("temperature").value) || 0.7;
  answer(drawn ? { temperature, top_p: 0.9 } : {});
}

function setWriting(is) {
  byId("stop").hidden = !is;
  byId("send").hidden = is;
  if (is) tell(say("writing"), false);
  question.focus();
}

const stop = () => writing?.abort();

function newChat() {
  stop();
  chat.length = 0;
  pending = [];
  showPending();
  showAll();
  question.focus();
}

// ---- What is shown.

const picturesShown = (until = chat.length) => chat.slice(0, until).flatMap((turn) => turn.pictures);

function showAll() {
  byId("turns").replaceChildren();
  for (const turn of chat) show(turn);
  byId("welcome").hidden = chat.length > 0;
}

function show(turn) {
  const item = document.createElement("li");
  item.className = `turn ${turn.role}`;
  const name = document.createElement("h3");
  name.className = "hidden";
  name.textContent = say(turn.role === "user" ? "you" : "model");
  const text = document.createElement("div");
  text.className = "text";
  item.append(name);
  if (turn.role === "user") {
    const before = picturesShown(chat.indexOf(turn)).length;
    if (turn.pictures.length) item.append(row(turn.pictures.map((each, k) => figureOf(each, before + k + 1, []))));
    text.textContent = turn.text;
    if (turn.text) item.append(text);
  } else {
    item.append(text, row([]));
    draw(turn, item);
    if (turn !== chat.at(-1) || !writing) finish(turn, item);
  }
  byId("welcome").hidden = true;
  byId("turns").append(item);
  follow(true);
  return item;
}

function row(figures) {
  const element = document.createElement("div");
  element.className = "figures";
  element.append(...figures);
  return element;
}

// Shows the text and regions of an answer as far as they have come.
function draw(turn, item) {
  const near = isNearEnd();
  const parsed = parse(turn.text);
  showText(item.querySelector(".text"), parsed);
  const before = chat.slice(0, chat.indexOf(turn));
  const pictures = picturesShown(before.length);
  const figures = item.querySelector(".figures");
  const drawn = String(shapesIn(parsed.groups));
  if (pictures.length && parsed.groups.length && figures.dataset.shapes !== drawn) {
    figures.dataset.shapes = drawn;
    const groupsOf = byPicture(turn.text, parsed.groups, pictureMeant(before), pictures);
    figures.replaceChildren(...[...groupsOf].map(([k, groups]) => figureOf(pictures[k], k + 1, groups)));
  }
  follow(near);
}

function finish(turn, item) {
  const text = item.querySelector(".text");
  if (!turn.text && !turn.failed && !turn.notes.includes("stopped")) text.textContent = say("empty");
  for (const note of turn.notes) {
    const line = document.createElement("p");
    line.className = "soft small";
    line.textContent = say(...[note].flat());
    item.append(line);
  }
  if (turn.failed) {
    const line = document.createElement("p");
    line.className = "failed";
    line.setAttribute("role", "alert");
    line.textContent = turn.failed;
    item.append(line);
  }
  const tools = document.createElement("div");
  tools.className = "after";
  if (turn === chat.at(-1)) tools.append(tool(turn.failed ? "retry" : "again", () => again(!turn.failed)));
  if (turn.text) {
    const copy = tool("copy", async () => {
      await navigator.clipboard.writeText(words(turn.text));
      copy.textContent = say("copied");
    });
    tools.append(copy);
  }
  item.append(tools);
}

function tool(name, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = say(name);
  button.onclick = act;
  return button;
}

const isNearEnd = () => byId("main").scrollHeight - byId("main").scrollTop - byId("main").clientHeight < 120;

function follow(is) {
  if (is) byId("main").scrollTop = byId("main").scrollHeight;
}

function tell(text, visibly = true) {
  byId("status").textContent = text;
  byId("status").classList.toggle("toast", visibly);
  clearTimeout(tell.timer);
  if (visibly) tell.timer = setTimeout(() => byId("status").classList.remove("toast"), 5000);
}

async function showExamples() {
  const examples = await get("/page/examples");
  byId("examples").hidden = !examples.length;
  byId("example-list").replaceChildren(
    ...examples.map((example) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      for (const url of example.pictures) {
        const image = document.createElement("img");
        image.src = url;
        image.alt = "";
        button.append(image);
      }
      const text = document.createElement("span");
      text.textContent = words(example.question);
      button.append(text);
      button.onclick = async () => {
        pending = await Promise.all(example.pictures.map(pictureOf));
        question.value = example.question;
        send();
      };
      item.append(button);
      return item;
    }),
  );
}

// ---- What the user does.

function listen() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  question.addEventListener("input", fit);
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
  });
  byId("stop").onclick = stop;
  byId("new").onclick = newChat;
  byId("add").onclick = () => byId("files").click();
  byId("files").onchange = async (event) => {
    await addFiles([...event.target.files]);
    event.target.value = "";
    question.focus();
  };
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      addFiles([...event.clipboardData.files]);
    }
  });
  byId("temperature").oninput = (event) => (byId("temperature-value").textContent = event.target.value);
  byId("language").onclick = () => {
    switchLanguage();
    showPending();
    if (!writing) showAll();
  };
  byId("key-dialog").addEventListener("close", () => {
    storeKey(byId("key").value);
    byId("key").value = "";
    showExamples().catch(() => {});
    if (chat.at(-1)?.failed) again(false);
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#options")) byId("options").open = false;
  });
  listenToDrops();
  listenToRegions();
}

function listenToDrops() {
  const carries = (event) => [...event.dataTransfer.types].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    byId("drop").hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) byId("drop").hidden = true;
  });
  document.addEventListener("drop", (event) => {
    byId("drop").hidden = true;
    if (!carries(event)) return;
    event.preventDefault();
    addFiles([...event.dataTransfer.files]);
  });
}

function listenToRegions() {
  const lit = (event) => {
    const region = event.target.closest?.("[data-group]");
    const root = event.target.closest?.(".turn, dialog");
    if (root) light(root, region ? region.dataset.group : null);
  };
  for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, lit);
  for (const kind of ["pointerout", "focusout"]) {
    document.addEventListener(kind, (event) => {
      const root = event.target.closest?.(".turn, dialog");
      if (root) light(root, null);
    });
  }
  byId("turns").addEventListener("click", (event) => {
    const seen = event.target.closest(".seen");
    if (!seen) return;
    const large = byId("large");
    large.querySelector(".seen")?.remove();
    const copy = document.createElement("div");
    copy.className = "seen";
    copy.style.cssText = seen.style.cssText;
    for (const child of seen.children) copy.append(child.cloneNode(true));
    large.append(copy);
    large.showModal();
  });
  byId("large").addEventListener("click", (event) => {
    if (event.target === byId("large")) byId("large").close();
  });
}

async function begin() {
  switchLanguage((navigator.language || "en").startsWith("zh") ? "zh" : "en");
  listen();
  fit();
  question.focus();
  try {
    settings = await get("/page/settings");
    byId("model").textContent = settings.description || settings.model;
    document.title = settings.model;
    await showExamples();
  } catch (error) {
    if (error.status === 401) byId("key-dialog").showModal();
    else tell(error instanceof Refused ? error.message : say("noServer"));
  }
}

begin();
