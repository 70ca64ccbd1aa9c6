// Batches with their progress; an owner closes and opens them.

import { action, call, el, open, percent, table } from "./shared.js";

async function show(me) {
  const { batches } = await call("/api/batches");
  if (!batches.length) return el("p", {}, "There is no batch yet: `hero label add RUN FILE --batch NAME`.");
  const rows = batches.map((one) => {
    const isShared = ["gold", "calibration", "screening"].includes(one.purpose), done = one.items ? 1 - one.open_items / one.items : 0;
    const bar = el("progress", { max: 1, value: done, ariaLabel: `Progress of ${one.name}` });
    const state = one.state === "open" ? "closed" : "open";
    const change = action(one.state === "open" ? "Close" : "Open", () => call(`/api/batches/${one.id}/state`, { state }), () => open(show));
    change.ariaLabel = `${change.textContent} ${one.name}`;
    return [one.name, one.kind, one.purpose, one.state, isShared ? "for everybody" : [bar, ` ${percent(done)} of ${one.items} items`], String(one.labels), String(one.leases), me.role === "owner" ? change : ""];
  });
  return table("Batches", ["Batch", "Kind", "Purpose", "State", "Progress", "Labels", "At work", ""], rows);
}

open(show);
