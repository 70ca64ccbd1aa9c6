// All rounds side by side: one column each, from what `hero rounds` has written.

import { call, el, interval, open, table } from "./shared.js";
import { cord } from "./cord.js";

const number = (value, digits = 2) => (value === undefined || value === null ? "–" : value.toFixed(digits));
const rate = (figure) => interval(figure, (value) => `${(100 * value).toFixed(1)}%`);

const ROWS = [
  ["State", (one) => (one.stalled ? `${one.state}, stalled: the deadline has passed with too few labels` : one.state)],
  ["Responses of", (one) => (one.policies ?? []).join(", ")],
  ["Prompts chosen", (one) => { const by = one.selection ?? one.select; return by ? [by.method, by.why].filter(Boolean).join("; ") : "–"; }],
  ["Gain of chosen over random prompts, nats a pair", (one) => interval(one.selection_gain?.difference, (value) => value.toFixed(3))],
  ["Labels", (one) => (one.batches ?? []).map((batch) => el("div", {}, `${batch.name}: ${batch.labels} labels, ${batch.open_items} of ${batch.items} items open`))],
  ["Late rankings of earlier rounds", (one) => (one.labels ? one.labels.late ?? 0 : "–")],
  ["People", (one) => (one.labels ? Object.entries(one.labels.groups).map(([group, count]) => `${count} by ${group}`).join(", ") : "–")],
  ["Person-hours", (one) => number((one.labels?.person_hours ?? 0) + (one.gate?.person_hours ?? 0), 1)],
  ["Agreement", (one) => rate(one.agreement)],
  ["Reward model against labelers", (one) => rate(one.reward_model && { value: one.reward_model["accuracy/labelers"] ?? null, low: one.reward_model["accuracy/low"] ?? null, high: one.reward_model["accuracy/high"] ?? null })],
  ["Rankings: newest policy over the one before", (one) => (one.free_comparison ? `${rate(one.free_comparison)} over ${one.free_comparison.over}` : "–")],
  ["KL to the SFT policy, nats", (one) => number(one.ppo?.["objective/kl"])],
  ["Blind win rate", (one) => (one.gate ? `${rate(one.gate.win_rate)} of ${one.gate.win_rate.n}, over ${one.gate.against}` : "–")],
  ["At equal length", (one) => rate(one.gate?.length_controlled)],
  ["Win rate over SFT", (one) => rate(one.anchor)],
  ["Guards", (one) => (one.gate?.guards ?? []).map((guard) => el("div", {}, `${guard.passed ? "✓" : "✗ fails:"} ${guard.name}`, guard.passed ? "" : ` (${guard.evidence})`))],
  ["Decision", (one) => one.decision ?? "–"],
  ["Serves", (one) => one.serves ?? "–"],
];

// Reward model k on the held-out pairs of round j.
function matrix(rounds) {
  const last = rounds.findLast((one) => one.matrix);
  if (!last) return [];
  const heads = ["", ...last.matrix.columns];
  const rows = last.matrix.rows.map(({ name, cells }) => [name, ...cells.map((cell) => (cell ? `${rate(cell)}, ${cell.pairs} pairs` : "–"))]);
  const flagged = "Flagged: somebody has objected to the prompt or to a response.";
  return [el("h2", {}, "Accuracy of each reward model on the held-out pairs of each round"), el("p", {}, flagged), table("Accuracy matrix", heads, rows)];
}

async function show() {
  const { rounds } = await call("/api/rounds");
  const parts = [await cord()];
  if (!rounds.length) return [...parts, el("p", {}, "There is no round yet: `hero rounds CONFIG`.")];
  const rows = ROWS.map(([name, cell]) => [name, ...rounds.map(cell)]);
  return [...parts, table("Rounds", ["", ...rounds.map((one) => `Round ${one.round}`)], rows), ...matrix(rounds)];
}

open(show);
