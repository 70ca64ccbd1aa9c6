// Whether the labels can be trusted: agreement, policies, and for owners the gold items.

import { action, call, el, interval, open, percent, table } from "./shared.js";

const FIGURES = {
  agreement: "Pairs of responses that two people order alike, ties left out", agreement_with_ties: "The same with ties as a third answer",
  tau_b: "Kendall's τ_b of two rankings", alpha_nominal: "Krippendorff's α of pairs, nominal", alpha_ordinal: "Krippendorff's α of pairs, ordinal",
};
const decimals = (value) => value.toFixed(3);
const short = (prompt) => { const text = typeof prompt === "string" ? prompt : prompt.at(-1).content; return text.length > 120 ? text.slice(0, 119) + "…" : text; };

async function show(me) {
  const [figures, gold] = await Promise.all([call("/api/quality"), me.role === "owner" ? call("/api/gold") : null]);
  const parts = [el("p", {}, `${figures.rankings} rankings by ${figures.labelers} people. Intervals are 95%, by item; n counts items. Labels that are held back are left out.`), el("h2", {}, "Agreement")];
  parts.push(table("Agreement", ["Figure", "Value", "n"], Object.entries(FIGURES).map(([key, name]) => {
    const figure = figures[key], format = key.startsWith("agreement") ? percent : decimals;
    return [name, figure.value === null ? `undefined: ${figure.why}` : interval(figure, format), String(figure.n)];
  })));
  const others = Object.entries(figures.agreement_with_others);
  if (others.length) parts.push(el("h2", {}, "Each person with the others"), table("Each person with the others", ["Person", "Pairs ordered alike", "n"], others.map(([who, one]) => [who, interval(one), String(one.n)])));
  parts.push(el("h2", {}, "Policies"), ...policies(figures.policies));
  if (gold) parts.push(el("h2", {}, `Gold items (${gold.gold.length})`), ...goldItems(gold));
  return parts;
}

function policies(found) {
  if (!found) return [el("p", {}, "No item has responses of two known policies.")];
  const { strengths } = found.bradley_terry, { strengths: davidson } = found.davidson;
  const rows = Object.entries(strengths).map(([name, figure]) => [name, interval(figure, decimals), interval(davidson[name], decimals)]);
  const swap = found.votes_to_swap;
  return [table("Policies", ["Policy", "Bradley-Terry", "Davidson"], rows), el("p", { className: "soft" }, swap ? `Fewest votes whose removal puts the second before the first: ${swap}.` : "")];
}

function goldItems({ gold, suggestions }) {
  const again = () => open(show);
  const rows = gold.map((one) => [short(one.prompt), one.ranks.join(" "), one.explanation, `${interval(one.accuracy)}, ${one.answers} answers`,
    one.retired ? "retired" : action("Retire", () => call(`/api/gold/${one.gold}/retire`, {}), again)]);
  const parts = [gold.length ? table("Gold items", ["Prompt", "Ranks", "Explanation", "Accuracy", ""], rows) : el("p", {}, "None: `hero label gold RUN --add FILE`.")];
  if (suggestions.length) parts.push(el("h2", {}, "Items on which everybody agrees"), ...suggestions.map((one, i) => suggestion(one, i, again)));
  return parts;
}

function suggestion({ item, prompt, labels }, i, again) {
  const why = el("input", { type: "text", className: "grow", ariaLabel: `Explanation of item ${i + 1}`, placeholder: "Why this order is right" });
  return el("div", { className: "card" }, el("p", {}, `${short(prompt)} (${labels} people)`), el("div", { className: "row" }, why,
    action("Make it a gold item", async () => {
      if (!why.value.trim()) throw new Error("Explain the order first.");
      await call("/api/gold", { item, explanation: why.value });
    }, again)));
}

open(show);
