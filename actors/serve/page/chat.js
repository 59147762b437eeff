// The chat: messages to /v1 of this server, the answer as it comes.
import { events } from "/page/events.js";
import { headers, number, value } from "/page/settings.js";

const at = (id) => document.getElementById(id);
const log = at("log"), prompt = at("prompt");
let messages = [], model = null, running = null, hasChat = true;

async function findModel() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) throw await failure(response);
  model = (await response.json()).data[0].id;
  at("model").textContent = model;
}

// What the server says of a failure, in its own words.
async function failure(response) {
  let said = {};
  try { said = (await response.json()).error || {}; } catch { /* no JSON */ }
  const error = new Error(said.message || `the server answered ${response.status}`);
  error.code = said.code;
  error.status = response.status;
  return error;
}

function show(role, text) {
  at("hint")?.remove();
  const box = document.createElement("div");
  box.className = role === "user" ? "message mine" : "message";
  const who = document.createElement("span");
  who.className = "unseen";
  who.textContent = role === "user" ? "You: " : "Model: ";
  const said = document.createElement("span");
  said.className = "said";
  said.textContent = text;
  box.append(who, said);
  log.append(box);
  log.scrollTop = log.scrollHeight;
  return box;
}

function body() {
  const chat = value("mode") === "chat" || (value("mode") === "auto" && hasChat);
  const asked = { model, stream: true, stream_options: { include_usage: true } };
  for (const name of ["max_tokens", "temperature", "top_p", "seed"]) {
    const chosen = number(name);
    if (chosen !== undefined) asked[name] = chosen;
  }
  if (!chat) {
    return ["/v1/completions", { ...asked, prompt: messages.map((one) => one.content).join("") }];
  }
  const system = value("system") ? [{ role: "system", content: value("system") }] : [];
  return ["/v1/chat/completions", { ...asked, messages: [...system, ...messages] }];
}

async function ask(signal) {
  if (model === null) await findModel();
  const [path, asked] = body();
  const response = await fetch(path, {
    method: "POST", signal, body: JSON.stringify(asked),
    headers: { "Content-Type": "application/json", ...headers() },
  });
  if (response.ok) return response;
  const error = await failure(response);
  const noChat = error.code === "no_chat_template" || error.status === 404;
  if (path.includes("chat") && value("mode") === "auto" && noChat && hasChat) {
    hasChat = false;
    return ask(signal);
  }
  throw error;
}

async function answer() {
  running = new AbortController();
  busy(true);
  const box = show("assistant", ""), said = box.querySelector(".said");
  box.classList.add("busy");
  log.setAttribute("aria-busy", "true");
  const begun = performance.now();
  let text = "", first = null, usage = null, error = null;
  try {
    for await (const event of events(await ask(running.signal))) {
      if (event.error) throw new Error(event.error.message || "the server broke off");
      usage = event.usage || usage;
      const choice = event.choices?.[0];
      const more = choice?.delta?.content ?? choice?.text ?? "";
      if (!more) continue;
      first ??= performance.now();
      text += more;
      const below = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
      said.textContent = text;
      if (below) log.scrollTop = log.scrollHeight;
    }
  } catch (problem) {
    if (problem.name !== "AbortError") error = problem;
  }
  finish(box, text, error, { usage, begun, first, stopped: running.signal.aborted });
}

function finish(box, text, error, { usage, begun, first, stopped }) {
  box.classList.remove("busy");
  if (text) messages.push({ role: "assistant", content: text });
  const meta = document.createElement("span");
  meta.className = error ? "meta error" : "meta";
  const seconds = (performance.now() - begun) / 1000;
  const words = [];
  if (error) words.push(error.status === 401 ? error.message + " (see Settings)" : error.message);
  if (stopped) words.push("stopped");
  if (usage) words.push(`${usage.completion_tokens} tokens`);
  if (first) words.push(`${seconds.toFixed(1)} s, first token after ${((first - begun) / 1000).toFixed(2)} s`);
  meta.textContent = words.join(", ");
  box.append(meta);
  log.removeAttribute("aria-busy");
  log.scrollTop = log.scrollHeight;
  running = null;
  busy(false);
  if (document.activeElement === document.body) prompt.focus();
}

function busy(is) {
  const inside = at("form").contains(document.activeElement);
  at("stop").hidden = !is;
  at("send").hidden = is;
  if (inside && document.activeElement !== prompt) (is ? at("stop") : prompt).focus();
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  // A text that is continued begins or ends with blanks for a reason; an empty one is none.
  const text = prompt.value;
  if (running || !text.trim()) return;
  messages.push({ role: "user", content: text });
  show("user", text);
  prompt.value = "";
  grow();
  answer();
});
at("stop").addEventListener("click", () => running?.abort());
at("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  log.replaceChildren();
  prompt.focus();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  } else if (event.key === "Escape") running?.abort();
});
function grow() {
  prompt.style.height = "auto";
  prompt.style.height = prompt.scrollHeight + "px";
}
prompt.addEventListener("input", grow);
window.addEventListener("hotcold-key", () => { model = null; findModel().catch(() => {}); });
findModel().catch((error) => { at("model").textContent = error.status === 401 ? "the server wants a key: see Settings" : error.message; });
