// How the flame graph is used: by pointer and by keyboard.

class FlameInput {
  constructor(view) {
    this.view = view;
    this.listen();
  }

  listen() {
    const { canvas, scroller } = this.view;
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => this.point(null));
    canvas.addEventListener("click", (event) => {
      const box = this.boxAt(event);
      if (box) this.view.zoomTo(box.node ?? this.view.largestOf(box));
    });
    scroller.addEventListener("keydown", (event) => this.key(event));
    scroller.addEventListener("focus", () => this.view.draw());
    scroller.addEventListener("blur", () => this.view.draw());
    scroller.addEventListener("scroll", () => this.view.draw());
    new ResizeObserver(() => {
      if (this.view.tree && scroller.clientWidth && scroller.clientWidth !== this.view.width) this.view.layout();
      else if (this.view.tree) this.view.draw();
    }).observe(scroller);
  }

  boxAt(event) {
    const place = this.view.canvas.getBoundingClientRect();
    const x = event.clientX - place.left;
    const y = event.clientY - place.top + this.view.scroller.scrollTop;
    const row = this.view.rows[Math.floor(y / ROW)] || [];
    return row.find((box) => x >= box.x && x < box.x + box.w) || null;
  }

  point(event) {
    const box = event && this.boxAt(event);
    const tip = $("tip");
    tip.hidden = !box;
    if (box !== this.view.hover) {
      this.view.hover = box;
      this.view.draw();
      if (box) this.view.status(box);
      else this.view.describe(this.view.focus);
    }
    this.view.canvas.style.cursor = box ? "pointer" : "default";
    if (!box) return;
    const [place, name, figures] = this.view.facts(box);
    tip.replaceChildren(
      element("b", { class: "code" }, name),
      element("span", { class: "name dim" }, place),
      element("span", {}, figures),
    );
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 12))}px`;
    const below = event.clientY + 18;
    const fits = below + tip.offsetHeight < window.innerHeight;
    tip.style.top = `${fits ? below : event.clientY - tip.offsetHeight - 12}px`;
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {
      ArrowDown: () => this.move(this.view.tree.children(this.view.focus, this.view.values, 0).large[0]),
      ArrowUp: () => this.move(this.view.tree.parent[this.view.focus]),
      ArrowLeft: () => this.move(this.sibling(-1)),
      ArrowRight: () => this.move(this.sibling(1)),
      Enter: () => this.view.zoomTo(this.view.focus),
      " ": () => this.view.zoomTo(this.view.focus),
      Escape: () => this.escape(),
      Home: () => this.view.zoomTo(0),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  }

  escape() {
    if (this.view.zoom) this.view.zoomTo(this.view.tree.parent[this.view.zoom]);
    else this.view.changed("");
  }

  sibling(step) {
    const parent = this.view.tree.parent[this.view.focus];
    if (parent < 0) return undefined;
    const { large } = this.view.tree.children(parent, this.view.values, 0);
    return large[large.indexOf(this.view.focus) + step];
  }

  move(node) {
    if (node === undefined || node < 0) return;
    this.view.focus = node;
    const box = this.view.boxOf(node);
    // What has no box here: the view follows it.
    if (!box) {
      this.view.zoom = this.view.tree.parent[node];
      this.view.layout();
    }
    const top = this.view.tree.depth[node] * ROW;
    const { scrollTop, clientHeight } = this.view.scroller;
    if (top < scrollTop) this.view.scroller.scrollTop = top;
    else if (top + ROW > scrollTop + clientHeight) this.view.scroller.scrollTop = top + ROW - clientHeight;
    this.view.draw();
    this.view.describe(node);
  }
}
