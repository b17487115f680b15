// The report's own script, after cards.js. It may have no storage, no network and no downloads (a sandboxed frame).
(async () => {
  async function unpacked() {
    const bytes = Uint8Array.from(atob(byId("report-data").textContent), (sign) => sign.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  }

  // ---- Entries ------------------------------------------------------------------------------------------------------

  function drawEntry(details) {
    const box = details.querySelector(".examples");
    if (!box || box.dataset.drawn) return;
    box.dataset.drawn = "yes";
    const entry = data.entries[Number(box.dataset.entry)];
    box.replaceChildren(draw.column("Most helpful", "helpful", entry.helpful), draw.column("Most harmful", "harmful", entry.harmful), draw.overlapColumn(entry.neighbours));
    if (entry.layers) {
      box.before(make("div", { class: "through" }, make("p", { class: "note" }, "Where the influence of the most helpful examples comes through, together:"), draw.through(entry)));
    }
  }

  // ---- Search and sort --------------------------------------------------------------------------------------------

  function startTools(entries) {
    const search = byId("search");
    const texts = data.examples.map((example) => `${example.id} ${example.label || ""} ${example.pieces.join("")}`.toLowerCase());
    const shown = data.entries.map((entry) => new Set([...entry.helpful, ...entry.harmful].map((card) => card.example)));
    const own = entries.map((details) => details.textContent.toLowerCase());
    document.querySelector(".tools").hidden = false;
    document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());

    function filter() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      entries.forEach((details, i) => {
        const found = words.every((word) => own[i].includes(word) || (shown[i] && [...shown[i]].some((e) => texts[e].includes(word))));
        details.hidden = !found;
        count += found;
      });
      byId("found").textContent = words.length ? `${count} of ${entries.length} answers` : `${entries.length} answers`;
      byId("nothing").hidden = count > 0;
    }

    const value = (details, key) => Number(details.dataset[key]);
    const orders = {
      order: () => 0,
      name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, "en", { numeric: true }),
      helpful: (a, b) => value(b, "helpful") - value(a, "helpful"),
      harmful: (a, b) => value(a, "harmful") - value(b, "harmful"),
      overlap: (a, b) => value(a, "overlap") - value(b, "overlap"),
      wrong: (a, b) => value(b, "wrong") - value(a, "wrong"),
    };
    search.addEventListener("input", filter);
    byId("sort").addEventListener("change", (event) => byId("entries").append(...[...entries].sort(orders[event.target.value])));
  }

  // ---- Links within the page --------------------------------------------------------------------------------------

  function goTo(id, focus) {
    const target = id && byId(id);
    if (!target) return;
    if (target.matches("details")) {
      target.hidden = false;
      target.open = true;
      drawEntry(target);
    }
    target.scrollIntoView();
    if (focus) (target.querySelector("summary, h1, h2") || target).focus({ preventScroll: true });
  }

  // A fragment of a frame made from text (srcdoc) would be looked for in the page around it, so links are followed here.
  function startLinks() {
    const here = () => { try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; } };
    document.addEventListener("click", (event) => {
      const link = event.target.closest('a[href^="#"]');
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      const id = link.getAttribute("href").slice(1);
      try { history.pushState(null, "", `#${id}`); } catch { /* the frame has no address of its own */ }
      goTo(id, true);
    });
    addEventListener("hashchange", () => goTo(here(), true));
    addEventListener("popstate", () => goTo(here(), false));
    goTo(here(), true);
  }

  // ---- Print ------------------------------------------------------------------------------------------------------

  function startPrint() {
    let opened = [];
    let printing = false;
    addEventListener("beforeprint", () => {
      printing = true;
      opened = [...document.querySelectorAll("details:not([open])")];
      opened.forEach((details) => { details.open = true; }); // undrawn ones print the page's own text, not every card
    });
    addEventListener("afterprint", () => {
      opened.forEach((details) => { details.open = false; });
      setTimeout(() => { printing = false; }); // toggle events come later than the change
    });
    return () => printing;
  }

  startTheme();
  const isPrinting = startPrint(); // before the data are unpacked, for who prints at once
  const data = await unpacked();
  const draw = cards(data);
  const entries = [...document.querySelectorAll(".entry")];
  entries.forEach((details) => details.addEventListener("toggle", () => { if (details.open && !isPrinting()) drawEntry(details); }));
  entries.filter((details) => details.open).forEach(drawEntry); // opened while the data was unpacked
  startTools(entries);
  startLinks();
})();
