// Markdown as nodes. What a model says is never HTML here: every word of it becomes a text node, and nothing
// is parsed by the browser. Links lead to http and https alone; there are no pictures.

const INLINE = /(`+)([\s\S]*?[^`])\1(?!`)|\*\*([^*\n]+)\*\*|(?<![*\w])\*([^*\s][^*\n]*)\*(?!\w)|\[([^\]\n]+)\]\((https?:\/\/[^\s()<>"]+)\)/g;

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function link(words, address) {
  const made = element("a", words);
  made.href = address;
  made.rel = "noopener noreferrer nofollow";
  made.target = "_blank";
  return made;
}

// A line's words: code, bold, italics, links; all else as it stands.
export function inline(text) {
  const found = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > end) found.push(text.slice(end, match.index));
    if (match[2] !== undefined) found.push(element("code", match[2]));
    else if (match[3] !== undefined) found.push(element("strong", match[3]));
    else if (match[4] !== undefined) found.push(element("em", match[4]));
    else found.push(link(match[5], match[6]));
    end = match.index + match[0].length;
  }
  if (end < text.length) found.push(text.slice(end));
  return found;
}

const FENCE = /^\s*(```+|~~~+)/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const QUOTE = /^\s*>\s?(.*)$/;
const RULE = /^\s*([-*_])(?:\s*\1){2,}\s*$/;

function isPlain(line) {
  return line.trim() && ![FENCE, HEADING, ITEM, QUOTE, RULE].some((form) => form.test(line));
}

// The lines from `start` on that `holds`.
function run(lines, start, holds) {
  let end = start;
  while (end < lines.length && holds(lines[end])) end += 1;
  return lines.slice(start, end);
}

function list(items) {
  const first = items[0].match(ITEM);
  const made = element(first[1] === undefined ? "ul" : "ol");
  if (first[1] !== undefined) made.start = Number(first[1]);
  made.append(...items.map((item) => element("li", ...inline(item.match(ITEM)[2]))));
  return made;
}

// A text as a fragment; a fence that is not closed yet lasts to the end.
export function markdown(text) {
  const made = document.createDocumentFragment();
  const lines = text.split("\n");
  for (let place = 0; place < lines.length; ) {
    const line = lines[place];
    const fence = line.match(FENCE);
    const heading = line.match(HEADING);
    let taken = 1;
    if (fence) {
      const code = run(lines, place + 1, (one) => !(one.trim().startsWith(fence[1]) && !one.trim().replace(/[`~]/g, "")));
      made.append(element("pre", element("code", code.join("\n"))));
      taken = code.length + 2;
    } else if (heading) {
      made.append(element(`h${Math.min(6, heading[1].length + 2)}`, ...inline(heading[2])));
    } else if (RULE.test(line)) {
      made.append(element("hr"));
    } else if (ITEM.test(line)) {
      const items = run(lines, place, (one) => ITEM.test(one) && !RULE.test(one));
      made.append(list(items));
      taken = items.length;
    } else if (QUOTE.test(line)) {
      const quoted = run(lines, place, (one) => QUOTE.test(one));
      made.append(element("blockquote", ...inline(quoted.map((one) => one.match(QUOTE)[1]).join("\n"))));
      taken = quoted.length;
    } else if (isPlain(line)) {
      const words = run(lines, place, isPlain);
      made.append(element("p", ...inline(words.join("\n"))));
      taken = words.length;
    }
    place += taken;
  }
  return made;
}
