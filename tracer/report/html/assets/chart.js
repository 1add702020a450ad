// The growth chart: by how much RSS and each class of memory differ from the start of the window.

const CHART_HEIGHT = 260;
const CHART_SERIES = 7; // classes with a colour of their own; the others change least
const LABEL_ROOM = 168;
const ROOM_FOR_LABELS = 620;

class Chart {
  constructor() {
    const { seconds, rss, classes, has_course: hasCourse, markers } = DATA.timeline;
    this.seconds = seconds;
    this.hasCourse = hasCourse;
    this.markers = markers;
    const all = classes.map(([name, series]) => ({ name: text(name), series: fromStart(series) }));
    const moved = all.filter((one) => span(one.series) > 0).sort((a, b) => span(b.series) - span(a.series));
    this.left = moved.length - Math.min(moved.length, CHART_SERIES);
    this.series = [
      { name: "RSS", series: fromStart(rss), style: "rss" },
      ...moved.slice(0, CHART_SERIES).map((one, index) => ({ ...one, style: `l${index}` })),
    ].filter((one) => one.series.some((value) => value !== null));
    this.box = $("chart");
    this.svg = $("chart-picture");
    this.at = null;
    this.explain();
    this.listen();
  }

  explain() {
    const looks = plural(this.seconds.length, "look");
    const what = this.hasCourse
      ? `Change since the start, ${looks} over ${humanSeconds(this.seconds[this.seconds.length - 1])}.`
      : "Only the start and the end were measured; the dashed lines between them say nothing of the course.";
    const left = this.left ? ` ${plural(this.left, "class", "es")} with smaller changes not drawn.` : "";
    $("chart-lead").textContent = what + left;
    $("chart-legend").replaceChildren(
      ...this.series.map(({ name, series, style }) =>
        element(
          "li",
          {},
          element("span", { class: `swatch s-${style}` }),
          element("span", { class: "name" }, name),
          " ",
          element("b", {}, humanBytes(lastOf(series), true)),
        ),
      ),
    );
    const list = $("chart-markers");
    list.hidden = !this.markers.length;
    list.replaceChildren(
      ...this.markers.map(([at, what]) => element("li", {}, `${humanSeconds(at)}: ${text(what)}`)),
    );
  }

  layout(width = this.box.clientWidth) {
    this.width = width;
    const labels = width >= ROOM_FOR_LABELS;
    $("chart-legend").hidden = labels;
    const [lowest, highest] = extent(this.series.flatMap(({ series }) => series));
    const ticks = sizeTicks(lowest, highest);
    const end = this.seconds[this.seconds.length - 1] || 1;
    this.area = { left: 74, right: width - (labels ? LABEL_ROOM : 16), top: 14, bottom: CHART_HEIGHT - 26 };
    const { left, right, top, bottom } = this.area;
    const [low, high] = [ticks[0], ticks[ticks.length - 1]];
    this.x = (seconds) => left + ((right - left) * seconds) / end;
    this.y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low || 1);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${CHART_HEIGHT}`);
    this.svg.replaceChildren(
      ...ticks.flatMap((value) => this.grid(value)),
      ...timeTicks(end, (right - left) / 90).map((seconds) => this.label(this.x(seconds), bottom + 18, timeLabel(seconds), "middle")),
      ...this.markers.flatMap(([at], index) => this.marker(at, index)),
      ...[...this.series].reverse().flatMap((one) => this.line(one)),
      ...(labels ? this.endLabels() : []),
    );
    this.cursor = this.draw("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" });
    this.svg.append(this.cursor);
    this.show(this.at);
  }

  // The namespace is that of the picture in the page.
  draw(name, attributes, content = "") {
    const made = document.createElementNS(this.svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = content;
    return made;
  }

  label(x, y, content, anchor, style = "axis") {
    return this.draw("text", { x, y, "text-anchor": anchor, class: style }, content);
  }

  grid(value) {
    const y = this.y(value);
    const style = value ? "grid" : "grid zero";
    return [
      this.draw("line", { x1: this.area.left, x2: this.area.right, y1: y, y2: y, class: style }),
      this.label(this.area.left - 8, y + 4, sizeLabel(value), "end"),
    ];
  }

  marker(at, index) {
    const x = this.x(at);
    return [
      this.draw("line", { x1: x, x2: x, y1: this.area.top, y2: this.area.bottom, class: "marker" }),
      this.label(x, this.area.top - 3, String(index + 1), "middle", "axis strong"),
    ];
  }

  // A line is broken where nothing was measured; a look between two gaps is a dot.
  line({ series, style }) {
    let path = "";
    let open = false;
    const dots = [];
    series.forEach((value, index) => {
      if (value === null) {
        open = this.bridges(series) && open;
        return;
      }
      const [x, y] = [this.x(this.seconds[index]), this.y(value)];
      path += `${open ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      open = true;
      if (!this.hasCourse || index === series.length - 1) dots.push([x, y]);
    });
    const dashed = this.hasCourse && !this.bridges(series) ? "" : " dashed";
    return [
      this.draw("path", { d: path, class: `line s-${style}${dashed}` }),
      ...dots.map(([cx, cy]) => this.draw("circle", { cx, cy, r: 3, class: `dot s-${style}` })),
    ];
  }

  // Classes are looked at less often than RSS: few points are joined by dashes.
  bridges(series) {
    const known = series.filter((value) => value !== null).length;
    return known * 2 <= series.length;
  }

  // Names at the line ends, pushed apart where they would overlap.
  endLabels() {
    const room = 15;
    const placed = this.series
      .map(({ name, series, style }) => ({ name, style, value: lastOf(series), y: this.y(lastOf(series)) + 4 }))
      .sort((a, b) => a.y - b.y);
    placed.forEach((one, i) => {
      if (i) one.y = Math.max(one.y, placed[i - 1].y + room);
    });
    // The lowest stays above the axis, and pushes up those above it.
    for (let i = placed.length - 1, limit = this.area.bottom + 2; i >= 0; i--, limit -= room) {
      placed[i].y = Math.min(placed[i].y, limit);
    }
    return placed.map(({ name, style, value, y }) =>
      this.label(this.area.right + 10, y, `${clip(name, 12)} ${humanBytes(value, true)}`, "start", `end t-${style}`),
    );
  }

  listen() {
    this.box.addEventListener("pointermove", (event) => {
      const place = this.svg.getBoundingClientRect();
      const x = ((event.clientX - place.left) * this.width) / place.width;
      const distance = (index) => Math.abs(this.x(this.seconds[index]) - x);
      this.show(this.seconds.reduce((best, _, index) => (distance(index) < distance(best) ? index : best), 0));
    });
    this.box.addEventListener("pointerleave", () => this.show(null));
    this.box.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const last = this.seconds.length - 1;
      this.show(Math.min(last, Math.max(0, (this.at === null ? (step < 0 ? last + 1 : -1) : this.at) + step)));
    });
    new ResizeObserver(() => {
      if (this.box.clientWidth && this.box.clientWidth !== this.width) this.layout();
    }).observe(this.box);
  }

  show(index) {
    this.at = index;
    this.cursor.setAttribute("visibility", index === null ? "hidden" : "visible");
    if (index === null) {
      $("chart-status").textContent = "\u00a0";
      return;
    }
    const x = this.x(this.seconds[index]);
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    const figures = this.series
      .filter(({ series }) => series[index] !== null)
      .map(({ name, series }) => `${name} ${humanBytes(series[index], true)}`);
    $("chart-status").textContent = `${humanSeconds(this.seconds[index])}: ${figures.join(", ")}`;
  }
}

const clip = (name, letters) => (name.length > letters ? `${name.slice(0, letters - 1)}…` : name);
const lastOf = (series) => series.filter((value) => value !== null).pop() ?? 0;

function fromStart(series) {
  const first = series.find((value) => value !== null);
  return series.map((value) => (value === null ? null : value - first));
}

// The lowest and the highest change; no change, 0, is always among them.
function extent(series) {
  return series.reduce(([low, high], value) => [Math.min(low, value ?? 0), Math.max(high, value ?? 0)], [0, 0]);
}

function span(series) {
  const [low, high] = extent(series);
  return high - low;
}

// Round numbers of the unit that fits, below the lowest and above the highest value. Half of the next unit is 512: of
// 500, three would read 1.5 of it and be less.
function sizeTicks(low, high) {
  const rough = Math.max((high - low) / 4, 1024);
  const unit = 1024 ** Math.floor(Math.log2(rough) / 10);
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 512, 1024].find((count) => count * unit >= rough) * unit;
  const ticks = [];
  for (let tick = Math.floor(low / step); tick <= Math.ceil(high / step); tick++) ticks.push(tick * step);
  return ticks.length > 1 ? ticks : [0, step];
}

const sizeLabel = (value) => (value ? humanBytes(value, true).replace(".0 ", " ") : "0");

const TIME_STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];

function timeTicks(end, most) {
  const step = TIME_STEPS.find((seconds) => end / seconds <= Math.max(most, 2)) || Math.ceil(end / 4 / 86400) * 86400;
  return Array.from({ length: Math.floor(end / step + 1e-6) + 1 }, (_, index) => index * step);
}

const timeLabel = (seconds) => humanSeconds(seconds).replace(".0 s", " s");
