// Densities of pairs of columns on grids, and what one column says of the other.

const DEPTH = 9; // nats below the highest density of a pair that are coloured

/** A pair of axes: `logP(x, y)` between the places of its grid, and the quantiles of y given x. */
class Pair {
  /** axes: all of them; specs: of the pairs; x and y: places in axes, x may be above y. */
  constructor(axes, specs, x, y) {
    const [i, j] = [Math.min(x, y), Math.max(x, y)];
    this.spec = specs.find((spec) => spec.i === i && spec.j === j);
    this.turned = x > y;
    [this.x, this.y] = [axes[x], axes[y]];
    this.bands = this.spec.given[this.turned ? 1 : 0];
    this.top = this.spec.logP.reduce((top, value) => Math.max(top, value), -Infinity);
  }

  logP(x, y) {
    const n = this.spec.places;
    const u = ((x - this.x.low) / (this.x.high - this.x.low)) * (n - 1);
    const v = ((y - this.y.low) / (this.y.high - this.y.low)) * (n - 1);
    if (!(u >= 0 && v >= 0 && u <= n - 1 && v <= n - 1)) return -Infinity;
    const [a, b] = [Math.min(n - 2, Math.floor(u)), Math.min(n - 2, Math.floor(v))];
    const at = (i, j) => this.spec.logP[this.turned ? i * n + j : j * n + i];
    const low = at(a, b) + (u - a) * (at(a + 1, b) - at(a, b));
    const high = at(a, b + 1) + (u - a) * (at(a + 1, b + 1) - at(a, b + 1));
    return low + (v - b) * (high - low);
  }

  /** The places along x at which the conditionals of y are known. */
  places() {
    const n = this.spec.at;
    return Array.from({ length: n }, (_, k) => this.x.low + (k / (n - 1)) * (this.x.high - this.x.low));
  }

  /** The 5, 50 and 95 % quantiles of y at the place nearest to x. */
  given(x) {
    const n = this.spec.at;
    const place = Math.max(0, Math.min(n - 1, Math.round(((x - this.x.low) / (this.x.high - this.x.low)) * (n - 1))));
    return { x: this.places()[place], quantiles: [0, 1, 2].map((level) => this.bands[level * n + place]) };
  }

  /** The density of y at one x, on the grid of y, as a share of its highest. */
  slice(x) {
    const n = this.spec.places;
    const places = Array.from({ length: n }, (_, k) => this.y.low + (k / (n - 1)) * (this.y.high - this.y.low));
    const logs = places.map((y) => this.logP(x, y));
    const top = Math.max(...logs);
    return places.map((y, k) => [y, Math.exp(logs[k] - top)]);
  }
}

/** All pairs of axes as small pictures, those below the diagonal; each is a button that picks its pair. */
class Matrix {
  constructor(page, onpick) {
    this.page = page;
    this.onpick = onpick;
    this.element = element("div", { class: "matrix", style: `--n:${page.axes.length}` });
  }

  draw() {
    const { axes } = this.page;
    const tiles = [];
    axes.forEach((below, y) => {
      axes.forEach((beside, x) => {
        if (x > y) tiles.push(element("span", {}));
        else tiles.push(x === y ? this.alone(x) : this.pair(x, y));
      });
    });
    this.element.replaceChildren(...tiles);
  }

  pair(x, y) {
    const { axes, colouring } = this.page;
    const size = 96;
    const canvas = element("canvas", { width: size, height: size });
    const context = canvas.getContext("2d");
    const image = context.createImageData(size, size);
    const pair = new Pair(axes, this.page.payload.pairs, x, y);
    const chart = { view: [axes[x].low, axes[x].high, axes[y].low, axes[y].high], width: size, height: size, ratio: 1 };
    chart.px = (value) => ((value - chart.view[0]) / (chart.view[1] - chart.view[0])) * size;
    chart.py = (value) => ((chart.view[3] - value) / (chart.view[3] - chart.view[2])) * size;
    paintGround(image, new Int32Array(size * size), (_, u, v) => pair.logP(u, v), [pair.top - DEPTH, pair.top], this.page.table, chart);
    const points = new Points(this.page.valuesOf(x), this.page.valuesOf(y), this.page.state);
    points.radius = () => 1.1;
    points.paint(image, chart, colouring);
    context.putImageData(image, 0, 0);
    const title = `${axes[y].name} against ${axes[x].name}`;
    return element("button", { type: "button", class: "tile", title, "aria-label": title, onclick: () => this.onpick(x, y) }, canvas);
  }

  alone(x) {
    const axis = this.page.axes[x];
    const curve = densityOf(axis, axis.logP, null, { width: 96, height: 62 });
    return element("div", { class: "tile" }, curve, element("span", { class: "name", title: axis.name }, axis.name));
  }
}

/** A density along an axis as a small curve, with an entry marked on it. */
function densityOf(axis, logP, entry, { width, height }) {
  const canvas = element("canvas", { class: "density", width: 2 * width, height: 2 * height });
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  const top = logP.reduce((most, value) => Math.max(most, value), -Infinity);
  const x = (k) => 2 + (k / (logP.length - 1)) * (width - 4);
  const y = (value) => height - 2 - Math.exp(value - top) * (height - 6);
  context.beginPath();
  context.moveTo(x(0), height - 2);
  logP.forEach((value, k) => context.lineTo(x(k), y(value)));
  context.lineTo(x(logP.length - 1), height - 2);
  context.fillStyle = "rgb(86 160 210 / 0.45)";
  context.fill();
  context.strokeStyle = HUES[0];
  context.lineWidth = 1.2;
  context.stroke();
  if (entry !== null && !Number.isNaN(entry)) {
    const at = 2 + Math.max(0, Math.min(1, (entry - axis.low) / (axis.high - axis.low))) * (width - 4);
    context.strokeStyle = MARK;
    context.lineWidth = 2;
    context.beginPath();
    context.moveTo(at, 1);
    context.lineTo(at, height - 1);
    context.stroke();
  }
  return canvas;
}
