// The owner's page of people: who waits for a decision and why, figures of everybody's work, invites.

import { $, action, call, el, interval, open, percent, table } from "./shared.js";

const ORDER = ["screening", "paused", "admitted", "rejected", "left", "forgotten"];
const TITLES = { screening: "In screening", paused: "Paused", admitted: "Admitted", rejected: "Rejected", left: "Left", forgotten: "Removed" };

async function show() {
  const { people } = await call("/api/people");
  const parts = [inviting()];
  for (const state of ORDER) {
    const rows = people.filter((one) => one.state === state);
    if (!rows.length) continue;
    parts.push(el("h2", {}, `${TITLES[state]} (${rows.length})`));
    if (state === "screening" || state === "paused") parts.push(...rows.map(card));
    else parts.push(table(TITLES[state], ["Person", "Labels", "Gold", "Longer preferred", "Words a minute", "Agrees with itself", "Against it", "Decide"], rows.map(line)));
  }
  return parts;
}

const again = () => open(show);
const name = ({ name, pseudonym, role, grp }) => [el("b", {}, name || "(no name)"), el("br"), el("span", { className: "soft" }, `${pseudonym} · ${role} · ${grp}`)];
const reasons = ({ quality }) => (quality?.findings ?? []).map(({ reason, pauses }) => el("div", { className: pauses ? "bad" : "soft" }, reason));

function line(one) {
  const q = one.quality;
  return [name(one), String(one.labels), q ? `${interval(q.gold)}, ${q.gold.n} items` : "–", interval(q?.longer),
    interval(q?.reading.words_per_minute, (value) => String(Math.round(value))), interval(q?.self_agreement), reasons(one), decide(one)];
}

// Reasons are asked for in a dialog: they are told to the person.
function decide(one) {
  const choices = { screening: ["admitted", "rejected"], paused: ["admitted", "rejected"], admitted: ["paused"], rejected: ["admitted"], left: ["admitted"] }[one.state] ?? [];
  const faces = { admitted: "Admit", rejected: "Reject", paused: "Pause" };
  const buttons = choices.map((state) => el("button", { type: "button", onclick: () => ask(one, state, faces[state]) }, faces[state]));
  return el("div", { className: "row" }, ...buttons, ...(one.state === "forgotten" ? [] : [el("button", { type: "button", onclick: () => history(one) }, "History")]));
}

function dialog(title, ...children) {
  const box = el("dialog", { ariaLabel: title }, el("h2", {}, title), ...children, el("form", { method: "dialog" }, el("p", {}, el("button", {}, "Close"))));
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  box.showModal();
  return box;
}

function ask(one, state, face) {
  const why = el("textarea", { rows: 3, id: "why", maxLength: 2000 }), told = el("div", { role: "status", hidden: true });
  const send = action(face, async () => {
    if (!why.value.trim()) throw new Error("Say why; the person is told.");
    await call(`/api/people/${one.id}/state`, { state, why: why.value });
    box.close();
  }, again, "main", told);
  const box = dialog(`${face}: ${one.name || one.pseudonym}`, el("p", {}, el("label", { htmlFor: "why" }, "Reason, which the person is told"), why), told, el("div", { className: "row" }, send));
}

async function history(one) {
  const { decisions, screening, demonstrations } = await call(`/api/people/${one.id}`);
  const rows = decisions.map((row) => [new Date(row.time).toLocaleString(), row.what, row.by_person === "system" ? "check of quality" : row.by_person === one.id ? "the person" : "an owner", row.evidence.why ?? ""]);
  dialog(one.name || one.pseudonym, screening.answered ? scores(screening) : "", ...demonstrations.map(({ prompt, text }) => el("div", { className: "card" }, el("b", {}, prompt), el("p", { className: "text" }, text))),
    el("h3", {}, "Decisions"), rows.length ? table("Decisions", ["When", "What", "By", "Why"], rows) : el("p", {}, "None yet."));
}

function scores(screening) {
  const rows = screening.scores.map((one) => [one.criterion, interval(one.estimate, (value) => one.criterion === "demonstrations" ? value.toFixed(1) : percent(value)),
    `${one.estimate.n} of ${one.needed}`, one.criterion === "demonstrations" ? String(one.threshold) : percent(one.threshold), one.passed ? "reached" : "not reached"]);
  const known = Object.entries(screening.self_assessment).map(([topic, level]) => `${topic}: ${level} of 5`).join(", ");
  return el("div", {}, table("Scores of the questionnaire", ["Criterion", "Score (95% interval)", "Answers", "Threshold", ""], rows), known ? el("p", { className: "soft" }, known) : "");
}

function card(one) {
  const parts = [el("p", {}, ...name(one)), el("p", {}, `${one.labels} labels, held back from exports.`)];
  if (one.state === "paused") parts.push(el("p", { className: "notice bad" }, one.state_why), ...reasons(one));
  if (one.screening) {
    const { answered, total, proposal, reasons: missing } = one.screening;
    const proposed = proposal ? `The questionnaire proposes: ${proposal}.` : `${answered} of ${total} questions answered.`;
    parts.push(el("p", { className: "notice" }, proposed, ...(proposal ? missing.map((text) => el("div", {}, text)) : [])), el("details", {}, el("summary", {}, "Scores"), scores(one.screening)));
  }
  return el("article", { className: "card", ariaLabel: one.name || one.pseudonym }, ...parts, decide(one));
}

function inviting() {
  const select = (id, label, values) => el("span", {}, el("label", { htmlFor: id }, label + " "), el("select", { id }, ...values.map((value) => el("option", { value }, value))));
  const uses = el("input", { type: "number", id: "uses", min: 1, max: 10000, value: 1, size: 4 }), link = el("output", { className: "text" });
  const make = action("Make an invite link", async () => {
    const { url } = await call("/api/invites", { role: $("role").value, group: $("group").value, uses: Number(uses.value) });
    link.textContent = `${url} (shown once, valid for 14 days)`;
  }, () => (make.disabled = false), "main");
  return el("section", { className: "card", ariaLabel: "Invite" }, el("h2", {}, "Invite"), el("div", { className: "row" },
    select("role", "Role", ["labeler", "reviewer", "owner"]), select("group", "Group", ["training", "heldout", "public", "simulated"]),
    el("span", {}, el("label", { htmlFor: "uses" }, "Uses "), uses), make), link);
}

again();
