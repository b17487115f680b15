"use strict";
// Cards of training examples, and what every script needs. Everything from data is shown through textContent.

const SHOWN = 5; // cards of each end before "show all"
const SIGNS = { helpful: "▲", harmful: "▼" };

const byId = (id) => document.getElementById(id);

function make(tag, attributes, ...children) {
  const svg = ["svg", "rect", "line", "text", "title"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function number(value) {
  const size = Math.abs(value);
  const text = size >= 1000 ? Math.round(size).toLocaleString("en") : String(Number(size.toPrecision(4)));
  return (value < 0 ? "−" : "") + text;
}

const signed = (value) => (value > 0 ? "+" : "") + number(value);

// ---- Theme ------------------------------------------------------------------------------------------------------

function remembered() {
  try { return localStorage.getItem("whence-theme"); } catch { return null; } // no storage in a sandboxed frame
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").setAttribute("aria-pressed", String(theme === "dark"));
}

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(remembered() || (dark ? "dark" : "light"));
  byId("theme").hidden = false;
  byId("theme").addEventListener("click", () => {
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    try { localStorage.setItem("whence-theme", document.documentElement.dataset.theme); } catch { /* see above */ }
  });
}

// ---- Tokens -----------------------------------------------------------------------------------------------------

function completionStart(example) {
  const text = example.pieces.join("");
  return text.endsWith(example.completion) ? text.length - example.completion.length : text.length;
}

function plainText(example) {
  const text = make("div", { class: "text", dir: "auto", tabindex: "0", role: "group", "aria-label": "Training example" });
  const whole = example.pieces.join(""), start = completionStart(example);
  text.append(whole.slice(0, start), make("span", { class: "answer" }, whole.slice(start)));
  return text;
}

function tokenText(example, weights, readout) {
  if (!weights.length) return plainText(example);
  const text = make("div", { class: "text tokens", dir: "auto", tabindex: "0", role: "group",
    "aria-label": "Training example, word by word: the arrow keys go through its words and their influence" });
  const start = completionStart(example);
  const largest = Math.max(...weights.map(Math.abs));
  let at = 0;
  const tokens = example.pieces.map((piece, i) => {
    const share = Math.abs(weights[i]) / largest;
    const side = share < 0.02 ? "" : weights[i] > 0 ? " more" : " less";
    at += piece.length;
    const token = make("span", { class: "token" + side + (at > start ? " answer" : "") }, piece);
    token.style.setProperty("--weight", share.toFixed(3));
    return token;
  });
  text.append(...tokens);
  const strongest = weights.reduce((best, value, i) => (Math.abs(value) > Math.abs(weights[best]) ? i : best), 0);
  const size = weights.reduce((sum, value) => sum + Math.abs(value), 0);
  let active = -1;

  function say(i, lead) {
    const name = (token) => `“${token.textContent.trim() || "white space"}”`;
    const share = `${Math.round((Math.abs(weights[i]) / size) * 100)} % of the influence`;
    const next = i + 1 < tokens.length ? ` before ${name(tokens[i + 1])}` : "";
    readout.replaceChildren(lead, make("b", {}, name(tokens[i])), `${next}: ${signed(weights[i])}, ${share}`);
  }

  function activate(i) {
    if (active >= 0) tokens[active].classList.remove("active");
    active = i;
    if (i < 0) { say(strongest, "Strongest: "); return; }
    tokens[i].classList.add("active");
    say(i, "");
  }

  activate(-1);
  text.addEventListener("pointerover", (event) => {
    const i = tokens.indexOf(event.target);
    if (i >= 0) activate(i);
  });
  text.addEventListener("pointerleave", () => activate(document.activeElement === text ? strongest : -1));
  text.addEventListener("focus", () => activate(strongest));
  text.addEventListener("blur", () => activate(-1));
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const target = { Home: 0, End: tokens.length - 1 }[event.key] ?? (step ? active + step : null);
    if (target === null) return;
    event.preventDefault();
    activate(Math.max(0, Math.min(tokens.length - 1, target)));
    const token = tokens[active];
    if (token.offsetTop < text.scrollTop || token.offsetTop > text.scrollTop + text.clientHeight) token.scrollIntoView({ block: "nearest" });
  });
  return text;
}

// ---- Bars -------------------------------------------------------------------------------------------------------

function bars(names, shares, caption) {
  const short = names.map((name) => name.replace(/^(layer|turn) /, "").replace(/_proj$/, ""));
  const width = short.some((name) => name.length > 3) ? 34 : names.length > 12 ? 11 : 16;
  const height = 34;
  const most = Math.max(...shares.map(Math.abs), 0.001);
  const lowest = Math.min(...shares, 0);
  const highest = Math.max(...shares, 0);
  const scale = height / (highest - lowest || most);
  const zero = highest * scale;
  const said = names.map((name, i) => `${name} ${Math.round(100 * shares[i])} %`);
  const size = { width: width * names.length, height: height + 14 };
  const svg = make("svg", { ...size, viewBox: `0 0 ${size.width} ${size.height}`, role: "img", "aria-label": `${caption}: ${said.join(", ")}` });
  shares.forEach((value, i) => {
    const length = Math.max(Math.abs(value) * scale, 1);
    const bar = make("rect", { x: i * width + 1.5, y: value >= 0 ? zero - length : zero, width: width - 3, height: length,
      rx: 1, class: value >= 0 ? "up" : "down" });
    bar.append(make("title", {}, said[i]));
    svg.append(bar);
    if (width >= 16 || i % 5 === 0) svg.append(make("text", { x: (i + 0.5) * width, y: height + 12 }, short[i]));
  });
  return make("figure", {}, svg, make("span", {}, caption));
}

// ---- Cards --------------------------------------------------------------------------------------------------------

// What draws the cards of `data`: its training examples, and what shares by layer and by module are in the order of.
function cards(data) {
  function through(values) {
    if (!values.layers) return null;
    const turns = (values.turns || []).map((_, i) => `turn ${i + 1}`);
    return make("div", { class: "bars" }, bars(data.layers, values.layers, "by layer"), bars(data.kinds, values.kinds, "by module"),
      turns.length ? bars(turns, values.turns, "by turn of the assistant") : null);
  }

  const label = (example) => (example.label ? `label ${example.label}` : "");

  const opener = (example) => (data.opens ? make("button", { type: "button", "data-id": example.id }, "Open this row") : null);

  function cardOf(card, end) {
    const example = data.examples[card.example];
    const readout = make("output", { class: "readout", "aria-live": "polite" });
    const overlap = card.overlap_rank === null ? "no word shared" : `BM25 number ${number(card.overlap_rank)}`;
    const facts = [label(example), `z ${signed(card.z_score)}`, `score ${signed(card.score)}`, overlap, example.id];
    return make("li", { class: `card ${end}` },
      make("p", { class: "standing" }, make("span", { class: "sign", "aria-hidden": "true" }, SIGNS[end]), card.standing[0].toUpperCase() + card.standing.slice(1)),
      make("p", { class: "meta", dir: "auto" }, facts.filter(Boolean).join(" · ")),
      tokenText(example, card.parts, readout), readout, through(card), opener(example));
  }

  function column(title, end, cards) {
    const list = make("ol", {});
    const box = make("div", {}, make("h3", {}, title), list);
    if (!cards.length) list.append(make("li", { class: "quiet" }, `No example was ${end}.`));
    list.append(...cards.slice(0, SHOWN).map((card) => cardOf(card, end)));
    if (cards.length > SHOWN) {
      const button = make("button", { type: "button", class: "show-all" }, `Show all ${cards.length}`);
      button.addEventListener("click", () => {
        const rest = cards.slice(SHOWN).map((card) => cardOf(card, end));
        list.append(...rest);
        button.remove();
        rest[0].querySelector(".text").focus();
      });
      box.append(button);
    }
    return box;
  }

  function overlapColumn(near) {
    const list = make("ol", {});
    if (!near.length) list.append(make("li", { class: "quiet" }, "No example shares a word."));
    near.forEach((neighbour, i) => {
      const example = data.examples[neighbour.example];
      const rank = neighbour.influence_rank;
      const facts = [rank === null ? "not among the first by influence" : `number ${number(rank)} of ${number(data.count)} by influence`, label(example), example.id];
      list.append(make("li", { class: "card overlap" },
        make("p", { class: "standing" }, `BM25 number ${i + 1}`),
        make("p", { class: "meta", dir: "auto" }, facts.filter(Boolean).join(" · ")),
        plainText(example), opener(example)));
    });
    return make("div", {}, make("h3", {}, "What word overlap (BM25) finds"), list);
  }

  return { column, overlapColumn, through };
}
