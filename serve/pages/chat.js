import { $, call, copy, el, fillModels, markdown, saved, stream, thumbs } from "./common.js";

// A conversation is {id, turns: [{role, content, …}]}; all of them are stored in this browser.
let conversations = saved.get("conversations", []);
let current = conversations[0] ?? { id: Date.now(), turns: [] };
let running = null;

for (const name of ["temperature", "system"]) {
  $(name).value = saved.get(name, $(name).value);
  $(name).onchange = () => saved.set(name, $(name).value);
}

function store() {
  conversations = [current, ...conversations.filter((c) => c.id !== current.id)].filter((c) => c.turns.length).slice(0, 50);
  saved.set("conversations", conversations);
  showHistory();
}

function showHistory() {
  $("history").replaceChildren(...conversations.map((c) => {
    const open = el("button", { ariaPressed: String(c.id === current.id) }, c.turns[0].content);
    open.onclick = () => { running?.abort(); current = c; show(); showHistory(); };
    return open;
  }));
}

// The messages before turn `end`, the system message first.
const context = (end) => [
  ...($("system").value.trim() ? [{ role: "system", content: $("system").value }] : []),
  ...current.turns.slice(0, end).map(({ role, content }) => ({ role, content })),
];

function show() {
  $("turns").replaceChildren(...current.turns.map(turn));
}

function turn(message, index) {
  const text = el("div", { className: "answer" });
  if (message.role === "user") text.append(el("div", { className: "text" }, message.content));
  else text.append(markdown(message.content || (running ? "…" : "(empty)")));
  const tools = el("div", { className: "row" });
  const tool = (label, action) => tools.append(el("button", { className: "small", type: "button", onclick: (e) => action(e.target) }, label));
  tool("Copy", (button) => copy(message.content, button));
  if (message.role === "user") tool("Edit", () => edit(index));
  else if (message.version) {
    tool("Regenerate", () => answer(index));
    tools.append(el("span", { className: "soft" }, `${message.model} · ${message.version} · ${message.tokens ?? "?"} tokens${message.ended ? "" : " · cut short"}`));
    const { content, ended, version, model, decoding } = message;
    tools.append(thumbs(() => ({ messages: context(index), answers: [{ text: content, ended, version, model, decoding }] })));
  }
  return el("div", { className: `turn card ${message.role}` }, text, tools);
}

function edit(index) {
  running?.abort();
  $("message").value = current.turns[index].content;
  current.turns = current.turns.slice(0, index);
  show();
  $("message").focus();
}

// Streams the assistant's turn at `index`, the answer to the turns before it.
async function answer(index) {
  running?.abort();
  const control = (running = new AbortController());
  const decoding = { temperature: Number($("temperature").value) };
  const model = $("model").value;
  const message = { role: "assistant", content: "", model, decoding, ended: false };
  current.turns = [...current.turns.slice(0, index), message];
  const conversation = current;
  const body = { model, messages: context(index), ...decoding };
  $("send").disabled = true; $("stop").disabled = false; $("note").textContent = "";
  show();
  let frame = 0;  // redraws at most once a frame, however fast chunks arrive
  try {
    const end = await stream(body, (chunk) => {
      const choice = chunk.choices[0];
      message.content += choice?.delta?.content ?? "";
      message.ended ||= choice?.finish_reason === "stop";
      frame ||= requestAnimationFrame(() => {
        frame = 0;
        if (current === conversation) $("turns").lastChild?.querySelector(".answer")?.replaceChildren(markdown(message.content || "…"));
      });
    }, control.signal);
    Object.assign(message, { version: end.version, tokens: end.usage?.completion_tokens });
  } catch (error) {
    message.version ??= "stopped";
    if (error.name !== "AbortError") $("note").replaceChildren(el("span", { className: "bad" }, error.message));
  }
  if (running === control) {
    running = null;
    $("send").disabled = false; $("stop").disabled = true;
  }
  if (!message.content && message.version === "stopped")
    conversation.turns = conversation.turns.filter((turn) => turn !== message);
  store();
  if (current === conversation) show();
}

$("composer").onsubmit = (event) => {
  event.preventDefault();
  const content = $("message").value.trim();
  if (!content || running) return;
  $("message").value = "";
  current.turns = [...current.turns, { role: "user", content }];
  answer(current.turns.length);
};
$("message").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("composer").requestSubmit(); }
};
$("stop").onclick = () => running?.abort();
$("new").onclick = () => { running?.abort(); current = { id: Date.now(), turns: [] }; show(); showHistory(); $("message").focus(); };

show();
showHistory();
fillModels($("model")).catch((error) => ($("note").textContent = error.message));
