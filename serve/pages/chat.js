import { $, call, copy, el, fillModels, markdown, saved, stream, thumbs } from "./common.js";

// A conversation is {id, turns: [{role, content, …}]}; all of them are kept in this browser.
let conversations = saved.get("conversations", []);
let current = conversations[0] ?? { id: Date.now(), turns: [] };
let running = null;

for (const name of ["temperature", "system"]) {
  $(name).value = saved.get(name, $(name).value);
  $(name).onchange = () => saved.set(name, $(name).value);
}

function keep() {
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

const context = (upto) => [
  ...($("system").value.trim() ? [{ role: "system", content: $("system").value }] : []),
  ...current.turns.slice(0, upto).map(({ role, content }) => ({ role, content })),
];

function show() {
  $("turns").replaceChildren(...current.turns.map(turn));
}

function turn(given, place) {
  const text = el("div", { className: "answer" });
  if (given.role === "user") text.append(el("div", { className: "text" }, given.content));
  else text.append(markdown(given.content || (running ? "…" : "(empty)")));
  const tools = el("div", { className: "row" });
  const tool = (label, action) => tools.append(el("button", { className: "small", type: "button", onclick: (e) => action(e.target) }, label));
  tool("Copy", (button) => copy(given.content, button));
  if (given.role === "user") tool("Edit", () => edit(place));
  else if (given.version) {
    tool("Regenerate", () => answer(place));
    tools.append(el("span", { className: "soft" }, `${given.model} · ${given.version} · ${given.tokens ?? "?"} tokens${given.ended ? "" : " · cut short"}`));
    tools.append(thumbs(() => ({ messages: context(place), answers: [{ text: given.content, ended: given.ended, version: given.version, model: given.model, decoding: given.decoding }] })));
  }
  return el("div", { className: `turn card ${given.role}` }, text, tools);
}

function edit(place) {
  running?.abort();
  $("message").value = current.turns[place].content;
  current.turns = current.turns.slice(0, place);
  show();
  $("message").focus();
}

// Writes the assistant's turn at `place`, from what comes before it.
async function answer(place) {
  running?.abort();
  const control = (running = new AbortController());
  const decoding = { temperature: Number($("temperature").value) };
  const model = $("model").value;
  const given = { role: "assistant", content: "", model, decoding, ended: false };
  current.turns = [...current.turns.slice(0, place), given];
  const mine = current;
  const body = { model, messages: context(place), ...decoding };
  $("send").disabled = true; $("stop").disabled = false; $("note").textContent = "";
  show();
  let drawing = 0;
  try {
    const end = await stream(body, (chunk) => {
      const choice = chunk.choices[0];
      given.content += choice?.delta?.content ?? "";
      given.ended ||= choice?.finish_reason === "stop";
      drawing ||= requestAnimationFrame(() => {
        drawing = 0;
        if (current === mine) $("turns").lastChild?.querySelector(".answer")?.replaceChildren(markdown(given.content || "…"));
      });
    }, control.signal);
    Object.assign(given, { version: end.version, tokens: end.usage?.completion_tokens });
  } catch (fault) {
    given.version ??= "stopped";
    if (fault.name !== "AbortError") $("note").replaceChildren(el("span", { className: "bad" }, fault.message));
  }
  if (running === control) {
    running = null;
    $("send").disabled = false; $("stop").disabled = true;
  }
  if (!given.content && given.version === "stopped") mine.turns = mine.turns.filter((t) => t !== given);
  keep();
  if (current === mine) show();
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
fillModels($("model")).catch((fault) => ($("note").textContent = fault.message));
