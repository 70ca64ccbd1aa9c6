// Versions of the guidelines with what changed, and for owners the next one.

import { $, action, call, el, markdown, open } from "./shared.js";

const KINDS = { rank: "Rating and ranking", pair: "Comparisons", demonstrate: "Demonstrations" };
const hash = new URLSearchParams(location.hash.slice(1));
const kind = hash.get("kind") in KINDS ? hash.get("kind") : "rank";

async function show(me) {
  const { versions } = await call(`/api/guidelines/versions?kind=${kind}`);
  const links = Object.entries(KINDS).map(([name, text]) => {
    const link = el("a", { href: `#kind=${name}` }, text);
    if (name === kind) link.setAttribute("aria-current", "page");
    return link;
  });
  const parts = [el("nav", { ariaLabel: "Kinds of work" }, ...links)];
  if (me.role === "owner") parts.push(editor(versions[0]?.text_md ?? ""));
  return [...parts, ...versions.map((one, i) => version(one, versions[i + 1], i === 0))];
}

function editor(text) {
  const field = el("textarea", { rows: 12, id: "text", value: text });
  return el("details", { className: "card" }, el("summary", {}, "Write a new version"), el("label", { htmlFor: "text" }, "Markdown. Everybody reads and acknowledges it before the next item."), field,
    el("div", { className: "row" }, action("Publish", () => call("/api/guidelines", { kind, text: $("text").value }), () => open(show), "main")));
}

// Lines that only one of two versions has; enough to see what changed.
function changes(text, before) {
  const [now, then] = [text, before].map((one) => one.split("\n").filter((line) => line.trim()));
  const lines = [...then.filter((line) => !now.includes(line)).map((line) => ["− ", "bad", line]), ...now.filter((line) => !then.includes(line)).map((line) => ["+ ", "", line])];
  return el("pre", {}, ...lines.map(([mark, className, line]) => el("div", { className }, mark + line)));
}

function version({ version, text_md, published, author, readers }, before, isNewest) {
  const parts = [el("summary", {}, `Version ${version}, ${new Date(published).toLocaleString()}, ${author === "template" ? "comes with the program" : "by an owner"}, read by ${readers}`)];
  if (before) parts.push(el("h2", {}, "What changed"), changes(text_md, before.text_md));
  parts.push(markdown(text_md));
  return el("details", { className: "card", open: isNewest }, ...parts);
}

addEventListener("hashchange", () => location.reload());
open(show);
