"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const D = JSON.parse($("payload").textContent);

// ---- small tools -------------------------------------------------------------------------------------------------
// All texts enter the page as text nodes: nothing that a run wrote is ever parsed as markup.
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
const minus = (text) => String(text).replace(/(^|[^\w-])-(?=[\d.∞])/g, "$1−");
function short(value) {
  if (typeof value !== "number") return value === null || value === undefined ? "" : String(value);
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e7)) return minus(value.toExponential(3).replace(/\.?0+e/, "e"));
  if (Number.isInteger(value)) return minus(value.toLocaleString("en-US"));
  return minus(size >= 1000 ? Math.round(value).toLocaleString("en-US") : String(+value.toPrecision(5)));
}
const distinct = (items) => [...new Set(items)];
const say = (text) => { $("said").textContent = text; clearTimeout(say.timer); say.timer = setTimeout(() => { $("said").textContent = ""; }, 1800); };
const slug = (text) => text.replace(/ /g, "-");

// ---- the data ----------------------------------------------------------------------------------------------------
const CELL = ["id", "model", "family", "data", "seed", "status", "reason", "run", "command", "seconds", "cost", "versions", "finished", "values"];
const cells = D.cells.map((row, number) => ({ number, ...Object.fromEntries(CELL.map((name, i) => [name, row[i]])) }));
const measures = D.measures.map(([metric, kind, unit, direction, protocol, letter]) => ({ metric, kind, unit, direction, protocol, letter }));
const groups = D.groups.map((entry) => {
  const first = cells[entry.cells[0]];
  const group = { ...entry, model: first.model, family: first.family, data: first.data };
  group.statuses = distinct(entry.cells.map((i) => cells[i].status));
  group.text = [group.label, familyName(group), group.data, group.why || "", ...group.statuses].join(" ").toLowerCase();
  for (const row of group.rows) { row.group = group; row.measure = measures[row.m]; }
  for (const i of entry.cells) cells[i].group = group;
  return group;
});
for (const cell of cells) cell.text = [cell.id, cell.group.label, familyName(cell), cell.data, cell.status, cell.reason, cell.command].join(" ").toLowerCase();
const curves = new Map(D.curves);
const pictures = new Map(D.pictures.map(([number, shown, uri]) => [number, { shown, uri }]));
const familyNames = Object.keys(D.families);
const metricsOfFamily = new Map();
for (const group of groups) for (const row of group.rows) if (row.v !== null) {
  if (!metricsOfFamily.has(group.family)) metricsOfFamily.set(group.family, new Set());
  metricsOfFamily.get(group.family).add(row.measure.metric);
}
function familyName(item) { return D.families[item.family] || item.family; }
function familyColour(family) { const i = familyNames.indexOf(family); return `var(--c${i < 0 ? 7 : i % 8})`; }
const hasNumbers = (group) => group.statuses.some((status) => D.hasNumbers.includes(status));

// ---- filters -----------------------------------------------------------------------------------------------------
const filter = { family: "", data: "", metric: "", status: "", find: "" };
function fill(select, options, chosen, all) {
  select.replaceChildren(...(all ? [el("option", { value: "" }, all)] : []), ...options.map(([value, text]) => el("option", { value }, text)));
  select.value = options.some(([value]) => value === chosen) ? chosen : all ? "" : options.length ? options[0][0] : "";
}
const plain = (names) => names.map((name) => [name, name]);
const tally = (items) => { const counts = new Map(); for (const item of items) counts.set(item, (counts.get(item) || 0) + 1); return counts; };
const metricNames = D.metricNames;
fill($("family"), [...familyNames, ...distinct(cells.map((c) => c.family)).filter((f) => !familyNames.includes(f))].filter((f) => cells.some((c) => c.family === f)).map((f) => [f, D.families[f] || f]), "", "all");
fill($("data"), plain(distinct(cells.map((c) => c.data)).sort()), "", "all");
fill($("metric"), plain(metricNames), "", "all");
fill($("status"), plain(Object.keys(D.statuses).filter((s) => cells.some((c) => c.status === s))), "", "all");
const words = () => filter.find.toLowerCase().split(/\s+/).filter(Boolean);
const keepGroup = (group) => (!filter.family || group.family === filter.family) && (!filter.data || group.data === filter.data)
  && (!filter.status || group.statuses.includes(filter.status)) && words().every((word) => group.text.includes(word));
const keepCell = (cell) => (!filter.family || cell.family === filter.family) && (!filter.data || cell.data === filter.data)
  && (!filter.status || cell.status === filter.status) && words().every((word) => cell.text.includes(word));
let waiting = 0;
function changed() { clearTimeout(waiting); waiting = setTimeout(drawAll, 20); }
for (const name of ["family", "data", "metric", "status"]) $(name).addEventListener("change", () => {
  filter[name] = $(name).value;
  const follow = (select, value, then) => { if (value && [...$(select).options].some((o) => o.value === value)) { $(select).value = value; then(); } };
  if (name === "data") { follow("curve-data", filter.data, fillQuantity); follow("cost-data", filter.data, fillQuality); }
  if (name === "metric") { follow("quality", filter.metric, () => {}); follow("quantity", filter.metric, () => {}); }
  changed();
});
$("find").addEventListener("input", () => { filter.find = $("find").value; changed(); });
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", () => { for (const name of Object.keys(filter)) filter[name] = ""; changed(); });
for (const badge of document.querySelectorAll(".badge")) badge.addEventListener("click", () => { $("status").value = filter.status = badge.dataset.status; changed(); });

// ---- tables: sorted here, and drawn only where they are looked at ------------------------------------------------
const HEIGHT = 38, WINDOW = 60, ALL = 250;
const sorting = new Map();
function table(box, columns, rows) {
  const place = box.id;
  let order = sorting.get(place);
  if (order && !columns.some((column) => column.key === order.key)) order = null;
  const sorted = rows.slice();
  if (order) {
    const value = columns.find((column) => column.key === order.key).sort;
    const keyed = sorted.map((row) => [value(row), row]);
    const none = (v) => v === null || v === undefined || v === "" || (typeof v === "number" && Number.isNaN(v));
    keyed.sort(([a], [b]) => none(a) || none(b) ? none(a) - none(b)
      : (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })) * order.sign);
    keyed.forEach(([, row], i) => { sorted[i] = row; });
  }
  if (!rows.length) { box.replaceChildren(); return; }
  const heads = columns.map((column) => el("th", {
    scope: "col", class: column.number ? "number" : null,
    "aria-sort": order && order.key === column.key ? (order.sign > 0 ? "ascending" : "descending") : "none",
  }, el("button", { type: "button", onclick: () => {
    const sign = order && order.key === column.key ? -order.sign : column.better === "higher" ? -1 : 1;
    sorting.set(place, { key: column.key, sign });
    const x = box.scrollLeft;
    table(box, columns, rows);
    box.scrollTop = 0; box.scrollLeft = x;
    box.querySelectorAll("thead button")[columns.indexOf(column)].focus({ preventScroll: true });
    say(`sorted by ${column.title}, ${sign > 0 ? "ascending" : "descending"}`);
  } }, column.title), column.sub ? el("small", {}, column.sub) : null));
  const body = el("tbody");
  const before = el("tr", { class: "space", "aria-hidden": "true" }, el("td", { colspan: columns.length }));
  const after = before.cloneNode(true);
  box.replaceChildren(el("table", { "aria-rowcount": rows.length + 1 }, el("thead", {}, el("tr", {}, heads)), body));
  const line = (row, i) => el("tr", { "aria-rowindex": i + 2 }, columns.map((column, c) => {
    const content = column.cell(row);
    const attributes = { class: column.number ? "number" : null, title: typeof content === "string" && content.length > 40 ? content : null };
    return c === 0 ? el("th", { scope: "row", ...attributes }, content) : el("td", attributes, content);
  }));
  if (sorted.length <= ALL) { body.replaceChildren(...sorted.map(line)); box.onscroll = null; return; }
  let from = -1;
  const draw = () => {
    const first = Math.max(0, Math.min(sorted.length - WINDOW, Math.floor(box.scrollTop / HEIGHT) - 15));
    if (from >= 0 && Math.abs(first - from) < 8 && first !== 0 && first !== sorted.length - WINDOW) return;
    if (first === from) return;
    from = first;
    before.firstChild.style.height = `${first * HEIGHT}px`;
    after.firstChild.style.height = `${(sorted.length - first - WINDOW) * HEIGHT}px`;
    const held = body.contains(document.activeElement) ? [...body.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    body.replaceChildren(before, ...sorted.slice(first, first + WINDOW).map((row, i) => line(row, first + i)), after);
    if (held >= 0) box.focus({ preventScroll: true });
    heads.forEach((head) => { head.style.minWidth = `${Math.max(parseFloat(head.style.minWidth) || 0, head.offsetWidth)}px`; });
  };
  box.onscroll = draw;
  box.scrollTop = 0;
  draw();
}
const opener = (text, label, action, extra) => el("button", { type: "button", class: `cell ${extra || ""}`, "aria-label": label || null, onclick: action }, text);
const dot = (family) => el("span", { class: "family", style: `background:${familyColour(family)}`, title: D.families[family] || family });
const status = (name) => el("span", { class: `status ${slug(name)}`, title: D.statuses[name] || name }, name);
const arrow = { higher: "↑", lower: "↓" };

// ---- results -----------------------------------------------------------------------------------------------------
let view = "overview";
const shownRows = (group) => group.rows.filter((row) => !filter.metric || row.measure.metric === filter.metric);
function numberButton(row) {
  const text = minus(row.t);
  const at = text.indexOf(" ");
  const parts = at < 0 ? [text] : [text.slice(0, at), el("span", { class: "plus" }, text.slice(at))];
  if (row.a) parts.push(el("span", { class: "mark", title: row.a }, " ⚠"));
  return opener(parts, `${row.group.label}, ${row.group.data}, ${row.measure.metric}: ${text}; ${row.a ? `warning: ${row.a}; ` : ""}show its protocol`, () => openNumber(row));
}
function whyEmpty(group, metric, letter) {
  if (!hasNumbers(group)) return group.why;
  if (group.rows.some((row) => row.measure.metric === metric)) return `measured under another protocol than ${letter}, see there`;
  const known = metricsOfFamily.get(group.family);
  return known && known.has(metric) ? "finished, but this metric was not measured: the model or its data do not allow it, or the protocol left it out"
    : `not defined for this family (${familyName(group)}): none of its models here has it`;
}
function emptyButton(group, metric, letter) {
  const why = whyEmpty(group, metric, letter);
  const name = group.statuses.find((s) => !D.hasNumbers.includes(s));
  const text = !hasNumbers(group) && name ? name : why.startsWith("measured under") ? "other protocol" : why.startsWith("not defined") ? "·" : "not measured";
  const button = opener(text, `${text === "·" ? "not defined" : text}: ${why}`, () => openEmpty(group, metric, why), `empty ${!hasNumbers(group) && name ? slug(name) : ""}`);
  button.title = why;
  return button;
}
const modelColumn = { key: "model", title: "model", sort: (g) => g.label, cell: (g) => [dot(g.family), opener(g.label, `${g.label} on ${g.data}: show its cells`, () => openGroup(g))] };
const badge = (row, ...texts) => el("span", { class: "kind" }, [...texts, row.measure.kind === "estimate" ? "" : row.measure.kind, row.measure.letter ? `protocol ${row.measure.letter}` : ""].filter(Boolean).join(" · "));
const overview = D.overview.map(([i, likelihood, task, samples, images, seconds]) => {
  const group = groups[i], row = (k) => (k === null || k === undefined ? null : group.rows[k]);
  return { group, likelihood: row(likelihood), task: row(task), samples: new Map(Object.entries(samples).map(([name, k]) => [name, row(k)])), images, seconds };
});
const duration = (seconds) => seconds === null ? "" : seconds < 100 ? `${+seconds.toPrecision(2)} s` : seconds < 5940 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
const named = (label, line, below) => [dot(line.group.family), opener(label, `${line.group.label} on ${line.group.data}: show its cells`, () => openGroup(line.group)), below ? el("span", { class: "kind" }, below) : ""];
function measuredColumns(kept) {
  const value = (row) => (row ? row.v : null);
  const shown = (row) => (row.v === null ? opener("–", row.w, () => openNumber(row), "empty") : numberButton(row));
  const stated = (row) => (row ? [shown(row), badge(row, row.measure.metric)] : "");
  return [
    { key: "likelihood", title: "likelihood", sub: "strongest statement · nats · ↑", number: true, better: "higher", sort: (l) => value(l.likelihood),
      cell: (l) => l.likelihood || hasNumbers(l.group) ? stated(l.likelihood) : emptyButton(l.group, "", "") },
    { key: "images", title: "learned from", sub: "examples seen · time", number: true, sort: (l) => l.images,
      cell: (l) => l.images === null ? "" : [short(Math.round(l.images)), el("span", { class: "kind" }, duration(l.seconds))] },
    ...D.sampleMeasures.filter((name) => kept.some((l) => l.samples.has(name))).map((name) => {
      const found = kept.map((l) => l.samples.get(name)).find(Boolean).measure;
      return { key: name, title: name, sub: [found.unit === "1" ? "" : found.unit, arrow[found.direction] || ""].filter(Boolean).join(" · "), number: true, better: found.direction,
        sort: (l) => value(l.samples.get(name)), cell: (l) => { const row = l.samples.get(name); return row ? row.measure.letter ? [shown(row), badge(row)] : shown(row) : ""; } };
    }),
    ...(kept.some((l) => l.task) ? [{ key: "task", title: "beside", sub: "a task, or its codes", number: true, sort: (l) => l.task ? l.task.measure.metric : null,
      cell: (l) => l.task ? [shown(l.task), badge(l.task, l.task.measure.metric + (arrow[l.task.measure.direction] ? ` ${arrow[l.task.measure.direction]}` : ""))] : "" }] : []),
    ...(kept.some((l) => l.group.why) ? [{ key: "why", title: "reason", sort: (l) => l.group.why, cell: (l) => l.group.why || "" }] : []),
  ];
}
const survey = D.survey.map(([i, where, part, name, said], number) => ({ ...overview[i], about: { where, part, name, said, number } }));
function drawOverview() {
  const kept = overview.filter((line) => keepGroup(line.group));
  const several = new Set(kept.map((line) => line.group.data)).size > 1;
  table($("results-table"), [
    { key: "model", title: "model", sub: several ? "data" : "", sort: (l) => l.group.label, cell: (l) => named(l.group.label, l, several ? l.group.data : "") },
    ...measuredColumns(kept),
  ], kept);
  count($("results-table"), kept.length, "row");
}
function drawSurvey() {
  const kept = survey.filter((line) => keepGroup(line.group));
  const plainly = (text) => text.toLowerCase().replace(/[^a-z0-9]/g, "");
  const name = (l) => (plainly(l.about.name) === plainly(l.group.label) ? l.about.name : `${l.about.name} (${l.group.label})`);
  const said = (key, title, ...beside) => (kept.some((l) => l.about.said[key]) ? [{ key, title, sub: [...beside.map(([, word]) => word)].join(": "), sort: (l) => l.about.said[key],
    cell: (l) => [el("span", { class: "words" }, l.about.said[key] || "", el("span", { class: "kind" }, beside.map(([k]) => l.about.said[k]).filter(Boolean).join(": ")))] }] : []);
  table($("results-table"), [
    { key: "model", title: "model", sub: "where the survey has it · data here", sort: (l) => l.about.number, cell: (l) => named(name(l), l, `${l.about.where} · ${l.group.data}`) },
    ...said("method", "what is new", ["changes", "changes"], ["aim", "aim"]),
    ...said("likelihood", "likelihood is"),
    ...measuredColumns(kept),
    ...said("pictures", "its pictures", ["largest", "largest"]),
  ], kept);
  count($("results-table"), kept.length, "row");
}
function drawResults() {
  if (view === "overview" && !filter.metric) { drawOverview(); return; }
  if (view === "survey" && !filter.metric) { drawSurvey(); return; }
  const kept = groups.filter(keepGroup);
  if (view === "long") {
    const lines = kept.flatMap((group) => {
      const rows = shownRows(group);
      return rows.length ? rows : filter.metric && hasNumbers(group) ? [] : [{ group, measure: { metric: filter.metric, kind: "", unit: "", protocol: "", letter: "" }, v: null, t: "" }];
    });
    const g = (f) => (row) => f(row.group);
    const p = (i) => (row) => row.p ? row.p[i] : null;
    table($("results-table"), [
      { ...modelColumn, sort: g(modelColumn.sort), cell: g(modelColumn.cell) },
      { key: "data", title: "data", sort: (r) => r.group.data, cell: (r) => r.group.data },
      { key: "metric", title: "metric", sort: (r) => r.measure.metric, cell: (r) => r.measure.metric + (arrow[r.measure.direction] ? ` ${arrow[r.measure.direction]}` : "") },
      { key: "published", title: "published", number: true, sort: (r) => r.p && typeof D.papers[r.p[0]].value === "number" ? D.papers[r.p[0]].value : null, cell: (r) => r.p ? opener(minus(r.p[1] || "none"), "published value: show its source", () => openNumber(r)) : "" },
      { key: "ours", title: "ours", sub: "mean ± sd (seeds)", number: true, sort: (r) => r.v, cell: (r) => r.t ? numberButton(r) : opener(r.w || r.group.why || "no metric", null, () => r.m === undefined ? openGroup(r.group) : openNumber(r), "empty") },
      { key: "difference", title: "difference", number: true, sort: p(2), cell: (r) => r.p ? el("span", { class: r.p[4] === true ? "within" : r.p[4] === false ? "outside" : null, title: r.p[4] === true ? "within the tolerance" : r.p[4] === false ? "outside the tolerance" : r.p[6] }, minus(r.p[3]) || "–") : "" },
      { key: "same", title: "same protocol?", sort: p(5), cell: (r) => r.p && r.p[5] ? el("span", { class: r.p[5], title: r.p[6] }, r.p[5]) : "" },
      { key: "kind", title: "kind", sort: (r) => r.measure.kind, cell: (r) => r.measure.kind },
      { key: "unit", title: "unit", sort: (r) => r.measure.unit, cell: (r) => r.measure.unit },
      { key: "protocol", title: "protocol", sort: (r) => r.measure.protocol, cell: (r) => protocolButton(r.measure.protocol, r.measure.letter) },
    ], lines);
    count($("results-table"), lines.length, "row");
    return;
  }
  const columns = new Map();
  for (const group of kept) for (const row of shownRows(group)) {
    const key = `${row.measure.metric}\n${row.measure.letter}`;
    if (!columns.has(key)) columns.set(key, { metric: row.measure.metric, letter: row.measure.letter, kinds: new Set(), units: new Set(), directions: new Set() });
    const column = columns.get(key);
    if (row.measure.kind) { column.kinds.add(row.measure.kind); column.units.add(row.measure.unit); column.directions.add(row.measure.direction); }
  }
  const rank = (column) => metricNames.indexOf(column.metric);
  const ordered = [...columns.values()].sort((a, b) => rank(a) - rank(b) || (a.letter < b.letter ? -1 : 1));
  const find = (group, column) => group.byColumn.get(`${column.metric}\n${column.letter}`);
  for (const group of kept) if (!group.byColumn) group.byColumn = new Map(group.rows.map((row) => [`${row.measure.metric}\n${row.measure.letter}`, row]));
  table($("results-table"), [
    modelColumn,
    { key: "data", title: "data", sort: (g) => g.data, cell: (g) => g.data },
    ...(kept.every((g) => g.statuses.join() === "done") ? [] : [{ key: "status", title: "status", sort: (g) => g.statuses.join(), cell: (g) => el("span", { title: g.why || null }, g.statuses.map((s, i) => [i ? ", " : "", status(s)])) }]),
    ...ordered.map((column) => ({
      key: `${column.metric}\n${column.letter}`, number: true, better: [...column.directions][0],
      title: column.letter ? `${column.metric} (${column.letter})` : column.metric,
      sub: [[...column.units].join(" / "), column.kinds.size > 1 ? "several kinds" : [...column.kinds].join(), arrow[[...column.directions][0]] || ""].filter(Boolean).join(" · ")
        + (column.letter ? ` · ⚠ protocol ${column.letter}` : ""),
      sort: (g) => { const row = find(g, column); return row ? row.v : null; },
      cell: (g) => {
        const row = find(g, column);
        if (!row || row.v === null) return row && row.w ? opener("–", row.w, () => openNumber(row), "empty") : emptyButton(g, column.metric, column.letter);
        return column.kinds.size > 1 ? [numberButton(row), el("span", { class: "empty" }, ` ${row.measure.kind}`)] : numberButton(row);
      },
    })),
    ...(kept.some((g) => g.why) ? [{ key: "why", title: "reason", sort: (g) => g.why, cell: (g) => g.why || "" }] : []),
  ], kept);
  count($("results-table"), kept.length, "row");
}
function count(box, number, word) {
  let line = box.nextElementSibling;
  if (!line || !line.classList.contains("count")) { line = el("p", { class: "count", "aria-live": "polite" }); box.after(line); }
  line.textContent = `${number.toLocaleString("en-US")} ${word}${number === 1 ? "" : "s"}`;
}
function protocolButton(id, letter) {
  return id ? opener([el("code", {}, id), letter ? el("span", { class: "mark" }, ` (${letter})`) : ""], `protocol ${id}`, () => openProtocol(id)) : "";
}
function pressed(selector, chosen) { for (const button of document.querySelectorAll(selector)) button.setAttribute("aria-pressed", String(button === chosen)); }
for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => { view = button.dataset.view; pressed("[data-view]", button); sorting.delete("results-table"); drawResults(); });

// ---- cells and protocols -----------------------------------------------------------------------------------------
function drawCells() {
  const kept = cells.filter(keepCell);
  table($("cells-table"), [
    { key: "id", title: "cell", sort: (c) => c.id, cell: (c) => opener(c.id, `cell ${c.id}: show its command and configuration`, () => openCell(c)) },
    { key: "status", title: "status", sort: (c) => Object.keys(D.statuses).indexOf(c.status), cell: (c) => status(c.status) },
    { key: "model", title: "model", sort: (c) => c.group.label, cell: (c) => [dot(c.family), c.group.label] },
    { key: "data", title: "data", sort: (c) => c.data, cell: (c) => c.data },
    { key: "seed", title: "seed", number: true, sort: (c) => c.seed, cell: (c) => short(c.seed) },
    { key: "seconds", title: "seconds", number: true, sort: (c) => c.seconds, cell: (c) => short(c.seconds) },
    { key: "parameters", title: "parameters", number: true, sort: (c) => c.cost[0], cell: (c) => short(c.cost[0]) },
    { key: "images", title: "images seen", number: true, sort: (c) => c.cost[1], cell: (c) => short(c.cost[1]) },
    { key: "rate", title: "images/s", number: true, better: "higher", sort: (c) => c.cost[3], cell: (c) => typeof c.cost[3] === "number" ? Math.round(c.cost[3]).toLocaleString("en-US") : "" },
    { key: "memory", title: "peak MiB", number: true, sort: (c) => c.cost[5], cell: (c) => short(c.cost[5]) },
    { key: "reason", title: "reason", sort: (c) => c.reason, cell: (c) => c.reason },
  ], kept);
  count($("cells-table"), kept.length, "cell");
}
function drawProtocols() {
  const ids = Object.keys(D.protocols);
  const names = distinct(ids.flatMap((id) => Object.keys(D.protocols[id])));
  const used = new Map();
  for (const measure of measures) used.set(measure.protocol, [...(used.get(measure.protocol) || []), measure.metric]);
  table($("protocols-table"), [
    { key: "id", title: "protocol", sort: (id) => id, cell: (id) => protocolButton(id) },
    { key: "metrics", title: "metrics", sort: (id) => (used.get(id) || []).join(), cell: (id) => distinct(used.get(id) || []).join(", ") },
    ...names.map((name) => ({ key: `p ${name}`, title: name, sort: (id) => brief(D.protocols[id][name]), cell: (id) => brief(D.protocols[id][name]) })),
  ], ids);
}
const brief = (value) => { const text = value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value); return /^[0-9a-f]{32,}$/.test(text) ? `${text.slice(0, 12)}…` : text; };

// ---- what opens --------------------------------------------------------------------------------------------------
const dialog = $("detail");
function open(title, ...content) {
  $("detail-title").textContent = title;
  $("detail-body").replaceChildren(...content.flat(Infinity).filter(Boolean));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}
$("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
const pairs = (rows) => el("div", { class: "scroll" }, el("table", { class: "pairs" }, el("tbody", {}, rows.filter(([, value]) => value !== "" && value !== null && value !== undefined).map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value))))));
const heading = (text) => el("h3", {}, text);
function listed(heads, rows) {
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, heads.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((value) => el("td", {}, value)))))));
}
function copied(text, wrap) {
  const shown = el("pre", { class: wrap ? "wrap" : null, tabindex: "0" }, text);
  return [shown, el("button", { type: "button", onclick: () => copy(text, shown) }, "Copy")];
}
async function copy(text, shown) {
  try { await navigator.clipboard.writeText(text); say("copied"); } catch {
    getSelection().selectAllChildren(shown);
    say(document.execCommand("copy") ? "copied" : "selected: copy it with Ctrl-C");
  }
}
function protocolTable(id) {
  const protocol = D.protocols[id];
  if (!protocol) return el("p", { class: "empty" }, id ? `The protocol ${id} is not among those that the results describe.` : "No protocol was stored.");
  return pairs(Object.entries(protocol).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]));
}
function openProtocol(id) { open(`Protocol ${id}`, protocolTable(id)); }
const direction = { higher: "higher is better", lower: "lower is better", none: "neither is better" };
function openNumber(row) {
  const { group, measure } = row;
  const seeds = group.cells.flatMap((i) => cells[i].values.filter(([m]) => m === row.m).map(([, value, se, n, note]) => [cells[i], value, se, n, note]));
  const spread = row.s !== undefined ? ["standard deviation over seeds", short(row.s)] : ["standard deviation over seeds", row.v === null ? "" : "none, with one seed"];
  open(`${group.label} on ${group.data}: ${measure.metric}`,
    row.w ? el("p", {}, row.w) : null,
    row.a ? el("p", { class: "mark" }, `⚠ ${row.a}`) : null,
    pairs([["value", row.v === null ? "" : `${short(row.v)} ${measure.unit}`], spread, ["standard error over examples", short(row.e)], ["seeds", seeds.length || ""],
      ["kind", measure.kind], ["unit", measure.unit], ["direction", direction[measure.direction] || measure.direction],
      ["which protocol", measure.letter ? `${measure.letter}: one of several for this metric and data set; numbers of the others stand in columns of their own` : ""]]),
    row.p ? [heading("Published"), publishedTable(row)] : null,
    measure.protocol ? [heading(`Protocol ${measure.protocol}`), protocolTable(measure.protocol)] : null,
    seeds.length ? [heading("Each seed"), listed(["cell", "value", "standard error", "examples", ...(row.a ? ["warning"] : [])], seeds.map(([cell, value, se, n, note]) => [opener(cell.id, null, () => openCell(cell)), short(value), short(se) || "not known", short(n), ...(row.a ? [note || ""] : [])]))] : null,
    group.why ? [heading("Not counted"), el("p", {}, group.why)] : null);
}
function publishedTable(row) {
  const [number, text, , difference, within, same, why] = row.p;
  const paper = D.papers[number];
  return pairs([["value", `${minus(text)} ${paper.unit || ""}`], ["difference", minus(difference)], ["tolerance", paper.tolerance === undefined || paper.tolerance === null ? "" : `${paper.tolerance}${within === true ? ": within" : within === false ? ": outside" : ""}`],
    ["same protocol?", same], ["note", why],
    ...Object.entries(paper).filter(([name]) => !["value", "unit", "tolerance", "metric"].includes(name)).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)])]);
}
function openEmpty(group, metric, why) {
  open(`${group.label} on ${group.data}: ${metric}`, el("p", {}, why), cellList(group));
}
const cellList = (group) => listed(["cell", "status", "reason"], group.cells.map((i) => [opener(cells[i].id, null, () => openCell(cells[i])), status(cells[i].status), cells[i].reason || D.statuses[cells[i].status] || ""]));
function openGroup(group) {
  if (group.cells.length === 1) { openCell(cells[group.cells[0]]); return; }
  open(`${group.label} on ${group.data}`, group.why ? el("p", {}, group.why) : null, cellList(group));
}
let unpacked = null;
async function texts() {
  if (!unpacked) unpacked = (async () => {
    const bytes = Uint8Array.from(atob($("texts").textContent.trim()), (sign) => sign.charCodeAt(0));
    return JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text());
  })();
  return unpacked;
}
function openCell(cell) {
  const later = el("div", {}, el("p", { class: "empty" }, "…"));
  const picture = pictures.get(cell.number);
  const charts = el("div");
  open(cell.id,
    el("p", {}, status(cell.status), ` ${D.statuses[cell.status] || ""}${cell.reason ? `: ${cell.reason}` : ""}`),
    cell.command ? [heading("Command"), copied(cell.command, true)] : null,
    picture ? [heading(`Picture: ${picture.shown}`), el("img", { src: picture.uri, alt: `${picture.shown} of ${cell.group.label} on ${cell.data}` })] : null,
    cell.values.length ? [heading("Numbers"), listed(["metric", "value", "standard error", "examples", "unit", "kind", "protocol"], cell.values.map(([m, value, se, n, note]) =>
      [measures[m].metric, note ? [short(value), el("span", { class: "mark", title: note }, " ⚠")] : short(value), short(se), short(n), measures[m].unit, measures[m].kind, protocolButton(measures[m].protocol, measures[m].letter)]))] : null,
    curves.has(cell.number) ? [heading("Learning curves"), charts] : null,
    later,
    cell.cost.some((value) => value !== null) ? [heading("Cost"), pairs(D.costNames.map((name, i) => [name.replace(/_/g, " "), short(cell.cost[i])]))] : null,
    Object.keys(D.versions[cell.versions]).length ? [heading("Versions"), pairs(Object.entries(D.versions[cell.versions]))] : null,
    pairs([["run folder", cell.run], ["finished", cell.finished ? new Date(cell.finished * 1000).toISOString().replace("T", " ").slice(0, 16) + " UTC" : ""]]));
  if (curves.has(cell.number)) drawOwnCurves(charts, cell);
  texts().then((found) => {
    const [config, traceback] = found[cell.number] || [null, null];
    later.replaceChildren(...[
      traceback ? [heading("Traceback"), copied(traceback)] : null,
      config ? [heading("Configuration (config.yaml)"), copied(config)] : null,
    ].flat(2).filter(Boolean));
  }, () => later.replaceChildren(el("p", { class: "empty" }, `This browser cannot unpack the configuration; it lies in ${cell.run}/config.yaml.`)));
}

// ---- samples -----------------------------------------------------------------------------------------------------
const MANY = 20;
let allPictures = false;
function drawGallery() {
  const kept = groups.filter(keepGroup);
  const shown = kept.flatMap((group) => { const i = group.cells.find((n) => pictures.has(n)); return i === undefined ? [] : [[group, cells[i], pictures.get(i)]]; });
  const most = allPictures ? shown.length : MANY;
  $("gallery").replaceChildren(...shown.slice(0, most).map(([group, cell, picture]) => el("figure", {},
    el("button", { type: "button", onclick: () => openCell(cell), "aria-label": `${picture.shown} of ${group.label} on ${group.data}: show the cell` }, el("img", { src: picture.uri, alt: "", loading: "lazy", decoding: "async" })),
    el("figcaption", {}, group.label, el("br"), el("span", {}, `${group.data}: ${picture.shown}`)))));
  if (shown.length > most) $("gallery").append(el("button", { type: "button", onclick: () => { allPictures = true; drawGallery(); } }, `Show all ${shown.length}`));
  if (!shown.length) $("gallery").replaceChildren(el("p", { class: "empty" }, "No run here has pictures of samples."));
}

// ---- charts ------------------------------------------------------------------------------------------------------
function ticks(low, high, many) {
  const step = 10 ** Math.floor(Math.log10((high - low) / many));
  const nice = [1, 2, 5, 10].map((f) => f * step).find((s) => (high - low) / s <= many);
  const found = [];
  for (let i = Math.ceil(low / nice); i <= Math.floor(high / nice + 1e-9); i++) found.push(+(i * nice).toPrecision(12));
  return found;
}
function logTicks(low, high) {
  const found = [];
  for (let e = Math.floor(low); e <= Math.ceil(high); e++) for (const f of high - low < .8 ? [1, 1.5, 2, 3, 5, 7] : high - low < 2 ? [1, 2, 5] : [1]) {
    const at = e + Math.log10(f);
    if (at >= low - 1e-9 && at <= high + 1e-9) found.push(at);
  }
  return found.length >= 2 ? found.filter((_, i) => found.length <= 8 || i % Math.ceil(found.length / 8) === 0) : [low, high];
}
const label = (value) => {
  const size = Math.abs(value);
  if (size >= 1e9) return minus(`${+(value / 1e9).toPrecision(3)}G`);
  if (size >= 1e6) return minus(`${+(value / 1e6).toPrecision(3)}M`);
  if (size >= 1e4) return minus(`${+(value / 1e3).toPrecision(3)}k`);
  return size && size < 1e-3 ? minus(value.toExponential(0)) : minus(String(+value.toPrecision(4)));
};
// lines: {name, colour, thin, points: [[x, y]], title}; dots: {x, y, colour, name, title, open}
function chart(box, { lines = [], dots = [], x, y, logX = false, height = 340 }) {
  const width = Math.max(280, Math.round(box.clientWidth - 26) || 600);
  const place = (value) => (logX ? Math.log10(value) : value);
  const xs = [...lines.flatMap((l) => l.points.map((p) => place(p[0]))), ...dots.map((d) => place(d.x))].filter(Number.isFinite);
  const ys = [...lines.flatMap((l) => l.points.map((p) => p[1])), ...dots.map((d) => d.y)].filter(Number.isFinite);
  if (!xs.length || !ys.length) { box.replaceChildren(el("p", { class: "empty" }, "Nothing to draw here.")); return null; }
  const bounds = (values, pad) => { let low = Infinity, high = -Infinity; for (const v of values) { if (v < low) low = v; if (v > high) high = v; } const d = (high - low) * pad || Math.abs(high) * .05 || 1; return [low - d, high + d]; };
  const [x0, x1] = bounds(xs, dots.length ? .08 : 0), [y0, y1] = bounds(ys, .05);
  const left = 62, right = 14, top = 12, bottom = 44;
  const px = (value) => left + (place(value) - x0) / (x1 - x0) * (width - left - right);
  const py = (value) => height - bottom - (value - y0) / (y1 - y0) * (height - top - bottom);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${y} against ${x}` });
  for (const t of ticks(y0, y1, 6)) root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: py(t), y2: py(t) }), svg("text", { x: left - 8, y: py(t) + 4, "text-anchor": "end" }, label(t)));
  for (const t of logX ? logTicks(x0, x1) : ticks(x0, x1, Math.max(3, Math.floor(width / 110)))) {
    const at = left + (t - x0) / (x1 - x0) * (width - left - right);
    root.append(svg("line", { class: "grid", x1: at, x2: at, y1: height - bottom, y2: height - bottom + 5 }), svg("text", { x: at, y: height - bottom + 20, "text-anchor": "middle" }, label(logX ? +(10 ** t).toPrecision(6) : t)));
  }
  root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, x + (logX ? " (logarithmic)" : "")),
    svg("text", { transform: `translate(12 ${(height - bottom + top) / 2}) rotate(-90)`, "text-anchor": "middle" }, y));
  for (const line of lines) {
    let pen = "M", path = "";
    for (const [a, b] of line.points) {
      if (!Number.isFinite(a) || !Number.isFinite(b)) { pen = "M"; continue; }
      path += `${pen}${px(a).toFixed(1)} ${py(b).toFixed(1)}`;
      pen = "L";
    }
    const drawn = svg("path", { d: path, stroke: line.colour, class: line.thin ? "thin" : "", "stroke-dasharray": line.dash || null }, svg("title", {}, line.title || line.name));
    line.node = drawn;
    root.append(drawn);
    if (!line.thin && line.points.length === 1 && Number.isFinite(line.points[0][1])) root.append(svg("circle", { cx: px(line.points[0][0]), cy: py(line.points[0][1]), r: 3, style: `fill:${line.colour}` }));
  }
  const taken = dots.map((d) => [px(d.x) - 6, py(d.y) - 6, px(d.x) + 6, py(d.y) + 6, d]);
  for (const d of dots) {
    const cx = px(d.x), cy = py(d.y);
    root.append(svg("circle", { cx, cy, r: 6, style: `fill:${d.colour}`, tabindex: 0, role: "button", "aria-label": d.title, onclick: d.open,
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); d.open(); } } }, svg("title", {}, d.title)));
    const wide = d.name.length * 6.6 + 12;
    const flip = cx + wide > width - right;
    const box2 = [flip ? cx - wide : cx, cy - 8, flip ? cx : cx + wide, cy + 8];
    if (dots.length <= 60 && !taken.some((t) => t[4] !== d && t[0] < box2[2] && t[2] > box2[0] && t[1] < box2[3] && t[3] > box2[1])) {
      taken.push(box2);
      root.append(svg("text", { class: "label", x: flip ? cx - 10 : cx + 10, y: cy + 4, "text-anchor": flip ? "end" : "start" }, d.name));
    }
  }
  box.replaceChildren(root);
  return root;
}

// ---- learning curves ---------------------------------------------------------------------------------------------
// A quantity is the last part of a logged name: validation's "elbo" and training's "model/elbo" are drawn together.
const quantityOf = (name) => name.split("/").pop();
const drawable = (names) => names.filter((name) => name !== "images" && name !== "seconds");
const curveCounts = tally([...curves.keys()].map((i) => cells[i].data));
const curveData = [...curveCounts.keys()].sort((a, b) => curveCounts.get(b) - curveCounts.get(a) || (a < b ? -1 : 1));
fill($("curve-data"), plain(curveData), curveData[0], curveData.length > 1 ? "all" : null);
function fillQuantity() {
  const data = $("curve-data").value, old = $("quantity").value;
  const own = [...curves].filter(([i]) => !data || cells[i].data === data).map(([, found]) => found);
  const valid = tally(own.flatMap((found) => drawable(Object.keys(found.valid || {})))), train = tally(own.flatMap((found) => distinct(drawable(Object.keys(found.train || {})).map(quantityOf))));
  const rank = (name) => (valid.get(name) || 0) * 1000 + (train.get(name) || 0);
  const names = distinct([...valid.keys(), ...train.keys()]).sort((a, b) => rank(b) - rank(a) || (a < b ? -1 : 1));
  fill($("quantity"), names.map((name) => [name, `${name} (${valid.has(name) ? "validation" : "training"})`]), names.includes(old) ? old : names[0]);
}
fillQuantity();
let axis = "images";
const axisName = { images: "images seen", seconds: "seconds of training" };
const hidden = new Set();
function linesOf(cell, quantity, colour) {
  const found = curves.get(cell.number), lines = [];
  for (const kind of ["train", "valid"]) for (const [name, column] of Object.entries(found[kind] || {})) {
    if (name === "images" || name === "seconds" || quantityOf(name) !== quantity) continue;
    const along = found[kind][axis] || [];
    const points = column.map((value, i) => [along[i], value]).filter(([a]) => a !== null && a !== undefined).map(([a, b]) => [a, b === null ? NaN : b]);
    lines.push({ name: cell.id, colour, thin: kind === "train", points, title: `${cell.group.label}, ${cell.data}, seed ${cell.seed}: ${kind === "train" ? "training" : "validation"} ${name}` });
  }
  return lines;
}
function drawCurves() {
  const box = $("curve-chart"), quantity = $("quantity").value, data = $("curve-data").value, most = 40;
  const able = [...curves.keys()].map((i) => cells[i]).filter((cell) => keepCell(cell) && (!data || cell.data === data) && linesOf(cell, quantity, "").length);
  const shown = able.slice(0, most);
  const colours = new Map(distinct(shown.map((cell) => cell.group)).map((group, i) => [group, `var(--c${i % 8})`]));
  const dashes = new Map([...colours.keys()].map((group, i) => [group, ["", "6 3", "2 3", "9 3 2 3", "1 4"][Math.floor(i / 8) % 5]]));
  const lines = shown.filter((cell) => !hidden.has(cell.group)).flatMap((cell) => linesOf(cell, quantity, colours.get(cell.group)).map((line) => ({ ...line, group: cell.group, dash: dashes.get(cell.group) })));
  for (const group of distinct(lines.map((line) => line.group))) { // without a validation curve, training's is drawn in full
    const own = lines.filter((line) => line.group === group);
    if (own.every((line) => line.thin)) for (const line of own) line.thin = lines.every((l) => l.thin) ? false : line.thin;
  }
  const inner = el("div");
  box.replaceChildren(inner);
  chart(inner, { lines, x: axisName[axis], y: quantity });
  const fade = (group) => { for (const line of lines) line.node.classList.toggle("faded", group !== null && line.group !== group); };
  box.append(el("div", { class: "legend" }, [...colours].map(([group, colour]) => el("button", {
    type: "button", "aria-pressed": String(!hidden.has(group)), onmouseenter: () => fade(group), onmouseleave: () => fade(null),
    onclick: () => { if (!hidden.delete(group)) hidden.add(group); drawCurves(); },
  }, el("i", { style: `background:${colour}` }), curveData.length > 1 && !data ? `${group.label}, ${group.data}` : group.label))),
  el("p", { class: "count" }, `${lines.some((l) => l.thin) ? "Bold: validation; faint: training. " : ""}${able.length > most ? `${most} of ${able.length} runs are drawn; filter to see the others. ` : ""}At most 200 points a curve.`));
}
function drawOwnCurves(box, cell) {
  const found = curves.get(cell.number);
  const names = distinct(["valid", "train"].flatMap((kind) => drawable(Object.keys(found[kind] || {})).map(quantityOf)));
  for (const name of names) {
    const own = el("div", { class: "chart" });
    box.append(own);
    const lines = linesOf(cell, name, "");
    lines.forEach((line, i) => { line.colour = `var(--c${i % 8})`; line.thin = lines.length > 1 && line.thin; });
    chart(own, { lines, x: axisName[axis], y: name, height: 200 });
    if (lines.length > 1) own.append(el("div", { class: "legend" }, lines.map((line) => el("span", {}, el("i", { style: `background:${line.colour}` }), line.title.split(": ").pop()))));
  }
}
$("quantity").addEventListener("change", drawCurves);
$("curve-data").addEventListener("change", () => { fillQuantity(); drawCurves(); });
for (const button of document.querySelectorAll("[data-axis]")) button.addEventListener("click", () => { axis = button.dataset.axis; pressed("[data-axis]", button); drawCurves(); });

// ---- quality against cost ----------------------------------------------------------------------------------------
fill($("price"), D.costNames.map((name, i) => [String(i), name.replace(/_/g, " ")]).filter(([i]) => cells.some((c) => typeof c.cost[i] === "number")), "2");
const measured = (data) => metricNames.filter((name) => groups.some((g) => (!data || g.data === data) && g.rows.some((row) => row.measure.metric === name && typeof row.v === "number")));
const costData = distinct(groups.filter(hasNumbers).map((g) => g.data));
costData.sort((a, b) => groups.filter((g) => g.data === b && hasNumbers(g)).length - groups.filter((g) => g.data === a && hasNumbers(g)).length);
fill($("cost-data"), plain(costData), costData[0]);
function fillQuality() {
  const names = measured($("cost-data").value);
  const counted = (name) => groups.filter((g) => g.data === $("cost-data").value && g.rows.some((row) => row.measure.metric === name)).length;
  fill($("quality"), plain(names), names.includes($("quality").value) ? $("quality").value : names.slice().sort((a, b) => counted(b) - counted(a))[0]);
}
function drawCost() {
  const metric = $("quality").value, data = $("cost-data").value, price = Number($("price").value);
  const box = $("cost-chart"), dots = [], letters = new Set(), units = new Set();
  for (const group of groups) if (keepGroup(group) && group.data === data) for (const row of group.rows) {
    if (row.measure.metric !== metric || typeof row.v !== "number") continue;
    const spent = group.cells.map((i) => cells[i].cost[price]).filter((v) => typeof v === "number" && v > 0);
    if (!spent.length) continue;
    letters.add(row.measure.letter);
    units.add(row.measure.unit);
    const mean = spent.reduce((a, b) => a + b) / spent.length;
    dots.push({ x: mean, y: row.v, colour: familyColour(group.family), family: group.family, name: row.measure.letter ? `${group.label} (${row.measure.letter})` : group.label, open: () => openNumber(row),
      title: `${group.label}: ${metric} ${minus(row.t)}, ${D.costNames[price].replace(/_/g, " ")} ${short(mean)}, protocol ${row.measure.protocol}` });
  }
  const arrowed = dots.length ? arrow[groups.flatMap((g) => g.rows).find((r) => r.measure.metric === metric).measure.direction] : "";
  const inner = el("div");
  box.replaceChildren(inner);
  chart(inner, { dots, x: D.costNames[price].replace(/_/g, " "), y: `${metric}${[...units].join() ? ` (${[...units].join(" / ")})` : ""} ${arrowed || ""}`, logX: true, height: 380 });
  box.append(el("div", { class: "legend" }, distinct(dots.map((d) => d.family)).map((family) => el("span", {}, dot(family), D.families[family] || family))));
  if (letters.size > 1) box.append(el("p", { class: "count mark" }, "⚠ Several protocols: compare points of one letter only."));
}
for (const name of ["quality", "price"]) $(name).addEventListener("change", drawCost);
$("cost-data").addEventListener("change", () => { fillQuality(); drawCost(); });

// ---- light and dark ----------------------------------------------------------------------------------------------
const prefers = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
try { chosen = localStorage.getItem("dgm-theme"); } catch { /* a page from a file may have no storage */ }
function paint() {
  const dark = chosen ? chosen === "dark" : prefers.matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(dark));
}
$("theme").addEventListener("click", () => {
  chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("dgm-theme", chosen); } catch { /* then it lasts as long as the page */ }
  paint();
});
prefers.addEventListener("change", paint);
paint();

// ---- everything --------------------------------------------------------------------------------------------------
function drawAll() { drawResults(); drawGallery(); drawCurves(); drawCost(); drawCells(); }
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawCurves(); drawCost(); } });
fillQuality();
drawProtocols();
drawAll();
document.documentElement.dataset.ready = "true";
})();
