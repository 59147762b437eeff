// What a person chose: kept in this browser, the key only for this tab.
const FIELDS = ["mode", "system", "max_tokens", "temperature", "top_p", "seed", "theme"];
const at = (id) => document.getElementById(id);

function stored(storage, name) {
  try { return storage.getItem("hotcold." + name); } catch { return null; }
}
function store(storage, name, value) {
  try { storage.setItem("hotcold." + name, value); } catch { /* private window */ }
}

export function value(name) { return at(name).value.trim(); }

// The number in a field, or undefined where it is empty or not allowed.
export function number(name) {
  const field = at(name);
  return field.value === "" || !field.checkValidity() ? undefined : Number(field.value);
}

export function headers() {
  const key = value("key");
  return key ? { Authorization: "Bearer " + key } : {};
}

function applyTheme() {
  const theme = value("theme");
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  window.dispatchEvent(new Event("hotcold-theme"));
}

for (const name of FIELDS) {
  const before = stored(localStorage, name);
  if (before !== null) at(name).value = before;
  at(name).addEventListener("change", () => store(localStorage, name, at(name).value));
}
at("key").value = stored(sessionStorage, "key") || "";
at("key").addEventListener("change", () => {
  store(sessionStorage, "key", at("key").value);
  window.dispatchEvent(new Event("hotcold-key"));
});
at("theme").addEventListener("change", applyTheme);
at("open-settings").addEventListener("click", () => at("settings").showModal());
applyTheme();

const tabs = { chat: at("tab-chat"), live: at("tab-live") };
for (const [name, tab] of Object.entries(tabs)) {
  tab.addEventListener("click", () => {
    document.querySelector("main").dataset.shown = name;
    for (const other of Object.values(tabs)) other.setAttribute("aria-pressed", String(other === tab));
    window.dispatchEvent(new Event("resize"));
  });
}
