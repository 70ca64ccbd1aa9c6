import { $, call, el, fillHeader, notice, promptCard, textBlock } from "./shared.js";

const letter = (i) => String.fromCharCode(65 + i);
let before = null;

let shown = 0;

function card(row) {
  const { content, responses } = row;
  const lines = responses.map(({ id, text }, i) => el("li", {},
    `${letter(i)}: place ${content.ranks[id] ?? "–"}${content.ratings[id]?.likert ? `, quality ${content.ratings[id].likert}` : ""}`, textBlock(text, `response ${letter(i)}`)));
  const note = el("span", { className: "soft", role: "status" });
  const actions = el("div", { className: "row" });
  if (row.can_change) {
    actions.append(el("a", { href: `/task#label=${row.label}` }, "Change"), el("button", { type: "button", onclick: async (event) => {
      try {
        await call(`/api/labels/${row.label}/void`, {});
        event.target.disabled = true;
        note.replaceChildren("Undone. ", el("a", { href: "/task" }, "Open the item again"));
      } catch (error) { note.textContent = error.message; }
    } }, "Undo"), note);
  } else actions.append(el("span", { className: "soft" }, "The batch is closed."));
  return el("article", { className: "card" },
    el("p", { className: "soft" }, new Date(row.submitted).toLocaleString(), row.extra ? " · extra, not exported" : "", content.all_bad ? " · all bad" : ""),
    promptCard(row.prompt, `Prompt of label ${++shown}`), content.text ? textBlock(content.text, "your response") : "", el("ul", {}, ...lines),
    content.comment ? el("p", {}, `Comment: ${content.comment}`) : "",
    ...(row.reviews ?? []).map((review) => el("p", { className: "notice" }, `Reviewed: ${review.verdict}${review.note ? ". " + review.note : ""}`)), actions);
}

async function more() {
  const { labels } = await call("/api/labels" + (before ? `?before=${before}` : ""));
  $("more")?.remove();
  $("content").append(...labels.map(card));
  if (!labels.length && !before) $("content").append(el("p", {}, "You have no labels yet."));
  if (labels.length === 20) {
    before = labels.at(-1).submitted;
    $("content").append(el("button", { id: "more", type: "button", onclick: more }, "Show more"));
  }
}

call("/api/me").then((me) => { fillHeader(me.role); return more(); }).catch((error) => notice($("notice"), error.message, true));
