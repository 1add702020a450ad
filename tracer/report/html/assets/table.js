// A table that sorts by any column, filters, shows its rows a part at a time, and opens a row for its details.

const FIRST_ROWS = 20;
const MORE_ROWS = 100;
const ALL_ROWS = 2000; // more of them at once would hold up the browser
const PRINT_ROWS = 200;

class List {
  // columns: {title, key(row), cell(row) -> Node or text, style, start: 1 or -1, the direction to sort first}
  constructor({ name, noun, count, columns, detail, haystack, sorted, onOpen = () => {} }) {
    Object.assign(this, { name, noun, count, columns, detail, haystack, onOpen });
    this.table = $(`${name}-table`);
    this.more = $(`${name}-more`);
    this.opened = new Set();
    this.limit = FIRST_ROWS;
    this.keep = () => true;
    this.query = "";
    this.body = element("tbody");
    this.table.append(element("thead", {}, this.head()), this.body);
    this.filter = $(`${name}-filter`);
    this.filter.addEventListener("input", () => this.find(this.filter.value));
    this.table.hidden = $(`${name}-controls`).hidden = !count;
    this.sort(sorted, columns[sorted].start);
  }

  head() {
    this.buttons = this.columns.map((column, index) => {
      const button = element("button", { type: "button" }, column.title);
      button.addEventListener("click", () => {
        this.sort(index, this.sorted === index ? -this.direction : column.start);
      });
      return button;
    });
    const cells = this.columns.map((column, index) =>
      element("th", { scope: "col", class: column.style, title: column.hint }, this.buttons[index]),
    );
    return element("tr", {}, element("th", { class: "opener" }, element("span", { class: "unseen" }, "details")), ...cells);
  }

  sort(index, direction) {
    Object.assign(this, { sorted: index, direction });
    this.buttons.forEach((button, at) => {
      const order = at === index ? (direction > 0 ? "ascending" : "descending") : "none";
      button.parentElement.setAttribute("aria-sort", order);
    });
    this.refresh();
  }

  find(query) {
    if (this.filter.value !== query) this.filter.value = query;
    this.query = query.toLowerCase();
    this.refresh();
  }

  refresh() {
    const keys = Array.from({ length: this.count }, (_, row) => this.columns[this.sorted].key(row));
    const compare = typeof keys[0] === "string" ? (a, b) => (a < b ? -1 : a > b ? 1 : 0) : (a, b) => a - b;
    this.order = Array.from(keys.keys()).filter(
      (row) => this.keep(row) && (!this.query || this.haystack(row).toLowerCase().includes(this.query)),
    );
    this.order.sort((a, b) => this.direction * compare(keys[a], keys[b]) || a - b);
    this.render();
  }

  render() {
    const shown = this.order.slice(0, this.limit);
    this.body.replaceChildren(...shown.flatMap((row) => this.rowsOf(row)));
    this.more.replaceChildren(...this.rest(shown.length));
  }

  rowsOf(row) {
    const isOpen = this.opened.has(row);
    const opener = element("button", { type: "button", "aria-expanded": String(isOpen), "aria-label": "details" });
    const cells = this.columns.map((column) => element("td", { class: column.style }, column.cell(row)));
    const line = element("tr", { "data-row": row, class: isOpen ? "open" : null }, element("td", { class: "opener" }, opener), ...cells);
    line.addEventListener("click", (event) => {
      // Text is selected to be copied, not to open the row.
      if (!event.target.closest("a") && !String(window.getSelection())) this.toggle(row);
    });
    if (!isOpen) return [line];
    const content = element("td", { colspan: this.columns.length + 1 }, this.detail(row));
    return [line, element("tr", { class: "detail" }, content)];
  }

  toggle(row) {
    if (!this.opened.delete(row)) this.opened.add(row);
    this.onOpen(this.opened.has(row) ? row : null);
    const had = this.body.contains(document.activeElement);
    this.render();
    if (had) this.body.querySelector(`[data-row="${row}"] button`)?.focus();
  }

  // Opens one row and brings it into sight, whatever was filtered before; a row far down by the filter `mark`.
  reveal(row, mark) {
    this.opened.add(row);
    this.find("");
    if (this.order.indexOf(row) >= ALL_ROWS) this.find(mark);
    this.limit = Math.max(this.limit, this.order.indexOf(row) + 1);
    this.render();
    this.body.querySelector(`[data-row="${row}"]`)?.scrollIntoView({ block: "center" });
  }

  // What is not shown, and how to see it.
  rest(shown) {
    const left = this.order.length - shown;
    const found = this.query ? `${plural(this.order.length, this.noun)} found. ` : "";
    if (left <= 0) return [found];
    const buttons = [[`Show ${humanCount(Math.min(MORE_ROWS, left))} more`, shown + MORE_ROWS]];
    if (left > MORE_ROWS) {
      const most = Math.min(this.order.length, ALL_ROWS);
      buttons.push([most < this.order.length ? `Show ${humanCount(most)}` : `Show all ${humanCount(most)}`, most]);
    }
    return [
      `${found}${plural(left, this.noun)} more `,
      ...buttons
        .filter(([, limit]) => limit > shown && shown < ALL_ROWS)
        .map(([title, limit]) => {
          const button = element("button", { type: "button" }, title);
          button.addEventListener("click", () => {
            this.limit = limit;
            this.render();
          });
          return button;
        }),
    ];
  }

  // On paper: all rows up to a limit, and the first of them with their details.
  print(on, opened) {
    if (on) {
      this.before = { limit: this.limit, opened: this.opened };
      this.limit = PRINT_ROWS;
      this.opened = new Set([...this.opened, ...this.order.slice(0, opened)]);
    } else Object.assign(this, this.before);
    this.render();
  }
}
