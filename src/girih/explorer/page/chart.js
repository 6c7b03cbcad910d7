// A plane on a canvas: axes, zoom, movement, a brush, and a cursor that the keyboard moves too.

const MARGIN = { left: 52, right: 10, top: 10, bottom: 38 };
const STEP = 1 / 40; // of the view, that an arrow key moves the cursor
const CLICK = 4; // pixels that a click may move
const MOST = 2_000_000; // pixels that are painted

/**
 * options: names [x, y]; home [x0, x1, y0, y1]; equal (one scale for both axes); label; paint(image, chart), into the
 * pixels of the plot; over(context, chart), above them; hover(x, y), click(x, y, pixel), brush(x0, x1, y0, y1, fresh),
 * enter(x, y).
 */
class Chart {
  constructor(options, colours) {
    Object.assign(this, options);
    this.colours = colours;
    this.base = element("canvas", {});
    this.top = element("canvas", { tabindex: "0", role: "application", "aria-label": this.label });
    this.plot = element("div", { class: "plot" }, this.base, this.top);
    this.tools = this.toolbar();
    this.element = element("div", { class: "chart" }, this.plot, this.tools);
    this.view = [...this.home];
    this.cursor = null;
    this.held = false;
    this.selecting = false;
    this.pointers = new Map();
    this.drawBase = framed(() => this.paintBase());
    this.drawTop = framed(() => this.paintTop());
    this.listen();
    new ResizeObserver(() => this.resize()).observe(this.plot);
  }

  toolbar() {
    const button = (text, title, act) => element("button", { type: "button", title, "aria-label": title, onclick: act }, text);
    this.selectButton = button("Select rows", "Select rows by dragging (or hold Shift)", () => this.setSelecting(!this.selecting));
    this.selectButton.setAttribute("aria-pressed", "false");
    return element(
      "div",
      { class: "tools" },
      button("+", "Zoom in", () => this.zoom(0.7)),
      button("−", "Zoom out", () => this.zoom(1 / 0.7)),
      button("Whole", "Show the whole plane (key 0)", () => this.reset()),
      this.brush ? this.selectButton : null,
    );
  }

  setSelecting(on) {
    this.selecting = on;
    this.selectButton.setAttribute("aria-pressed", String(on));
    this.top.style.cursor = on ? "crosshair" : "";
  }

  resize() {
    const width = this.plot.clientWidth;
    const height = this.plot.clientHeight;
    if (!width || !height) return;
    const ratio = window.devicePixelRatio || 1;
    this.ratio = Math.min(ratio, Math.sqrt(MOST / (width * height)));
    for (const canvas of [this.base, this.top]) {
      canvas.width = Math.round(width * this.ratio);
      canvas.height = Math.round(height * this.ratio);
    }
    this.width = width - MARGIN.left - MARGIN.right;
    this.height = height - MARGIN.top - MARGIN.bottom;
    this.setView(this.view);
  }

  /** Show x0 to x1 and y0 to y1, and more where both axes have one scale. */
  setView([x0, x1, y0, y1]) {
    if (this.equal && this.width > 0 && this.height > 0) {
      const scale = Math.max((x1 - x0) / this.width, (y1 - y0) / this.height) / 2;
      const [x, y] = [(x0 + x1) / 2, (y0 + y1) / 2];
      [x0, x1, y0, y1] = [x - scale * this.width, x + scale * this.width, y - scale * this.height, y + scale * this.height];
    }
    this.view = [x0, x1, y0, y1];
    this.drawBase();
    this.drawTop();
  }

  reset() {
    this.setView(this.home);
  }

  zoom(factor, about) {
    const [x0, x1, y0, y1] = this.view;
    const [hx0, hx1] = this.home;
    const wide = ((x1 - x0) * factor) / (hx1 - hx0);
    if (wide > 7 || wide < 1e-3) return;
    const [x, y] = about ?? this.cursor ?? [(x0 + x1) / 2, (y0 + y1) / 2];
    this.setView([x + (x0 - x) * factor, x + (x1 - x) * factor, y + (y0 - y) * factor, y + (y1 - y) * factor]);
  }

  // Places: of the plane in the plot, in CSS pixels from its upper left corner, and back

  px(x) {
    return ((x - this.view[0]) / (this.view[1] - this.view[0])) * this.width;
  }

  py(y) {
    return ((this.view[3] - y) / (this.view[3] - this.view[2])) * this.height;
  }

  at(px, py) {
    const [x0, x1, y0, y1] = this.view;
    return [x0 + (px / this.width) * (x1 - x0), y1 - (py / this.height) * (y1 - y0)];
  }

  place(event) {
    const box = this.top.getBoundingClientRect();
    return [event.clientX - box.left - MARGIN.left, event.clientY - box.top - MARGIN.top];
  }

  // What the user does

  listen() {
    const top = this.top;
    top.addEventListener("pointerdown", (event) => this.down(event));
    top.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) top.addEventListener(name, (event) => this.up(event));
    top.addEventListener("keydown", (event) => this.key(event));
    top.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.zoom(Math.exp(Math.max(-0.5, Math.min(0.5, event.deltaY * 0.002))), this.at(...this.place(event)));
      },
      { passive: false },
    );
  }

  down(event) {
    this.top.focus({ preventScroll: true });
    this.top.setPointerCapture(event.pointerId);
    const place = this.place(event);
    this.pointers.set(event.pointerId, place);
    this.start = { place, view: [...this.view], moved: false, brush: this.brush && (event.shiftKey || this.selecting) };
    if (this.pointers.size === 2) {
      this.start.pinch = this.spread();
      this.start.moved = true;
    }
  }

  spread() {
    const [[ax, ay], [bx, by]] = this.pointers.values();
    return { length: Math.hypot(ax - bx, ay - by) || 1, middle: [(ax + bx) / 2, (ay + by) / 2] };
  }

  move(event) {
    const place = this.place(event);
    if (this.pointers.has(event.pointerId)) this.pointers.set(event.pointerId, place);
    const start = this.start;
    if (!start) {
      if (!this.held && event.pointerType !== "touch") this.point(...this.at(...place));
      return;
    }
    if (start.pinch && this.pointers.size === 2) return this.pinch(start);
    if (Math.hypot(place[0] - start.place[0], place[1] - start.place[1]) > CLICK) start.moved = true;
    if (!start.moved) return;
    if (start.brush) {
      this.box = [...start.place, ...place];
      this.drawTop();
      return;
    }
    const [x0, x1, y0, y1] = start.view;
    const dx = ((place[0] - start.place[0]) / this.width) * (x1 - x0);
    const dy = ((place[1] - start.place[1]) / this.height) * (y1 - y0);
    this.setView([x0 - dx, x1 - dx, y0 + dy, y1 + dy]);
  }

  pinch(start) {
    const now = this.spread();
    const factor = start.pinch.length / now.length;
    const [x0, x1, y0, y1] = start.view;
    const x = x0 + (start.pinch.middle[0] / this.width) * (x1 - x0);
    const y = y1 - (start.pinch.middle[1] / this.height) * (y1 - y0);
    const [w, h] = [(x1 - x0) * factor, (y1 - y0) * factor];
    const left = x - (now.middle[0] / this.width) * w;
    const upper = y + (now.middle[1] / this.height) * h;
    this.setView([left, left + w, upper - h, upper]);
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    const start = this.start;
    if (!start || this.pointers.size) return;
    this.start = null;
    const place = this.place(event);
    if (start.brush && this.box) {
      const [a, b, c, d] = this.box;
      this.box = null;
      const [x0, y1] = this.at(Math.min(a, c), Math.min(b, d));
      const [x1, y0] = this.at(Math.max(a, c), Math.max(b, d));
      this.brush(x0, x1, y0, y1);
      this.drawTop();
    } else if (!start.moved && event.type === "pointerup") {
      const [x, y] = this.at(...place);
      this.held = event.pointerType === "touch" || !this.held;
      this.point(x, y);
      this.click?.(x, y);
    }
  }

  key(event) {
    const [x0, x1, y0, y1] = this.view;
    const far = event.shiftKey ? 5 * STEP : STEP;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const acts = {
      "+": () => this.zoom(0.7),
      "=": () => this.zoom(0.7),
      "-": () => this.zoom(1 / 0.7),
      0: () => this.reset(),
      Enter: () => this.cursor && this.click?.(...this.cursor),
      s: () => this.brush && this.setSelecting(!this.selecting),
      Escape: () => {
        this.held = false;
        this.box = null;
        this.escape?.();
      },
    };
    if (event.key in moves) {
      const [x, y] = this.cursor ?? [(x0 + x1) / 2, (y0 + y1) / 2];
      const [dx, dy] = moves[event.key];
      this.held = true;
      this.point(x + dx * far * (x1 - x0), y + dy * far * (y1 - y0));
      this.follow();
    } else if (event.key in acts) acts[event.key]();
    else return;
    event.preventDefault();
  }

  /** Move the view where the cursor has left it. */
  follow() {
    const [x0, x1, y0, y1] = this.view;
    const [x, y] = this.cursor;
    const dx = x < x0 ? x - x0 : x > x1 ? x - x1 : 0;
    const dy = y < y0 ? y - y0 : y > y1 ? y - y1 : 0;
    if (dx || dy) this.setView([x0 + dx, x1 + dx, y0 + dy, y1 + dy]);
  }

  /** Put the cursor somewhere. */
  point(x, y) {
    this.cursor = [x, y];
    this.hover?.(x, y);
    this.drawTop();
  }

  // Drawing

  paintBase() {
    if (!(this.width > 0 && this.height > 0)) return;
    const context = this.base.getContext("2d");
    const ratio = this.ratio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.base.width, this.base.height);
    const image = context.createImageData(Math.max(1, Math.round(this.width * ratio)), Math.max(1, Math.round(this.height * ratio)));
    this.paint(image, this);
    context.putImageData(image, Math.round(MARGIN.left * ratio), Math.round(MARGIN.top * ratio));
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.axes(context);
  }

  axes(context) {
    const { line, text } = this.colours();
    context.strokeStyle = line;
    context.fillStyle = text;
    context.lineWidth = 1;
    context.font = "12px system-ui, sans-serif";
    context.strokeRect(MARGIN.left + 0.5, MARGIN.top + 0.5, this.width - 1, this.height - 1);
    context.textAlign = "center";
    context.textBaseline = "top";
    for (const tick of ticks(this.view[0], this.view[1], this.width / 70)) {
      const at = MARGIN.left + this.px(tick);
      context.fillRect(Math.round(at), MARGIN.top + this.height, 1, 4);
      context.fillText(this.tickText(0, tick), at, MARGIN.top + this.height + 6);
    }
    context.fillText(this.names[0], MARGIN.left + this.width / 2, MARGIN.top + this.height + 21);
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const tick of ticks(this.view[2], this.view[3], this.height / 50)) {
      const at = MARGIN.top + this.py(tick);
      context.fillRect(MARGIN.left - 4, Math.round(at), 4, 1);
      context.fillText(this.tickText(1, tick), MARGIN.left - 6, at);
    }
    context.save();
    context.translate(11, MARGIN.top + this.height / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText(this.names[1], 0, 0);
    context.restore();
  }

  /** The text of a tick: a date where the axis has days (`dates`), for which only the year and month have room. */
  tickText(axis, tick) {
    return this.dates?.[axis] ? day(tick).slice(0, 7) : number(tick, 4);
  }

  paintTop() {
    const context = this.top.getContext("2d");
    const ratio = this.ratio;
    if (!ratio) return;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.top.width, this.top.height);
    context.setTransform(ratio, 0, 0, ratio, MARGIN.left * ratio, MARGIN.top * ratio);
    context.save();
    context.beginPath();
    context.rect(0, 0, this.width, this.height);
    context.clip();
    this.over?.(context, this);
    if (this.box) {
      const [a, b, c, d] = this.box;
      context.strokeStyle = MARK;
      context.fillStyle = "rgb(213 94 0 / 0.12)";
      context.lineWidth = 1.5;
      context.fillRect(Math.min(a, c), Math.min(b, d), Math.abs(c - a), Math.abs(d - b));
      context.strokeRect(Math.min(a, c), Math.min(b, d), Math.abs(c - a), Math.abs(d - b));
    }
    context.restore();
  }
}

/** Round numbers between two ends, about as many as asked for. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(2, count);
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * size >= rough) * size;
  const out = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) out.push(Number((k * step).toPrecision(12)));
  return out;
}
