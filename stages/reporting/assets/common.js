"use strict";
// What the pages' scripts share: elements without HTML strings, numbers, state in the link, sorting.

/** Make an element; children are elements or text, and never read as HTML. */
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** Make an element of an SVG. */
function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.flat(Infinity).filter(Boolean));
  return node;
}

const defined = (value) => value !== null && value !== undefined && !Number.isNaN(value);
const mean = (values) =>
  values.length && values.every(defined) ? values.reduce((a, b) => a + b, 0) / values.length : null;
/** Standard deviation with n - 1; null for fewer than two values, or if one is undefined. */
function deviation(values) {
  const middle = mean(values);
  if (middle === null || values.length < 2) return null;
  return Math.sqrt(values.reduce((sum, v) => sum + (v - middle) ** 2, 0) / (values.length - 1));
}
const fixed = (value, digits = 3) => (defined(value) ? value.toFixed(digits) : "nan");
const signed = (value, digits = 3) =>
  defined(value) ? (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits) : "";
/** Write a measured number with about three digits. */
function quantity(value) {
  if (!defined(value)) return "–";
  const size = Math.abs(value);
  if (size < 0.001) return size === 0 ? "0" : "< 0.001";
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return value.toFixed(digits).replace(/\B(?<!\.\d*)(?=(\d{3})+(?!\d))/g, "\u202f");
}

/** Read the state that a link keeps, over defaults; keys that it does not know stay out. */
function readState(defaults) {
  const state = { ...defaults };
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
    if (key in defaults) state[key] = value;
  }
  return state;
}

/** Keep in the link what differs from the defaults. */
function writeState(state, defaults) {
  const kept = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) {
    if (String(value) !== String(defaults[key])) kept.set(key, value);
  }
  const hash = kept.toString() ? `#${kept}` : "";
  if (location.hash !== hash) history.replaceState(null, "", hash || location.pathname + location.search);
}

/** Fill a select with [value, text] pairs, and choose one; the first, if there is no such. */
function fill(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => el("option", { value }, text)));
  const found = pairs.some(([value]) => value === chosen);
  select.value = found ? chosen : pairs[0][0];
  return select.value;
}

/** Numbers before what is undefined, which comes last in either direction; then text. */
function compare(a, b, descending) {
  if (!defined(a) || !defined(b)) return defined(a) ? -1 : defined(b) ? 1 : 0;
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  return descending ? -order : order;
}

/** The two largest different values, of numbers rounded as shown: what looks equal is equal. */
function podium(values, digits = 3) {
  const shown = values.filter(defined).map((value) => value.toFixed(digits));
  return [...new Set(shown)].sort((a, b) => b - a).slice(0, 2);
}

/** Let a table's headers sort its rows; cells may carry a number in data-value. */
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    const button = el("button", { type: "button", class: "sort" });
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("number");
      const before = head.getAttribute("aria-sort");
      const descending = before === "none" ? numeric : before === "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[place];
        if (!numeric) return cell.textContent.trim();
        const text = cell.dataset.value ?? cell.textContent;
        return text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text);
      };
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(key(a), key(b), descending));
      table.tBodies[0].append(...rows);
    });
  });
}

/** Save text as a file, without a server. */
function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Write rows as CSV; a cell that a spreadsheet would take for a formula is kept as text. */
function csvText(rows) {
  const cell = (value) => {
    let text = defined(value) ? String(value) : "";
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

/** Mean over seeds, or another view of them, of one category's values. */
function overSeeds(values, seeds, how) {
  if (how === "mean") return mean(values);
  if (how === "min" || how === "max") return values.every(defined) ? Math[how](...values) : null;
  const place = seeds.findIndex((seed) => String(seed) === how);
  return place < 0 ? null : values[place];
}

/** One value of an algorithm: of a category, or the mean over all (undefined if one is). */
function valueOf(set, metric, algorithm, category, how = "mean") {
  const table = set.values[metric]?.[algorithm];
  if (!table) return null;
  if (category !== "mean") return overSeeds(table[set.categories.indexOf(category)], set.seeds, how);
  if (how === "mean") return mean(table.map((values) => mean(values)));
  if (how === "min" || how === "max") {
    const means = set.seeds.map((_, seed) => mean(table.map((values) => values[seed])));
    return means.every(defined) ? Math[how](...means) : null;
  }
  return mean(table.map((values) => overSeeds(values, set.seeds, how)));
}

/** Standard deviation over seeds, of a category's value or of the mean over categories. */
function seedSpread(set, metric, algorithm, category) {
  const table = set.values[metric]?.[algorithm];
  if (!table) return null;
  if (category !== "mean") return deviation(table[set.categories.indexOf(category)]);
  return deviation(set.seeds.map((_, seed) => mean(table.map((values) => values[seed]))));
}

/** What an algorithm costs: of a category, or over all: means, but the largest of memory. */
function costOf(set, cost, algorithm, category) {
  const cells = set.costs[algorithm] ?? [];
  if (category !== "mean") return cells[set.categories.indexOf(category)]?.[cost] ?? null;
  const values = cells.map((cell) => cell?.[cost] ?? null);
  if (!values.length || !values.every(defined)) return null;
  return cost === "peak_mb" || cost === "gpu_mb" ? Math.max(...values) : mean(values);
}

/** Data sets' algorithms, those with the best first metric first. */
function ranked(set, metric = set.metrics[0], category = "mean") {
  const names = Object.keys(set.costs);
  return names.sort((a, b) =>
    compare(valueOf(set, metric, a, category), valueOf(set, metric, b, category), true) || a.localeCompare(b));
}

document.querySelectorAll("table.sortable").forEach((table) => { if (table.tHead) sortable(table); });
