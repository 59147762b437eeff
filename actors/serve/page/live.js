// The panel: what /live tells of the engine, several times a second.
import { events } from "/page/events.js";
import { drawMap, drawSpark } from "/page/map.js";
import { headers } from "/page/settings.js";

const at = (id) => document.getElementById(id);
const NAMES = { gpu: "GPU executor", cpu: "CPU executor", predictor: "predictor" };
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const width = (part, share) => { part.style.width = `${Math.min(100, 100 * share).toFixed(2)}%`; };
const percent = (share, digits = 0) => (100 * share).toFixed(digits) + " %";
const speeds = [];
let stream = null, last = null, drawn = 0, spoken = 0;

function say(state, text) {
  if (at("status-text").textContent !== text) at("status-text").textContent = text;
  at("status").dataset.state = state;
}
function set(id, text) {
  if (at(id).textContent !== String(text)) at(id).textContent = text;
}

function showFigures(seen) {
  const requests = seen.requests, running = (requests.running || 0) > 0;
  set("tokens", (seen.tokens_per_s || 0).toFixed(1));
  set("running", requests.running ?? "\u2013");
  set("waiting", requests.waiting ?? 0);
  set("finished", requests.finished ?? 0);
  set("losses", requests.losses ?? "\u2013");
  set("epoch", seen.epoch);
  set("recall", seen.recall ? percent(seen.recall.recall, 1) : "\u2013");
  set("recall-error", seen.recall ? `\u00b1 ${percent(seen.recall.error, 1)}, audited` : "not audited");
  speeds.push(seen.tokens_per_s || 0);
  if (speeds.length > 120) speeds.shift();
  if (seen.silent_s > 2) say("bad", `silent for ${seen.silent_s.toFixed(0)} s`);
  else say("on", running ? "generating" : "ready");
}

function showLoad(share) {
  const [hot, cold] = at("load").children;
  width(hot, share ?? 0);
  width(cold, share === null ? 0 : 1 - share);
  const text = share === null ? "none yet" : `GPU executor ${percent(share, 1)}, CPU executor ${percent(1 - share, 1)}`;
  set("load-text", text);
  at("load").setAttribute("aria-label", "Activated neurons: " + text);
}

function showActors(actors) {
  const body = at("actors");
  for (const [name, own] of Object.entries(actors)) {
    let row = body.querySelector(`[data-actor="${CSS.escape(name)}"]`);
    if (!row) {
      row = document.createElement("tr");
      row.dataset.actor = name;
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = NAMES[name] || name;
      const bar = document.createElement("div");
      bar.className = "bar";
      bar.setAttribute("role", "img");
      for (const kind of ["work", "wait"]) {
        const part = document.createElement("span");
        part.className = kind;
        bar.append(part);
      }
      const cell = document.createElement("td"), rate = document.createElement("td");
      rate.className = "number";
      cell.append(bar);
      row.append(head, cell, rate);
      body.append(row);
    }
    const bar = row.querySelector(".bar"), [work, wait] = bar.children;
    row.title = own.role;
    width(work, own.busy);
    width(wait, Math.min(own.wait, 1 - Math.min(1, own.busy)));
    bar.setAttribute("aria-label", `computes ${percent(own.busy)}, waits ${percent(own.wait)}`);
    row.lastChild.textContent = own.is_heard ? own.gb_per_s.toFixed(2) : "silent";
  }
}

function showLayers(seen) {
  const layers = seen.layers, shown = layers.filter((layer) => layer.pass);
  const all = shown.reduce((sum, layer) => sum + layer.listed.reduce((a, b) => a + (b || 0), 0), 0);
  const total = shown.reduce((sum, layer) => sum + layer.owned.reduce((a, b) => a + b, 0), 0);
  const note = shown.length
    ? `pass ${Math.max(...shown.map((layer) => layer.pass))}: ${percent(total ? all / total : 0, 1)} ${seen.is_exact ? "fire" : "are proposed by the predictor"}`
    : layers.length ? "this predictor hands over no lists" : "";
  set("map-note", note);
  const now = Date.now();
  if (now - spoken > 2000) { // the table is for reading, not for watching
    spoken = now;
    at("map-text").textContent = note;
    at("layers").replaceChildren(...layers.map((layer, number) => {
      const row = document.createElement("tr");
      const cells = [number, ...layer.owned.slice(0, 2), ...layer.listed.slice(0, 2).map((n) => n ?? "\u2013")];
      for (const text of cells) {
        const cell = document.createElement("td");
        if (row.children.length) cell.className = "number";
        cell.textContent = text;
        row.append(cell);
      }
      return row;
    }));
    const about = seen.about;
    if (about.model) set("about", `${about.model}: policy ${about.policy}, schedule ${about.schedule}, transport ${about.transport}, ${about.n_layers} layers of ${about.n_neurons} neurons, plan ${about.plan.slice(0, 12)}`);
  }
  at("layer").max = Math.max(0, layers.length - 1);
}

function showNeurons(seen) {
  const number = Number(at("layer").value), layer = seen.layers[number], looked = seen.looked_at;
  set("layer-number", number);
  if (!layer) return;
  const words = seen.about.devices || [];
  set("layer-text", layer.pass
    ? `Pass ${layer.pass}: ${layer.listed.map((n, device) => `${n ?? "?"} of ${layer.owned[device]} on ${words[device] || device}`).join(", ")}. Numbers are neurons, hottest first, up to 64.`
    : "Nothing was seen of this layer yet.");
  for (const [device, id] of ["hot-ids", "cold-ids"].entries()) {
    const ids = looked && looked.layer === number ? looked.ids[device] : undefined;
    if (ids !== undefined) set(id, ids === null ? "in the GPU's own memory" : ids.join(" ") || "none");
  }
}

function show(seen) {
  if (seen.error) return say("bad", seen.error);
  last = seen;
  const now = Date.now();
  if (calm.matches && now - drawn < 1000) return;
  drawn = now;
  showFigures(seen);
  showLoad(seen.gpu_neuron_load);
  showActors(seen.actors);
  showLayers(seen);
  showNeurons(seen);
  drawSpark(at("spark"), speeds);
  drawMap(at("map"), seen, Number(at("layer").value), calm.matches);
}

async function follow() {
  let wait = 500;
  for (;;) {
    stream = new AbortController();
    try {
      const response = await fetch("/live?layer=" + at("layer").value, { headers: headers(), signal: stream.signal });
      if (!response.ok) throw new Error(response.status === 401 ? "the server wants a key" : `no live view: ${response.status}`);
      wait = 500;
      for await (const seen of events(response)) show(seen);
    } catch (error) {
      if (error.name === "AbortError") continue; // another layer or key
      say("bad", error.message.startsWith("the server") || error.message.startsWith("no live") ? error.message : "the server does not answer");
    }
    await new Promise((resume) => setTimeout(resume, wait));
    wait = Math.min(8000, 2 * wait);
  }
}

let asked = 0;
at("layer").addEventListener("input", () => {
  set("layer-number", at("layer").value);
  if (last) drawMap(at("map"), last, Number(at("layer").value), true);
  clearTimeout(asked);
  asked = setTimeout(() => stream?.abort(), 150);
});
at("map").addEventListener("click", (event) => {
  if (!last?.layers.length) return;
  const row = Math.floor((event.offsetY / at("map").clientHeight) * last.layers.length);
  at("layer").value = row;
  at("layer").dispatchEvent(new Event("input"));
});
for (const name of ["resize", "hotcold-theme"]) {
  window.addEventListener(name, () => { drawn = 0; if (last) show(last); });
}
window.addEventListener("hotcold-key", () => stream?.abort());
follow();
