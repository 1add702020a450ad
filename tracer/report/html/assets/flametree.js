// The stacks merged into one tree of functions, from the outermost frame or (inverted) from the innermost.
//
// Nodes are numbers; a parent's is smaller than its children's, so that one pass backwards sums a whole tree.

const METRICS = {
  held: { title: "bytes held", column: "bytes", form: humanBytes },
  growth: { title: "growth of RSS (ledger)", column: "growth", form: humanBytes },
  count: { title: "blocks held", column: "count", form: humanCount },
  allocated: { title: "bytes allocated in the window", column: "allocated", form: humanBytes },
  rate: { title: "rate", column: "rate", form: humanRate },
};

class FlameTree {
  constructor(inverted, withAllocator) {
    this.inverted = inverted;
    this.parent = [-1];
    this.fn = [-1];
    this.depth = [0];
    this.firstChild = [0];
    this.nextSibling = [0];
    this.slots = new Int32Array(1 << 12);
    const folded = withAllocator ? new Array(STACK_COUNT).fill(0) : STACKS.folded;
    this.leaf = inverted ? this.addInverted(folded) : this.addForward(folded);
    this.slots = null;
    for (const column of ["parent", "fn", "depth", "firstChild", "nextSibling"]) this[column] = Int32Array.from(this[column]);
  }

  get size() {
    return this.parent.length;
  }

  // Parents precede their children in the data, too.
  addForward(folded) {
    const { up, frame } = DATA.nodes;
    const own = new Int32Array(NODE_COUNT);
    for (let i = 0; i < NODE_COUNT; i++) {
      own[i] = this.child(up[i] ? own[i - up[i]] : 0, FRAMES.function[frame[i]]);
    }
    return Int32Array.from(STACKS.leaf, (node, stack) => {
      for (let i = folded[stack]; i > 0; i--) node -= up[node];
      return own[node];
    });
  }

  addInverted(folded) {
    const { up, frame } = DATA.nodes;
    return Int32Array.from(STACKS.leaf, (node, stack) => {
      for (let i = folded[stack]; i > 0; i--) node -= up[node];
      let own = 0;
      for (; ; node -= up[node]) {
        own = this.child(own, FRAMES.function[frame[node]]);
        if (!up[node]) return own;
      }
    });
  }

  // The child of a node for a function, made if need be. An open hash of (parent, function): a Map takes thrice as long.
  child(parent, fn) {
    const mask = this.slots.length - 1;
    let slot = (Math.imul(parent, 0x9e3779b1) ^ Math.imul(fn + 1, 0x85ebca6b)) >>> 0;
    slot = (slot ^ (slot >>> 15)) & mask;
    for (; this.slots[slot]; slot = (slot + 1) & mask) {
      const node = this.slots[slot];
      if (this.parent[node] === parent && this.fn[node] === fn) return node;
    }
    const node = this.parent.length;
    this.slots[slot] = node;
    this.parent.push(parent);
    this.fn.push(fn);
    this.depth.push(this.depth[parent] + 1);
    this.nextSibling.push(this.firstChild[parent]);
    this.firstChild.push(0);
    this.firstChild[parent] = node;
    if (node * 2 > this.slots.length) this.rehash();
    return node;
  }

  rehash() {
    const slots = new Int32Array(this.slots.length * 4);
    const mask = slots.length - 1;
    for (let node = 1; node < this.parent.length; node++) {
      let slot = (Math.imul(this.parent[node], 0x9e3779b1) ^ Math.imul(this.fn[node] + 1, 0x85ebca6b)) >>> 0;
      slot = (slot ^ (slot >>> 15)) & mask;
      while (slots[slot]) slot = (slot + 1) & mask;
      slots[slot] = node;
    }
    this.slots = slots;
  }

  // Per node the sum of `value(stack)` over the stacks that pass through it.
  sum(value) {
    const sums = new Float64Array(this.size);
    for (let stack = 0; stack < STACK_COUNT; stack++) sums[this.leaf[stack]] += value(stack);
    for (let node = this.size - 1; node > 0; node--) sums[this.parent[node]] += sums[node];
    return sums;
  }

  // Children worth at least `least`, largest first, and the number and sum of the others.
  children(node, values, least) {
    const large = [];
    let [others, rest] = [0, 0];
    for (let child = this.firstChild[node]; child; child = this.nextSibling[child]) {
      if (values[child] >= least && values[child] > 0) large.push(child);
      else if (values[child] > 0) {
        others += 1;
        rest += values[child];
      }
    }
    large.sort((a, b) => values[b] - values[a] || a - b);
    return { large, others, rest };
  }

  ancestors(node) {
    const found = [];
    for (let at = this.parent[node]; at >= 0; at = this.parent[at]) found.unshift(at);
    return found;
  }

  // A node's name that lasts: a stack through it, and its depth.
  place(node) {
    if (!node) return null;
    for (let stack = 0; stack < STACK_COUNT; stack++) {
      if (this.at(stack, this.depth[node]) === node) return { id: STACKS.id[stack], depth: this.depth[node] };
    }
    return null;
  }

  at(stack, depth) {
    let node = this.leaf[stack];
    while (this.depth[node] > depth) node = this.parent[node];
    return node;
  }

  find(id, depth) {
    const stack = STACKS.id.indexOf(id);
    return stack < 0 ? 0 : this.at(stack, depth);
  }
}
