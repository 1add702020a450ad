// Puts the parts together, and keeps the view in the address so that it can be shared.

const STATE_KEYS = { m: "metric", c: "colour", q: "query" };
const state = { metric: "held", colour: "module", query: "", inverted: false, allocator: false, kinds: new Set() };
const presentKinds = Object.keys(DATA.kinds).filter((kind) => STACKS.kind.some((one) => text(one) === kind));

let written = "";
let opened = null;

function writeAddress(view) {
  const parts = new URLSearchParams();
  for (const [key, name] of Object.entries(STATE_KEYS)) if (state[name] !== DEFAULTS[name]) parts.set(key, state[name]);
  if (state.kinds.size < presentKinds.length) parts.set("k", [...state.kinds].join(","));
  if (state.inverted) parts.set("i", "1");
  if (state.allocator) parts.set("a", "1");
  const place = view && view.tree ? view.tree.place(view.zoom) : null;
  if (place) parts.set("z", `${place.id}.${place.depth}`);
  if (opened) parts.set("s", opened);
  written = `#${parts}`;
  if (written !== "#" || location.hash.includes("=")) history.replaceState(null, "", written === "#" ? "#graph" : written);
}

// What the address asks for; anything else in it is ignored.
function readAddress() {
  const parts = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  const one = (key, known, otherwise) => (known.includes(parts.get(key)) ? parts.get(key) : otherwise);
  state.metric = one("m", Object.keys(METRICS), DEFAULTS.metric);
  state.colour = one("c", ["module", "kind", "trend"], DEFAULTS.colour);
  state.query = parts.get("q") || "";
  state.inverted = parts.get("i") === "1";
  state.allocator = parts.get("a") === "1";
  const kinds = (parts.get("k") ?? presentKinds.join(",")).split(",").filter((kind) => presentKinds.includes(kind));
  state.kinds = new Set(kinds);
  const [, id, depth] = /^(.+)\.(\d{1,6})$/.exec(parts.get("z") || "") || [];
  return { zoom: id ? { id, depth: Number(depth) } : null, stack: parts.get("s") };
}

const DEFAULTS = { metric: STACKS.bytes.some((bytes) => bytes > 0) ? "held" : "allocated", colour: "module", query: "" };

function showControls() {
  $("metric").value = state.metric;
  $("order").value = state.inverted ? "1" : "0";
  $("colour").value = state.colour;
  $("allocator").checked = state.allocator;
  $("search").value = state.query;
  for (const box of $("kinds").querySelectorAll("input")) box.checked = state.kinds.has(box.value);
}

function buildControls() {
  $("metric").append(...Object.entries(METRICS).map(([key, { title }]) => element("option", { value: key }, title)));
  $("kinds").append(
    ...presentKinds.map((kind) =>
      element("label", { class: "check" }, element("input", { type: "checkbox", value: kind }), ` ${kindWords(kind)[0]}`),
    ),
  );
  $("kinds").hidden = presentKinds.length < 2;
}

function flameGraph() {
  const view = new FlameView(state, (query) => {
    if (query !== undefined && state.query !== query) {
      state.query = $("search").value = query;
      view.search();
    }
    writeAddress(view);
  });
  const change = (id, event, act) =>
    $(id).addEventListener(event, () => {
      act($(id));
      writeAddress(view);
    });
  const here = () => view.tree.place(view.zoom);
  change("metric", "change", (control) => {
    state.metric = control.value;
    view.recount();
  });
  change("order", "change", (control) => {
    state.inverted = control.value === "1";
    view.rebuild();
  });
  change("colour", "change", (control) => {
    state.colour = control.value;
    view.recount();
  });
  change("allocator", "change", (control) => {
    const place = state.inverted ? null : here();
    state.allocator = control.checked;
    view.rebuild(place);
  });
  change("kinds", "change", (group) => {
    state.kinds = new Set([...group.querySelectorAll("input:checked")].map((box) => box.value));
    view.recount();
  });
  change("search", "input", (control) => {
    state.query = control.value;
    view.search();
  });
  change("reset", "click", () => view.zoomTo(0));
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.query) {
      event.preventDefault();
      state.query = event.target.value = "";
      view.search();
      writeAddress(view);
    } else if (event.key === "Escape" || event.key === "Enter") $("flame").focus();
  });
  return view;
}

// Keys that work anywhere but where text is typed.
function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    if (event.key === "/") {
      event.preventDefault();
      $("search").focus();
    } else if (event.key === "i") {
      $("order").value = state.inverted ? "0" : "1";
      $("order").dispatchEvent(new Event("change"));
    }
  });
}

// Light, dark, or what the system asks for.
function themeButton(redraw) {
  const root = document.documentElement;
  const button = $("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
    redraw();
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  dark.addEventListener("change", show);
  button.hidden = false;
  show();
}

function printing(prepare) {
  const root = document.documentElement;
  let theme = null;
  addEventListener("beforeprint", () => {
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    prepare(true);
  });
  addEventListener("afterprint", () => {
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    prepare(false);
  });
}

function main() {
  for (const section of document.querySelectorAll(".script")) section.hidden = false;
  $("plain").open = false;
  const chart = new Chart();
  chart.layout();
  $("flame-panel").hidden = !STACK_COUNT;
  buildControls();
  const view = STACK_COUNT ? flameGraph() : null;
  const inGraph = (row) => {
    // The stack's own box: its innermost frame, or, inverted, its outermost.
    view.zoomTo(view.tree.leaf[row]);
    $("graph").scrollIntoView();
    $("flame").focus({ preventScroll: true });
  };
  const stacks = stackList(inGraph, (row) => {
    opened = row === null ? null : STACKS.id[row];
    writeAddress(view);
  });
  const vmas = vmaList();
  describeLists();
  const show = () => {
    const { zoom, stack } = readAddress();
    showControls();
    if (view) view.rebuild(zoom);
    reveal(stack);
  };
  const reveal = (stack) => {
    opened = STACKS.id.includes(stack) ? stack : null;
    if (opened) stacks.reveal(STACKS.id.indexOf(stack), stack);
  };
  show();
  addEventListener("hashchange", () => {
    const link = /^#s=([^&]*)$/.exec(location.hash);
    if (link) {
      // A link within the page to a stack: all else stays as it is.
      reveal(link[1]);
      writeAddress(view);
    } else if (location.hash.includes("=") && location.hash !== written) show();
  });
  listenToKeys();
  themeButton(() => {
    if (!view || !view.tree) return;
    view.palette.refresh();
    view.draw();
  });
  printing((on) => {
    if (view) view.print(on);
    chart.layout(on ? PRINT_WIDTH : undefined);
    stacks.print(on, PRINT_STACKS);
    vmas.print(on, 0);
  });
}

function describeLists() {
  const growing = STACKS.trend.filter((trend) => text(trend) === "growing").length;
  const whole = STACKS.basis === "growth" ? "the growth of RSS, by the ledger" : "all bytes held";
  $("stacks-lead").textContent = STACK_COUNT
    ? `${plural(STACK_COUNT, "stack")}, ${humanCount(growing)} still growing. Held: acquired in the window and not given ` +
      `back. Shares are of ${whole}. Select a row for all of its frames.`
    : "No call stack.";
  const changed = DATA.vmas.growth.filter((growth) => growth !== 0).length;
  $("vmas-lead").textContent =
    `${plural(DATA.vmas.growth.length, "VMA")}, of which ${humanCount(changed)} changed. ` +
    "Select a row for the causes in its class of memory.";
}

main();
