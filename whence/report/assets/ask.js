// The page that answers questions, after cards.js. A question and its answer stand in the address, and nowhere else.
(() => {
  const ENDS = { helpful: "Most helpful", harmful: "Most harmful" };
  const KINDS = {
    estimate: "Estimated from the index; exact scores follow.",
    exact: "Exact scores of the rows shown, ranked among the candidates of the index.",
  };
  let result = null; // of the last question: what the rows are about, and the rows
  let running = null;
  let before = []; // the turns that the next question follows, where the model chats

  const say = (text) => { byId("status").textContent = text; };

  function* linesOf(buffer) {
    let end;
    while ((end = buffer.text.indexOf("\n")) >= 0) {
      yield JSON.parse(buffer.text.slice(0, end));
      buffer.text = buffer.text.slice(end + 1);
    }
  }

  async function ask(question) {
    if (running) running.abort();
    const mine = running = new AbortController();
    byId("stop").hidden = false;
    start(question);
    try {
      const response = await fetch("api/ask", { method: "POST", signal: mine.signal, body: JSON.stringify(question),
        headers: { "Content-Type": "application/json", Accept: "application/x-ndjson" } });
      if (!response.ok) throw new Error(await refusal(response));
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const buffer = { text: "" };
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
        buffer.text += piece.value;
        for (const event of linesOf(buffer)) show[event.event](event);
      }
    } catch (error) {
      say(error.name === "AbortError" ? "Stopped." : error.message);
    }
    if (running !== mine) return;
    running = null;
    byId("stop").hidden = true;
  }

  async function refusal(response) {
    try {
      const { detail } = await response.json();
      return typeof detail === "string" ? detail : detail.map((fault) => `${fault.loc.at(-1)}: ${fault.msg}`).join("; ");
    } catch { return `The service answered ${response.status}.`; }
  }

  function start(question) {
    result = { question: question.question, before: question.before || [], answer: "", rows: [] };
    if (byId("continue")) byId("continue").disabled = true;
    byId("result").hidden = false;
    byId("asked").textContent = question.question;
    byId("said").textContent = "";
    byId("base-answer").textContent = "";
    byId("base-box").hidden = true;
    byId("ended").hidden = byId("filters").hidden = true;
    byId("kind").textContent = question.about ? `About the words “${question.about}” alone.` : "";
    byId("examples").replaceChildren();
    byId("about").disabled = true;
    say("Asking …");
  }

  const show = {
    queued: ({ ahead, seconds }) => say(`Waiting: ${ahead} before you, about ${Math.ceil(seconds)} s.`),
    token: ({ text }) => { byId("said").append(text); say("Answering …"); },
    answer(event) {
      result.answer = event.text;
      byId("said").textContent = event.text;
      if (byId("continue")) byId("continue").disabled = false;
      if (event.ended !== "end of text") {
        byId("ended").hidden = false;
        byId("ended").textContent = event.ended === "empty" ? "The model ended its answer at once." : "The answer was cut off at its greatest length.";
      }
      say("Looking for the training examples …");
    },
    base({ text }) {
      byId("base-box").hidden = false;
      byId("base-answer").textContent = text;
    },
    rows(event) {
      // Whoever reads already is not disturbed where further candidates change nothing.
      const order = ({ exact, rows }) => JSON.stringify([exact, ...(rows || []).map((row) => [row.end, row.id, row.influence_rank])]);
      const changed = order(result) !== order(event);
      Object.assign(result, event);
      if (changed) draw();
      say(event.exact ? "Exact scores; those of further candidates follow." : "First rows; exact scores follow.");
    },
    done: ({ seconds }) => say(`Done in ${seconds.toFixed(1)} s.`),
    error: ({ message }) => say(message),
  };

  // ---- Rows -------------------------------------------------------------------------------------------------------

  function draw() {
    const about = [KINDS[result.exact ? "exact" : "estimate"], result.in_words, result.evidence];
    byId("kind").textContent = about.filter(Boolean).join(" ");
    for (const name of ["label", "source"]) choices(name);
    byId("filters").hidden = false;
    byId("permalink").href = address(result);
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = (row) => ["label", "source"].every((name) => !byId(name).value || row[name] === byId(name).value) &&
      words.every((word) => `${row.id} ${row.label || ""} ${row.pieces.join("")}`.toLowerCase().includes(word));
    const rows = result.rows.filter(wanted).map((row) => ({ ...row, example: result.rows.indexOf(row) }));
    const drawing = cards({ opens: true, examples: result.rows, count: result.count, layers: result.layers, kinds: result.kinds });
    byId("examples").replaceChildren(
      ...Object.entries(ENDS).map(([end, title]) => drawing.column(title, end, rows.filter((row) => row.end === end))),
      drawing.overlapColumn(rows.filter((row) => row.end === "overlap")));
  }

  function choices(name) {
    const values = [...new Set(result.rows.map((row) => row[name]).filter(Boolean))].sort();
    const chosen = byId(name).value;
    byId(name).replaceChildren(make("option", { value: "" }, "all"), ...values.map((value) => make("option", { value }, value)));
    byId(name).value = values.includes(chosen) ? chosen : "";
    byId(`${name}-filter`).hidden = values.length < 2;
  }

  async function open(id) {
    const response = await fetch(`api/examples/${encodeURIComponent(id)}`);
    if (!response.ok) { say(await refusal(response)); return; }
    const row = await response.json();
    byId("row-title").textContent = row.id;
    const list = (title, items, text) => make("div", {}, make("h3", {}, title), make("ol", {}, ...items.map((item) => make("li", { dir: "auto" }, text(item)))));
    byId("row-body").replaceChildren(
      make("p", { class: "text", dir: "auto" }, `${row.prompt} `, make("span", { class: "answer" }, row.completion)),
      list("Nearest by its words", row.nearest, (near) => `${near.id} (${Math.round(100 * near.similarity)} %): ${near.text}`),
      list("Of the run's questions it influenced most", row.influences, (query) => `${signed(query.z_score)} ${query.id}: ${query.prompt}`));
    byId("row").showModal();
  }

  // ---- Links and files --------------------------------------------------------------------------------------------

  const address = ({ question, answer, before }) => "#" + new URLSearchParams({ question, answer, ...(before.length ? { before: JSON.stringify(before) } : {}) });

  function follow(turns) {
    if (!byId("before")) return;
    before = turns;
    byId("before").hidden = !turns.length;
    byId("turns").replaceChildren(...turns.map((turn) => make("li", { dir: "auto" }, make("b", {}, turn.role), ` ${turn.content}`)));
  }

  function turnsOf(text) {
    try { return JSON.parse(text || "[]"); } catch { return []; }
  }

  function fromAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (!asked.get("question")) return;
    byId("question").value = asked.get("question");
    byId("answer").value = asked.get("answer") || "";
    follow(turnsOf(asked.get("before")));
    ask(written());
  }

  const written = () => ({ question: byId("question").value, before, answer: byId("answer").value || null, base: byId("base").checked, as_input: byId("as-input").checked });

  function save(name, kind, text) {
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: kind })), download: name });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function table(rows) {
    const columns = ["end", "rank", "id", "label", "source", "score", "z_score", "overlap_rank"];
    // A spreadsheet must not take text for a formula.
    const cell = (value) => { const text = String(value ?? ""); return `"${(typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`; };
    const lines = rows.map((row) => [...columns.map((name) => cell(row[name])), cell(row.pieces.join(""))].join(","));
    return [[...columns, "text"].join(","), ...lines].join("\r\n");
  }

  function selection() {
    const chosen = getSelection();
    const inside = chosen.rangeCount && byId("said").contains(chosen.getRangeAt(0).commonAncestorContainer);
    return inside ? chosen.toString().trim() : "";
  }

  byId("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(written()); });
  byId("question").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(written()); });
  byId("stop").addEventListener("click", () => running && running.abort());
  byId("filters").addEventListener("input", draw);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("csv").addEventListener("click", () => save("rows.csv", "text/csv", table(result.rows)));
  byId("json").addEventListener("click", () => save("rows.json", "application/json", JSON.stringify(result, null, 1)));
  document.addEventListener("selectionchange", () => { byId("about").disabled = !result || !result.answer || !selection(); });
  byId("about").addEventListener("click", () => ask({ question: result.question, before: result.before, answer: result.answer, about: selection() }));
  byId("examples").addEventListener("click", (event) => { const link = event.target.closest("button[data-id]"); if (link) open(link.dataset.id); });
  if (byId("before")) {
    byId("continue").addEventListener("click", () => {
      follow([...result.before, { role: "user", content: result.question }, { role: "assistant", content: result.answer }]);
      byId("question").value = byId("answer").value = "";
      byId("question").focus();
    });
    byId("anew").addEventListener("click", () => { follow([]); byId("question").focus(); });
  }
  addEventListener("hashchange", fromAddress);
  startTheme();
  fromAddress();
})();
