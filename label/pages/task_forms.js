// The three kinds of work. A form shows an item, keeps what the person says in `content`, and answers keys.
// It has: node, start(), problem() (what is missing: {text, node}, or null), digit(n), act(action), extraKeys.

import { checks, el, promptCard, scale, textBlock } from "./shared.js";

export const FLAG_KEYS = ["a", "c", "d", "e", "f", "h", "i", "l", "m", "n", "o"];
const letter = (i) => String.fromCharCode(65 + i);
const QUALITY = ["1, very bad", "2, bad", "3, rather bad", "4, neither good nor bad", "5, rather good", "6, good", "7, excellent"];

export function blank() {
  return { ratings: {}, ranks: {}, all_bad: false, strength: null, confidence: null, prompt_flags: [], comment: "", text: "", edited_from: null };
}

// Prompt flags, confidence and comment, which every kind has.
function asides(content, words, changed, prompt) {
  const flags = checks("About the prompt", words.prompt_flags, [], (picked) => { content.prompt_flags = picked; changed(); });
  flags.pick(content.prompt_flags);
  prompt.append(el("details", {}, el("summary", {}, "About the prompt"), flags));
  const sure = scale("confidence", "How sure are you? (1 not at all, 9 completely; may be left out)", [1, 2, 3, 4, 5, 6, 7, 8, 9].map((n) => [n, String(n), `${n} of 9`]), (n) => { content.confidence = n; changed(); });
  sure.pick(content.confidence);
  const comment = el("textarea", { rows: 2, value: content.comment, maxLength: 20000, id: "comment", oninput: () => { content.comment = comment.value; changed(); } });
  return el("details", { className: "card" }, el("summary", {}, "Certainty and comment"), sure, el("p", {}, el("label", { htmlFor: "comment" }, "Comment"), comment));
}

export class RankForm {
  constructor(task, words, content, changed, say) {
    Object.assign(this, { task, content, changed, say, step: 1, current: 0 });
    const prompt = promptCard(task.prompt), rest = asides(content, words, changed, prompt);
    this.cards = task.responses.map((response, i) => this.card(response, i, words));
    this.next = el("button", { type: "button", className: "main", onclick: () => this.goTo(2) }, "Next: put them in order");
    this.back = el("button", { type: "button", onclick: () => this.goTo(1) }, "Back to the ratings");
    this.bad = el("input", { type: "checkbox", checked: content.all_bad, onchange: () => this.setAllBad(this.bad.checked) });
    this.order = el("p", { className: "notice" });
    this.guide = el("p", { className: "soft" });
    this.ranking = el("div", {}, this.order, el("label", { className: "row" }, this.bad, "All are bad: none is good enough to be put in order ", el("kbd", {}, "b")), rest);
    this.node = el("div", {}, prompt, this.guide, ...this.cards.map(({ node }) => node), this.ranking, el("div", { className: "row" }, this.next, this.back));
    if (task.responses.length === 2) this.ranking.prepend(this.strengthField());
  }

  card({ id, text, ended }, i, words) {
    const rating = (this.content.ratings[id] ??= { likert: null, flags: [] }), name = letter(i);
    const quality = scale(`quality-${i}`, `Quality of response ${name}`, QUALITY.map((face, n) => [n + 1, String(n + 1), face]), (n) => this.rate(i, n));
    quality.pick(rating.likert);
    const count = el("span");
    const flags = checks(`What applies to response ${name}`, words.response_flags, FLAG_KEYS, (picked) => { rating.flags = picked; tell(); this.changed(); });
    const tell = () => (count.textContent = rating.flags.length ? ` (${rating.flags.length})` : "");
    flags.pick(rating.flags);
    tell();
    const marks = el("details", {}, el("summary", {}, "What applies to it", count), flags);
    const places = this.task.responses.map((_, n) => [n + 1, String(n + 1), `place ${n + 1}`]);
    const place = scale(`place-${i}`, `Place of response ${name} (1 is best; equal places for ties)`, places, (n) => this.put(i, n));
    place.pick(this.content.ranks[id] ?? null);
    const note = el("span", { className: "soft" });
    const move = (by, face, description) => el("button", { type: "button", ariaLabel: `${description} response ${name}`, onclick: () => this.shift(by, i) }, face);
    const moving = el("div", { className: "row" }, place, move(-1, "↑", "Move up"), move(1, "↓", "Move down"), note);
    const node = el("article", { className: "card", tabIndex: -1, onfocusin: () => this.mark(i) }, el("h3", {}, `Response ${name}`),
      textBlock(text, `response ${name}`), ended ? "" : el("p", { className: "soft" }, "Cut off at the length limit."), quality, marks, moving);
    node.setAttribute("aria-label", `Response ${name}`);
    return { id, name, node, quality, flags, marks, place, moving, note, rating };
  }

  strengthField() {
    this.strength = scale("strength", "How much better? (may be left out)", [[1, "slightly", "slightly better"], [2, "better", "better"], [3, "much", "much better"]], (n) => { this.size = n; this.setStrength(); });
    this.size = Math.abs(this.content.strength ?? 0);
    this.strength.pick(this.size || null);
    return this.strength;
  }

  // The size that was picked, with the sign of the places.
  setStrength() {
    const [first, second] = this.cards.map(({ id }) => this.content.ranks[id]);
    const isKnown = this.size && first && second && first !== second && !this.content.all_bad;
    this.content.strength = isKnown ? Math.sign(second - first) * this.size : null;
    this.changed();
  }

  start() { this.goTo(this.task.responses.every(({ id }) => this.content.ratings[id].likert) && Object.keys(this.content.ranks).length ? 2 : 1); }

  goTo(step) {
    const missing = this.cards.findIndex(({ rating }) => !rating.likert);
    if (step === 2 && missing >= 0) { this.say(`Response ${letter(missing)} has no rating yet`); this.focus(missing); return; }
    this.step = step;
    for (const card of this.cards) {
      card.quality.hidden = card.marks.hidden = step === 2;
      card.moving.hidden = step === 1;
      card.note.textContent = card.rating.likert ? `quality ${card.rating.likert}` : "";
    }
    this.ranking.hidden = this.back.hidden = step === 1;
    this.next.hidden = step === 2;
    this.guide.textContent = step === 1 ? "Step 1 of 2: rate each response alone." : "Step 2 of 2: give each response a place. Equal places are ties.";
    this.showOrder();
    this.focus(0);
    this.say(this.guide.textContent);
  }

  mark(i) {
    this.current = i;
    this.cards.forEach(({ node }, n) => node.classList.toggle("current", n === i));
  }

  focus(i) {
    this.mark(Math.max(0, Math.min(this.cards.length - 1, i)));
    this.cards[this.current].node.focus({ preventScroll: true });
    this.cards[this.current].node.scrollIntoView({ block: "nearest" });
  }

  rate(i, n) {
    this.cards[i].rating.likert = n;
    this.cards[i].quality.pick(n);
    this.changed();
  }

  put(i, n) {
    const { id, name, place } = this.cards[i];
    this.content.ranks[id] = n;
    place.pick(n);
    if (this.content.all_bad) { this.content.all_bad = this.bad.checked = false; }
    if (this.strength) this.setStrength();
    const ties = this.cards.filter((card) => card.id !== id && this.content.ranks[card.id] === n).map((card) => card.name);
    this.say(`${name} is now place ${n}${ties.length ? `, tied with ${ties.join(" and ")}` : ""}`);
    this.showOrder();
    this.changed();
  }

  shift(by, i = this.current) {
    const last = this.cards.length;
    this.put(i, Math.max(1, Math.min(last, (this.content.ranks[this.cards[i].id] ?? (by < 0 ? last + 1 : 0)) + by)));
  }

  setAllBad(value) {
    this.content.all_bad = this.bad.checked = value;
    if (value) {
      this.content.ranks = {};
      this.content.strength = null;
      this.cards.forEach(({ place }) => place.pick(null));
    }
    this.say(value ? "All are bad" : "Not all are bad");
    this.showOrder();
    this.changed();
  }

  showOrder() {
    const { ranks } = this.content;
    const places = [...new Set(Object.values(ranks))].sort((a, b) => a - b);
    const groups = places.map((place) => this.cards.filter(({ id }) => ranks[id] === place).map(({ name }) => name).join(" = "));
    this.order.textContent = this.content.all_bad ? "All are bad." : groups.length ? `Order, best first: ${groups.join(" > ")}` : "No place is given yet.";
  }

  digit(n) {
    if (this.step === 1 && n <= 7) {
      this.rate(this.current, n);
      this.say(`${this.cards[this.current].name}: quality ${n}`);
      const open = this.cards.findIndex(({ rating }) => !rating.likert);
      if (open < 0) { this.next.focus(); this.next.scrollIntoView({ block: "nearest" }); }
      else this.focus(this.current + 1 < this.cards.length ? this.current + 1 : open);
    } else if (this.step === 2 && n <= this.cards.length) {
      const placed = this.current;
      this.put(placed, n);
      if (placed + 1 < this.cards.length) this.focus(placed + 1);
    }
  }

  act(action) {
    if (action === "next" || action === "previous") this.focus(this.current + (action === "next" ? 1 : -1));
    else if (action === "up" || action === "down") { if (this.step === 2) this.shift(action === "up" ? -1 : 1); }
    else if (action === "bad") { if (this.step === 2) this.setAllBad(!this.content.all_bad); }
    else if (action === "enter") { if (this.step === 1) this.goTo(2); }
    else if (action === "tie" && this.step === 2 && this.current > 0) {
      const above = this.content.ranks[this.cards[this.current - 1].id];
      if (above) this.put(this.current, above);
    } else if (action.startsWith("flag-") && this.step === 1) {
      const card = this.cards[this.current], box = card.flags.toggle(Number(action.slice(5)));
      card.marks.open = true;
      this.say(`${card.name}: ${box.parentNode.textContent} ${box.checked ? "marked" : "not marked"}`);
    }
  }

  problem() {
    const unrated = this.cards.findIndex(({ rating }) => !rating.likert);
    if (unrated >= 0) { this.goTo(1); return { text: `Rate response ${letter(unrated)} from 1 to 7.`, show: () => this.focus(unrated) }; }
    if (this.step === 1) { this.goTo(2); return { text: "Now give each response a place.", show: () => this.focus(0) }; }
    const unplaced = this.content.all_bad ? -1 : this.cards.findIndex(({ id }) => !this.content.ranks[id]);
    return unplaced < 0 ? null : { text: `Give response ${letter(unplaced)} a place.`, show: () => this.focus(unplaced) };
  }

  // Two responses whose ratings and places say the opposite by two steps or more.
  contradiction() {
    const { ranks } = this.content;
    for (const a of this.cards) {
      for (const b of this.cards) {
        if (ranks[a.id] < ranks[b.id] && b.rating.likert - a.rating.likert >= 2)
          return `You rated ${b.name} ${b.rating.likert} and ${a.name} ${a.rating.likert}, but put ${a.name} before ${b.name}. Submit again if that is what you mean.`;
      }
    }
    return null;
  }
}

const SIDES = [[3, "A is much better"], [2, "A is better"], [1, "A is slightly better"], [0, "They are equal"], [-1, "B is slightly better"], [-2, "B is better"], [-3, "B is much better"]];

export class PairForm {
  constructor(task, words, content, changed, say) {
    Object.assign(this, { task, content, changed, say });
    const prompt = promptCard(task.prompt), rest = asides(content, words, changed, prompt);
    const cards = task.responses.map(({ id, text }, i) => {
      const node = el("article", { className: "card", tabIndex: -1 }, el("h3", {}, `Response ${letter(i)}`), textBlock(text, `response ${letter(i)}`), this.marks(id, i, words));
      node.setAttribute("aria-label", `Response ${letter(i)}`);
      return node;
    });
    this.choice = scale("choice", "Which is better?", [...SIDES.map(([value, face], i) => [value, `${i + 1}: ${face}`]), ["bad", "b: Both are bad"]], (value) => this.choose(value));
    if (content.all_bad) this.choice.pick("bad");
    else if (Object.keys(content.ranks).length) this.choice.pick(content.strength ?? 0);
    this.node = el("div", {}, prompt, el("div", { className: "pair" }, ...cards), el("div", { className: "card" }, this.choice), rest);
    this.first = cards[0];
  }

  start() { this.first.focus(); }

  // What applies to a response: the gate of a round asks whether harm has risen.
  marks(id, i, words) {
    const rating = (this.content.ratings[id] ??= { likert: null, flags: [] }), count = el("span");
    const tell = () => (count.textContent = rating.flags.length ? ` (${rating.flags.length})` : "");
    const flags = checks(`What applies to response ${letter(i)}`, words.response_flags, [], (picked) => { rating.flags = picked; tell(); this.changed(); });
    flags.pick(rating.flags);
    tell();
    return el("details", {}, el("summary", {}, "What applies to it", count), flags);
  }

  choose(value) {
    const [first, second] = this.task.responses.map(({ id }) => id);
    this.content.all_bad = value === "bad";
    this.content.strength = value === "bad" || value === 0 ? null : value;
    this.content.ranks = value === "bad" ? {} : { [first]: value >= 0 ? 1 : 2, [second]: value <= 0 ? 1 : 2 };
    this.choice.pick(value);
    this.say(value === "bad" ? "Both are bad" : SIDES.find(([one]) => one === value)[1]);
    this.changed();
  }

  digit(n) { if (n <= 7) this.choose(SIDES[n - 1][0]); }
  act(action) { if (action === "bad") this.choose("bad"); }
  contradiction() { return null; }
  problem() { return this.content.all_bad || Object.keys(this.content.ranks).length ? null : { text: "Say which response is better.", show: () => this.choice.querySelector("input").focus() }; }
}

const PERSONAL = [["an e-mail address", /[\w.+-]+@[\w-]+\.\w{2,}/], ["a telephone number", /(?:\+|\b0)[\d ()/-]{7,}\d/], ["a card number", /\b(?:\d[ -]?){13,19}\b/]];

export class DemonstrateForm {
  constructor(task, words, content, changed, say) {
    Object.assign(this, { content, say });
    const prompt = promptCard(task.prompt), rest = asides(content, words, changed, prompt);
    const count = el("p", { className: "soft" }), warning = el("p", { className: "notice", hidden: true });
    this.field = el("textarea", { rows: 10, id: "text", spellcheck: true, value: content.text, dir: "auto" });
    const update = () => {
      const words = content.text.split(/\s+/).filter(Boolean).length;
      count.textContent = `${words} words, ${content.text.length} characters`;
      const seen = PERSONAL.filter(([, pattern]) => pattern.test(content.text)).map(([name]) => name);
      warning.hidden = !seen.length;
      warning.textContent = `This looks like it has ${seen.join(" and ")}. Take out personal data before you submit.`;
    };
    this.field.oninput = () => { content.text = this.field.value; update(); changed(); };
    const shown = task.responses.map(({ id, text }) => el("section", { className: "card" }, el("h3", {}, "A response to start from"), textBlock(text, "it"),
      el("button", { type: "button", onclick: () => { this.field.value = content.text = text; content.edited_from = id; update(); changed(); this.field.focus(); } }, "Edit this response")));
    this.node = el("div", {}, prompt, ...shown, el("div", { className: "card" }, el("label", { htmlFor: "text" }, "Your response"), this.field, count, warning), rest);
    update();
  }

  start() { this.field.focus(); }
  digit() {}
  act() {}
  contradiction() { return null; }
  problem() { return this.content.text.trim() ? null : { text: "The response is empty: write it, or skip the item.", show: () => this.field.focus() }; }
}

export const FORMS = { rank: RankForm, pair: PairForm, demonstrate: DemonstrateForm };
