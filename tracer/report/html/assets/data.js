// The report's data as columns, and what several parts of the page read from it.

const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const { strings: STRINGS, stacks: STACKS, frames: FRAMES, functions: FUNCTIONS, modules: MODULES } = DATA;
const STACK_COUNT = STACKS.id.length;
const NODE_COUNT = DATA.nodes.frame.length;

// An element with attributes and content. Text goes in as text: nothing here ever parses markup.
function element(name, attributes = {}, ...content) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...content.filter((piece) => piece !== null && piece !== undefined));
  return made;
}

const text = (number) => (number < 0 ? "" : STRINGS[number]);
const baseName = (path) => path.replace(/ \(deleted\)$/, "").split("/").pop();
const hex = (address) => (typeof address === "number" ? address.toString(16) : address);
const bytesTitle = (n) => `${humanCount(n)} bytes`;

// Functions: what a box of the flame graph stands for.
const functionName = (fn) => text(FUNCTIONS.name[fn]);
const fullName = (fn) => text(FUNCTIONS.full[fn]) || functionName(fn);
const modulePath = (fn) => (FUNCTIONS.module[fn] < 0 ? "" : text(MODULES.path[FUNCTIONS.module[fn]]));
const moduleName = (fn) => baseName(modulePath(fn));

// The frames of a stack, innermost first.
function framesOf(stack) {
  const found = [];
  for (let node = STACKS.leaf[stack]; ; node -= DATA.nodes.up[node]) {
    found.push(DATA.nodes.frame[node]);
    if (!DATA.nodes.up[node]) break;
  }
  if (!STACKS.complete[stack] && found.length > 1) found.pop(); // the box that says so
  return found;
}

// The stack in one line, from the frame to look at first.
function stackLabel(stack, names = 4) {
  const first = STACKS.culprit[stack];
  return framesOf(stack)
    .slice(first, first + names)
    .map((frame) => functionName(FRAMES.function[frame]))
    .join(" < ");
}

const kindWords = (kind) => DATA.kinds[kind] || [kind, "unit", "freed"];
const kindName = (stack) => kindWords(text(STACKS.kind[stack]))[0];
const trendName = (stack) => text(STACKS.trend[stack]).replace("-", " ");

const SHARE_WHOLE = STACKS.basis === "growth" ? DATA.growth : STACKS.held;
const shareOf = (stack) => (STACKS.basis === "growth" ? STACKS.growth : STACKS.bytes)[stack];
const HAS_STACKS = STACKS.bytes.some((bytes) => bytes > 0);
