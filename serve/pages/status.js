import { $, call, el } from "./common.js";

const seconds = (s) => (s < 1 ? `${Math.round(1000 * s)} ms` : `${s.toFixed(2)} s`);
const time = (t) => new Date(1000 * t).toLocaleString();
const sum = (rows, key) => rows.reduce((total, row) => total + row[key], 0);
const largest = (rows, key) => Math.max(0, ...rows.map((row) => row[key]));
let before = null; // {tokens, now} of the last refresh

function table(id, heads, rows) {
  $(id).replaceChildren(
    el("thead", {}, el("tr", {}, ...heads.map((h) => el("th", { scope: "col" }, h)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, String(cell)))))),
  );
}

async function refresh() {
  try {
    const state = await (await call("/status.json")).json();
    const replicas = state.replicas.sort((a, b) => a.id.localeCompare(b.id));
    const tokens = replicas.reduce((total, r) => total + Object.values(r.models).reduce((t, m) => t + m.tokens, 0), 0);
    const now = performance.now() / 1000;
    const rate = before && tokens >= before.tokens ? (tokens - before.tokens) / (now - before.now) : 0;
    before = { tokens, now };
    $("health").textContent = `${state.name} serves ${state.current}`;
    const figures = {
      "served version": state.current, replicas: replicas.length, "requests in flight": sum(replicas, "ongoing"), requests: sum(replicas, "requests"),
      "tokens per second": rate.toFixed(0), "first token, median": seconds(largest(replicas, "ttft_p50")), "first token, p99": seconds(largest(replicas, "ttft_p99")),
      "answer, median": seconds(largest(replicas, "latency_p50")), "refused (4xx)": sum(replicas, "refused"), "failed (5xx)": sum(replicas, "failed"),
    };
    $("figures").replaceChildren(...Object.entries(figures).map(([name, value]) => el("div", { className: "card" }, el("b", {}, String(value)), el("span", { className: "soft" }, name))));
    table("replicas", ["replica", "process", "up", "models", "in flight", "requests", "failed"], replicas.map((r) =>
      [r.id, r.pid, seconds(r.up), Object.entries(r.models).map(([n, m]) => `${n}: ${m.version}`).join(", "), r.ongoing, r.requests, r.failed]));
    const canary = ({ metrics = {} }) => ["reward", "rude", "refusal"].filter((k) => metrics.after?.[k] !== undefined).map((k) => `${k} ${metrics.before[k].toFixed(2)} → ${metrics.after[k].toFixed(2)}`).join(", ");
    table("promotions", ["time", "from", "to", "outcome", "who", "why", "canary"], state.promotions.reverse().map((p) =>
      [time(p.time), p.from ?? "", p.to, p.outcome + (p.reason ? `: ${p.reason}` : ""), p.who, p.why, canary(p)]));
    $("versions").textContent = state.versions.join(", ") || "none: a plain model folder is served";
  } catch (error) { $("health").replaceChildren(el("span", { className: "bad" }, error.message)); }
}

refresh();
setInterval(refresh, 2000);
