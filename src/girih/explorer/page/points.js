// Rows as points, set into the pixels of a chart: 50,000 of them take a few milliseconds.

const REACH = 9; // pixels within which a row is hit
const RIMMED = 2; // pixels of the radius, above which points have a rim in the colour of the page

/** A stamp for a disc: offsets x and y of its pixels one after the other, and their shares, 0 to 1. */
function disc(radius) {
  const size = Math.ceil(radius) + 1;
  const offsets = [];
  const shares = [];
  for (let y = -size; y <= size; y++)
    for (let x = -size; x <= size; x++) {
      const share = Math.max(0, Math.min(1, radius + 0.5 - Math.hypot(x, y)));
      if (share > 0) {
        offsets.push(x, y);
        shares.push(share);
      }
    }
  return { size, offsets: Int32Array.from(offsets), shares: Float64Array.from(shares) };
}

/** Mix a colour into the pixels of a stamp about a pixel, as far as it lies in the picture. */
function stamped({ data, width, height }, column, line, r, g, b, { size, offsets, shares }, strength) {
  if (!(column >= -size && column < width + size && line >= -size && line < height + size)) return; // NaN too
  const inside = column >= size && column < width - size && line >= size && line < height - size;
  for (let k = 0; k < shares.length; k++) {
    const px = column + offsets[2 * k];
    const py = line + offsets[2 * k + 1];
    if (!inside && (px < 0 || px >= width || py < 0 || py >= height)) continue;
    const at = 4 * (py * width + px);
    const mix = shares[k] * strength;
    data[at] += mix * (r - data[at]);
    data[at + 1] += mix * (g - data[at + 1]);
    data[at + 2] += mix * (b - data[at + 2]);
    data[at + 3] = 255;
  }
}

class Points {
  /** x and y of the rows, NaN where one is missing; the shared state. */
  constructor(x, y, state) {
    Object.assign(this, { x, y, state });
    this.count = x.length;
  }

  radius() {
    return this.count <= 300 ? 3.6 : this.count <= 3000 ? 2.6 : this.count <= 15000 ? 1.9 : 1.3;
  }

  /** Rows that are not selected lie below, pale. */
  paint(image, chart, colouring, hollow = null) {
    const stamp = disc(this.radius() * chart.ratio);
    const colours = colouring.bytes(this.count);
    const [x0, x1, y0, y1] = chart.view;
    const [sx, sy] = [image.width / (x1 - x0), image.height / (y1 - y0)];
    const rim = this.radius() > RIMMED ? disc((this.radius() + 0.9) * chart.ratio) : null;
    const { selected } = this.state;
    for (const pass of selected ? [0, 1] : [1])
      for (let row = 0; row < this.count; row++) {
        if (selected && selected[row] !== pass) continue;
        const strength = this.strength(row, pass, hollow);
        const column = Math.round((this.x[row] - x0) * sx);
        const line = Math.round((y1 - this.y[row]) * sy);
        if (rim) stamped(image, column, line, ...colouring.paper, rim, 0.7 * strength);
        stamped(image, column, line, colours[3 * row], colours[3 * row + 1], colours[3 * row + 2], stamp, strength);
      }
  }

  strength(row, pass, hollow) {
    return (pass ? (this.count > 20000 ? 0.5 : this.count > 5000 ? 0.75 : 0.9) : 0.12) * (hollow?.(row) ? 0.45 : 1);
  }

  /** The row nearest to a place, -1 where none is near. */
  nearest(chart, x, y, reach = REACH) {
    const [cx, cy] = [chart.px(x), chart.py(y)];
    let [best, found] = [reach * reach, -1];
    for (let row = 0; row < this.count; row++) {
      const distance = (chart.px(this.x[row]) - cx) ** 2 + (chart.py(this.y[row]) - cy) ** 2;
      if (distance <= best) [best, found] = [distance, row];
    }
    return found;
  }

  within(x0, x1, y0, y1) {
    const out = [];
    for (let row = 0; row < this.count; row++)
      if (this.x[row] >= x0 && this.x[row] <= x1 && this.y[row] >= y0 && this.y[row] <= y1) out.push(row);
    return out;
  }

  ring(context, chart, row) {
    const [x, y] = [chart.px(this.x[row]), chart.py(this.y[row])];
    if (Number.isNaN(x + y)) return;
    context.beginPath();
    context.arc(x, y, this.radius() + 3.5, 0, 2 * Math.PI);
    context.stroke();
  }
}

/** The outline of two standard deviations about a mean, of a covariance [[a, b], [b, c]]. */
function ellipse(context, chart, x, y, [a, b, c], deviations = 2) {
  const first = Math.sqrt(Math.max(0, a));
  const mixed = first > 0 ? b / first : 0;
  const rest = Math.sqrt(Math.max(0, c - mixed * mixed));
  context.beginPath();
  for (let k = 0; k < 64; k++) {
    const [u, v] = [Math.cos((k / 32) * Math.PI), Math.sin((k / 32) * Math.PI)];
    context.lineTo(chart.px(x + deviations * first * u), chart.py(y + deviations * (mixed * u + rest * v)));
  }
  context.closePath();
  context.stroke();
}
