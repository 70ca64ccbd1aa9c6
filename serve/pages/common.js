// What the pages share: requests with the API key, streaming, Markdown, feedback. No framework, no build.

export const $ = (id) => document.getElementById(id);

export function el(tag, props = {}, ...children) {
  const { dataset, ...rest } = props;
  const node = Object.assign(document.createElement(tag), rest);
  Object.assign(node.dataset, dataset);
  node.append(...children);
  return node;
}

export const saved = {
  get: (name, fallback) => JSON.parse(localStorage.getItem("hero-" + name)) ?? fallback,
  set: (name, value) => localStorage.setItem("hero-" + name, JSON.stringify(value)),
};

// Of a submission: sent again, it is stored once. Not crypto.randomUUID, which a page without TLS may lack.
export const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

async function askKey() {
  const input = el("input", { type: "password", autocomplete: "off", required: true, ariaLabel: "API key" });
  const form = el("form", { method: "dialog" }, el("p", {}, "This endpoint needs an API key."), input, " ", el("button", { className: "main" }, "Use key"));
  const dialog = el("dialog", {}, form);
  const focused = document.activeElement;
  document.body.append(dialog);
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done));
  dialog.remove();
  // Chromium gives back the focus, but no keys, unless it is taken again.
  focused?.blur();
  focused?.focus();
  saved.set("key", input.value);
}

// A request with the key; asks the person for one if it is missing or wrong. Throws an Error with the endpoint's message.
export async function call(path, body, signal, more = {}) {
  for (;;) {
    const key = saved.get("key");
    const headers = { ...more, ...(key && { authorization: `Bearer ${key}` }), ...(body && { "content-type": "application/json" }) };
    const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    if (response.ok) return response;
    const text = await response.text();
    if (response.status === 401) { await askKey(); continue; }
    let message = text.slice(0, 300);
    try { const parsed = JSON.parse(text); message = parsed.error?.message ?? parsed.detail?.[0]?.msg ?? message; } catch { /* not JSON */ }
    throw new Error(`${response.status}: ${message}`);
  }
}

// Streams a chat completion and calls onChunk with each parsed event. Returns {version, usage}.
export async function stream(body, onChunk, signal) {
  // With the special tokens that the model writes: rankings are trained on, and rewards see them too.
  const options = { stream: true, stream_options: { include_usage: true }, skip_special_tokens: false };
  const response = await call("/v1/chat/completions", { ...body, ...options }, signal);
  let version = response.headers.get("x-weight-version"), usage = null, rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return { version, usage };
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      version = chunk.system_fingerprint || version;
      usage = chunk.usage ?? usage;
      onChunk(chunk);
    }
  }
}

export async function fillModels(select, none) {
  const { data } = await (await call("/v1/models")).json();
  const selected = select.value;
  const option = ({ id, version }) => el("option", { value: id, dataset: { version } }, id === version ? id : `${id} · ${version}`);
  select.replaceChildren(...(none ? [el("option", { value: "" }, none)] : []), ...data.map(option));
  if (data.some(({ id }) => id === selected)) select.value = selected;
  return data;
}

// Markdown as DOM nodes: text only becomes text nodes, so nothing in it can become markup or script.
export function markdown(source) {
  const out = new DocumentFragment();
  const lines = source.split("\n");
  for (let i = 0; i < lines.length; ) {
    const fence = lines[i].match(/^\s*```/);
    const heading = lines[i].match(/^(#{1,4})\s+(.*)/);
    const item = /^\s*(?:([-*+])|\d+[.)])\s+(.*)/;
    if (fence) {
      const code = [];
      for (i++; i < lines.length && !/^\s*```/.test(lines[i]); i++) code.push(lines[i]);
      i++;
      out.append(el("pre", {}, el("code", {}, code.join("\n"))));
    } else if (heading) {
      out.append(el("h" + (heading[1].length + 2), {}, inline(heading[2])));
      i++;
    } else if (item.test(lines[i])) {
      const list = el(lines[i].match(item)[1] ? "ul" : "ol");
      for (; i < lines.length && item.test(lines[i]); i++) list.append(el("li", {}, inline(lines[i].match(item)[2])));
      out.append(list);
    } else if (lines[i].trim() === "") {
      i++;
    } else {
      const text = [lines[i++]];
      while (i < lines.length && lines[i].trim() && !/^\s*(```|#{1,4}\s|[-*+]\s|\d+[.)]\s)/.test(lines[i])) text.push(lines[i++]);
      out.append(el("p", {}, inline(text.join("\n"))));
    }
  }
  return out;
}

function inline(text) {
  const out = new DocumentFragment();
  const marks = /`([^`]+)`|\*\*(.+?)\*\*|\*([^*\s][^*]*)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)|\n/g;
  let end = 0;
  for (const match of text.matchAll(marks)) {
    out.append(text.slice(end, match.index));
    const [all, code, strong, em, label, href] = match;
    if (code) out.append(el("code", {}, code));
    else if (strong) out.append(el("strong", {}, inline(strong)));
    else if (em) out.append(el("em", {}, inline(em)));
    else if (href) out.append(el("a", { href, rel: "noopener noreferrer nofollow", target: "_blank" }, label));
    else out.append(el("br"));
    end = match.index + all.length;
  }
  out.append(text.slice(end));
  return out;
}

// Thumbs and a comment on one answer. `subject()` returns {messages, answers}.
export function thumbs(subject) {
  const row = el("div", { className: "row" });
  const form = el("form", { className: "row", hidden: true });
  const comment = el("input", { className: "grow", placeholder: "Comment (optional)", ariaLabel: "Comment" });
  const consent = el("input", { type: "checkbox" });
  const note = el("span", { className: "soft", role: "status" });
  const key = newKey();
  let thumb = null;
  const buttons = [["up", "Good"], ["down", "Bad"]].map(([name, face]) => {
    const button = el("button", { type: "button", className: "small", title: `Thumb ${name}`, ariaLabel: `Thumb ${name}`, ariaPressed: "false" }, face);
    button.onclick = () => {
      thumb = name;
      buttons.forEach((b) => (b.ariaPressed = String(b === button)));
      form.hidden = false;
      comment.focus();
    };
    return button;
  });
  form.append(comment, el("label", { className: "soft" }, consent, " may be used for training"), el("button", { className: "small" }, "Send feedback"));
  form.onsubmit = async (event) => {
    event.preventDefault();
    try {
      await call("/feedback", { ...subject(), thumb, comment: comment.value, consent: consent.checked }, undefined, { "idempotency-key": key });
      note.textContent = "Thank you, stored.";
      form.hidden = true;
    } catch (error) { note.textContent = error.message; }
  };
  row.append(...buttons, form, note);
  return row;
}

export async function copy(text, button) {
  await navigator.clipboard.writeText(text);
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), 1200);
}
