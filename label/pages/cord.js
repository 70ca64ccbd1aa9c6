// The cord: everybody who labels can stop training, with a reason.

import { $, call, el, notice } from "./shared.js";

// A paragraph that says whether training was stopped, and the button that stops it.
export async function cord() {
  const { stopped } = await call("/api/andon");
  if (stopped) return el("p", { className: "notice bad" }, `Training was stopped: ${stopped.why}. An owner lets it go on.`);
  const reason = el("textarea", { rows: 3, id: "cord-reason", maxLength: 2000 }), problem = el("p", { className: "notice bad", hidden: true });
  const dialog = el("dialog", { ariaLabel: "Stop training" }, el("p", {}, "Training stops after its present step, for everybody, until an owner lets it go on. Use it when the model does harm."),
    el("p", {}, el("label", { htmlFor: "cord-reason" }, "Why"), reason), problem,
    el("div", { className: "row" }, el("button", { type: "button", onclick: async () => {
      if (!reason.value.trim()) return notice(problem, "Say why.", true);
      try { await call("/api/andon", { why: reason.value }); dialog.close(); box.replaceChildren(await cord()); }
      catch (error) { notice(problem, error.message, true); }
    } }, "Stop training now"), el("button", { type: "button", className: "main", onclick: () => dialog.close() }, "Cancel")));
  const box = el("div", {}, el("button", { type: "button", onclick: () => dialog.showModal() }, "Stop training"), dialog);
  return box;
}
