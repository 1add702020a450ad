// The tables of stacks and of VMAs: their columns, and what a row shows when it is opened.

const PRINT_STACKS = 10; // with all frames
const CLASS_STACKS = 8;

const figure = (value, shown) => element("span", { title: bytesTitle(value) }, shown);
const word = (content) => element("span", { class: "word" }, content);

function stackList(showInGraph, opened) {
  const kindAndClass = (row) => `${kindName(row)} in ${text(STACKS.class[row])}`;
  const freed = (row) => STACKS.freed_count[row] / STACKS.allocated_count[row];
  const columns = [
    { title: "Held", key: (row) => STACKS.bytes[row], cell: (row) => held(row), style: "n strong", start: -1,
      hint: "acquired in the window and still held" },
    { title: "Share", key: shareOf, cell: (row) => percent(shareOf(row), SHARE_WHOLE), style: "n", start: -1,
      hint: `share of ${STACKS.basis === "growth" ? "the growth of RSS" : "all live bytes"}` },
    { title: "Rate", key: (row) => STACKS.rate[row], cell: (row) => humanRate(STACKS.rate[row]), style: "n opt", start: -1,
      hint: "mean over the window" },
    { title: "Call stack", key: (row) => stackLabel(row), cell: (row) => stackCell(row), style: "wide", start: 1,
      hint: "from the frame to look at first, then its callers" },
    // Of page faults only the bytes are counted.
    { title: "Blocks", key: (row) => STACKS.count[row], style: "n opt", start: -1,
      cell: (row) => (STACKS.count[row] ? humanCount(STACKS.count[row]) : "-"),
      hint: "blocks, mappings, faults or calls" },
    { title: "Freed", key: (row) => freed(row) || 0, style: "n opt", start: -1, hint: "of what was allocated in the window",
      cell: (row) => (STACKS.allocated_count[row] ? percent(freed(row)) : "-") },
    { title: "Oldest", key: (row) => STACKS.oldest[row], style: "n opt", start: -1,
      cell: (row) => (STACKS.oldest[row] > 0 ? humanSeconds(STACKS.oldest[row]) : "-") },
    { title: "Trend", key: trendName, cell: (row) => trendCell(row), style: "opt", start: 1 },
    { title: "Kind", key: kindAndClass, cell: (row) => word(kindAndClass(row)), style: "opt", start: 1 },
  ];
  const haystack = (row) =>
    `${framesOf(row).map((frame) => `${fullName(FRAMES.function[frame])} ${modulePath(FRAMES.function[frame])}`).join(" ")} ` +
    `${kindAndClass(row)} ${trendName(row)} ${STACKS.id[row]}`;
  const detail = (row) => stackDetail(row, showInGraph);
  return new List({ name: "stacks", noun: "stack", count: STACK_COUNT, columns, detail, haystack, sorted: 0, onOpen: opened });
}

function held(row) {
  const error = STACKS.error[row] ? element("small", { class: "dim" }, ` ±${humanBytes(STACKS.error[row])}`) : null;
  return element("span", {}, figure(STACKS.bytes[row], humanBytes(STACKS.bytes[row])), error);
}

function trendCell(row) {
  const name = text(STACKS.trend[row]);
  return element("span", { class: `trend t-${name}` }, name === "unknown" ? "-" : name.replace("-", " "));
}

function stackCell(row) {
  const first = framesOf(row)[STACKS.culprit[row]];
  const parts = first === undefined ? -1 : FRAMES.file[first] < 0 ? -1 : -2; // a module's name, or a file's with its folder
  const place = first === undefined ? "" : placeOf(first).split("/").slice(parts).join("/");
  const cell = element("span", { class: "stack name code" }, element("b", {}, stackLabel(row, 1)));
  const callers = stackLabel(row, 5).slice(stackLabel(row, 1).length);
  if (callers) cell.append(element("span", { class: "dim" }, callers));
  return element("span", {}, cell, place ? element("span", { class: "place name" }, place) : null);
}

// Where a frame is: file and line, or else module and offset, which addr2line takes.
function placeOf(frame) {
  const file = text(FRAMES.file[frame]);
  if (file) return FRAMES.line[frame] === null ? file : `${file}:${FRAMES.line[frame]}`;
  const module = modulePath(FRAMES.function[frame]);
  return module ? `${module}+0x${hex(FRAMES.offset[frame])}` : "";
}

function stackDetail(row, showInGraph) {
  const [, unit, undone] = kindWords(text(STACKS.kind[row]));
  const facts = [
    `${humanBytes(STACKS.bytes[row])} held (${bytesTitle(STACKS.bytes[row])})` +
      (STACKS.count[row] ? ` in ${plural(STACKS.count[row], unit)}` : ""),
    STACKS.error[row] ? `give or take ${humanBytes(STACKS.error[row])}` : "",
    STACKS.allocated_count[row]
      ? `${undone} ${humanCount(STACKS.freed_count[row])} of ${humanCount(STACKS.allocated_count[row])} (` +
        `${humanBytes(STACKS.freed[row])} of ${humanBytes(STACKS.allocated[row])})`
      : "",
    `growth of RSS by the ledger ${humanBytes(STACKS.growth[row], true)}`,
    `id ${STACKS.id[row]}`,
  ];
  const button = element("button", { type: "button" }, "Show in the flame graph");
  button.addEventListener("click", () => showInGraph(row));
  return element(
    "div",
    {},
    element("p", { class: "dim" }, facts.filter(Boolean).join("; "), " ", button),
    framesTable(row),
    buildIds(row),
    STACKS.complete[row] ? null : element("p", { class: "warn" }, "The stack ends early: its outer frames could not be read."),
  );
}

// Columns in which no frame of the stack has anything are left out.
const FRAME_COLUMNS = [
  { title: "Function", style: "name code", of: (frame) =>
      fullName(FRAMES.function[frame]) +
      (FRAMES.distance[frame] ? `+0x${hex(FRAMES.distance[frame])}` : "") +
      (FRAMES.inlined[frame] ? " [inlined]" : "") },
  { title: "Source", style: "name code", of: (frame) => (FRAMES.file[frame] < 0 ? "" : placeOf(frame)) },
  { title: "Module", style: "name code", of: (frame) =>
      `${modulePath(FRAMES.function[frame]) || "(no module)"}+0x${hex(FRAMES.offset[frame])}` },
];

// Which files these were, to the byte: what a later, better symbol file is found by.
function buildIds(row) {
  const modules = new Set(framesOf(row).map((frame) => FUNCTIONS.module[FRAMES.function[frame]]));
  const known = [...modules].filter((module) => module >= 0 && MODULES.build_id[module] >= 0);
  if (!known.length) return null;
  const lines = known.map((module) =>
    element(
      "li",
      { class: "name" },
      `${baseName(text(MODULES.path[module]))} `,
      element("span", { class: "code" }, text(MODULES.build_id[module])),
    ),
  );
  return element("div", { class: "builds dim" }, "Build IDs", element("ul", {}, ...lines));
}

function framesTable(row) {
  const frames = framesOf(row);
  const columns = FRAME_COLUMNS.filter(({ of }) => frames.some((frame) => of(frame)));
  const head = columns.map(({ title }) => element("th", { scope: "col" }, title));
  const lines = frames.map((frame, index) => {
    const style = index === STACKS.culprit[row] ? "culprit" : index < STACKS.folded[row] ? "dim" : null;
    const cells = columns.map(({ of, style: kind }) => element("td", { class: kind }, of(frame)));
    return element("tr", { class: style }, element("td", { class: "n" }, String(index)), ...cells);
  });
  return element(
    "table",
    { class: "frames" },
    element("caption", {}, "Innermost frame first; bold is the one to look at, pale are the allocator's own"),
    element("thead", {}, element("tr", {}, element("th"), ...head)),
    element("tbody", {}, ...lines),
  );
}

function vmaList() {
  const { vmas } = DATA;
  const path = (row) => text(vmas.path[row]);
  const size = (column) => (row) => figure(vmas[column][row], humanBytes(vmas[column][row], column === "growth"));
  const columns = [
    { title: "Addresses", key: (row) => vmas.start[row].padStart(16, "0"), start: 1, style: "wide",
      cell: (row) => element("span", { class: "code addresses" }, `${vmas.start[row]}-`, element("wbr"), vmas.end[row]) },
    { title: "Growth", key: (row) => vmas.growth[row], cell: size("growth"), style: "n strong", start: -1 },
    { title: "RSS", key: (row) => vmas.rss[row], cell: size("rss"), style: "n opt", start: -1 },
    { title: "Size", key: (row) => vmas.size[row], cell: size("size"), style: "n opt", start: -1 },
    { title: "Class", key: (row) => text(vmas.class[row]), start: 1,
      cell: (row) => element("span", {}, word(text(vmas.class[row])), vmas.gone[row] ? " (gone)" : "") },
    { title: "Perms", key: (row) => text(vmas.perms[row]), style: "opt", start: 1,
      cell: (row) => element("span", { class: "code" }, text(vmas.perms[row])) },
    { title: "Path", key: path, cell: (row) => element("span", { class: "name code" }, path(row)), style: "wide opt", start: 1 },
  ];
  const haystack = (row) => `${vmas.start[row]}-${vmas.end[row]} ${path(row)} ${text(vmas.class[row])}`;
  const list = new List({ name: "vmas", noun: "VMA", count: vmas.start.length, columns, detail: vmaDetail, haystack, sorted: 1 });
  const all = $("vmas-all");
  list.keep = (row) => all.checked || vmas.growth[row] !== 0;
  all.addEventListener("change", () => list.refresh());
  list.refresh();
  return list;
}

// The books are kept by class: which of its VMAs a stack's memory lies in, they do not say.
function vmaDetail(row) {
  const { vmas, ledger } = DATA;
  const own = vmas.class[row];
  const [address, path] = [`${vmas.start[row]}-${vmas.end[row]}`, text(vmas.path[row])];
  const facts =
    `${address} ${text(vmas.perms[row])}, ${humanBytes(vmas.rss[row])} of ${humanBytes(vmas.size[row])} resident` +
    `${vmas.gone[row] ? ", unmapped in the window" : ""}${path ? `: ${path}` : ""}`;
  const ofClass = ledger.bytes.map((_, at) => at).filter((at) => ledger.class[at] === own);
  if (!ofClass.length) return element("p", { class: "dim" }, `${facts}. The ledger has no row for this class of memory.`);
  const others = vmas.class.filter((one, at) => one === own && at !== row && vmas.growth[at] !== 0).length;
  const what = others
    ? `The ledger is kept by class: these are the causes of all ${humanCount(others + 1)} VMAs of this class that changed.`
    : "No other VMA of this class changed: these are the causes of its growth.";
  const lines = ofClass.slice(0, CLASS_STACKS).map((at) => {
    const stack = ledger.stack[at];
    const link = stack < 0 ? null : element("a", { href: `#s=${STACKS.id[stack]}`, class: "name code" }, stackLabel(stack, 3));
    return element(
      "tr",
      {},
      element("td", { class: "n" }, figure(ledger.bytes[at], humanBytes(ledger.bytes[at], true))),
      element("td", {}, text(ledger.cause[at])),
      element("td", { class: "wide" }, link),
    );
  });
  const left = ofClass.slice(CLASS_STACKS);
  const rest = left.reduce((sum, at) => sum + ledger.bytes[at], 0);
  if (left.length) lines.push(element("tr", { class: "dim" }, element("td", { class: "n" }, humanBytes(rest, true)), element("td", { colspan: 2 }, plural(left.length, "more row"))));
  const first = element("p", { class: "dim" }, `${facts}. ${what}`);
  return element("div", {}, first, element("table", { class: "frames" }, element("tbody", {}, ...lines)));
}
