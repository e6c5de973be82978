"use strict";
// Theme, charts and search. Loaded in the head, so that the theme stands before anything is drawn.
(() => {
  const root = document.documentElement;
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const telephone = window.matchMedia("(max-width: 40rem)");
  const KEY = "zeitgeist-theme";
  let chosen = null;
  try {
    chosen = localStorage.getItem(KEY);
  } catch {
    // Some browsers keep nothing for pages opened as files; then the system's choice stands.
  }

  const theme = () => chosen ?? (prefersDark.matches ? "dark" : "light");

  function applyTheme() {
    root.dataset.theme = theme();
    const button = document.getElementById("theme");
    if (button) {
      button.setAttribute("aria-pressed", String(theme() === "dark"));
    }
  }

  root.classList.add("scripted");
  applyTheme();

  const views = new Map();

  async function drawOne(data) {
    const name = data.dataset.figure;
    const box = document.getElementById("chart-" + name);
    const figure = box.closest("figure");
    const look = theme();
    try {
      views.get(name)?.finalize();
      const narrow = telephone.matches && document.querySelector(`.narrow[data-figure="${name}"]`);
      const view = await window.drawChart(box, JSON.parse((narrow || data).textContent), {
        config: window.chartLooks[look],
        renderer: "svg",
        actions: false,
        // Expressions are interpreted and styles stand in site.css: the page's policy forbids the rest.
        ast: true,
        defaultStyle: false,
        tooltip: { disableDefaultStyle: true, theme: look },
      });
      views.set(name, view);
      // A layer without a mark that has a name would be announced as a picture of nothing.
      for (const part of box.querySelectorAll('[role^="graphics-"]:not([aria-label], :has([aria-label]))')) {
        part.setAttribute("aria-hidden", "true");
      }
      figure.dataset.drawn = look;
    } catch (error) {
      // The still picture says the same.
      figure.dataset.drawn = "failed";
      console.error(error);
    }
  }

  async function drawAll() {
    for (const data of document.querySelectorAll("script.spec")) {
      await drawOne(data);
    }
  }

  let drawing = Promise.resolve();
  const draw = () => (drawing = drawing.then(drawAll));

  function changeTheme(value) {
    chosen = value;
    try {
      localStorage.setItem(KEY, value);
    } catch {
      // Not kept; see above.
    }
    applyTheme();
    draw();
  }

  // Accents and capitals make no difference to a search.
  const plain = (text) => text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toLowerCase();

  function search(words) {
    const found = [];
    for (const entry of window.searchIndex) {
      const fields = [
        [8, [entry.title, entry.slug]],
        [4, [entry.purpose, ...entry.sections]],
        [2, entry.claims],
        [1, [entry.authors, entry.arxiv]],
      ];
      let score = 0;
      const missed = words.filter((word) => {
        const points = fields
          .filter(([, texts]) => texts.some((text) => plain(text).includes(word)))
          .map(([points]) => points);
        score += Math.max(0, ...points);
        return points.length === 0;
      });
      if (missed.length === 0) {
        // What is not in the title or the purpose, which are shown anyway, is quoted.
        const shown = plain([entry.title, entry.slug, entry.purpose, ...entry.sections].join(" "));
        const elsewhere = words.filter((word) => !shown.includes(word));
        const claim = entry.claims.find((text) => elsewhere.some((word) => plain(text).includes(word)));
        found.push({ entry, score, because: elsewhere.length ? (claim ?? entry.authors) : "" });
      }
    }
    return found.sort((a, b) => b.score - a.score);
  }

  function element(name, text, attributes = {}) {
    const made = document.createElement(name);
    made.textContent = text;
    Object.assign(made, attributes);
    return made;
  }

  function startSearch() {
    const form = document.getElementById("search");
    if (!form || !window.searchIndex) {
      return;
    }
    const input = document.getElementById("query");
    const said = document.getElementById("said");
    const list = document.getElementById("found");
    const issue = document.getElementById("issue");
    const show = () => {
      const words = plain(input.value).split(/\s+/).filter(Boolean);
      issue.hidden = words.length > 0;
      list.replaceChildren();
      if (words.length === 0) {
        said.textContent = "";
        return;
      }
      const found = search(words);
      const asked = input.value.trim();
      said.textContent = found.length
        ? `${found.length} system${found.length === 1 ? "" : "s"} found for “${asked}”`
        : `Nothing found for “${asked}”. Try fewer or other words, or empty the field to see the whole issue.`;
      for (const { entry, because } of found) {
        const item = element("li", "");
        item.append(element("a", entry.title, { href: entry.path }));
        item.append(element("p", entry.purpose));
        if (because) {
          item.append(element("p", because, { className: "soft" }));
        }
        list.append(item);
      }
    };
    form.hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      list.querySelector("a")?.focus();
    });
    input.addEventListener("input", show);
    show();
  }

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    button.hidden = false;
    applyTheme();
    button.addEventListener("click", () => changeTheme(theme() === "dark" ? "light" : "dark"));
    prefersDark.addEventListener("change", () => {
      applyTheme();
      draw();
    });
    telephone.addEventListener("change", draw);
    draw();
    startSearch();
  });
})();
