// Markdown as models write it, into elements: every text is set as text, nothing is loaded, and there are no links,
// since a model's answer is no more to be trusted than a stranger's. Each line and each sign is looked at once.
const BULLET = /^( *)(?:[-*+]|(\d{1,9})[.)]) +/, TABLE_RULE = /^[ :|-]+$/, MAX_DEPTH = 3;

const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

// Append many nodes: as arguments of one call they would have to fit the stack.
function fill(node, children) {
  for (const child of children) node.append(child);
  return node;
}

// `text` with **bold**, *italic* and `code` as nodes. What isn't closed stays as it is written.
function inline(text, depth = 0) {
  if (depth === MAX_DEPTH) return [document.createTextNode(text)];
  const nodes = [], unclosed = new Set();
  let plain = 0;
  for (let i = 0; i < text.length; i++) {
    if (text[i] !== "*" && text[i] !== "`") continue;
    const mark = text.startsWith("**", i) ? "**" : text[i];
    const start = i + mark.length;
    const end = unclosed.has(mark) ? -1 : closing(text, mark, start);
    if (end < 0) {
      if (mark === "`" || text[start] !== " ") unclosed.add(mark);
      i = start - 1;
      continue;
    }
    if (i > plain) nodes.push(document.createTextNode(text.slice(plain, i)));
    const node = make(mark === "`" ? "code" : mark === "**" ? "strong" : "em");
    if (mark === "`") node.textContent = text.slice(start, end);
    else fill(node, inline(text.slice(start, end), depth + 1));
    nodes.push(node);
    plain = end + mark.length;
    i = plain - 1;
  }
  if (plain < text.length) nodes.push(document.createTextNode(text.slice(plain)));
  return nodes;
}

// Where the text that `mark` opens ends; -1: nowhere. Emphasis touches its words, and a product (2 * 3) is none.
function closing(text, mark, start) {
  if (mark === "`") return text.indexOf(mark, start + 1);
  if (start >= text.length || text[start] === " ") return -1;
  for (let end = text.indexOf(mark, start + 1); end >= 0; end = text.indexOf(mark, end + 1)) {
    if (text[end - 1] === " " || text[end - 1] === "*") continue;
    if (mark === "*" && text[end + 1] === "*") continue;  // a part of **
    return mark === "**" && text[end + 2] === "*" ? end + 1 : end;  // ***both***
  }
  return -1;
}

const withInline = (tag, text) => fill(make(tag), inline(text));

const isRule = (line) => line.includes("|") && line.includes("-") && TABLE_RULE.test(line);
const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => cell.trim());

// The blocks of `text`, as elements.
function markdown(text) {
  const lines = text.split("\n"), blocks = [];
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) blocks.push(withInline("p", paragraph.join("\n")));
    paragraph = [];
  };
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i], heading = /^(#{1,6}) +/.exec(line);
    if (line.startsWith("```")) {
      flush();
      const code = [];
      while (++i < lines.length && !lines[i].startsWith("```")) code.push(lines[i]);
      const box = make("pre");
      box.tabIndex = 0;  // it scrolls, by keyboard too
      box.append(make("code", "", code.join("\n")));
      blocks.push(box);
    } else if (heading) {
      flush();
      blocks.push(withInline("h" + Math.min(6, 4 + heading[1].length), line.slice(heading[0].length)));
    } else if (line.startsWith(">")) {
      flush();
      const quoted = [];
      for (; i < lines.length && lines[i].startsWith(">"); i++) quoted.push(lines[i].replace(/^> ?/, ""));
      i--;
      blocks.push(withInline("blockquote", quoted.join("\n")));
    } else if (BULLET.test(line)) {
      flush();
      const items = [];
      const belongs = (next) => BULLET.test(next) || (next.startsWith(" ") && next.trim());
      for (; i < lines.length && belongs(lines[i]); i++) items.push(lines[i]);
      i--;
      blocks.push(list(items));
    } else if (line.includes("|") && i + 1 < lines.length && isRule(lines[i + 1])) {
      flush();
      const rows = [line];
      for (i += 2; i < lines.length && lines[i].includes("|"); i++) rows.push(lines[i]);
      i--;
      blocks.push(table(rows));
    } else if (/^ {0,3}(?:-{3,}|\*{3,})$/.test(line)) {
      flush();
      blocks.push(make("hr"));
    } else if (line.trim()) {
      paragraph.push(line);
    } else {
      flush();
    }
  }
  flush();
  return blocks;
}

// A list from its lines; what is indented below an item belongs to it, one level deep.
function list(lines) {
  const first = BULLET.exec(lines[0]), box = make(first[2] ? "ol" : "ul");
  if (first[2] && first[2] !== "1") box.start = Number(first[2]);
  let inner = null, item = null;
  for (const line of lines) {
    const bullet = BULLET.exec(line);
    if (!bullet) {
      fill(inner?.lastChild || item, [document.createTextNode("\n"), ...inline(line.trim())]);
    } else if (item && bullet[1].length > first[1].length) {
      if (!inner) item.append((inner = make(bullet[2] ? "ol" : "ul")));
      inner.append(withInline("li", line.slice(bullet[0].length)));
    } else {
      inner = null;
      box.append((item = withInline("li", line.slice(bullet[0].length))));
    }
  }
  return box;
}

function table(rows) {
  const box = make("div", "table"), grid = make("table");
  box.tabIndex = 0;
  for (const [i, row] of rows.entries()) {
    const line = make("tr");
    for (const cell of cells(row)) {
      const node = withInline(i ? "td" : "th", cell);
      if (!i) node.scope = "col";
      line.append(node);
    }
    grid.append(line);
  }
  box.append(grid);
  return box;
}
