"""Scripts that the renderer runs in the window of a browser, apart from the scripts of the page."""

# Returns [characters, boxes, block, upright] of each piece of text, in the order of the document. A piece is the text
# of one node that touches the window; `boxes` has [x, y, width, height] of each character in pixels of the window, null
# for one that takes no room; pieces with equal `block` are in one paragraph. `upright` is false for text from right to
# left, in columns, or in a turned element. The argument is the most characters that are looked at.
PIECES = r"""
(most) => {
  const pieces = [];
  const blocks = new Map();
  const turned = new Map();
  const range = document.createRange();
  let count = 0;

  const isTurned = (element) => {
    if (!element) return false;
    if (!turned.has(element)) {
      const style = getComputedStyle(element);
      const matrix = style.transform === 'none' ? null : new DOMMatrix(style.transform);
      const here = (style.rotate && style.rotate !== 'none') ||
                   (matrix && (!matrix.is2D || matrix.b || matrix.c || matrix.a < 0 || matrix.d < 0));
      turned.set(element, Boolean(here) || isTurned(element.parentElement));
    }
    return turned.get(element);
  };
  const blockOf = (element) => {
    while (element.parentElement && getComputedStyle(element).display === 'inline') element = element.parentElement;
    if (!blocks.has(element)) blocks.set(element, blocks.size);
    return blocks.get(element);
  };
  const cased = (character, before, transform) => {
    if (transform === 'uppercase') return character.toUpperCase();
    if (transform === 'lowercase') return character.toLowerCase();
    return transform === 'capitalize' && !/[\p{L}\p{N}'\u2019]/u.test(before) ? character.toUpperCase() : character;
  };
  const visit = (root) => {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
    for (let node = walker.nextNode(); node && count <= most; node = walker.nextNode()) {
      if (node.nodeType === Node.ELEMENT_NODE) {
        if (node.shadowRoot) visit(node.shadowRoot);
        continue;
      }
      const element = node.parentElement;
      if (!element || !/\S/.test(node.data)) continue;
      range.selectNodeContents(node);
      const around = range.getBoundingClientRect();
      if (!around.width || !around.height || around.bottom <= 0 || around.top >= innerHeight ||
          around.right <= 0 || around.left >= innerWidth) continue;
      const style = getComputedStyle(element);
      const upright = style.writingMode === 'horizontal-tb' && style.direction === 'ltr' && !isTurned(element);
      const texts = [];
      const boxes = [];
      let offset = 0;
      let before = ' ';
      for (const character of node.data) {
        if (++count > most) break;
        range.setStart(node, offset);
        range.setEnd(node, offset + character.length);
        offset += character.length;
        const rect = Array.from(range.getClientRects()).find((each) => each.width > 0 && each.height > 0);
        texts.push(cased(character, before, style.textTransform));
        boxes.push(rect ? [rect.left, rect.top, rect.width, rect.height] : null);
        before = character;
      }
      pieces.push([texts, boxes, blockOf(element), upright]);
    }
  };
  visit(document.body ?? document.documentElement);
  return count > most ? null : pieces;
}
"""

# Hides all text while nothing moves (argument true), or shows it again (false). `color` stays, because borders have it.
HIDE_TEXT = r"""
(hide) => {
  if (!hide) {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((sheet) => !sheet.hidesText);
    return;
  }
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(`*, *::before, *::after, *::marker, *::placeholder {
    -webkit-text-fill-color: transparent !important;
    -webkit-text-stroke-color: transparent !important; text-shadow: none !important;
    text-decoration-color: transparent !important; text-emphasis-color: transparent !important;
    caret-color: transparent !important; transition: none !important;
  }`);
  sheet.hidesText = true;
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
}
"""

# Scrolls to a height and returns [the height that was reached, the height of the document].
SCROLL = r"""
(top) => {
  scrollTo({left: 0, top, behavior: 'instant'});
  const root = document.scrollingElement ?? document.documentElement;
  return [Math.round(scrollY), root.scrollHeight];
}
"""
