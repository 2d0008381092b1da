"use strict";
// Intervals, ranks and pairs of one data set, whose script is loaded when it is chosen.
(() => {
  const scripts = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("controls"), filter = document.getElementById("filter");
  const DEFAULT = { dataset: Object.keys(scripts)[0], metric: "" };
  let state = readState(DEFAULT);
  const loaded = {};
  const ask = (id) => document.getElementById(id);
  const p = (value) => (!defined(value) ? "–" : value < 0.001 ? "< 0.001" : value.toFixed(3));

  function pairs(found) {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = Object.entries(found.pairs[state.metric] ?? {}).flatMap(([first, seconds]) => Object.entries(seconds).map(([second, values]) => [first, second, ...values]))
      .filter(([first, second]) => words.every((word) => first.toLowerCase().includes(word) || second.toLowerCase().includes(word)));
    const table = ask("pairs");
    const head = (text, number) => el("th", { scope: "col", class: number ? "number" : null }, text);
    const cell = (value, text) => el("td", { class: "number", "data-value": value ?? "" }, text);
    table.replaceChildren(
      el("caption", { class: "hidden" }, "Pairs of algorithms"),
      el("thead", {}, el("tr", {}, head("first"), head("second"), head("difference", 1), head("low", 1), head("high", 1), head("p, Nemenyi", 1), head("p, Wilcoxon", 1), head("p, Holm", 1))),
      el("tbody", {}, rows.map(([first, second, difference, low, high, nemenyi, wilcoxon, holm]) => el("tr", { class: defined(low) && (low > 0 || high < 0) ? "set" : null },
        el("th", { scope: "row" }, first), el("td", {}, second), cell(difference, signed(difference)), cell(low, signed(low)), cell(high, signed(high)), cell(nemenyi, p(nemenyi)), cell(wilcoxon, p(wilcoxon)), cell(holm, p(holm))))));
    sortable(table);
  }

  function draw(found) {
    const set = window.REPORT.datasets[state.dataset];
    const metrics = set.metrics.filter((m) => found.intervals[m]);
    state.metric = fill(form.elements.metric, metrics.map((m) => [m, m]), state.metric);
    const names = ranked(set, state.metric);
    const items = names.map((name) => { const [low, high] = found.intervals[state.metric][name]?.mean ?? [null, null]; return { name, value: valueOf(set, state.metric, name, "mean"), low, high }; });
    const best = items.map((i) => i.value).filter(defined);
    const confidence = found.tests[state.metric]?.confidence;
    const tests = found.tests[state.metric] ?? {};
    const figure = ask("forest");
    figure.replaceChildren(el("figcaption", {}, `${state.metric}, mean over ${set.categories.length} categories `, el("span", {}, `${confidence ? `${100 * confidence} % ` : ""}bootstrap intervals; dashed: the best mean`)));
    forestChart(figure, { items, label: state.metric, name: `${state.metric} with intervals`, guide: best.length ? Math.max(...best) : null });
    const paper = tests.paper_measure;
    ask("paper").textContent = paper ? `The paper's own measure: error bars of one standard deviation over categories that hold the best mean: ${paper.length ? paper.join(", ") : "of no other algorithm"}.` : "";
    const friedman = tests.friedman ?? {};
    ask("friedman").textContent = defined(friedman.statistic)
      ? `Friedman: χ² = ${friedman.statistic.toFixed(2)}, p ${friedman.p < 0.001 ? "< 0.001" : `= ${friedman.p.toFixed(3)}`} over ${friedman.categories} categories. Critical difference of mean ranks: ${fixed(tests.critical_difference, 2)} at α = ${tests.alpha}.`
      : `Friedman's test is undefined: ${friedman.reason ?? "no reason given"}.`;
    const diagram = found.diagrams[state.metric];
    ask("diagram").replaceChildren(...(diagram ? [el("img", { src: diagram, loading: "lazy", alt: found.described[state.metric] ?? `Critical-difference diagram of ${state.metric}: mean ranks, best ${items.length ? names[0] : ""}; joined are algorithms that the test does not tell apart, listed below.` })] : [el("p", { class: "note" }, "No diagram.")]));
    const ranks = Object.entries(found.ranks[state.metric] ?? {}).sort((a, b) => compare(a[1][0], b[1][0], false));
    const table = el("table", { class: "data sortable" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "algorithm"), el("th", { scope: "col", class: "number" }, "mean rank"), el("th", { scope: "col", class: "number" }, "wins"))),
      el("tbody", {}, ranks.map(([name, [rank, wins]]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "number" }, fixed(rank, 2)), el("td", { class: "number" }, defined(wins) ? String(wins) : "")))));
    sortable(table);
    const groups = tests.groups ?? [];
    ask("groups").replaceChildren(el("p", {}, groups.length ? "Not told apart:" : "No groups of algorithms that are not told apart."),
      el("ul", {}, groups.map((group) => el("li", {}, group.join(", ")))), el("div", { class: "scroll", role: "region", "aria-label": "Mean ranks", tabindex: 0 }, table));
    pairs(found);
    writeState(state, { ...DEFAULT, metric: metrics[0] });
  }

  function load() {
    state.dataset = fill(form.elements.namedItem("dataset"), Object.keys(scripts).map((n) => [n, n]), state.dataset);
    const wanted = state.dataset;
    if (loaded[wanted]) { draw(loaded[wanted]); return; }
    document.head.append(el("script", { src: scripts[wanted], onload: () => { loaded[wanted] = window.SIGNIFICANCE; if (state.dataset === wanted) draw(loaded[wanted]); } }));
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => { state[event.target.name] = event.target.value; load(); });
  filter.addEventListener("input", () => pairs(loaded[state.dataset]));
  addEventListener("hashchange", () => { state = readState(DEFAULT); load(); });
  load();
})();
