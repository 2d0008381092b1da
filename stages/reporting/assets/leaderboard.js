"use strict";
// The leaderboard: what the form and the link say, as a table.
(() => {
  const { datasets, algorithms, published, sources, costs } = window.REPORT;
  const names = Object.keys(datasets);
  const form = document.getElementById("controls");
  const table = document.getElementById("table");
  const DEFAULT = {
    dataset: names[0], category: "mean", seeds: "mean", published: "all", filter: "",
    metrics: "", costs: Object.keys(costs).filter((key) => key !== "gpu_mb").join(","), sort: "", dir: "desc",
  };
  let state = readState(DEFAULT);

  function complete() {
    if (!(state.dataset in datasets)) state.dataset = names[0];
    const set = datasets[state.dataset];
    if (state.category !== "mean" && !set.categories.includes(state.category)) state.category = "mean";
    if (!["mean", "min", "max", ...set.seeds.map(String)].includes(state.seeds)) state.seeds = "mean";
    state.shown = state.metrics ? state.metrics.split(",").filter((m) => set.metrics.includes(m)) : [];
    if (!state.shown.length) state.shown = set.metrics;
    state.paid = state.costs.split(",").filter((key) => key in costs);
    if (state.dir !== "asc") state.dir = "desc";
    return set;
  }

  function usedSources() {
    const found = new Set();
    for (const by of Object.values(published[state.dataset] ?? {}))
      for (const categories of Object.values(by))
        for (const cell of Object.values(categories)) Object.keys(cell).forEach((name) => found.add(name));
    return [...found].sort();
  }

  /** The published value of a cell: [value, source], by the source chosen or the first there is. */
  function paper(metric, algorithm) {
    if (state.published === "none") return null;
    const cell = published[state.dataset]?.[metric]?.[algorithm]?.[state.category];
    if (!cell) return null;
    const source = state.published === "all" ? Object.keys(cell)[0] : state.published;
    return defined(cell[source]) ? [cell[source], source] : null;
  }

  function rowsOf(set) {
    return Object.keys(set.costs).map((name) => {
      const row = { name, values: {}, spread: {}, interval: {}, paper: {}, cost: {} };
      for (const metric of set.metrics) {
        row.values[metric] = valueOf(set, metric, name, state.category, state.seeds);
        row.spread[metric] = state.seeds === "mean" ? seedSpread(set, metric, name, state.category) : null;
        const interval = set.intervals?.[metric]?.[name]?.[state.category];
        row.interval[metric] = state.seeds === "mean" && interval?.every(defined) ? interval : null;
        row.paper[metric] = paper(metric, name);
      }
      for (const key of Object.keys(costs)) row.cost[key] = costOf(set, key, name, state.category);
      return row;
    });
  }

  function keyOf(row, column) {
    const [kind, name] = column.split(":");
    if (kind === "name") return row.name;
    if (kind === "paper") return row.paper[name]?.[0] ?? null;
    if (kind === "difference") {
      const value = row.values[name];
      return row.paper[name] && defined(value) ? value - row.paper[name][0] : null;
    }
    return kind === "cost" ? row.cost[name] : row.values[name];
  }

  function bar(row, metric, scale) {
    const [low, high] = row.interval[metric];
    const x = (value) => (100 * (value - scale[0])) / (scale[1] - scale[0] || 1);
    const value = row.values[metric];
    const text = `interval ${fixed(low)} to ${fixed(high)}`;
    return svg("svg", { class: "bar", viewBox: "-3 0 106 9", role: "img", "aria-label": text, preserveAspectRatio: "none" },
      svg("title", {}, document.createTextNode(text)),
      svg("line", { class: "track", x1: 0, x2: 100, y1: 4.5, y2: 4.5 }),
      svg("line", { class: "range", x1: x(low), x2: x(high), y1: 4.5, y2: 4.5 }),
      svg("circle", { class: "dot", cx: x(value), cy: 4.5, r: 2.5 }));
  }

  function header(column, text, attributes = {}) {
    const sort = state.sort === column ? (state.dir === "asc" ? "ascending" : "descending") : "none";
    const button = el("button", { type: "button", class: "sort", "data-column": column, onclick: () => {
      const first = column === "name" || column.startsWith("cost:") ? "asc" : "desc";
      state.dir = state.sort === column ? (state.dir === "asc" ? "desc" : "asc") : first;
      state.sort = column;
      draw();
      table.querySelector(`[data-column="${CSS.escape(column)}"]`)?.focus();
    } }, text);
    return el("th", { scope: "col", "aria-sort": sort, ...attributes }, button);
  }

  function ranks(rows, column, descending) {
    const key = (row) => { const k = keyOf(row, column); return typeof k === "number" ? Number(k.toFixed(3)) : k; };
    const keys = rows.map(key).filter(defined);
    return new Map(rows.map((row) => {
      const own = key(row);
      return [row, defined(own) ? 1 + keys.filter((k) => compare(k, own, descending) < 0).length : null];
    }));
  }

  function draw() {
    const set = complete();
    if (!state.sort || !columnsOf(set).includes(state.sort)) { state.sort = `value:${state.shown[0]}`; state.dir = "desc"; }
    const rows = rowsOf(set);
    // Ranks are of all algorithms by the metric that sorts, or by the first; a filter changes none.
    const by = state.sort.startsWith("value:") ? state.sort : `value:${state.shown[0]}`;
    const places = ranks(rows, by, true);
    rows.sort((a, b) => compare(keyOf(a, state.sort), keyOf(b, state.sort), state.dir === "desc") || a.name.localeCompare(b.name));
    const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    const seen = rows.filter((row) => words.every((word) => row.name.toLowerCase().includes(word)));
    const papers = new Set(state.shown.filter((metric) => rows.some((row) => row.paper[metric])));

    const top = [el("th", { scope: "col", class: "rank" }, ""), el("th", { class: "name", scope: "col" }, "")];
    const heads = [el("th", { scope: "col", class: "rank", title: `by ${by.slice(6)}` }, "#"), header("name", "algorithm", { class: "name" })];
    for (const metric of state.shown) {
      top.push(el("th", { class: "group", scope: "colgroup", colspan: papers.has(metric) ? 3 : 1 }, metric));
      heads.push(header(`value:${metric}`, el("span", {}, papers.has(metric) ? "here" : "value", el("span", { class: "hidden" }, `, ${metric}`)), { class: "number group" }));
      if (papers.has(metric)) {
        heads.push(header(`paper:${metric}`, el("span", {}, "paper", el("span", { class: "hidden" }, `, ${metric}`)), { class: "number" }));
        heads.push(header(`difference:${metric}`, el("span", {}, "difference", el("span", { class: "hidden" }, `, ${metric}`)), { class: "number" }));
      }
    }
    if (state.paid.length) top.push(el("th", { class: "group", scope: "colgroup", colspan: state.paid.length }, "costs"));
    state.paid.forEach((key, i) => heads.push(header(`cost:${key}`, costs[key], { class: i ? "number" : "number group" })));

    const bests = Object.fromEntries(state.shown.map((metric) => [metric, podium(rows.map((row) => row.values[metric]))]));
    const scales = Object.fromEntries(state.shown.map((metric) => {
      const ends = seen.flatMap((row) => row.interval[metric] ?? []);
      return [metric, ends.length ? [Math.min(...ends), Math.max(...ends)] : null];
    }));
    const body = seen.map((row) => el("tr", {},
      el("td", { class: "rank" }, defined(places.get(row)) ? String(places.get(row)) : "–"),
      el("th", { scope: "row", class: "name" }, el("a", { href: algorithms[row.name] }, row.name)),
      state.shown.map((metric) => {
        const value = row.values[metric], text = fixed(value), published = row.paper[metric];
        const place = bests[metric].indexOf(text);
        const cells = [el("td", { class: "number group" },
          el("span", { class: place === 0 ? "best" : place === 1 ? "second" : defined(value) ? null : "undefined" }, text),
          defined(row.spread[metric]) ? [" ", el("span", { class: "spread" }, `±${fixed(row.spread[metric])}`)] : null,
          row.interval[metric] && scales[metric] ? bar(row, metric, scales[metric]) : null)];
        if (papers.has(metric)) {
          const title = published ? sources[published[1]]?.title ?? published[1] : null;
          cells.push(el("td", { class: "number paper", title }, published ? fixed(published[0]) : ""));
          cells.push(el("td", { class: "number" }, published && defined(value) ? signed(value - published[0]) : ""));
        }
        return cells;
      }),
      state.paid.map((key, i) => el("td", { class: i ? "number" : "number group" }, quantity(row.cost[key])))));
    table.replaceChildren(
      el("caption", { class: "hidden" }, "Algorithms with their metrics and costs"),
      el("thead", {}, el("tr", {}, top), el("tr", {}, heads)), el("tbody", {}, body));
    table.tHead.rows[0].querySelectorAll(".rank, .name").forEach((cell) => { const td = el("td", { class: cell.className }); cell.replaceWith(td); });

    say(set, seen, rows, papers);
    exportRows = () => [
      ["rank", "algorithm", ...state.shown.flatMap((m) => [m, `${m} seeds std`, `${m} low`, `${m} high`, ...(papers.has(m) ? [`${m} published`, `${m} source`, `${m} difference`] : [])]), ...state.paid],
      ...seen.map((row) => [places.get(row), row.name, ...state.shown.flatMap((m) => [
        row.values[m], row.spread[m], ...(row.interval[m] ?? [null, null]),
        ...(papers.has(m) ? [row.paper[m]?.[0], row.paper[m]?.[1], keyOf(row, `difference:${m}`)] : [])]),
      ...state.paid.map((key) => row.cost[key])]),
    ];
    controls(set);
    const { shown, paid, ...kept } = state;
    writeState(kept, { ...DEFAULT, sort: `value:${shown[0]}` });
  }

  let exportRows = () => [];
  const columnsOf = (set) => ["name", ...set.metrics.flatMap((m) => [`value:${m}`, `paper:${m}`, `difference:${m}`]), ...Object.keys(costs).map((key) => `cost:${key}`)];

  function say(set, seen, rows, papers) {
    const what = state.category === "mean" ? `the mean over ${set.categories.length} categories` : `category ${state.category}`;
    const how = { mean: set.seeds.length > 1 ? `mean over seeds ${set.seeds.join(", ")}` : `seed ${set.seeds[0]}`, min: "worst seed", max: "best seed" }[state.seeds] ?? `seed ${state.seeds}`;
    document.getElementById("lead").textContent = `${seen.length} of ${rows.length} algorithms on ${state.dataset}: ${what}, ${how}.`;
    const parts = ["Best bold, second underlined, as rounded."];
    parts.push(set.seeds.length > 1 ? "± is the standard deviation over seeds." : "One seed: no spread over seeds.");
    parts.push(set.intervals ? `Bars are ${set.confidence ? `${100 * set.confidence} % ` : ""}bootstrap intervals over images, on one scale per metric of the rows shown; the dot is the value.` : "Bootstrap intervals are not there: see Significance.");
    if (papers.size) parts.push("Published values were measured with other settings, for orientation only (sources and their protocols: About).");
    document.getElementById("legend").textContent = parts.join(" ");
    const why = set.reasons.filter((one) => state.shown.includes(one.metric) && (state.category === "mean" || one.category === state.category));
    document.getElementById("reasons").replaceChildren(...(why.length ? [el("h2", {}, "Undefined"), el("ul", {}, why.map((one) => el("li", {}, `${one.metric} of ${one.category}: ${one.reason}`)))] : []));
  }

  function chips(id, all, on, text) {
    const box = document.getElementById(id);
    box.replaceChildren(...all.map((name) => el("label", {}, el("input", { type: "checkbox", name: id, value: name, checked: on.includes(name) }), text(name))));
  }

  function controls(set) {
    fill(form.dataset_, names.map((n) => [n, n]), state.dataset);
    fill(form.category, [["mean", `all ${set.categories.length}, mean`], ...set.categories.map((c) => [c, c])], state.category);
    fill(form.seeds, [["mean", "mean"], ["min", "worst"], ["max", "best"], ...set.seeds.map((s) => [String(s), `seed ${s}`])], state.seeds);
    const known = usedSources();
    form.published.closest("label").hidden = !known.length;
    state.published = fill(form.published, [["all", "any source"], ...known.map((s) => [s, s]), ["none", "hide"]], state.published);
    if (form.filter.value !== state.filter) form.filter.value = state.filter;
    const focus = document.activeElement;
    const again = focus?.type === "checkbox" ? `input[name="${focus.name}"][value="${CSS.escape(focus.value)}"]` : null;
    chips("metrics", set.metrics, state.shown, (m) => m);
    const measured = Object.keys(costs).filter((key) => Object.values(set.costs).some((cells) => cells.some((cell) => defined(cell?.[key]))));
    chips("costs", measured, state.paid, (key) => costs[key]);
    if (again) form.querySelector(again)?.focus();
  }

  form.dataset_ = form.elements.namedItem("dataset");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    const set = datasets[state.dataset];
    const checked = (id) => [...form.querySelectorAll(`#${id} input:checked`)].map((box) => box.value);
    if (event.target.name === "metrics") state.metrics = checked("metrics").length === set.metrics.length ? "" : checked("metrics").join(",");
    else if (event.target.name === "costs") state.costs = checked("costs").join(",");
    else state[event.target.name] = event.target.value;
    draw();
  });
  const said = document.getElementById("said");
  document.getElementById("copy").addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(location.href); said.textContent = "Copied."; }
    catch { said.textContent = "The address bar holds the link."; }
  });
  document.getElementById("csv").addEventListener("click", () => {
    download(`leaderboard_${state.dataset}_${state.category}.csv`.replace(/[^\w.-]+/g, "_"), csvText(exportRows()), "text/csv");
  });
  document.getElementById("reset").addEventListener("click", () => { state = { ...DEFAULT }; draw(); });
  addEventListener("hashchange", () => { state = readState(DEFAULT); draw(); });
  draw();
})();
