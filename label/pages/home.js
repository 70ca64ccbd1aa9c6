import { $, call, el, fillHeader, notice } from "./shared.js";
import { cord } from "./cord.js";

const KINDS = { rank: "Rate and rank responses", pair: "Compare two responses", demonstrate: "Write responses" };

async function show() {
  let me;
  try { me = await call("/api/me"); }
  catch (error) { return notice($("notice"), error.message, true); }
  fillHeader(me.role);
  const figure = (value, name) => el("div", { className: "card" }, el("b", {}, String(value)), name);
  const parts = [el("p", {}, `${me.name}, known to others as ${me.pseudonym}.`)];
  if (me.state === "screening") {
    parts.push(el("p", { className: "notice" }, ...(me.questions
      ? [`${me.questions} questions come before the first item. You can answer them over several days. `, el("a", { href: "/screen" }, "Go to the questions")]
      : ["An owner looks at your answers and decides; then work waits here."])));
  } else if (me.state !== "admitted") parts.push(el("p", { className: "notice bad" }, `You are ${me.state}${me.why ? ": " + me.why : ""}.`));
  parts.push(el("h2", {}, "What waits"));
  const waiting = Object.entries(me.waiting).filter(([, count]) => count);
  if (me.state === "admitted" && (waiting.length || me.open)) {
    const links = waiting.map(([kind, count]) => el("li", {}, el("a", { href: `/task#kind=${kind}` }, `${KINDS[kind]}: ${count}`)));
    if (me.open) links.unshift(el("li", {}, el("a", { href: "/task" }, "Go on with the item that you opened")));
    parts.push(el("ul", {}, ...links));
  } else parts.push(el("p", {}, "Nothing waits for you now."));
  parts.push(el("h2", {}, "Your work"), el("div", { className: "figures" },
    figure(me.labels_today, "labels within 24 hours"), figure(me.minutes_today, "minutes within 24 hours"),
    figure(me.labels, "labels in all"), figure(me.minutes, "minutes in all")));
  const act = (path, text, body = {}) => el("button", { type: "button", onclick: async () => {
    try { await call(path, body); await show(); } catch (error) { notice($("notice"), error.message, true); }
  } }, text);
  const own = el("div", { className: "row" });
  if (me.state === "admitted") own.append(act("/api/me/pause", "Pause"));
  if (me.state === "paused" && me.why === "you paused yourself") own.append(act("/api/me/resume", "Go on"));
  own.append(el("button", { type: "button", onclick: () => $("withdraw").showModal() }, "Leave or withdraw my data"), act("/api/session/end", "Sign out"));
  parts.push(el("h2", {}, "You decide"), own);
  if (me.state === "admitted") parts.push(await cord());
  $("content").replaceChildren(...parts);
}

function withdrawDialog() {
  const choices = [
    ["/api/me/leave", {}, "Leave; my labels and my name stay"],
    ["/api/me/forget", { keep_labels: true }, "Remove my name and answers; my labels stay without a name"],
    ["/api/me/forget", { keep_labels: false }, "Remove my name and answers, and make my labels void"],
  ];
  const buttons = choices.map(([path, body, text]) => el("p", {}, el("button", { type: "button", onclick: async () => {
    $("withdraw").close();
    try { await call(path, body); await show(); } catch (error) { notice($("notice"), error.message, true); }
  } }, text)));
  return el("dialog", { id: "withdraw", ariaLabel: "Leave or withdraw" }, el("p", {}, "This cannot be undone from here. Models that were trained already stay as they are."),
    ...buttons, el("form", { method: "dialog" }, el("button", { className: "main" }, "Cancel")));
}

// Outside of what is drawn again, which would close it.
document.body.append(withdrawDialog());
show();
