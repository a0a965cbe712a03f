// Keeps a live page up to date: asks for the run's state, and where its files have changed, for the new contents.
"use strict";

const line = document.getElementById("state");
const { every } = line.dataset; // milliseconds
let { version } = line.dataset;
let answered = new Date();
let timer;

// Make an element like a fresh one, but keep what the reader sees and did: figures, open parts, sliders, the focus.
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName || old.id !== fresh.id) return old.replaceWith(fresh);
  if (old.nodeType !== Node.ELEMENT_NODE) return void (old.nodeValue = fresh.nodeValue);
  if (old.matches(".plot")) return void (old.style.height = fresh.style.height);
  for (const { name } of [...old.attributes]) if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const [before, after] = [[...old.childNodes], [...fresh.childNodes]];
  after.forEach((node, i) => (before[i] ? morph(before[i], node) : old.append(node)));
  before.slice(after.length).forEach((node) => node.remove());
}

function say(text, kind) {
  if (line.textContent !== text) line.textContent = text;
  line.className = kind;
}

async function get(name) {
  const answer = await fetch(name, { cache: "no-store" });
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.json();
}

async function update() {
  const state = await get("state.json");
  if (state.version !== version) {
    const { title, kind, body, figures } = await get("contents.json");
    const main = document.querySelector("main");
    const fresh = main.cloneNode();
    fresh.className = kind;
    fresh.innerHTML = body;
    morph(main, fresh);
    document.querySelector("h1").innerHTML = title;
    document.title = document.querySelector("h1").textContent;
    version = state.version;
    show(figures);
  }
  answered = new Date();
  say(state.said, state.kind);
}

async function poll() {
  clearTimeout(timer);
  await update().catch(() => {
    say(`Not updating since ${answered.toLocaleTimeString()}: the server does not answer.`, "gone");
  });
  clearTimeout(timer);
  timer = setTimeout(poll, every);
}

document.addEventListener("visibilitychange", () => document.hidden || poll()); // a hidden page is slowed down
poll();
