// The questionnaire: one question a page; every answer is stored at once, so that people can go on another day.

import { $, call, el, markdown, notice, open, scale, textBlock } from "./shared.js";

const letter = (i) => String.fromCharCode(65 + i);
const TITLES = {
  read: "About the guidelines", flag: "Is this text sensitive?", rank: "Put the responses in order", write: "Write a response", topic: "How well do you know this?",
};
const HELP = {
  flag: "Sensitive: it insults, threatens, sexualizes or hurts people, or helps to do so.", rank: "Give each response a place: 1 is best, equal places for ties.",
  write: "Write what a good assistant would answer: helpful, true and harmless.", topic: "This is not scored. It shows which topics the team knows.",
};
let shown = null, value = null;

function show(state) {
  shown = state;
  value = null;
  if (!shown.total) return done(`You are ${shown.state}; there are no questions for you.`);
  if (!shown.next) return done("All questions are answered. An owner looks at them and decides; the start page then shows work.");
  const { section } = shown.next, form = el("form", { className: "question" });
  form.onsubmit = (event) => { event.preventDefault(); send(); };
  form.append(el("p", { className: "soft" }, `Question ${shown.answered + 1} of ${shown.total}. An answer is final. You can stop and go on later.`),
    el("h2", { tabIndex: -1, id: "question" }, TITLES[section]), ...(HELP[section] ? [el("p", { className: "soft" }, HELP[section])] : []),
    ...FIELDS[section](shown.next), el("p", {}, el("button", { className: "main" }, "Answer")));
  return [form, el("details", {}, el("summary", {}, "Guidelines"), guidelines)];
}

const done = (text) => [el("p", { className: "notice" }, text), el("p", {}, el("a", { href: "/" }, "To the start page"))];

const choice = (legend, values) => scale("value", legend, values, (picked) => (value = picked));

const FIELDS = {
  read: ({ question, options }) => {
    const picked = choice(question, options.map((text, i) => [i + 1, text]));
    picked.lastChild.classList.add("stacked");
    return [picked];
  },
  flag: ({ text }) => [el("div", { className: "card" }, textBlock(text, "the text")), choice("Is this text sensitive?", [[true, "Sensitive"], [false, "Not sensitive"]])],
  rank: ({ prompt, responses }) => {
    value = responses.map(() => null);
    const places = responses.map((_, n) => [n + 1, String(n + 1), `place ${n + 1}`]);
    return [el("section", { className: "card", ariaLabel: "Prompt" }, el("h3", {}, "Prompt"), textBlock(prompt, "the prompt")),
      ...responses.map((text, i) => el("article", { className: "card", ariaLabel: `Response ${letter(i)}` }, el("h3", {}, `Response ${letter(i)}`), textBlock(text, "the response"),
        scale(`place-${i}`, `Place of response ${letter(i)}`, places, (n) => (value[i] = n))))];
  },
  write: ({ prompt }) => {
    const field = el("textarea", { rows: 8, id: "text", spellcheck: true, dir: "auto", oninput: () => (value = field.value) });
    return [el("section", { className: "card", ariaLabel: "Prompt" }, textBlock(prompt, "the prompt")), el("label", { htmlFor: "text" }, "Your response"), field];
  },
  topic: ({ topic }) => [choice(topic, [[1, "1", "1, not at all"], [2, "2", "2"], [3, "3", "3"], [4, "4", "4"], [5, "5", "5, very well"]])],
};

async function send() {
  const isMissing = Array.isArray(value) ? value.includes(null) : value === null || value === "";
  if (isMissing) { notice($("notice"), Array.isArray(value) ? "Give every response a place." : "Give an answer first.", true); return; }
  try {
    const next = await call("/api/screen/answers", { question: shown.next.id, value });
    notice($("notice"), "");
    $("content").replaceChildren(...show(next));
    $("question")?.focus();
    $("live").textContent = next.next ? `Question ${next.answered + 1} of ${next.total}` : "All questions are answered";
  } catch (error) { notice($("notice"), error.message, true); }
}

const guidelines = el("div", { className: "card" });
open(async () => {
  const [state, guideline] = await Promise.all([call("/api/screen"), call("/api/guidelines?kind=rank")]);
  guidelines.replaceChildren(markdown(guideline.text));
  return show(state);
});
