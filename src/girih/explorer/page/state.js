// What the views share: which rows are selected, which one is looked at, and the colours.

class State {
  constructor(count) {
    this.count = count;
    this.selected = null; // a byte for each row, or null where all are as good as selected
    this.active = -1;
    this.listeners = {};
  }

  /** Call a function when "selection", "active" or "theme" changes. */
  on(what, listener) {
    (this.listeners[what] ??= []).push(listener);
  }

  tell(what) {
    for (const listener of this.listeners[what] ?? []) listener();
  }

  /** Select some rows alone; none of them clears the selection. */
  select(rows) {
    this.selected = null;
    if (rows.length) {
      this.selected = new Uint8Array(this.count);
      for (const row of rows) this.selected[row] = 1;
    }
    this.tell("selection");
  }

  /** Add a row to the selection, or take it out. */
  toggle(row) {
    const mask = this.selected ?? new Uint8Array(this.count);
    mask[row] = 1 - mask[row];
    this.selected = mask.includes(1) ? mask : null;
    this.tell("selection");
  }

  has(row) {
    return this.selected === null || this.selected[row] === 1;
  }

  rows() {
    const out = [];
    if (this.selected) for (let row = 0; row < this.count; row++) if (this.selected[row]) out.push(row);
    return out;
  }

  look(row) {
    if (row === this.active) return;
    this.active = row;
    this.tell("active");
  }
}

/** Run a function once in the next frame, however often it is asked for. */
function framed(draw) {
  let asked = 0;
  return () => {
    if (!asked)
      asked = requestAnimationFrame(() => {
        asked = 0;
        draw();
      });
  };
}
