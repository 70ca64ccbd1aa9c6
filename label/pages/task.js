// The page of work: gets an item, keeps drafts, measures time at work, submits, skips, undoes; keys.

import { $, ApiError, call, el, fillHeader, markdown, newKey, notice, saved } from "./shared.js";
import { blank, FLAG_KEYS, FORMS } from "./task_forms.js";

const DEFAULT_KEYS = { next: "j", previous: "k", tie: "=", bad: "b", skip: "s", guidelines: "g", undo: "u", help: "?" };
const NAMES = {
  next: "Next response", previous: "Response before", tie: "Tie with the response above", bad: "All are bad", skip: "Skip the item",
  guidelines: "Guidelines", undo: "Undo the last submission", help: "This help",
};
const DRAFT_MS = 5000, BEAT_MS = 60000, IDLE_MS = 30000, TOAST_MS = 10000, RETRY_MS = 3000;
const hash = new URLSearchParams(location.hash.slice(1));
let words = null, task = null, form = null, content = null, labelId = null, lastLabel = null;
let key = newKey(), sent = null, savedText = "", isWarned = false, isBusy = false;
let keys = { ...DEFAULT_KEYS, ...saved.get("keys", {}) };

const say = (text) => ($("live").textContent = text);

// ---- time at work: visible, and input within the last 30 s
let activeMs = 0, lastInput = performance.now(), lastTick = performance.now(), lastBeat = performance.now();
for (const kind of ["keydown", "pointerdown", "pointermove", "wheel"]) addEventListener(kind, () => (lastInput = performance.now()), { passive: true });

function tick() {
  const now = performance.now();
  if (!document.hidden && now - lastInput < IDLE_MS) activeMs += Math.min(now - lastTick, 2000);
  lastTick = now;
}
setInterval(tick, 1000);

const takeActive = () => { tick(); const taken = Math.round(activeMs); activeMs = 0; return taken; };

// ---- drafts: on every change in the browser, every 5 s on the server
const snapshot = () => JSON.stringify(content);

function changed() {
  if (task && !labelId) saved.set("draft-" + task.assignment, content);
}

async function saveDraft(isForced = false) {
  if (!task || labelId || isBusy) return;
  const text = snapshot(), isDirty = text !== savedText, now = performance.now();
  if (!isDirty && !isForced && now - lastBeat < BEAT_MS) return;
  const active_ms = takeActive(), path = `/api/assignments/${task.assignment}/`;
  lastBeat = now;
  try {
    await (isDirty ? call(path + "draft", { content: { ...content, active_ms } }) : call(path + "beat", { active_ms }));
    savedText = text;
    $("saved").textContent = "Draft kept";
  } catch (error) {
    activeMs += active_ms;
    $("saved").textContent = error instanceof ApiError ? error.message : "No connection; the draft is kept in this browser";
  }
}
setInterval(saveDraft, DRAFT_MS);

// ---- items
async function load() {
  task = form = null;
  isWarned = false;
  savedText = "";
  $("content").replaceChildren();
  try { words ??= await call("/api/me"); fillHeader(words.role); await loadItem(); }
  catch (error) { refuse(error); }
}

async function loadItem() {
  const kind = hash.get("kind");
  labelId = hash.get("label");
  if (labelId) {
    const { labels } = await call("/api/labels?limit=100");
    task = labels.find(({ label }) => label === labelId) ?? null;
    if (!task) throw new Error("This label was changed or undone already.");
    content = { ...blank(), ...task.content };
  } else {
    task = await call("/api/next", { kinds: kind ? [kind] : [] });
    if (!task) return nothingWaits();
    content = { ...blank(), ...(saved.get("draft-" + task.assignment, null) ?? task.draft ?? {}) };
  }
  key = newKey();
  sent = null;
  savedText = snapshot();
  form = new FORMS[task.kind](task, words, content, changed, say);
  $("content").replaceChildren(form.node, bar());
  form.start();
}

function nothingWaits() {
  $("content").replaceChildren(el("p", {}, "Nothing waits for you now. Thank you."), el("p", {}, el("a", { href: "/" }, "To the start page")));
}

function bar() {
  const button = (text, act, className = "") => el("button", { type: "button", className, onclick: act }, text);
  return el("div", { className: "bar", role: "group", ariaLabel: "Item" }, el("span", { id: "saved", className: "soft", role: "status" }),
    button("Guidelines", showGuidelines), button("Keys", showHelp), ...(labelId ? [] : [button("Skip", showSkip)]),
    button(labelId ? "Save the change" : "Submit", submit, "main"));
}

async function submit(options = {}) {
  if (!form || isBusy) return;
  const problem = form.problem();
  if (problem) { notice($("notice"), problem.text, true); problem.show(); return; }
  const contradiction = form.contradiction();
  if (contradiction && !isWarned) { isWarned = true; notice($("notice"), contradiction, true); return; }
  // A new key for other content: the server may have stored what was sent before.
  if (sent !== null && sent !== snapshot()) key = newKey();
  sent = snapshot();
  const active_ms = takeActive();
  const path = labelId ? `/api/labels/${labelId}/replace` : `/api/assignments/${task.assignment}/submit`;
  isBusy = true;
  try {
    const answer = await call(path, { ...content, active_ms, ...(options.extra && { extra: true }) }, key);
    isBusy = false;
    saved.remove("draft-" + task.assignment);
    if (labelId) { location.href = "/mine"; return; }
    notice($("notice"), (answer.notes ?? []).join(" "));
    toast(answer.label);
    await load();
  } catch (error) {
    isBusy = false;
    activeMs += active_ms;
    if (error instanceof ApiError) refuse(error);
    else {
      notice($("notice"), "No connection. Your work is kept in this browser and is sent again by itself.", true);
      setTimeout(() => submit(options), RETRY_MS);
    }
  }
}

function refuse(error) {
  notice($("notice"), error.message, true);
  if (error.code === "guideline_unread") return askToRead(error.details);
  if (error.code === "quota_filled") $("notice").append(" ", el("button", { type: "button", onclick: () => submit({ extra: true }) }, "Store as an extra label"),
    " ", el("button", { type: "button", onclick: () => { saved.remove("draft-" + task.assignment); load(); } }, "Next item"));
  else if (error.code === "submitted") $("notice").append(" ", el("a", { href: "/mine" }, "My labels"));
}

async function askToRead({ kind, version }) {
  const guideline = await call(`/api/guidelines?version=${version}`);
  const button = el("button", { type: "button", className: "main", onclick: async () => {
    await call("/api/guidelines/ack", { version });
    notice($("notice"), "");
    await load();
  } }, "I have read this");
  $("content").replaceChildren(el("section", { className: "card" }, markdown(guideline.text)), button);
  document.title = `Guideline ${kind} · Labelling`;
}

function toast(label) {
  document.querySelector(".toast")?.remove();
  lastLabel = label;
  const node = el("div", { className: "toast", role: "status" }, "Submitted. ", el("button", { type: "button", onclick: undo }, "Undo (u)"));
  document.body.append(node);
  setTimeout(() => { node.remove(); if (lastLabel === label) lastLabel = null; }, TOAST_MS);
}

async function undo() {
  if (!lastLabel) return;
  const label = lastLabel;
  lastLabel = null;
  document.querySelector(".toast")?.remove();
  try {
    await call(`/api/labels/${label}/void`, {});
    notice($("notice"), "Undone: the item is open again.");
    await load();
  } catch (error) { refuse(error); }
}

// ---- dialogs
function dialog(title, ...children) {
  const focused = document.activeElement;
  const box = el("dialog", { ariaLabel: title }, el("h2", {}, title), ...children, el("form", { method: "dialog" }, el("p", {}, el("button", {}, "Close"))));
  box.addEventListener("close", () => { box.remove(); focused?.focus?.(); });
  document.body.append(box);
  box.showModal();
  return box;
}

async function showGuidelines() {
  const guideline = await call(`/api/guidelines?kind=${task?.kind ?? "rank"}`);
  dialog(`Guideline, version ${guideline.version}`, markdown(guideline.text));
}

function showSkip() {
  const reasons = Object.entries(words.skip_reasons).map(([reason, text]) => el("p", {}, el("button", { type: "button", onclick: async () => {
    try {
      await call(`/api/assignments/${task.assignment}/skip`, { reason });
      saved.remove("draft-" + task.assignment);
      box.close();
      await load();
    } catch (error) { box.close(); refuse(error); }
  } }, text)));
  const box = dialog("Skip this item: why?", ...reasons);
}

function showHelp() {
  const rows = Object.entries(NAMES).map(([action, name]) => {
    const input = el("input", { type: "text", maxLength: 1, size: 2, value: keys[action], ariaLabel: `Key: ${name}` });
    input.onchange = () => {
      const isTaken = Object.entries(keys).some(([other, used]) => other !== action && used === input.value) || FLAG_KEYS.includes(input.value) || /[\d\s]/.test(input.value);
      if (!input.value || isTaken) input.value = keys[action];
      else { keys[action] = input.value; saved.set("keys", keys); }
    };
    return el("tr", {}, el("td", {}, input), el("td", {}, name));
  });
  const fixed = [["1–7", "Quality of the response (step 1), or the choice between two"], ["1–9", "Place of the response (step 2); the same number is a tie"],
    ["↑ ↓", "Response before and next"], ["Shift+↑ ↓", "Move the response up or down"], [FLAG_KEYS.join(" "), "What applies to the response (step 1)"],
    ["Enter", "To step 2"], ["Ctrl+Enter", "Submit"], ["Ctrl+S", "Keep a draft"]];
  dialog("Keys", el("p", { className: "soft" }, "The keys in boxes can be changed."), el("table", {}, el("tbody", {}, ...rows,
    ...fixed.map(([pressed, name]) => el("tr", {}, el("td", {}, el("kbd", {}, pressed)), el("td", {}, name))))));
}

// ---- keys
const ACTIONS = { skip: () => !labelId && task && showSkip(), guidelines: showGuidelines, undo, help: showHelp };

addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const { target, key: pressed } = event, isChord = event.ctrlKey || event.metaKey;
  if (isChord && pressed === "Enter") { event.preventDefault(); submit(); return; }
  if (isChord && pressed.toLowerCase() === "s") { event.preventDefault(); saveDraft(true); return; }
  const isField = target.matches?.("textarea, select, input:not([type=radio]):not([type=checkbox])");
  if (isField || isChord || event.altKey || !form) {
    if (!isField && !isChord && pressed === keys.undo) undo();
    return;
  }
  const arrow = { ArrowUp: "previous", ArrowDown: "next" }[pressed];
  if (arrow && event.shiftKey) { event.preventDefault(); form.act(arrow === "next" ? "down" : "up"); return; }
  // Radio buttons have arrow keys of their own.
  if (arrow && !target.matches?.("[type=radio]")) { event.preventDefault(); form.act(arrow); return; }
  if (pressed === "Enter" && !target.matches?.("button, a, summary")) { event.preventDefault(); form.act("enter"); return; }
  if (/^[1-9]$/.test(pressed)) { event.preventDefault(); form.digit(Number(pressed)); return; }
  const action = Object.keys(keys).find((one) => keys[one] === pressed), flag = FLAG_KEYS.indexOf(pressed);
  if (action) { event.preventDefault(); (ACTIONS[action] ?? (() => form.act(action)))(); }
  else if (flag >= 0) form.act(`flag-${flag}`);
});
// Another label, or another kind of work, is opened by the address.
addEventListener("hashchange", () => location.reload());

load();
