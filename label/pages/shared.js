// What the pages share: DOM, requests, Markdown, the header. No framework, no build.

export const $ = (id) => document.getElementById(id);

export function el(tag, props = {}, ...children) {
  const { dataset = {}, ...rest } = props;
  const node = Object.assign(document.createElement(tag), rest);
  Object.assign(node.dataset, dataset);
  node.append(...children);
  return node;
}

export const saved = {
  get(name, fallback) {
    try { return JSON.parse(localStorage.getItem("label-" + name)) ?? fallback; } catch { return fallback; }
  },
  set: (name, value) => localStorage.setItem("label-" + name, JSON.stringify(value)),
  remove: (name) => localStorage.removeItem("label-" + name),
};

// Not crypto.randomUUID: a page without TLS on another host than localhost has none.
export const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export class ApiError extends Error {
  constructor(status, error) {
    super(error.message ?? `error ${status}`);
    Object.assign(this, { status, code: error.code, details: error });
  }
}

// GET without a body, POST with one. Throws ApiError for an answer, and TypeError if there is no connection.
export async function call(path, body, key) {
  const headers = { ...(body && { "content-type": "application/json" }), ...(key && { "idempotency-key": key }) };
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  if (response.status === 204) return null;
  const text = await response.text();
  if (!response.ok) {
    let error = {};
    try { error = JSON.parse(text).error ?? {}; } catch { /* a proxy's page */ }
    throw new ApiError(response.status, error);
  }
  return text ? JSON.parse(text) : null;
}

const LINKS = [
  ["/", "Start"], ["/task", "Work"], ["/mine", "My labels"], ["/review", "Review", "reviewer"], ["/batches", "Batches", "reviewer"],
  ["/quality", "Quality", "reviewer"], ["/rounds", "Rounds", "reviewer"], ["/guidelines", "Guidelines", "reviewer"], ["/people", "People", "owner"],
];

// Links of the pages that a role may open.
export function fillHeader(role = "labeler") {
  const links = LINKS.filter(([, , least]) => !least || role === "owner" || role === least).map(([href, name]) => {
    const link = el("a", { href }, name);
    if (href === location.pathname) link.setAttribute("aria-current", "page");
    return link;
  });
  document.querySelector("nav")?.replaceChildren(...links);
}

// Runs a page: fills the header, shows what `show(me)` gives, and tells errors.
export async function open(show) {
  try {
    const me = await call("/api/me");
    fillHeader(me.role);
    $("content").replaceChildren(...[await show(me)].flat());
  } catch (error) { notice($("notice"), error.message, true); }
}

// A button that asks the API and shows the page again, or the error.
export function action(text, ask, after, className = "", where = $("notice")) {
  return el("button", { type: "button", className, onclick: async (event) => {
    event.target.disabled = true;
    try { await ask(); notice(where, ""); await after(); }
    catch (error) { notice(where, error.message, true); event.target.disabled = false; }
  } }, text);
}

export const percent = (value) => `${Math.round(100 * value)}%`;

// A figure with its interval, or why there is none.
export function interval(figure, format = percent) {
  if (!figure || figure.value === null) return "–";
  return format(figure.value) + (figure.low === null ? "" : ` (${format(figure.low)} to ${format(figure.high)})`);
}

// A table with a caption that scrolls on its own on a small screen.
export function table(caption, heads, rows) {
  const head = el("tr", {}, ...heads.map((text) => (text ? el("th", { scope: "col" }, text) : el("td"))));
  const body = rows.map((cells) => el("tr", {}, ...cells.map((cell) => el("td", {}, ...[cell ?? ""].flat()))));
  return el("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: caption },
    el("table", {}, el("caption", { className: "visually-hidden" }, caption), el("thead", {}, head), el("tbody", {}, ...body)));
}

// A text of whoever wrote it: only ever a text node, with its own direction, folded if it is long.
export function textBlock(text, name) {
  const body = el("div", { className: "text", dir: "auto" }, text);
  const block = el("div", {}, body);
  if (text.length > 4000 || text.split("\n").length > 40) {
    body.classList.add("folded");
    const button = el("button", { type: "button", onclick: () => { body.classList.remove("folded"); button.remove(); } }, `Show all of ${name}`);
    block.append(button);
  }
  return block;
}

export function promptCard(prompt, name = "Prompt") {
  const messages = typeof prompt === "string" ? [{ role: "user", content: prompt }] : prompt;
  const parts = messages.map(({ role, content }) => el("div", {}, el("span", { className: "who" }, role), textBlock(content, "the message")));
  const shown = el("section", { className: "card", ariaLabel: name }, el("h2", {}, "Prompt"));
  if (parts.length > 6) {
    const earlier = el("div", { hidden: true }, ...parts.slice(0, -4));
    const button = el("button", { type: "button", onclick: () => { earlier.hidden = false; button.remove(); } }, `Show ${parts.length - 4} earlier messages`);
    shown.append(button, earlier, ...parts.slice(-4));
  } else shown.append(...parts);
  return shown;
}

// A little Markdown for guidelines and consent, as DOM nodes: nothing in it can become markup or script.
export function markdown(source) {
  const out = new DocumentFragment();
  let list = null;
  for (const line of source.split("\n")) {
    const heading = line.match(/^(#{1,4})\s+(.*)/), item = line.match(/^\s*(?:([-*])|\d+[.)])\s+(.*)/);
    if (!item) list = null;
    if (heading) out.append(el("h" + Math.min(heading[1].length + 1, 4), {}, inline(heading[2])));
    else if (item) {
      const tag = item[1] ? "UL" : "OL";
      if (list?.tagName !== tag) out.append((list = el(tag)));
      list.append(el("li", {}, inline(item[2])));
    } else if (line.trim()) out.append(el("p", {}, inline(line)));
  }
  return out;
}

function inline(text) {
  const out = new DocumentFragment();
  text.split(/\*\*(.+?)\*\*/).forEach((part, i) => out.append(i % 2 ? el("strong", {}, part) : part));
  return out;
}

export function notice(node, text, isBad = false) {
  node.className = isBad ? "notice bad" : "notice";
  node.hidden = !text;
  node.replaceChildren(text);
}

// Radio buttons side by side. `values`: [value, face, description].
export function scale(name, legend, values, onPick) {
  const labels = values.map(([value, face, description]) => {
    const input = el("input", { type: "radio", name, value: String(value), onchange: () => onPick(value) });
    if (description) input.setAttribute("aria-label", description);
    return el("label", {}, input, face);
  });
  const field = el("fieldset", {}, el("legend", {}, legend), el("div", { className: "scale" }, ...labels));
  field.pick = (value) => labels.forEach((label) => (label.firstChild.checked = label.firstChild.value === String(value)));
  return field;
}

export function checks(legend, names, keys, onChange) {
  const boxes = Object.entries(names).map(([name, description], i) => {
    const box = el("input", { type: "checkbox", value: name, onchange: () => onChange(values()) });
    return el("label", {}, box, el("span", {}, description, keys[i] ? " " : "", ...(keys[i] ? [el("kbd", {}, keys[i])] : [])));
  });
  const values = () => boxes.map((label) => label.firstChild).filter((box) => box.checked).map((box) => box.value);
  const field = el("fieldset", {}, el("legend", { className: "visually-hidden" }, legend), el("div", { className: "checks" }, ...boxes));
  field.pick = (picked) => boxes.forEach((label) => (label.firstChild.checked = picked.includes(label.firstChild.value)));
  field.toggle = (i) => { boxes[i].firstChild.checked = !boxes[i].firstChild.checked; onChange(values()); return boxes[i].firstChild; };
  return field;
}
