"use strict";
// Images with maps of algorithms side by side. A strip holds all tiles of a category; a tile shows
// its part of it, so that few files are loaded, and those of what is seen only.
(() => {
  const scripts = JSON.parse(document.getElementById("data")?.textContent ?? "{}");
  const names = Object.keys(scripts);
  if (!names.length) return;
  const form = document.getElementById("controls"), root = document.getElementById("gallery");
  const viewer = document.getElementById("viewer"), more = document.getElementById("more");
  const ORDERS = [["name", "by name"], ["share", "hardest to detect"], ["found", "hardest to localise"], ["share-spread", "disagreement, detection"], ["found-spread", "disagreement, localisation"]];
  const DEFAULT = { dataset: names[0], category: "all", type: "all", order: "name", algorithms: "", mask: "1", map: "1", boxes: "1", strength: "75", size: "192" };
  const PAGE = 24;
  let state = readState(DEFAULT), count = PAGE, rows = [], shown = [];
  const loaded = {};

  const ratio = (overlaps, limit) => (overlaps.length ? overlaps.filter((o) => o > limit).length / overlaps.length : null);

  function collect(found, chosen) {
    const all = [];
    for (const one of found.categories) {
      if (state.category !== "all" && one.category !== state.category) continue;
      one.images.forEach((image, i) => {
        if (state.type !== "all" && image.defect_type !== state.type) return;
        const share = chosen.map((name) => one.maps[name].shares[i]).filter(defined);
        const ratios = chosen.map((name) => ratio(one.maps[name].overlaps[i], one.maps[name].iou_limit)).filter(defined);
        const missed = ratios.filter((r) => r === 0).length;
        all.push({ one, image, i, share, ratios, missed, key: { name: null, share: mean(share), found: mean(ratios), "share-spread": deviation(share), "found-spread": deviation(ratios) } });
      });
    }
    if (state.order === "name") return all;
    const descending = state.order.endsWith("-spread");
    return all.filter((row) => row.image.label && defined(row.key[state.order])).sort((a, b) => compare(a.key[state.order], b.key[state.order], descending) || compare(a.key.share, b.key.share, false));
  }

  function cut(strip, i, n, alt, map) {
    return el("span", { class: map ? "cut map" : "cut", style: { "--i": i, "--n": n } }, el("img", { src: strip, alt, loading: "lazy", decoding: "async", draggable: "false" }));
  }

  /** Outline and boxes over a picture; boxes that were not found are dashed. */
  function lines(image, overlaps, limit) {
    const group = (name, paths) => svg("g", { class: name }, paths);
    const both = (d, kind) => [svg("path", { class: "under", d }), svg("path", { class: kind, d })];
    return svg("svg", { viewBox: "0 0 1000 1000", "aria-hidden": "true" },
      image.outline ? group("masks", both(image.outline, "outline")) : null,
      group("boxes", image.boxes.flatMap((d, b) => both(d, overlaps && !(overlaps[b] > limit) ? "box missed" : "box"))));
  }

  function verdict(one, name, i) {
    const maps = one.maps[name], overlaps = maps.overlaps[i];
    const hits = overlaps.filter((o) => o > maps.iou_limit).length;
    const parts = [];
    if (defined(maps.shares[i])) parts.push(`ahead of ${Math.round(100 * maps.shares[i])} %`);
    if (overlaps.length) parts.push(`found ${hits} of ${overlaps.length}`);
    return parts.join(", ");
  }

  /** The picture of an image (name null), or of an algorithm's map of it. */
  function picture(row, name) {
    const { one, image, i } = row, n = one.images.length;
    const what = `${one.category}, ${image.id}, ${image.label ? `defect ${image.defect_type}` : "good"}`;
    const box = el("span", { class: "picture" }, cut(one.strip, i, n, name ? "" : what, false));
    if (name) box.append(cut(one.maps[name].strip, i, n, `Anomaly map of ${name} on ${what}`, true));
    box.append(lines(image, name ? one.maps[name].overlaps[i] : null, name ? one.maps[name].iou_limit : 0));
    return box;
  }

  function tile(row, r, name, c) {
    const said = name ? verdict(row.one, name, row.i) : row.image.label ? row.image.defect_type : "good";
    return el("button", { type: "button", class: "tile", tabindex: r || c ? -1 : 0, "data-r": r, "data-c": c, onclick: () => open(r, c) },
      picture(row, name), el("span", { class: "who" }, name ?? "image"), el("small", { title: said }, said));
  }

  function shot(row, r) {
    const about = [row.image.id.replace(/^test\//, "")];
    const extra = [];
    if (row.missed) extra.push(`missed by ${row.missed} of ${row.ratios.length}`);
    if (defined(row.key[state.order])) extra.push(`${ORDERS.find(([o]) => o === state.order)[1]}: ${fixed(row.key[state.order], 2)}`);
    return el("section", { class: "shot" }, el("h3", {}, `${row.one.category} / ${about}`, " ", el("span", {}, extra.join(" · "))),
      el("div", { class: "tiles" }, [null, ...shown].map((name, c) => tile(row, r, name, c))));
  }

  function flags() {
    for (const kind of ["mask", "map", "boxes"]) {
      const off = state[kind] !== "1";
      form.elements[kind].checked = !off;
      for (const node of [root, viewer]) node.classList.toggle(`no-${kind}`, off);
    }
    for (const node of [root, viewer]) node.style.setProperty("--strength", Number(state.strength) / 100);
    root.style.setProperty("--size", `${Number(state.size) || 192}px`);
    form.elements.strength.value = state.strength;
    form.elements.size.value = state.size;
  }

  function draw() {
    const found = loaded[state.dataset];
    const categories = found.categories.map((one) => one.category);
    state.category = fill(form.elements.category, [["all", "all"], ...categories.map((c) => [c, c])], state.category);
    const types = [...new Set(found.categories.filter((one) => state.category === "all" || one.category === state.category).flatMap((one) => one.images.map((image) => image.defect_type)))].sort();
    state.type = fill(form.elements.type, [["all", "all"], ...types.map((t) => [t, t])], state.type);
    state.order = fill(form.elements.order, ORDERS, state.order);
    const set = window.REPORT.datasets[state.dataset];
    const all = ranked(set).filter((name) => found.categories[0]?.maps[name]);
    shown = state.algorithms ? state.algorithms.split(",").filter((name) => all.includes(name)) : [];
    if (!shown.length) shown = all.slice(0, 4);
    document.getElementById("chosen").textContent = `${shown.length} of ${all.length}: ${shown.join(", ")}`;
    const box = document.getElementById("algorithms");
    const again = box.contains(document.activeElement) ? document.activeElement.value : null;
    box.replaceChildren(...all.map((name) => el("label", {}, el("input", { type: "checkbox", name: "algorithm", value: name, checked: shown.includes(name) }), name)));
    if (again !== null) [...box.querySelectorAll("input")].find((input) => input.value === again)?.focus();
    rows = collect(found, shown);
    const total = found.categories.filter((one) => state.category === "all" || one.category === state.category).reduce((sum, one) => sum + one.test_images, 0);
    document.getElementById("said").textContent = `${rows.length} of the ${total} test images are shown here${state.order === "name" ? "" : ", defective ones only"}.`;
    root.replaceChildren(...rows.slice(0, count).map(shot));
    more.hidden = rows.length <= count;
    flags();
    const { ...kept } = state;
    writeState(kept, DEFAULT);
  }

  function load() {
    state.dataset = fill(form.elements.namedItem("dataset"), names.map((n) => [n, n]), state.dataset);
    const wanted = state.dataset;
    if (loaded[wanted]) { draw(); return; }
    document.head.append(el("script", { src: scripts[wanted], onload: () => { loaded[wanted] = window.GALLERY; if (state.dataset === wanted) draw(); } }));
  }

  let at = [0, 0];
  function open(r, c) {
    at = [r, c];
    const row = rows[r], name = c ? shown[c - 1] : null;
    document.getElementById("viewed").textContent = `${name ?? "image"} · ${row.one.category} / ${row.image.id.replace(/^test\//, "")}`;
    document.getElementById("large").replaceChildren(...(name ? [picture(row, null), picture(row, name)] : [picture(row, null)]));
    const facts = [["defect type", row.image.defect_type], ["place", `${r + 1} of ${rows.length}`]];
    if (name) {
      const maps = row.one.maps[name];
      facts.push(["image score", String(maps.scores[row.i])], ["verdict", verdict(row.one, name, row.i) || "–"], ["map's scale", `${maps.scale[0]} (clear) to ${maps.scale[1]} (opaque)`]);
      if (maps.overlaps[row.i].length) facts.push(["overlaps", `${maps.overlaps[row.i].join(", ")} (more than ${maps.iou_limit} is localised)`]);
    }
    document.getElementById("details").replaceChildren(...facts.flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]));
    if (!viewer.open) viewer.showModal();
  }

  function reveal(r) {
    while (r >= root.children.length && root.children.length < rows.length) {
      count = root.children.length + PAGE;
      root.append(...rows.slice(root.children.length, count).map((row, k) => shot(row, root.children.length + k)));
    }
    more.hidden = rows.length <= root.children.length;
  }

  function go(r, c) {
    if (r < 0 || r >= rows.length || c < 0 || c > shown.length) return;
    reveal(r);
    const next = root.querySelector(`[data-r="${r}"][data-c="${c}"]`);
    root.querySelectorAll('.tile[tabindex="0"]').forEach((node) => node.setAttribute("tabindex", "-1"));
    next.setAttribute("tabindex", "0");
    if (viewer.open) open(r, c);
    else { next.focus({ preventScroll: true }); next.scrollIntoView({ block: "nearest", inline: "nearest" }); }
  }

  function toggle(kind) { state[kind] = state[kind] === "1" ? "0" : "1"; flags(); writeState(state, DEFAULT); }

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea, summary");
    if (event.ctrlKey || event.metaKey || event.altKey || typing) return;
    const kinds = { m: "mask", a: "map", b: "boxes" };
    if (kinds[event.key]) { toggle(kinds[event.key]); return; }
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const move = moves[event.key], here = event.target.closest(".tile");
    if (!move || !(viewer.open || here)) return;
    event.preventDefault();
    const [r, c] = viewer.open ? at : [Number(here.dataset.r), Number(here.dataset.c)];
    go(r + move[0], c + move[1]);
  });
  document.getElementById("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => root.querySelector(`[data-r="${at[0]}"][data-c="${at[1]}"]`)?.focus());
  more.addEventListener("click", () => { const first = root.children.length; reveal(first); root.querySelector(`[data-r="${first}"][data-c="0"]`)?.focus(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    const { name, value, type, checked } = event.target;
    if (name === "algorithm") {
      const chosen = [...form.querySelectorAll("#algorithms input:checked")].map((input) => input.value);
      state.algorithms = chosen.join(",");
    } else state[name] = type === "checkbox" ? (checked ? "1" : "0") : value;
    if (["mask", "map", "boxes", "strength", "size"].includes(name)) { flags(); writeState(state, DEFAULT); return; }
    count = PAGE;
    load();
  });
  addEventListener("hashchange", () => { state = readState(DEFAULT); count = PAGE; load(); });
  load();
})();
