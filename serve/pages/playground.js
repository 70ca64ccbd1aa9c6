import { $, call, copy, el, fillModels, newKey, saved, stream, thumbs } from "./common.js";

// Every control: name in the request, label, explanation, value at which the request leaves it out, range, first value.
const FIELDS = [
  ["temperature", "Temperature", "Flattens (above 1) or sharpens (below 1) the probabilities; 0 is greedy.", 1, { min: 0, max: 2, step: 0.1 }],
  ["top_k", "Top-k", "Sample from the k most probable tokens only; 0 is off.", 0, { min: 0, step: 1 }],
  ["top_p", "Top-p (nucleus)", "Sample from the smallest set of tokens that holds this share of the probability; 1 is off.", 1, { min: 0.01, max: 1, step: 0.01 }],
  ["min_p", "Min-p", "Leave out tokens whose probability is below this share of the highest one; 0 is off.", 0, { min: 0, max: 1, step: 0.01 }],
  ["presence_penalty", "Presence penalty", "Lowers every token that was used already, once.", 0, { min: -2, max: 2, step: 0.1 }],
  ["frequency_penalty", "Frequency penalty", "Lowers a token the more, the more often it was used.", 0, { min: -2, max: 2, step: 0.1 }],
  ["repetition_penalty", "Repetition penalty", "Divides the logits of tokens that are in the prompt or the answer; 1 is off.", 1, { min: 0.1, max: 2, step: 0.05 }],
  ["max_tokens", "Max tokens", "Tokens after which an answer is cut.", null, { min: 1, step: 1 }, 64],
  ["n", "Answers", "Independent answers, side by side.", 1, { min: 1, max: 16, step: 1 }],
  ["seed", "Seed", "The same seed and settings give the same answer; empty: a new one each time.", null, { step: 1 }],
];
const PRESETS = {
  Greedy: { temperature: 0 }, Temperature: { temperature: 0.7 }, "Top-k": { temperature: 1, top_k: 20 },
  Nucleus: { temperature: 1, top_p: 0.9 }, "Min-p": { temperature: 1, min_p: 0.1 },
};
const STRATEGY = { temperature: 1, top_k: 0, top_p: 1, min_p: 0 };

function control(id, label, help, input) {
  input.id = id;
  return el("div", { className: "control" + (input.tagName === "INPUT" ? "" : " wide") }, el("label", { htmlFor: id }, label), input, el("span", { className: "soft" }, help));
}

$("fields").append(
  control("model", "Model", "Which policy answers.", el("select")),
  control("other", "Compare with", "A second model or version to compare with.", el("select")),
  control("system", "System message", "Comes before the conversation; empty leaves it out.", el("textarea", { rows: 2 })),
  ...FIELDS.map(([name, label, help, off, range, start]) => control(name, label, help, el("input", { type: "number", value: start ?? off ?? "", ...range }))),
  control("stop_at", "Stop at", "Ends an answer before this text; separate several by |.", el("input")),
);
for (const [name, values] of Object.entries(PRESETS)) {
  const button = el("button", { type: "button", className: "small" }, name);
  button.onclick = () => { for (const [key, value] of Object.entries({ ...STRATEGY, ...values })) $(key).value = value; code(); };
  $("presets").append(button);
}

function decoding() {
  const settings = {};
  for (const [name, , , off] of FIELDS) {
    const value = $(name).value;
    if (value !== "" && Number(value) !== off) settings[name] = Number(value);
  }
  if ($("stop_at").value) settings.stop = $("stop_at").value.split("|");
  return settings;
}

function request(model) {
  const system = $("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: $("prompt").value }];
  return { model, messages, ...decoding() };
}

// The same request for the terminal and for Python: vLLM's own settings go into extra_body there.
function code() {
  const body = request($("model").value), url = location.origin + "/v1";
  const key = saved.get("key") ? '-H "Authorization: Bearer $OPENAI_API_KEY" ' : "";
  $("curl").textContent = `curl ${url}/chat/completions ${key}-H 'Content-Type: application/json' -d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
  const extra = {}, standard = {};
  for (const [name, value] of Object.entries(body)) (["top_k", "min_p", "repetition_penalty"].includes(name) ? extra : standard)[name] = value;
  const lines = Object.entries(standard).map(([name, value]) => `    ${name}=${JSON.stringify(value)},`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${JSON.stringify(extra)},`);
  $("python").textContent = `import os\nfrom openai import OpenAI\n\nclient = OpenAI(base_url="${url}", api_key=os.environ.get("OPENAI_API_KEY", "none"))\nreply = client.chat.completions.create(\n${lines.join("\n")}\n)\nfor choice in reply.choices:\n    print(choice.message.content)`;
}

let running = null, cards = [], isBlind = false, places = [], feedbackKey = "";

// One answer on the page, with what feedback needs to know of it. Blind: at a place drawn by chance, under a letter.
function makeCard(model, index) {
  const slot = isBlind ? places.pop() : $("answers").children.length;
  const name = isBlind ? `Answer ${String.fromCharCode(65 + slot)}` : model;
  const text = el("div", { className: "text" }), foot = el("div", { className: "soft" }), tools = el("div"), title = el("b", {}, name);
  const rank = el("input", { type: "number", min: 1, max: 16, size: 2, ariaLabel: isBlind ? `Rank of answer ${name}` : `Rank of answer ${index + 1} of ${model}` });
  const rankLabel = el("label", { className: "row soft", hidden: true }, "Rank ", rank);
  const node = el("div", { className: "card answer" }, title, text, foot, rankLabel, tools);
  if (isBlind) $("answers").children[slot].replaceWith(node);
  else $("answers").append(node);
  return { model, slot, text: "", tokens: 0, ended: false, version: "", decoding: {}, rank, rankLabel, foot, tools, title, node: text, story: "" };
}

// Empty places for all answers, and the order in which they are filled.
function drawPlaces(count) {
  $("answers").replaceChildren(...Array.from({ length: count }, () => el("div")));
  places = [...Array(count).keys()];
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [places[i], places[j]] = [places[j], places[i]];
  }
}

function reveal() {
  isBlind = false;
  for (const card of cards) { card.title.textContent = card.model; card.foot.textContent = card.story; }
}

// `isEnd`: the token that ended the answer and is no part of its text.
function showToken(card, entry, isEnd) {
  if (isBlind) { if (!isEnd) card.node.append(entry.token); return; }  // probabilities tell models apart
  const p = Math.exp(entry.logprob);
  const span = el("span", { className: isEnd ? "token special" : "token", tabIndex: 0 }, isEnd ? "end" : entry.token);
  span.style.backgroundColor = `color-mix(in srgb, var(--accent) ${Math.round((1 - p) * 55)}%, transparent)`;
  const alternatives = entry.top_logprobs.map((t) => `${JSON.stringify(t.token)} ${(100 * Math.exp(t.logprob)).toFixed(1)}%`).join("   ");
  span.dataset.probability = `${JSON.stringify(entry.token)} ${(100 * p).toFixed(1)}%   most probable: ${alternatives}`;
  span.title = span.dataset.probability;
  card.node.append(span);
}
for (const kind of ["pointerover", "focusin"])
  $("answers").addEventListener(kind, (event) => { if (event.target.dataset.probability) $("probability").textContent = event.target.dataset.probability; });

async function generate(model, signal) {
  const body = request(model);
  const answers = Array.from({ length: body.n ?? 1 }, (_, i) => makeCard(model, i));
  cards.push(...answers);
  const started = performance.now();
  const end = await stream({ ...body, logprobs: true, top_logprobs: 5 }, (chunk) => {
    for (const choice of chunk.choices) {
      const card = answers[choice.index];
      card.text += choice.delta?.content ?? "";
      for (const entry of choice.logprobs?.content ?? []) { card.tokens++; showToken(card, entry, choice.finish_reason === "stop" && !choice.delta?.content); }
      card.ended ||= choice.finish_reason === "stop";
      if (!isBlind) card.foot.textContent = `${card.tokens} tokens`;
    }
  }, signal);
  const { messages, model: _, ...settings } = body;
  for (const card of answers) {
    Object.assign(card, { version: end.version, decoding: settings, messages });
    card.story = `${end.version} · ${card.tokens} tokens of ${end.usage.prompt_tokens + end.usage.completion_tokens} in all · ${((performance.now() - started) / 1000).toFixed(2)} s${card.ended ? "" : " · cut short"}`;
    if (isBlind) { card.foot.textContent = card.ended ? "" : "cut short"; continue; }
    card.foot.textContent = card.story;
    card.tools.append(thumbs(() => ({ messages, answers: [answerOf(card)] })));
  }
}

const answerOf = ({ text, ended, version, model, decoding }) => ({ text, ended, version, model, decoding });

$("run").onclick = async () => {
  running?.abort();
  const control = (running = new AbortController());
  cards = [];
  isBlind = $("blind").checked;
  feedbackKey = newKey();
  $("answers").replaceChildren(); $("ranking").hidden = true; $("note").textContent = "";
  $("stop").disabled = false;
  code();
  try {
    const models = [$("model").value, $("other").value].filter(Boolean);
    if (isBlind) drawPlaces(models.length * (decoding().n ?? 1));
    await Promise.all(models.map((model) => generate(model, control.signal)));
    if (cards.length > 1) {
      cards.forEach((card) => (card.rankLabel.hidden = false));
      $("ranking").hidden = false;
    } else if (isBlind) reveal();
  } catch (error) {
    if (error.name !== "AbortError") $("note").replaceChildren(el("span", { className: "bad" }, error.message));
  }
  if (running === control) $("stop").disabled = true;
};
$("stop").onclick = () => running?.abort();
$("rank").onclick = async () => {
  const unranked = cards.filter((card) => !card.rank.value);
  if (unranked.length) { $("note").textContent = "Give every answer a rank."; unranked[0].rank.focus(); return; }
  const ranks = cards.map((card) => Number(card.rank.value));
  const order = cards.map((_, i) => i).sort((a, b) => cards[a].slot - cards[b].slot);
  try {
    const answer = await call("/feedback", { messages: cards[0].messages, answers: cards.map(answerOf), ranks, consent: $("consent").checked, comment: $("comment").value, labeler: $("labeler").value.trim() || "anonymous", order, blind: isBlind }, undefined, { "idempotency-key": feedbackKey });
    $("note").textContent = `Thank you, stored in ${(await answer.json()).stored}.`;
    $("ranking").hidden = true;
    if (isBlind) reveal();
  } catch (error) { $("note").replaceChildren(el("span", { className: "bad" }, error.message)); }
};
$("code").onclick = () => { code(); $("panel").hidden = !$("panel").hidden; $("code").ariaExpanded = String(!$("panel").hidden); };
$("controls").oninput = $("prompt").oninput = code;
$("controls").onsubmit = (event) => event.preventDefault();
$("prompt").onkeydown = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("run").click(); };

Promise.all([fillModels($("model")), fillModels($("other"), "none")]).then(code).catch((error) => ($("note").textContent = error.message));
