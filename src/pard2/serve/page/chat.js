// The chat: a conversation in this page alone, answered by the server that the page comes from.

import { markdown } from "./markdown.js";
import { Counts, events, failure } from "./stream.js";

const by = (id) => document.getElementById(id);
const talk = by("talk");
const turns = []; // {role, content}
let running = null; // an AbortController while an answer is made

function headers() {
  const key = by("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function showModel() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) return;
  const { id, pard2 } = (await response.json()).data[0];
  by("method").replaceChildren(
    ...Object.entries(pard2.methods).map(([name, title]) => new Option(title, name, name === pard2.method, name === pard2.method)),
  );
  by("model").textContent = `${id}, ${pard2.method}${pard2.draft ? ` with ${pard2.draft}` : ""}`;
}

function number(id) {
  const value = by(id).valueAsNumber;
  return Number.isFinite(value) ? value : null;
}

function request() {
  const system = by("system").value.trim();
  const method = by("method").value;
  return {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
    temperature: number("temperature"),
    top_p: number("top_p"),
    max_tokens: number("max_tokens"),
    seed: number("seed"),
    stream: true,
    pard2: { trace: true, ...(method && { method }) },
  };
}

function node(name, kind, ...children) {
  const made = document.createElement(name);
  made.className = kind;
  made.append(...children);
  return made;
}

function button(words, act) {
  const made = node("button", "", words);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

function follow() {
  if (talk.scrollHeight - talk.scrollTop - talk.clientHeight < 120) talk.scrollTop = talk.scrollHeight;
}

function addUser(content) {
  talk.append(node("article", "turn user", node("h2", "", "You"), node("div", "words", content)));
  talk.scrollTop = talk.scrollHeight;
}

// The nodes of an answer: its words as Markdown, and its tokens by who said them.
class Answer {
  constructor() {
    this.content = "";
    this.words = node("div", "words answer");
    this.tokens = node("div", "tokens");
    this.note = node("p", "note");
    const copy = button("Copy", () => navigator.clipboard.writeText(this.content));
    this.article = node("article", "turn assistant", node("h2", "", "Model", copy), this.words, this.tokens, this.note);
    this.counts = new Counts();
    talk.append(this.article);
  }

  add(choice) {
    this.content += choice.delta.content ?? "";
    const step = choice.pard2;
    if (step) {
      step.tokens.forEach((text, place) => {
        if (text) this.tokens.append(node("span", place < step.accepted ? "drafted" : "own", text));
      });
      this.counts.add(step);
    }
    this.draw();
  }

  // Once a frame: a fast model says several tokens in it.
  draw() {
    if (this.waits) return;
    this.waits = true;
    requestAnimationFrame(() => {
      this.waits = false;
      this.words.replaceChildren(markdown(this.content));
      showNumbers(this.counts);
      follow();
    });
  }

  end(words, wrong = false) {
    this.note.textContent = words;
    this.note.classList.toggle("wrong", wrong);
    this.draw();
  }
}

function showNumbers(counts) {
  if (!counts.cycles) return;
  by("numbers").hidden = false;
  by("speed").textContent = counts.speed.toFixed(1);
  by("length").textContent = counts.length.toFixed(2);
  const bars = counts.positions.map((share) => {
    const bar = document.createElement("i");
    bar.style.height = `${Math.round(share * 100)}%`;
    bar.title = `${Math.round(share * 100)} %`;
    return bar;
  });
  by("positions").replaceChildren(...bars);
  const spoken = counts.positions.map((share, place) => `${place + 1}: ${Math.round(share * 100)} %`).join(", ");
  by("positions").setAttribute("aria-label", `accepted by position: ${spoken || "none proposed"}`);
}

function busy(is) {
  by("send").disabled = is;
  by("stop").disabled = !is;
  by("again").disabled = is || !turns.length;
  by("clear").disabled = is;
}

async function answer() {
  const shown = new Answer();
  running = new AbortController();
  busy(true);
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: headers(),
      body: JSON.stringify(request()),
      signal: running.signal,
    });
    if (!response.ok) throw new Error(await failure(response));
    let method = "";
    let reason = "";
    for await (const event of events(response)) {
      method = event.pard2?.method ?? method;
      for (const choice of event.choices) {
        shown.add(choice);
        reason = choice.finish_reason ?? reason;
      }
    }
    const { speed, length, cycles } = shown.counts;
    shown.end(`${method}, ${reason}${cycles ? `; ${speed.toFixed(1)} tokens/s, ${length.toFixed(2)} tokens a cycle` : ""}`);
  } catch (error) {
    const stopped = error.name === "AbortError";
    shown.end(stopped ? "stopped" : error.message, !stopped);
  }
  running = null;
  if (shown.content) turns.push({ role: "assistant", content: shown.content });
  busy(false);
  follow();
}

function send() {
  const content = by("said").value.trim();
  if (!content || running) return;
  by("hint")?.remove();
  if (turns.at(-1)?.role === "user") turns.pop(); // its answer had failed
  by("said").value = "";
  turns.push({ role: "user", content });
  addUser(content);
  answer();
}

function again() {
  if (running || !turns.length) return;
  if (turns.at(-1).role === "assistant") turns.pop();
  [...talk.querySelectorAll(".assistant")].at(-1)?.remove();
  answer();
}

function clear() {
  turns.length = 0;
  talk.replaceChildren();
  by("numbers").hidden = true;
  busy(false);
  by("said").focus();
}

by("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
by("said").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
by("stop").addEventListener("click", () => running?.abort());
by("again").addEventListener("click", again);
by("clear").addEventListener("click", clear);
const colours = () => document.body.classList.toggle("coloured", by("colours").checked);
by("colours").addEventListener("change", colours);
colours();
by("key").value = sessionStorage.getItem("key") ?? "";
by("key").addEventListener("change", () => {
  sessionStorage.setItem("key", by("key").value);
  showModel();
});
showModel();
by("said").focus();
