import { $, call, el, markdown, newKey, notice } from "./shared.js";

const code = decodeURIComponent(location.hash.slice(1));
const key = newKey();

async function show() {
  if (!code) return notice($("notice"), "Open the whole invite link that you were given; its end is missing.", true);
  const consent = await call("/api/consent");
  const name = el("input", { type: "text", id: "name", required: true, maxLength: 100, autocomplete: "name" });
  const languages = el("input", { type: "text", id: "languages", placeholder: "English, …" });
  const agree = el("input", { type: "checkbox", id: "agree", required: true });
  const topics = Object.entries(consent.sensitive_topics).map(([value, text]) =>
    el("label", {}, el("input", { type: "checkbox", value, name: "topic" }), text));
  const form = el("form", {},
    el("section", { className: "card", tabIndex: 0, ariaLabel: "Consent" }, markdown(consent.text)),
    el("label", { className: "row" }, agree, " I have read this and agree"),
    el("h2", {}, "About you"),
    el("p", {}, el("label", { htmlFor: "name" }, "Name (only the owner sees it)"), el("br"), name),
    el("p", {}, el("label", { htmlFor: "languages" }, "Languages that you read well, with commas between"), el("br"), languages),
    el("fieldset", {}, el("legend", {}, "Sensitive texts that you are willing to see; leave out what you would rather not"), el("div", { className: "checks" }, ...topics)),
    el("p", {}, el("button", { className: "main" }, "Join")));
  form.onsubmit = async (event) => {
    event.preventDefault();
    const body = {
      code, name: name.value, consent_version: consent.version,
      languages: languages.value.split(",").map((one) => one.trim()).filter(Boolean),
      sensitive_ok: [...form.querySelectorAll("[name=topic]:checked")].map((box) => box.value),
    };
    try { await call("/api/join", body, key); location.href = "/"; }
    catch (error) { notice($("notice"), error.message, true); }
  };
  $("content").replaceChildren(form);
}

show().catch((error) => notice($("notice"), error.message, true));
