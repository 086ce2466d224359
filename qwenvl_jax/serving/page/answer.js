// The text of an answer and the regions in it: read as qwenvl_jax/data/tags.py reads them, and shown without tags.

import { say } from "./words.js";

const POINT = String.raw`\(\s*([0-9]{1,3}|1000)\s*,\s*([0-9]{1,3}|1000)\s*\)`;
const shapeOf = (name, corners) =>
  new RegExp(String.raw`<${name}>\s*${Array(corners).fill(POINT).join(String.raw`\s*,\s*`)}(?=\s*(?:<|$))`, "g");
const SHAPES = [shapeOf("box", 2), shapeOf("quad", 4)];
const REF = /<ref>([^]*?)(?:<\/ref>|(?=<\/?(?:ref|box|quad|img)>)|$)/g;
const NOT_SHOWN = /<(box|quad)>[^<]*(?:<\/\1>)?/g; // a shape, or what may become one
const OTHER_TAGS = /<\/?(?:ref|box|quad|img|imgpad)>|<\|[a-z_]+\|>/g;
const NAME = /(?:(?<![a-z])(?:picture|image|photo)\s*|图片?\s*)([0-9]{1,4})(?![0-9])/gi; // as in data/pointing.py
const COLOURS = 6; // of page.css: --c0 to --c5
const LABELS = 8; // more regions than this are named in the text alone
const SVG = "http://www.w3.org/2000/svg";

// Reads a text that may not be complete.
// Returns pieces ({text} or {text, group}) and groups ({ref, shapes, read}). Shapes are lists of points [x, y] in
// thousandths; `read` has them as they are written: [x1, y1, x2, y2] of a box.
export function parse(text) {
  const refs = [...text.matchAll(REF)].map((match) => groupAt(match.index, match[0].length, match[1]));
  const groups = [...refs];
  const shapes = SHAPES.flatMap((pattern) => [...text.matchAll(pattern)]).sort((a, b) => a.index - b.index);
  for (const match of shapes) {
    let group = refs.findLast((ref) => ref.end <= match.index);
    // Between a reference and its shape only other shapes may stand; words end its reach.
    if (!group || text.slice(group.end, match.index).replace(NOT_SHOWN, "").trim()) {
      group = groupAt(match.index, 0, "");
      groups.push(group);
    }
    addShape(group, match.slice(1).map(Number));
  }
  groups.sort((a, b) => a.start - b.start);
  const drawn = groups.filter((group) => group.shapes.length);
  drawn.forEach((each, index) => Object.assign(each, { number: index + 1, colour: `var(--c${index % COLOURS})` }));
  return { pieces: piecesOf(text, groups), groups: drawn };
}

const groupAt = (start, length, words) => ({ start, end: start + length, words, ref: words.trim(), shapes: [], read: [] });

function addShape(group, numbers) {
  const points = Array.from({ length: numbers.length / 2 }, (_, k) => [numbers[2 * k], numbers[2 * k + 1]]);
  const isBox = points.length === 2;
  group.shapes.push(isBox ? cornersOfBox(points) : points);
  group.read.push(isBox ? numbers : points);
}

const cornersOfBox = ([[left, top], [right, bottom]]) => [[left, top], [right, top], [right, bottom], [left, bottom]];

function piecesOf(text, groups) {
  const pieces = [];
  let offset = 0;
  const plainUntil = (end) => {
    const shown = text.slice(offset, end).replace(NOT_SHOWN, "").replace(OTHER_TAGS, "");
    if (shown) pieces.push({ text: shown });
  };
  for (const group of groups) {
    plainUntil(group.start);
    pieces.push({ text: group.words.replace(OTHER_TAGS, ""), group });
    offset = group.end;
  }
  plainUntil(text.length);
  return pieces;
}

// The text for people: without tags.
export const words = (text) => parse(text).pieces.map((piece) => piece.text).join("").trim();

const namesIn = (text, shown) =>
  [...text.matchAll(NAME)].map((match) => ({ at: match.index, index: match[1] - 1 })).filter(({ index }) => index in shown);

// The index of the picture that an answer to these turns means: the one that was shown or named last.
export function pictureMeant(turns) {
  const shown = [];
  let meant = 0;
  for (const { text, pictures } of turns) {
    shown.push(...pictures);
    if (pictures.length) meant = shown.length - 1;
    meant = namesIn(text, shown).at(-1)?.index ?? meant;
  }
  return meant;
}

// The drawn groups of an answer by the index of their picture: the one that the answer has named before, or `meant`.
export function byPicture(text, groups, meant, shown) {
  const names = namesIn(text, shown);
  const groupsOf = new Map();
  for (const group of groups) {
    const index = names.findLast(({ at }) => at < group.end)?.index ?? meant;
    groupsOf.set(index, [...(groupsOf.get(index) ?? []), group]);
  }
  return groupsOf;
}

// Writes the text into an element. The words of a region carry its colour, and light it up on the picture.
export function showText(element, { pieces }) {
  element.replaceChildren();
  for (const { text, group } of pieces) {
    if (!group?.shapes.length) {
      element.append(text);
      continue;
    }
    const region = document.createElement("button");
    region.type = "button";
    region.className = "ref";
    region.textContent = text.trim() || String(group.number);
    region.dataset.group = group.number;
    region.style.setProperty("--c", group.colour);
    element.append(region);
  }
}

// The picture with the regions of the groups drawn on it; a button that enlarges it.
export function figureOf(picture, number, groups) {
  const figure = document.createElement("button");
  figure.type = "button";
  figure.className = "seen";
  figure.setAttribute("aria-label", groups.length ? say("regions", number, shapesIn(groups)) : say("enlarge", number));
  figure.style.setProperty("--width", picture.width);
  figure.style.setProperty("--height", picture.height);
  const image = document.createElement("img");
  image.src = picture.url;
  image.alt = "";
  image.className = Math.max(picture.width, picture.height) < 200 ? "pixelated" : "";
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 1000 1000");
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("aria-hidden", "true");
  figure.append(image, drawing);
  for (const group of groups) {
    const shapes = document.createElementNS(SVG, "g");
    shapes.dataset.group = group.number;
    shapes.style.setProperty("--c", group.colour);
    for (const points of group.shapes) {
      for (const kind of ["halo", "region"]) shapes.append(polygon(points, kind));
    }
    drawing.append(shapes);
    if (groups.length <= LABELS) figure.append(label(group));
  }
  return figure;
}

export const shapesIn = (groups) => groups.reduce((count, group) => count + group.shapes.length, 0);

function polygon(points, kind) {
  const element = document.createElementNS(SVG, "polygon");
  element.setAttribute("points", points.map((point) => point.join(",")).join(" "));
  element.setAttribute("class", kind);
  return element;
}

function label(group) {
  const element = document.createElement("span");
  element.className = "tag";
  element.textContent = group.ref || group.number;
  element.dataset.group = group.number;
  const [x, y] = group.shapes[0].reduce((best, point) => (point[0] + point[1] < best[0] + best[1] ? point : best));
  element.style.setProperty("--c", group.colour);
  element.style.left = `${Math.min(x, 900) / 10}%`;
  element.style.top = `${y / 10}%`;
  if (y < 80) element.classList.add("inside");
  return element;
}

// Lights one group up in everything below `root`, and dims the others; null lights all.
export function light(root, number) {
  for (const element of root.querySelectorAll("[data-group]")) {
    element.classList.toggle("faint", number !== null && element.dataset.group !== number);
  }
}
