// Reviewers: labels to look at, the most doubtful first, and demonstrations of people in screening, without names.

import { action, call, el, open, promptCard, scale, textBlock } from "./shared.js";

async function show() {
  const [{ labels }, { demonstrations }] = await Promise.all([call("/api/reviews"), call("/api/demonstrations")]);
  return [
    el("h2", {}, `Demonstrations of people in screening (${demonstrations.length})`),
    ...(demonstrations.length ? demonstrations.slice(0, 5).map(demonstration) : [el("p", {}, "None waits for you.")]),
    el("h2", {}, `Labels (${labels.length}${labels.length === 20 ? " or more" : ""})`),
    ...(labels.length ? labels.map(label) : [el("p", {}, "No label is in doubt.")]),
  ];
}

const again = () => open(show);

function demonstration({ id, prompt, text }, number) {
  const values = [1, 2, 3, 4, 5, 6, 7].map((n) => [n, String(n), `${n} of 7`]);
  let score = null;
  const send = action("Send rating", async () => {
    if (!score) throw new Error("Rate the demonstration from 1 to 7 first.");
    await call("/api/demonstrations", { id, score });
  }, again, "main");
  return el("article", { className: "card", ariaLabel: `Demonstration ${number + 1}` }, textBlock(prompt, "the prompt"), el("h3", {}, "Response"), textBlock(text, "the response"),
    scale(`score-${number}`, "How good is it? (1 very bad, 7 excellent)", values, (n) => (score = n)), el("div", { className: "row" }, send));
}

function label(row, number) {
  const note = el("input", { type: "text", className: "grow", ariaLabel: `Note to the labeler of label ${number + 1}`, placeholder: "Note to the labeler (needed to reject)", maxLength: 2000 });
  const say = (verdict, text, className) => action(text, () => call("/api/reviews", { label: row.label, verdict, note: note.value }), again, className);
  const lines = row.responses.map(({ text, rank, likert, flags }) => el("li", {},
    `Place ${rank ?? "–"}${likert ? `, quality ${likert}` : ""}${flags?.length ? `, ${flags.join(", ")}` : ""}`, textBlock(text, "the response")));
  return el("article", { className: "card", ariaLabel: `Label ${number + 1}` },
    el("p", { className: "soft" }, `${row.labeler} · ${row.batch} · ${row.reason}${row.all_bad ? " · all bad" : ""}`), promptCard(row.prompt, `Prompt of label ${number + 1}`),
    row.text ? textBlock(row.text, "the demonstration") : el("ul", {}, ...lines), row.comment ? el("p", {}, `Comment: ${row.comment}`) : "",
    el("div", { className: "row" }, note, say("accept", "Accept", "main"), say("reject", "Reject")));
}

again();
