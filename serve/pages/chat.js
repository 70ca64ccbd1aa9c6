import { $, call, copy, el, fillModels, markdown, saved, stream, thumbs } from "./common.js";

// A conversation is {id, turns: [{role, content, …}]}; all of them are stored in this browser.
let conversations = saved.get("conversations", []);
let current = conversations[0] ?? { id: Date.now(), turns: [] };
let running = null;  // AbortController of the answer that is being written
let problem = null;  // message of the endpoint, shown after the last turn
let examples = [];   // prompts for an empty conversation

for (const name of ["temperature", "system", "tools"]) {
  $(name).value = saved.get(name, $(name).value);
  $(name).onchange = () => saved.set(name, $(name).value);
}

function store() {
  conversations = [current, ...conversations.filter((c) => c.id !== current.id)].filter((c) => c.turns.length).slice(0, 50);
  saved.set("conversations", conversations);
  showHistory();
}

function open(conversation) {
  running?.abort();
  current = conversation;
  problem = null;
  toggle("menu", false);
  show();
  showHistory();
  $("message").focus();
}

function showHistory() {
  $("history").replaceChildren(...conversations.map((c) =>
    el("button", { ariaPressed: String(c.id === current.id), onclick: () => open(c) }, c.turns[0].content)));
}

// The messages before turn `end`, the system message first.
const context = (end) => [
  ...($("system").value.trim() ? [{ role: "system", content: $("system").value }] : []),
  ...current.turns.slice(0, end).map(({ role, content, tool_calls, tool_call_id }) => ({
    role, content, ...(tool_calls && { tool_calls }), ...(tool_call_id && { tool_call_id }) })),
];

// The functions that the settings offer to the model, as a part of a request. Throws for what is no JSON list.
function offered() {
  const text = $("tools").value.trim();
  if (!text) return {};
  let tools = null;
  try { tools = JSON.parse(text); } catch { /* refused below */ }
  if (!Array.isArray(tools)) throw new Error('Tools: expected a JSON list like [{"type": "function", "function": {"name": …}}]');
  return { tools };
}

// Adds what a chunk says of the calls of an answer; their arguments come piece by piece.
function addCalls(message, pieces) {
  for (const { index, id, function: part } of pieces) {
    message.tool_calls ??= [];
    const call = (message.tool_calls[index] ??= { id, type: "function", function: { name: "", arguments: "" } });
    call.id ??= id;
    call.function.name += part?.name ?? "";
    call.function.arguments += part?.arguments ?? "";
  }
}

// The calls of an answer, and below the last one fields for their results.
function calls(message, index) {
  const shown = message.tool_calls.map((call) => el("pre", { className: "call" }, `${call.function.name}(${call.function.arguments})`));
  if (index < current.turns.length - 1 || running) return el("div", {}, ...shown);
  const fields = message.tool_calls.map((call) => el("input", { placeholder: `Result of ${call.function.name}`, ariaLabel: `Result of ${call.function.name}`, required: true }));
  const form = el("form", { className: "row results" }, ...fields, el("button", { className: "small" }, "Give results"));
  form.onsubmit = (event) => {
    event.preventDefault();
    const results = message.tool_calls.map((call, i) => ({ role: "tool", tool_call_id: call.id, content: fields[i].value }));
    current.turns = [...current.turns, ...results];
    store();
    answer(current.turns.length);
  };
  return el("div", {}, ...shown, form);
}

function show() {
  const turns = current.turns.map(turn);
  if (problem) turns.push(el("div", { className: "turn error", role: "alert" }, el("p", { className: "bad" }, problem),
    el("button", { className: "small", type: "button", onclick: () => answer(current.turns.length) }, "Try again")));
  $("turns").replaceChildren(...(turns.length ? turns : [welcome()]));
  $("scroller").scrollTop = $("scroller").scrollHeight;
}

function welcome() {
  const prompts = examples.map((prompt) => el("button", { type: "button", onclick: () => say(prompt) }, prompt));
  const version = $("model").selectedOptions[0]?.dataset.version;
  return el("div", { className: "empty" }, el("h1", {}, "What would you like to ask?"),
    el("p", { className: "soft" }, version ? `You are talking to ${$("model").value}, version ${version}.` : " "),
    el("div", { className: "examples" }, ...prompts));
}

function turn(message, index) {
  const isRunning = running !== null && index === current.turns.length - 1 && message.role === "assistant";
  const text = el("div", { className: "answer" });
  if (message.role === "user") text.append(el("div", { className: "text" }, message.content));
  else if (message.role === "tool") text.append(el("pre", { className: "call" }, message.content));
  else if (message.content) text.append(markdown(message.content));
  else if (!isRunning && !message.tool_calls) text.append(el("p", { className: "soft" }, "(empty answer)"));
  if (message.tool_calls) text.append(calls(message, index));
  const tools = el("div", { className: "row" });
  const tool = (label, action) => tools.append(el("button", { className: "small", type: "button", onclick: (e) => action(e.target) }, label));
  if (message.role === "user") tool("Edit", () => edit(index));
  else if (message.version) {
    tools.append(el("span", { className: "soft meta" }, `${message.model} · ${message.version}${message.tokens ? ` · ${message.tokens} tokens` : ""}${message.ended ? "" : " · cut short"}`));
    tool("Copy", (button) => copy(message.content, button));
    tool("Regenerate", () => answer(index));
    const { content, ended, version, model, decoding } = message;
    tools.append(thumbs(() => ({ messages: context(index), answers: [{ text: content, ended, version, model, decoding }] })));
  }
  return el("div", { className: `turn ${message.role}${isRunning ? " running" : ""}` }, text, tools);
}

function edit(index) {
  running?.abort();
  $("message").value = current.turns[index].content;
  current.turns = current.turns.slice(0, index);
  problem = null;
  show();
  grow();
  $("message").focus();
}

function say(content) {
  current.turns = [...current.turns, { role: "user", content }];
  store();
  answer(current.turns.length);
}

// Streams the assistant's turn at `index`, the answer to the turns before it.
async function answer(index) {
  running?.abort();
  const control = (running = new AbortController());
  const decoding = { temperature: Number($("temperature").value) };
  const model = $("model").value;
  const message = { role: "assistant", content: "", model, decoding, ended: false };
  current.turns = [...current.turns.slice(0, index), message];
  problem = null;
  const conversation = current;
  setRunning(true);
  show();
  let frame = 0;  // redraws at most once a frame, however fast chunks arrive
  try {
    const end = await stream({ model, messages: context(index), ...decoding, ...offered() }, (chunk) => {
      const choice = chunk.choices[0];
      message.content += choice?.delta?.content ?? "";
      addCalls(message, choice?.delta?.tool_calls ?? []);
      message.ended ||= ["stop", "tool_calls"].includes(choice?.finish_reason);
      frame ||= requestAnimationFrame(() => { frame = 0; if (current === conversation && running === control) redraw(message); });
    }, control.signal);
    Object.assign(message, { version: end.version, tokens: end.usage?.completion_tokens });
  } catch (error) {
    message.version ??= "stopped";
    if (error.name !== "AbortError" && current === conversation)
      problem = error instanceof TypeError ? "The endpoint cannot be reached. Is `hero serve` still running?" : error.message;
  }
  if (running === control) { running = null; setRunning(false); }
  if (!message.content && !message.tool_calls && message.version === "stopped")
    conversation.turns = conversation.turns.filter((turn) => turn !== message);
  store();
  if (current === conversation) show();
  // A promotion has changed the weights.
  if (message.ended && message.version !== $("model").selectedOptions[0]?.dataset.version) fillModels($("model"));
}

// The text of the answer that is being written. Follows it, unless the person has scrolled up.
function redraw(message) {
  const scroller = $("scroller");
  const follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
  $("turns").lastChild?.querySelector(".answer")?.replaceChildren(markdown(message.content));
  if (follows) scroller.scrollTop = scroller.scrollHeight;
}

function setRunning(isRunning) {
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
}

// The composer is as high as its text.
function grow() {
  $("message").style.height = "auto";
  $("message").style.height = `${$("message").scrollHeight}px`;
}

function toggle(name, opened) {
  const target = { menu: $("side"), settings: $("panel") }[name];
  $(name).ariaExpanded = String(opened);
  target.classList.toggle("open", opened);
  if (name === "settings") target.hidden = !opened;
}
for (const name of ["menu", "settings"]) $(name).onclick = () => toggle(name, $(name).ariaExpanded !== "true");

$("composer").onsubmit = (event) => {
  event.preventDefault();
  const content = $("message").value.trim();
  if (!content || running) return;
  $("message").value = "";
  grow();
  say(content);
};
$("message").oninput = grow;
$("message").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("composer").requestSubmit(); }
};
document.onkeydown = (event) => {
  if (event.key !== "Escape") return;
  running?.abort();
  toggle("menu", false);
  toggle("settings", false);
};
$("scroller").onclick = () => { toggle("menu", false); toggle("settings", false); };
$("stop").onclick = () => { running?.abort(); $("message").focus(); };
$("new").onclick = () => open({ id: Date.now(), turns: [] });
$("model").onchange = () => { saved.set("model", $("model").value); if (!current.turns.length) show(); };

async function start() {
  show();
  showHistory();
  try {
    const models = await fillModels($("model"));
    if (models.some((model) => model.id === saved.get("model"))) $("model").value = saved.get("model");
    examples = await (await call("/prompts.json")).json();
  } catch (error) { problem = error.message; }
  if (!current.turns.length || problem) show();
}
start();
