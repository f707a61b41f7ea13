// The page of `scrapy rq serve`. Entries hold what strangers wrote: `el` makes all that is shown text
// nodes, or attributes that cannot run. Nothing here uses innerHTML.

// Without a browser (tests import these)

/** What the search field says: words with a name, and the rest is part of a URL. */
export function readQuery(text) {
  const filter = {};
  const rest = [];
  for (const word of text.trim().split(/\s+/)) {
    const [, name, value] = /^(host|label):(.+)$/i.exec(word) ?? [];
    if (name) filter[name.toLowerCase()] = value;
    else if (word) rest.push(word);
  }
  if (rest.length) filter.url = rest.join(" ");
  return filter;
}

/** The token in the address, as in #token=abc. */
export const tokenOf = (hash) => new URLSearchParams(hash.slice(1)).get("token");

export const count = (number) => number.toLocaleString("en-US");

export const short = (number) =>
  number < 1e6 ? count(number) : `${(number / 1e6).toFixed(1)} M`;

export const plural = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;

const entries = (number) => plural(number, "entry", "entries");

export function duration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const at = units.findIndex(([, size]) => seconds >= size);
  if (at < 0) return "0 s";
  const [[unit, size], next] = [units[at], units[at + 1]];
  const rest = next && at < 2 ? Math.floor((seconds % size) / next[1]) : 0;
  return `${Math.floor(seconds / size)} ${unit}${rest ? ` ${rest} ${next[0]}` : ""}`;
}

export const rateText = (rate) =>
  rate === null ? "–" : rate >= 10 ? `${count(Math.round(rate))}/s` : rate >= 1 ? `${rate.toFixed(1)}/s`
    : rate > 0 ? `${(rate * 60).toFixed(1)}/min` : "0/s";

/** Handled entries a second, from [time, count] pairs of the last minute. */
export function rateOf(polls) {
  const [first, last] = [polls[0], polls.at(-1)];
  if (!first || last[0] - first[0] < 1.5) return null;
  return Math.max(0, last[1] - first[1]) / (last[0] - first[0]);
}

/** How many were done at this time, by a curve of [time, count], which is smooth or has steps. */
export function valueAt(curve, time, steps = false) {
  const next = curve.findIndex(([at]) => at > time);
  if (next === 0 || !curve.length) return 0;
  if (next < 0) return curve.at(-1)[1];
  const [[t0, n0], [t1, n1]] = [curve[next - 1], curve[next]];
  return steps ? n0 : n0 + ((n1 - n0) * (time - t0)) / (t1 - t0);
}

/** Adds a point to a curve, which was level until `before`. */
export function extend(curve, time, number, before = time) {
  const last = curve.at(-1);
  if (last && last[1] === number) return;
  if (last && before > last[0]) curve.push([before, last[1]]);
  curve.push([time, number]);
}

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];

/** The bars of a chart: up to `most` of equal length, each with its start, and what was done in it. */
export function bars(handled, failed, now, most = 60) {
  const times = [...handled, ...failed].map(([time]) => time);
  if (!times.length) return { step: 1, list: [] };
  let end = Math.max(...times);
  if (now - end < 60) end = now;
  const begin = Math.min(...times);
  const least = Math.max(end - begin, 30) / most;
  const step = STEPS.find((one) => one >= least) ?? Math.ceil(least / 86400) * 86400;
  const list = [];
  for (let at = Math.floor(begin / step) * step; at <= end; at += step) {
    const upTo = (time, curve) => (time > begin ? valueAt(curve, time, curve === failed) : 0);
    const done = (curve) => Math.max(0, upTo(at + step, curve) - upTo(at, curve));
    const bad = done(failed);
    list.push({ at, ok: Math.max(0, done(handled) - bad), bad });
  }
  return { step, list };
}

/** Adds the failures of a slice to those of the slices before. */
export function mergeGroups(groups, more) {
  for (const one of more) {
    const known = groups.get(one.message);
    if (known) known.count += one.count;
    else groups.set(one.message, { ...one });
  }
  return groups;
}

/** Only such an address becomes a link: others could run a script. */
export function linkOf(url) {
  try {
    return ["http:", "https:"].includes(new URL(url).protocol) ? url : null;
  } catch {
    return null;
  }
}

/** A saved item as its exporter sees it, without the class that ours notes. */
export function readItem(line) {
  try {
    const item = JSON.parse(line);
    const saved = item?.$saved;
    return Array.isArray(saved) ? Object.fromEntries(saved[1]) : item;
  } catch {
    return line;
  }
}

// The browser

const $ = (id) => document.getElementById(id);

/** Makes an element. Children are elements or texts, and a text is never read as HTML. */
const el = (tag, ...rest) => fill(document.createElement(tag), ...rest);

function fill(made, attributes = {}, ...children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const button = (attributes, ...children) => el("button", { type: "button", ...attributes }, ...children);
const setText = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };
const json = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));
const time = (text) => (text ? new Date(text).toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" }) : "");

const TABS = [
  ["all", "All", "total"], ["pending", "Pending", "pending"], ["locked", "In progress", "locked"],
  ["handled", "Handled", "handled"], ["failed", "Failed", "failed"], ["errors", "Errors"], ["workers", "Workers"],
];
const STATES = {
  pending: ["wait", "pending"], locked: ["busy", "in progress"], handled: ["ok", "handled"], failed: ["bad", "failed"],
};
const ALONE = "Nobody holds leases. Only workers in shared access mark what is in progress. With a crawl that is alone it counts as pending.";
const PERIOD = 2000;

let token = "";
let queue = null; // the id of the one that is shown
let overview = null;
let tab = "all";
let seen = {}; // of this queue: curves, and the polls of the last minute
let loading = 0; // the number of the last load: older ones stop
let opening = 0; // the same for an entry
let after = null;

async function call(path, body) {
  const headers = { Authorization: `Bearer ${token}` };
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { headers, method: body ? "POST" : "GET", body: body && JSON.stringify(body) });
  const text = response.ok && path.endsWith("/export") ? await response.blob() : await response.json();
  if (response.ok) return text.data ?? text;
  const error = new Error(text.error.message);
  error.status = response.status;
  throw error;
}

const ofQueue = (path = "", id = queue) => `/page/queues/${encodeURIComponent(id)}${path}`;

function notice(text, isBad = false) {
  $("notice").textContent = text;
  $("notice").className = isBad ? "bad" : "";
  $("notice").hidden = !text;
  clearTimeout(notice.timer);
  if (!isBad) notice.timer = setTimeout(() => { $("notice").hidden = true; }, 5000);
}

/** An error without a status is none of the server's answers. */
const complain = (error) =>
  notice(error.status ? error.message : "The server does not answer. Is scrapy rq still running?", true);

async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (error.status === 401) signIn();
    else complain(error);
    return undefined;
  }
}

/** Asks in a dialog. Returns the text that was typed, true for none, or null if it was cancelled. */
function ask({ title, text, yes, danger = false, input = null, hint = "", must = null }) {
  setText("ask-title", title);
  setText("ask-text", text);
  setText("ask-yes", yes);
  $("ask-yes").className = danger ? "primary danger" : "primary";
  $("ask-label").replaceChildren(...(input ? [hint, input] : []));
  const check = () => { $("ask-yes").disabled = must !== null && input.value !== must; };
  if (input) input.oninput = check;
  check();
  $("ask").returnValue = "";
  $("ask").showModal();
  return new Promise((resolve) => {
    $("ask").onclose = () => resolve($("ask").returnValue === "yes" ? input?.value || true : null);
  });
}

async function signIn() {
  if ($("ask").open) return;
  const typed = await ask({
    title: "Token", yes: "Use it", input: el("input", { type: "password", "aria-label": "Token" }),
    text: "Open the address that scrapy rq has printed: each start has another token. If you gave it one, type that here.",
  });
  if (typeof typed === "string") {
    remember(typed.trim());
    await poll();
  }
}

function remember(given) {
  token = given;
  sessionStorage.setItem("token", token);
}

// Queues and numbers

function showQueues({ items, total }) {
  setText("queue-count", count(total));
  const focused = document.activeElement?.dataset.queue;
  $("queues").replaceChildren(...items.map((one) => {
    const done = el("i", { class: "ok" });
    done.style.width = `${(100 * one.handledRequestCount) / (one.totalRequestCount || 1)}%`;
    return el("li", {}, button({
      "data-queue": one.id, "aria-current": one.id === queue && "true", onclick: () => choose(one.id),
    }, el("span", {}, one.name || one.id), el("span", { class: "mini" }, done),
    el("span", { class: "muted" }, `${short(one.pendingRequestCount)} of ${short(one.totalRequestCount)} pending`)));
  }));
  if (focused) $("queues").querySelector(`[data-queue="${CSS.escape(focused)}"]`)?.focus();
  $("empty").hidden = items.length > 0;
  $("queue").hidden = !queue || !items.length;
  setText("empty", "There is no queue here yet. Start a crawl, and it shows up.");
  return items;
}

const number = (name, value, dot, attributes = {}) =>
  el("div", attributes, el("dt", {}, dot ? el("i", { class: dot }) : null, name), el("dd", {}, value));

function showOverview(now) {
  const one = overview;
  setText("name", one.name || one.id);
  document.title = `${short(one.pending)} pending – ${one.name || one.id}`;
  const changed = (Date.parse(one.now) - Date.parse(one.modifiedAt)) / 1000;
  setText("about", [
    one.title, changed < 5 ? "changing now" : `last change ${duration(changed)} ago`,
    one.lastCrawl && `last crawl: process ${one.lastCrawl.pid} on ${one.lastCrawl.host}, since ${time(one.lastCrawl.since)}`,
  ].filter(Boolean).join(" · "));
  const rate = rateOf(seen.polls);
  const busy = one.workers.length ? short(one.locked) : "–";
  $("numbers").replaceChildren(
    number("Total", short(one.total)), number("Pending", short(one.pending), "wait"),
    number("In progress", busy, "busy", { title: busy === "–" && ALONE }), number("Handled", short(one.handled), "ok"),
    number("Failed", short(one.failed), "bad", { class: one.failed > 0 && "some" }), number("Items", short(one.items)),
    number("Rate", rateText(rate)), number("Time left", !one.pending ? "none" : rate ? duration(one.pending / rate) : "–"),
  );
  const parts = [["ok", one.handled - one.failed], ["bad", one.failed], ["busy", one.locked], ["wait", one.pending - one.locked]];
  $("bar").replaceChildren(...parts.map(([name, size]) => {
    const part = el("i", { class: name });
    part.style.width = `${(100 * size) / (one.total || 1)}%`;
    return part;
  }));
  $("bar").ariaLabel = `${count(one.handled)} of ${count(one.total)} handled, ${count(one.failed)} failed`;
  for (const [id, , name] of TABS) {
    const small = $(`tab-${id}`).querySelector("small");
    small.textContent = id === "workers" ? count(one.workers.length) : id === "locked" ? busy : name ? short(one[name]) : "";
  }
  showChart(now);
  if (tab === "workers") showWorkers();
}

function showChart(now) {
  const { step, list } = bars(seen.handled, seen.failed, now);
  const top = Math.max(1, ...list.map(({ ok, bad }) => ok + bad));
  const width = 600 / (list.length || 1);
  const chart = $("chart").querySelector("svg");
  const svg = (tag, ...rest) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), ...rest);
  const column = (name, at, low, size) => svg("rect", {
    class: name, x: at * width + width * 0.1, width: width * 0.8, y: 99 - ((low + size) / top) * 96, height: (size / top) * 96,
  });
  chart.replaceChildren(
    svg("line", { class: "base", x1: 0, x2: 600, y1: 99.5, y2: 99.5 }),
    ...list.flatMap(({ at, ok, bad }, index) => [
      column("ok", index, 0, ok), column("bad", index, ok, bad),
      svg("rect", { class: "hit", x: index * width, width, y: 0, height: 100 }, svg("title", {},
        `${new Date(at * 1000).toLocaleString()}: ${count(Math.round(ok))} handled, ${count(Math.round(bad))} failed`)),
    ]),
  );
  const clock = (at) => new Date(at * 1000).toLocaleString(undefined, { dateStyle: "short", timeStyle: step < 60 ? "medium" : "short" });
  setText("chart-start", list.length ? clock(list[0].at) : "nothing handled yet");
  setText("chart-end", list.length ? clock(list.at(-1).at + step) : "");
  setText("chart-unit", list.length ? ` · up to ${count(Math.round(top))} per ${duration(step)}${seen.isEstimate ? ", estimated" : ""}` : "");
}

async function poll() {
  clearTimeout(poll.timer);
  const number = ++poll.number;
  try {
    const items = showQueues(await call("/v2/request-queues?unnamed=1&desc=1&limit=200"));
    if (!items.some(({ id }) => id === queue)) queue = null;
    const newest = items.toSorted((a, b) => b.modifiedAt.localeCompare(a.modifiedAt))[0];
    if (!queue && newest) return await choose(newest.id, false);
    if (queue) await pollQueue();
    if ($("notice").className === "bad" && poll.failed) notice("");
    poll.failed = false;
  } catch (error) {
    poll.failed = true;
    if (error.status === 401) return void signIn();
    complain(error);
  } finally {
    if (number === poll.number) poll.timer = setTimeout(() => document.hidden || poll(), PERIOD);
  }
}
poll.number = 0;

async function pollQueue() {
  const id = queue;
  const found = await call(ofQueue());
  if (!seen.handled) {
    const history = await call(ofQueue("/history"));
    if (id !== queue) return;
    seen = { ...history, polls: [] };
  }
  if (id !== queue) return;
  const now = Date.parse(found.now) / 1000;
  const before = seen.polls.at(-1)?.[0] ?? now;
  extend(seen.handled, now, found.handled, before);
  extend(seen.failed, now, found.failed, before);
  seen.polls = [...seen.polls.filter(([at]) => now - at < 60), [now, found.handled]];
  overview = found;
  showOverview(now);
}

async function choose(id, moves = true) {
  queue = id;
  seen = {};
  overview = null;
  $("queue").hidden = false;
  if (moves && matchMedia("(max-width: 860px)").matches) $("queues-box").open = false;
  await poll();
  await show(tab);
}

// Lists

function showTabs() {
  $("tabs").replaceChildren(...TABS.map(([id, name]) => button({
    role: "tab", id: `tab-${id}`, "aria-selected": "false", "aria-controls": "panel",
    onclick: () => show(id),
  }, name, el("small"))));
}

async function show(id) {
  tab = id;
  location.hash = `/${queue}/${id}`;
  for (const one of $("tabs").children) {
    const isIt = one.id === `tab-${id}`;
    one.setAttribute("aria-selected", isIt);
    one.tabIndex = isIt ? 0 : -1;
  }
  $("panel").setAttribute("aria-labelledby", `tab-${id}`);
  $("search").hidden = ["errors", "workers"].includes(id);
  $("retry-all").hidden = !["handled", "failed"].includes(id);
  $("list").replaceChildren();
  after = null;
  if (queue) await load();
}

async function load() {
  const mine = ++loading;
  $("more").hidden = true;
  setText("status", "");
  if (tab === "workers") return showWorkers();
  return attempt(() => (tab === "errors" ? loadErrors(mine) : loadEntries(mine)));
}

async function loadEntries(mine) {
  const filter = readQuery($("query").value);
  let found = 0, scanned = 0;
  do {
    const asked = new URLSearchParams({ state: tab, limit: 50 - found, ...filter });
    if (after !== null) asked.set("after", after);
    const part = await call(`${ofQueue("/entries")}?${asked}`);
    if (mine !== loading) return;
    found += part.items.length;
    scanned += part.scanned;
    after = part.next;
    if (part.items.length) body(["State", "URL", "Label", "Retries", "Handled"]).append(...part.items.map(entryRow));
    if (after !== null && found < 50) setText("status", `Looked at ${entries(scanned)} …`);
  } while (after !== null && found < 50);
  const rows = $("list").querySelectorAll("tbody tr").length;
  setText("status", rows ? `${entries(rows)}${after === null ? "" : " so far"}` : "");
  if (!rows) empty(Object.keys(filter).length ? "No entry matches." : tab === "locked" ? ALONE : "No entry is in this state.");
  $("more").hidden = after === null;
}

const empty = (text) => $("list").replaceChildren(el("p", { class: "nothing" }, text));

/** The body of the table, which is made for the first rows. */
function body(columns) {
  if (!$("list").querySelector("table")) {
    const head = el("tr", {}, columns.map((name) => el("th", { scope: "col", class: /^(Retries|Count|Leases)$/.test(name) && "num" }, name)));
    $("list").replaceChildren(el("table", {}, el("thead", {}, head), el("tbody")));
  }
  return $("list").querySelector("tbody");
}

function state(name) {
  const [dot, text] = STATES[name];
  return [el("i", { class: dot }), ` ${text}`];
}

function entryRow(one) {
  return el("tr", {},
    el("td", { class: "state" }, state(one.state)),
    el("td", { class: "main" },
      one.method === "GET" ? null : el("span", { class: "method" }, `${one.method} `),
      button({ class: "plain url open", onclick: () => open(one.id) }, one.url || "(no URL)"),
      one.message ? el("span", { class: "message" }, one.message) : null),
    el("td", { class: "label" }, one.label ? button({ class: "plain", onclick: () => search(`label:${one.label}`) }, one.label) : ""),
    el("td", { class: "num", "data-name": one.retryCount ? "retries" : null }, one.retryCount ? count(one.retryCount) : ""),
    el("td", { class: "when" }, one.lockExpiresAt ? `by ${one.lockByClient || "no key"}` : time(one.handledAt)));
}

function search(text) {
  $("query").value = text;
  return show(["errors", "workers"].includes(tab) ? "all" : tab);
}

async function loadErrors(mine) {
  const groups = new Map();
  let next = null, scanned = 0;
  do {
    const part = await call(ofQueue("/failures") + (next === null ? "" : `?after=${next}`));
    if (mine !== loading) return;
    mergeGroups(groups, part.groups);
    next = part.next;
    scanned += part.scanned;
    setText("status", `${entries(scanned)} failed${next === null ? "" : " so far …"}`);
    if (groups.size > 2000) break;
  } while (next !== null);
  if (!groups.size) return empty("No entry has failed.");
  const sorted = [...groups.values()].sort((a, b) => b.count - a.count).slice(0, 200);
  body(["Count", "Message and an example", ""]).replaceChildren(...sorted.map((one) => el("tr", {},
    el("td", { class: "num" }, count(one.count)),
    el("td", { class: "main" }, el("pre", { class: "error" }, one.message ?? "(other messages)"),
      button({ class: "plain url open", onclick: () => open(one.id) }, one.url)),
    el("td", {}, one.message === null ? null
      : button({ onclick: () => retryAll({ state: "failed", message: one.message }) }, "Retry …")))));
}

function showWorkers() {
  const workers = overview?.workers ?? [];
  if (!workers.length) return empty(ALONE);
  setText("status", "");
  return body(["Client key", "Leases", "Taken or prolonged", "They end"]).replaceChildren(...workers.map((one) => el("tr", {},
    el("td", { class: "main url" }, one.clientKey || "(no key)"), el("td", { class: "num", "data-name": "leases" }, count(one.leases)),
    el("td", { class: "when", "data-name": "taken" }, time(one.takenAt)),
    el("td", { class: "when", "data-name": "end" }, `${time(one.firstEnd)} – ${time(one.lastEnd)}`))));
}

// One entry

const pairs = (data) => el("dl", { class: "pairs" }, Object.entries(data).flatMap(([name, value]) =>
  [el("dt", {}, name), el("dd", {}, el("pre", {}, json(value)))]));

const isFull = (value) => ![null, "", false].includes(value) && (typeof value !== "object" || Object.keys(value).length > 0);

function open(id) {
  const mine = ++opening;
  // The server first imports the project's spiders.
  $("entry").replaceChildren(el("h2", { id: "entry-title" }, "Loading …"));
  if (!$("entry").open) $("entry").showModal();
  const isWanted = () => mine === opening && $("entry").open;
  return attempt(async () => {
    const [stored, more] = await Promise.all([
      call(`/v2/request-queues/${encodeURIComponent(queue)}/requests/${encodeURIComponent(id)}`),
      call(ofQueue(`/entries/${encodeURIComponent(id)}`)),
    ]).catch((error) => {
      if (isWanted()) $("entry").close();
      throw error;
    });
    if (!isWanted()) return;
    const isHandled = Boolean(stored.handledAt);
    const failed = isHandled && (stored.errorMessages ?? []).length > (stored.retryCount ?? 0);
    const name = failed ? "failed" : isHandled ? "handled" : stored.lockExpiresAt ? "locked" : "pending";
    const link = linkOf(stored.url);
    const part = (title, ...content) => (content.flat().length ? [el("h3", {}, title), ...content.flat()] : []);
    $("entry").replaceChildren(
      el("div", { class: "bar" }, el("span", {}, state(name)), el("div", { class: "actions" },
        button({ disabled: !isHandled, onclick: () => retryOne(id) }, "Retry"),
        button({ onclick: () => $("entry").close() }, "Close"))),
      el("h2", { id: "entry-title" }, stored.url),
      link ? el("a", { href: link, target: "_blank", rel: "noopener noreferrer" }, "Open in a new tab") : "",
      ...(stored.lockExpiresAt ? part("Lock", pairs({ holder: stored.lockByClient || "(no key)", until: time(stored.lockExpiresAt) })) : []),
      ...part("Error messages", (stored.errorMessages ?? []).map((text) => el("pre", { class: "error" }, text))),
      ...part("As Scrapy sees it", more.request
        ? pairs(Object.fromEntries(Object.entries(more.request).filter(([, value]) => isFull(value)))) : el("pre", { class: "error" }, more.undecodable)),
      ...part("Saved items", more.items.map((line) => el("pre", {}, json(readItem(line))))),
      ...part("As it is stored", el("pre", {}, json(stored))),
    );
    $("entry").scrollTop = 0;
  });
}

// Changes

const retryOne = (id) => attempt(async () => {
  const { retried } = await call(ofQueue("/retry"), { ids: [id] });
  $("entry").close();
  notice(retried ? "The entry went back to the front of the queue." : "The entry is pending already.");
  await refresh();
});

const retryAll = (filter) => attempt(async () => {
  const id = queue;
  let found = 0, next = null;
  do {
    const part = await call(ofQueue("/count", id), { ...filter, after: next });
    found += part.count;
    next = part.next;
    notice(`Counting: ${entries(found)} …`);
  } while (next !== null);
  notice("");
  if (!found) return notice("No entry matches.");
  const yes = await ask({
    title: `Retry ${entries(found)}?`, yes: `Retry ${count(found)}`,
    text: "They go to the front of the queue, as if they had never been tried. A crawl that is running picks them up; otherwise the next one does.",
  });
  if (!yes) return;
  let retried = 0;
  do {
    const part = await call(ofQueue("/retry", id), { ...filter, after: next });
    retried += part.retried;
    next = part.next;
    notice(`${count(retried)} of ${entries(found)} …`);
  } while (next !== null);
  notice(`${entries(retried)} went back to the queue.`);
  await refresh();
});

const add = () => attempt(async () => {
  const id = queue;
  const text = await ask({
    title: "Add requests", yes: "Add", input: el("textarea", { rows: 8, spellcheck: "false", "aria-label": "Requests" }),
    text: 'One per line: a URL, or an object such as {"url": "https://example.com", "method": "POST", "payload": "a=1", "userData": {"label": "item"}}',
  });
  if (typeof text !== "string") return;
  const lines = text.split("\n").filter((line) => line.trim());
  let added = 0, present = 0;
  const refused = [];
  for (let at = 0; at < lines.length; at += 100) {
    const part = await call(ofQueue("/add", id), { lines: lines.slice(at, at + 100) });
    added += part.added;
    present += part.present;
    refused.push(...part.refused.map(({ line, reason }) => `line ${line + at}: ${reason}`));
  }
  notice(`${count(added)} added, ${count(present)} already there${refused.length ? `. Not added: ${refused.slice(0, 3).join("; ")}` : ""}`, refused.length > 0);
  await refresh();
});

const exportQueue = () => attempt(async () => {
  const name = overview.name || overview.id;
  notice("Exporting …");
  const link = el("a", { href: URL.createObjectURL(await call(ofQueue("/export"))), download: `${name}.jsonl` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  notice(`${name}.jsonl has all entries and items, for scrapy rq import.`);
});

const purge = () => attempt(async () => {
  const id = queue;
  const name = overview.name || overview.id;
  const isUsed = overview.locked > 0 || Date.parse(overview.now) - Date.parse(overview.modifiedAt) < 60000;
  const yes = await ask({
    title: "Purge the queue?", yes: "Purge", danger: true, must: name,
    hint: `Type its name, ${name}:`, input: el("input", { autocomplete: "off", spellcheck: "false" }),
    text: `This deletes all ${entries(overview.total)}, ${count(overview.pending)} of them pending, and ${plural(overview.items, "saved item", "saved items")}.`
      + (isUsed ? "\n\nSomebody uses it at the moment: stop the crawl first." : ""),
  });
  if (!yes) return;
  await call(ofQueue("/purge", id), {});
  notice("The queue is empty.");
  await choose(id);
});

async function refresh() {
  await poll();
  await show(tab);
}

// Keys

function move(by) {
  const rows = [...$("list").querySelectorAll(".open")];
  const at = rows.findIndex((row) => row.closest("tr").contains(document.activeElement));
  rows[Math.min(Math.max(at + by, 0), rows.length - 1)]?.focus();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("[role=tab]") && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const by = event.key === "ArrowLeft" ? TABS.length - 1 : 1;
    show(TABS[(TABS.findIndex(([id]) => id === tab) + by) % TABS.length][0]);
    $(`tab-${tab}`).focus();
    return;
  }
  if (event.target.matches("input, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const keys = { "/": () => $("query").focus(), r: refresh, j: () => move(1), k: () => move(-1) };
  if ($("list").contains(document.activeElement)) Object.assign(keys, { ArrowDown: keys.j, ArrowUp: keys.k });
  const key = keys[event.key];
  if (key) { event.preventDefault(); key(); } else if (TABS[event.key - 1]) show(TABS[event.key - 1][0]);
}

function start() {
  const given = tokenOf(location.hash);
  if (given) remember(given);
  else token = sessionStorage.getItem("token") ?? "";
  const [, id, name] = given ? [] : location.hash.split("/");
  queue = id || null;
  if (TABS.some(([one]) => one === name)) tab = name;
  // Nobody shall copy it along with the address.
  if (given) history.replaceState(null, "", location.pathname);
  if (matchMedia("(max-width: 860px)").matches) $("queues-box").open = false;
  showTabs();
  $("search").onsubmit = (event) => { event.preventDefault(); show(tab); };
  $("more").onclick = load;
  $("retry-all").onclick = () => retryAll({ state: tab, ...readQuery($("query").value) });
  $("add").onclick = add;
  $("export").onclick = exportQueue;
  $("purge").onclick = purge;
  document.addEventListener("keydown", onKey);
  document.addEventListener("visibilitychange", () => document.hidden || poll());
  if (queue) choose(queue, false);
  else poll();
}

if (globalThis.document) start();
