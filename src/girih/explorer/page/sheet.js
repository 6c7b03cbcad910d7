// A list of rows of any length, of which only those in sight are in the document.

const LINE = 26; // pixels
const AHEAD = 6; // lines above and below those in sight

/** A column of the sheet: name, text(row), value(row) to sort by, isNumber, and mark(row), a class of the entry. */
class Sheet {
  constructor(columns, state, numbers) {
    Object.assign(this, { columns, state, numbers });
    this.order = Int32Array.from({ length: state.count }, (_, row) => row);
    this.sorted = { column: -1, up: true };
    this.onlySelected = false;
    this.body = element("tbody", {});
    const widths = [6, ...columns.map((column) => this.width(column))];
    this.heads = columns.map((column, place) => this.head(column, place));
    this.table = element(
      "table",
      { role: "grid", "aria-label": "Rows", style: `width:${widths.reduce((a, b) => a + b)}ch` },
      element("colgroup", {}, ...widths.map((width) => element("col", { style: `width:${width}ch` }))),
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "row"), ...this.heads)),
      this.body,
    );
    this.scroll = element("div", { class: "scroll", tabindex: "0", onscroll: () => this.draw(), onkeydown: (event) => this.key(event) }, this.table);
    this.said = element("span", { class: "said", role: "status" });
    this.only = element("input", { type: "checkbox", onchange: () => this.setOnly(this.only.checked) });
    this.clear = element("button", { type: "button", onclick: () => state.select([]) }, "Clear");
    this.element = element(
      "section",
      { class: "sheet", "aria-label": "Rows" },
      element("div", { class: "tools" }, this.said, element("label", {}, this.only, " selected only"), this.clear),
      this.scroll,
    );
    this.draw = framed(() => this.paint());
    new ResizeObserver(() => this.draw()).observe(this.scroll);
    state.on("selection", () => this.arrange());
    state.on("active", () => this.showActive());
    this.arrange();
  }

  width(column) {
    let longest = column.name.length + 2;
    for (let row = 0; row < Math.min(this.state.count, 200); row++) longest = Math.max(longest, column.text(row).length);
    return Math.min(24, longest + 2);
  }

  head(column, place) {
    const button = element("button", { type: "button", title: `Sort by ${column.name}`, onclick: () => this.sort(place) }, column.name);
    return element("th", { scope: "col", class: column.isNumber ? "number" : "" }, button);
  }

  sort(place) {
    const up = this.sorted.column === place ? !this.sorted.up : true;
    this.sorted = { column: place, up };
    this.heads.forEach((head, at) => head.setAttribute("aria-sort", at === place ? (up ? "ascending" : "descending") : "none"));
    this.arrange();
  }

  setOnly(on) {
    this.onlySelected = on;
    this.arrange();
  }

  /** Bring the rows to show into their order. */
  arrange() {
    const { state } = this;
    const all = Array.from({ length: state.count }, (_, row) => row);
    const shown = this.onlySelected && state.selected ? all.filter((row) => state.has(row)) : all;
    if (this.sorted.column >= 0) {
      const column = this.columns[this.sorted.column];
      const sign = this.sorted.up ? 1 : -1;
      const values = Float64Array.from(all, (row) => column.value(row));
      // what is missing comes last, whatever the order
      shown.sort((a, b) => {
        const [x, y] = [values[a], values[b]];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
        return sign * (x - y) || a - b;
      });
    }
    this.order = shown;
    const selected = state.selected ? state.rows().length : 0;
    const count = state.count.toLocaleString("en");
    this.said.textContent = selected ? `${selected.toLocaleString("en")} of ${count} rows selected` : `${count} rows`;
    this.clear.disabled = !selected;
    this.table.setAttribute("aria-rowcount", String(shown.length));
    this.draw();
  }

  paint() {
    const height = this.scroll.clientHeight;
    const first = Math.max(0, Math.floor(this.scroll.scrollTop / LINE) - AHEAD);
    const last = Math.min(this.order.length, Math.ceil((this.scroll.scrollTop + height) / LINE) + AHEAD);
    const gap = (lines) => element("tr", { class: "gap", style: `height:${lines * LINE}px`, "aria-hidden": "true" });
    const rows = [];
    for (let at = first; at < last; at++) rows.push(this.line(this.order[at], at));
    this.body.replaceChildren(gap(first), ...rows, gap(this.order.length - last));
  }

  line(row, at) {
    const { state } = this;
    const chosen = state.selected !== null && state.has(row);
    return element(
      "tr",
      {
        "aria-rowindex": String(at + 1),
        "aria-selected": String(chosen),
        class: `${chosen ? "chosen" : ""} ${row === state.active ? "active" : ""}`,
        onclick: (event) => (event.ctrlKey || event.metaKey || event.shiftKey ? state.toggle(row) : state.look(row)),
      },
      element("th", { scope: "row" }, String(this.numbers[row])),
      ...this.columns.map((column) =>
        element("td", { class: `${column.isNumber ? "number" : ""} ${column.mark?.(row) ?? ""}`, title: column.title?.(row) }, column.text(row)),
      ),
    );
  }

  key(event) {
    const at = this.order.indexOf(this.state.active);
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / LINE) - 2);
    const moves = { ArrowDown: at + 1, ArrowUp: Math.max(0, at - 1), PageDown: at + page, PageUp: at - page, Home: 0, End: this.order.length - 1 };
    if (event.key in moves) {
      const next = this.order[Math.max(0, Math.min(this.order.length - 1, moves[event.key]))];
      if (next !== undefined) this.state.look(next);
    } else if (event.key === " " && this.state.active >= 0) this.state.toggle(this.state.active);
    else if (event.key === "Escape") this.state.select([]);
    else return;
    event.preventDefault();
  }

  showActive() {
    const at = this.order.indexOf(this.state.active);
    if (at >= 0) {
      const [top, height] = [at * LINE, this.scroll.clientHeight - LINE];
      if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
      else if (top + LINE > this.scroll.scrollTop + height) this.scroll.scrollTop = top + LINE - height;
    }
    this.draw();
  }
}
