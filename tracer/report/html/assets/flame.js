// The flame graph on a canvas: colours, search, layout, drawing, zoom.

const ROW = 20;
const FONT = '12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace';
const MIN_WIDTH = 0.5; // narrower boxes are drawn together as one
const MODULE_COLOURS = 7;
const KIND_COLOURS = ["malloc", "mmap", "fault", "brk"];
const TREND_COLOURS = ["growing", "levelled-off", "steady", "", "", "unknown"]; // the last in a colour that says little
const MAJORITY = 0.9; // of a box's memory, to give it the colour of one kind
const PRINT_WIDTH = 720;

// Colours stand in the style sheet; the canvas asks a probe element, as only the browser resolves them.
class Palette {
  constructor() {
    this.probe = element("span", { hidden: true });
    document.body.append(this.probe);
    this.refresh();
  }

  refresh() {
    this.known = new Map();
  }

  get(name) {
    if (!this.known.has(name)) {
      this.probe.className = `p-${name}`;
      this.known.set(name, getComputedStyle(this.probe).backgroundColor);
    }
    return this.known.get(name);
  }
}

class FlameView {
  constructor(state, changed) {
    this.state = state;
    this.changed = changed;
    this.canvas = $("flame-canvas");
    this.scroller = $("flame");
    this.room = $("flame-room");
    this.palette = new Palette();
    this.trees = new Map();
    this.zoom = 0;
    this.focus = 0;
    this.hover = null;
    new FlameInput(this);
  }

  // Everything from the state on; a zoom that is kept stays where its stack is.
  rebuild(zoom = null) {
    const key = `${this.state.inverted}${this.state.allocator}`;
    if (!this.trees.has(key)) this.trees.set(key, new FlameTree(this.state.inverted, this.state.allocator));
    this.tree = this.trees.get(key);
    this.zoom = zoom ? this.tree.find(zoom.id, zoom.depth) : 0;
    this.focus = this.zoom;
    this.recount();
  }

  recount() {
    const column = STACKS[METRICS[this.state.metric].column];
    const shown = STACKS.kind.map((kind) => this.state.kinds.has(text(kind)));
    this.values = this.tree.sum((stack) => (shown[stack] ? Math.max(column[stack], 0) : 0));
    this.stackCounts = this.tree.sum((stack) => (shown[stack] && column[stack] > 0 ? 1 : 0));
    this.colourNodes(shown, column);
    $("flame-lead").textContent =
      `Width is ${METRICS[this.state.metric].title}. Each row ${this.state.inverted ? "is called by" : "calls"} the one ` +
      "beneath it; select a box to zoom in.";
    this.search();
  }

  // The class of colour of each node, and the legend that explains it.
  colourNodes(shown, column) {
    if (this.state.colour === "module") this.colourByModule();
    else if (this.state.colour === "kind") this.colourByShare(STACKS.kind, KIND_COLOURS, shown, column);
    else this.colourByShare(STACKS.trend, TREND_COLOURS, shown, column);
  }

  colourByModule() {
    const ofFunctions = new Float64Array(FUNCTIONS.name.length);
    for (let node = 1; node < this.tree.size; node++) ofFunctions[this.tree.fn[node]] += this.values[node];
    const area = new Map();
    ofFunctions.forEach((size, fn) => area.set(moduleName(fn), (area.get(moduleName(fn)) || 0) + size));
    const ranked = [...area].filter(([name, size]) => name && size > 0).sort((a, b) => b[1] - a[1]);
    const rank = new Map(ranked.slice(0, MODULE_COLOURS).map(([name], index) => [name, index]));
    const ofFunction = FUNCTIONS.name.map((_, fn) => rank.get(moduleName(fn)) ?? -1);
    this.colourOf = (node) => (ofFunction[this.tree.fn[node]] < 0 ? "rest" : `m${ofFunction[this.tree.fn[node]]}`);
    this.legend = [...rank.keys()].map((name, index) => [`m${index}`, name]);
    const others = ranked.length - this.legend.length;
    if (others > 0) this.legend.push(["rest", `${plural(others, "other module")}`]);
    else if (area.get("") > 0) this.legend.push(["rest", "no module"]);
  }

  colourByShare(keys, names, shown, column) {
    const parts = names.map((name) =>
      this.tree.sum((stack) => (shown[stack] && text(keys[stack]) === name ? Math.max(column[stack], 0) : 0)),
    );
    const index = (node) => parts.findIndex((sums) => sums[node] >= MAJORITY * this.values[node]);
    this.colourOf = (node) => (index(node) < 0 ? "rest" : `m${index(node)}`);
    const words = keys === STACKS.kind ? (name) => kindWords(name)[0] : (name) => name.replace("-", " ");
    this.legend = names
      .map((name, i) => [`m${i}`, `${words(name)} ${percent(parts[i][0], this.values[0])}`, parts[i][0]])
      .filter(([, , size]) => size > 0);
    if (this.legend.length > 1) this.legend.push(["rest", `mixed (none has ${100 * MAJORITY} %)`]);
  }

  // Which functions match, and what share of the memory passes through any of them.
  search() {
    this.matches = null;
    this.matched = null;
    const query = this.state.query;
    if (query) {
      const test = matcher(query);
      this.matches = Uint8Array.from(FUNCTIONS.name, (_, fn) =>
        test(`${functionName(fn)}\n${fullName(fn)}\n${modulePath(fn)}`) ? 1 : 0,
      );
      const under = new Uint8Array(this.tree.size);
      this.matched = { size: 0, stacks: 0, plain: test.plain };
      for (let node = 1; node < this.tree.size; node++) {
        under[node] = under[this.tree.parent[node]];
        if (under[node] || !this.matches[this.tree.fn[node]]) continue;
        under[node] = 1;
        this.matched.size += this.values[node];
        this.matched.stacks += this.stackCounts[node];
      }
    }
    this.layout();
    this.say();
  }

  say() {
    const found = $("found");
    const total = this.values[0];
    const form = METRICS[this.state.metric].form;
    if (!this.matched) found.textContent = "";
    else {
      const how = this.matched.plain ? "No valid regular expression, so searched as plain text: matches " : "Matches ";
      const { size, stacks } = this.matched;
      found.textContent = `${how}${percent(size, total)} of all (${form(size)}) in ${plural(stacks, "stack")}`;
    }
    $("flame-legend").replaceChildren(
      ...this.legend.map(([colour, name]) =>
        element("li", {}, element("span", { class: `swatch p-${colour}` }), element("span", { class: "name" }, name)),
      ),
    );
    this.describe(this.focus);
  }

  // Rows of boxes from the root down; a box is {node, x, w}, or {others, rest, parent, x, w} for the narrow ones.
  layout(width = this.scroller.clientWidth) {
    this.width = width;
    const ancestors = this.tree.ancestors(this.zoom);
    this.rows = ancestors.map((node) => [{ node, x: 0, w: width, above: true }]);
    let row = this.values[this.zoom] > 0 ? [{ node: this.zoom, x: 0, w: width }] : [];
    while (row.length) {
      this.rows.push(row);
      row = row.flatMap((box) => this.below(box));
    }
    this.rows.forEach((boxes, depth) => boxes.forEach((box) => (box.depth = depth)));
    this.height = Math.max(this.rows.length, 1) * ROW + 1;
    this.room.style.height = `${this.height}px`;
    this.draw();
  }

  below(box) {
    if (box.node === undefined) return [];
    const scale = box.w / this.values[box.node];
    const { large, others, rest } = this.tree.children(box.node, this.values, MIN_WIDTH / scale);
    let x = box.x;
    const boxes = large.map((node) => {
      const made = { node, x, w: this.values[node] * scale };
      x += made.w;
      return made;
    });
    if (rest * scale >= MIN_WIDTH) boxes.push({ others, rest, parent: box.node, x, w: rest * scale });
    return boxes;
  }

  // Draws the rows in sight. For print: all of them.
  draw(all = false) {
    const ratio = all ? 2 : window.devicePixelRatio || 1;
    const seen = all ? this.height : Math.min(this.height, this.scroller.clientHeight || this.height);
    const top = all ? 0 : Math.min(this.scroller.scrollTop, Math.max(this.height - seen, 0));
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(seen * ratio);
    this.canvas.style.height = all ? "auto" : `${seen}px`;
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, -top * ratio);
    pen.font = FONT;
    pen.textBaseline = "middle";
    this.letter = pen.measureText("M").width;
    const last = Math.min(this.rows.length, Math.ceil((top + seen) / ROW));
    for (let depth = Math.floor(top / ROW); depth < last; depth++) {
      for (const box of this.rows[depth]) this.drawBox(pen, box, depth * ROW);
    }
    if (!this.rows.length) this.drawNothing(pen);
    this.outline(pen, this.hover, "edge", 1);
    if (document.activeElement === this.scroller) this.outline(pen, this.boxOf(this.focus), "focus", 2);
  }

  drawNothing(pen) {
    pen.fillStyle = this.palette.get("ink");
    pen.fillText("Nothing to show: no stack of these kinds holds any of this.", 4, ROW / 2);
  }

  drawBox(pen, box, y) {
    const isMatch = this.matches && box.node > 0 && this.matches[this.tree.fn[box.node]];
    pen.globalAlpha = box.above || (this.matches && !isMatch) ? 0.4 : 1;
    pen.fillStyle = this.palette.get(isMatch ? "match" : this.fill(box));
    // A hair of background between boxes: neighbours of one colour stay apart.
    pen.fillRect(box.x, y, Math.max(box.w - (box.w > 3 ? 1 : 0), MIN_WIDTH), ROW - 1);
    pen.globalAlpha = box.above ? 0.7 : 1;
    if (box.w > 3 * this.letter) this.write(pen, this.nameOf(box), box.x + 4, y + ROW / 2, box.w - 8, isMatch);
    pen.globalAlpha = 1;
  }

  fill(box) {
    if (box.node === undefined) return "few";
    return box.node ? this.colourOf(box.node) : "root";
  }

  write(pen, name, x, y, room, isMatch) {
    const shown = fitted(name, Math.floor(room / this.letter));
    pen.fillStyle = this.palette.get(isMatch ? "on-match" : "on-box");
    if (/^[\x20-\x7e…]*$/.test(shown)) {
      pen.fillText(shown, x, y);
      return;
    }
    pen.save(); // letters that are wider than others must not leave their box
    pen.beginPath();
    pen.rect(x, y - ROW / 2, room, ROW);
    pen.clip();
    pen.fillText(shown, x, y);
    pen.restore();
  }

  outline(pen, box, colour, line) {
    if (!box) return;
    pen.strokeStyle = this.palette.get(colour);
    pen.lineWidth = line;
    pen.strokeRect(box.x + line / 2, box.depth * ROW + line / 2, Math.max(box.w - line - 1, 1), ROW - line - 1);
  }

  nameOf(box) {
    if (box.node === undefined) return `${humanCount(box.others)} narrow`;
    return box.node ? functionName(this.tree.fn[box.node]) : "all";
  }

  boxOf(node) {
    const row = this.rows[this.tree.depth[node]];
    return row && row.find((box) => box.node === node);
  }

  // What a box says of itself: name and place first, then figures.
  facts(box) {
    const { form } = METRICS[this.state.metric];
    if (box.node === undefined) {
      const whole = this.values[box.parent];
      return ["", `${plural(box.others, "box", "es")} too narrow to draw: ${form(box.rest)}`, `${percent(box.rest, whole)} of their parent`];
    }
    const value = this.values[box.node];
    const place = box.node ? modulePath(this.tree.fn[box.node]) : "";
    const parts = [`${form(value)} in ${plural(this.stackCounts[box.node], "stack")}`];
    if (box.node) parts.push(`${percent(value, this.values[0])} of all`);
    if (this.tree.parent[box.node] > 0) {
      parts.push(`${percent(value, this.values[this.tree.parent[box.node]])} of its parent`);
    }
    if (this.zoom && this.zoom !== box.node && !box.above) {
      parts.push(`${percent(value, this.values[this.zoom])} of the zoomed box`);
    }
    return [place, box.node ? fullName(this.tree.fn[box.node]) : "all stacks", parts.join(" · ")];
  }

  describe(node) {
    this.status(this.boxOf(node) || { node });
  }

  // The largest of the boxes that are too narrow to draw.
  largestOf({ parent, others }) {
    const { large } = this.tree.children(parent, this.values, 0);
    return large[large.length - others];
  }

  status(box) {
    const [place, name, figures] = this.facts(box);
    $("flame-status").replaceChildren(
      element("b", { class: "code" }, name),
      place ? ` ${baseName(place)} ` : " ",
      element("span", { class: "figures" }, figures),
    );
  }

  zoomTo(node) {
    this.zoom = node;
    this.focus = node;
    this.hover = null;
    $("tip").hidden = true;
    this.layout();
    // The ancestors stay reachable above, but what was asked for is in sight.
    this.scroller.scrollTop = Math.max(0, (this.tree.depth[node] - 2) * ROW);
    this.draw();
    this.describe(node);
    this.changed();
  }

  // On paper: all rows, at the width of a page.
  print(on) {
    this.palette.refresh();
    if (!this.tree) return;
    this.scroller.classList.toggle("printing", on);
    if (!on) {
      this.layout();
      return;
    }
    this.layout(PRINT_WIDTH);
    this.draw(true);
  }
}

// As much of a name as so many letters show. Of a qualified one the end tells most.
function fitted(name, letters) {
  if (name.length <= letters) return name;
  for (let at = name.indexOf("::"); at >= 0; at = name.indexOf("::", at + 2)) {
    if (name.length - at - 1 <= letters) return `…${name.slice(at + 2)}`;
  }
  return letters > 1 ? `${name.split("::").pop().slice(0, letters - 1)}…` : "";
}

// A test of names for what was typed: a regular expression, or what is none as plain text.
function matcher(query) {
  try {
    const pattern = new RegExp(query, "im");
    return (name) => pattern.test(name);
  } catch {
    const plain = query.toLowerCase();
    const test = (name) => name.toLowerCase().includes(plain);
    test.plain = true;
    return test;
  }
}
