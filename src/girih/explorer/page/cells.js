// The cells of a plane: which pixel belongs to which, and how each is coloured.

const EDGE = { light: [0, 40, 80, 0.38], dark: [190, 215, 240, 0.34] };
const CROWD = 0.4; // share of pixels on edges, from which on edges are not drawn

class CellLayer {
  /** spec: points, start, cell of the polygons; mass, volume, logVolume of the cells. */
  constructor(spec) {
    Object.assign(this, spec);
    this.polygonOf = new Map(Array.from(spec.cell, (cell, polygon) => [cell, polygon]));
  }

  /** The cell of each pixel of a picture, -1 for none, row by row: polygons are convex, so each row is one run. */
  raster(chart, width, height) {
    const ids = new Int32Array(width * height).fill(-1);
    const [x0, x1, y0, y1] = chart.view;
    const [sx, sy] = [width / (x1 - x0), height / (y1 - y0)];
    for (let polygon = 0; polygon < this.cell.length; polygon++) {
      const [first, last] = [this.start[polygon], this.start[polygon + 1]];
      let [top, bottom] = [Infinity, -Infinity];
      for (let k = first; k < last; k++) {
        const y = (y1 - this.points[2 * k + 1]) * sy;
        if (y < top) top = y;
        if (y > bottom) bottom = y;
      }
      const id = this.cell[polygon];
      const end = Math.min(height, Math.ceil(bottom - 0.5));
      for (let row = Math.max(0, Math.ceil(top - 0.5)); row < end; row++) {
        const y = y1 - (row + 0.5) / sy;
        let [left, right] = [Infinity, -Infinity];
        for (let k = first, before = last - 1; k < last; before = k++) {
          const ya = this.points[2 * before + 1];
          const yb = this.points[2 * k + 1];
          if (ya > y === yb > y) continue;
          const xa = this.points[2 * before];
          const x = xa + ((y - ya) / (yb - ya)) * (this.points[2 * k] - xa);
          if (x < left) left = x;
          if (x > right) right = x;
        }
        const from = Math.max(0, Math.ceil((left - x0) * sx - 0.5));
        const to = Math.min(width, Math.ceil((right - x0) * sx - 0.5));
        if (to > from) ids.fill(id, row * width + from, row * width + to);
      }
    }
    return ids;
  }

  /** The cell of a point, -1 for none. */
  locate(x, y) {
    for (let polygon = 0; polygon < this.cell.length; polygon++) {
      let inside = false;
      for (let k = this.start[polygon], before = this.start[polygon + 1] - 1; k < this.start[polygon + 1]; before = k++) {
        const [xa, ya, xb, yb] = [this.points[2 * before], this.points[2 * before + 1], this.points[2 * k], this.points[2 * k + 1]];
        if (ya > y !== yb > y && x < xa + ((y - ya) / (yb - ya)) * (xb - xa)) inside = !inside;
      }
      if (inside) return this.cell[polygon];
    }
    return -1;
  }

  /** Trace the outline of a cell. */
  outline(context, chart, cell) {
    const polygon = this.polygonOf.get(cell);
    if (polygon === undefined) return;
    context.beginPath();
    for (let k = this.start[polygon]; k < this.start[polygon + 1]; k++)
      context.lineTo(chart.px(this.points[2 * k]), chart.py(this.points[2 * k + 1]));
    context.closePath();
    context.stroke();
  }
}

/** Colour pixels by a value of their cell and place; `low` to `high` is the range of the colours. */
function paintGround(image, ids, value, [low, high], table, chart) {
  const { data, width, height } = image;
  const [x0, x1, y0, y1] = chart.view;
  const [dx, dy] = [(x1 - x0) / width, (y1 - y0) / height];
  const factor = 255 / (high - low || 1);
  for (let row = 0, at = 0; row < height; row++) {
    const y = y1 - (row + 0.5) * dy;
    for (let column = 0; column < width; column++, at++) {
      const id = ids[at];
      if (id < 0) continue;
      const number = (value(id, x0 + (column + 0.5) * dx, y) - low) * factor;
      const i = 3 * (number > 255 ? 255 : number > 0 ? number | 0 : 0);
      data[4 * at] = table[i];
      data[4 * at + 1] = table[i + 1];
      data[4 * at + 2] = table[i + 2];
      data[4 * at + 3] = 255;
    }
  }
}

/** Darken pixels whose neighbour to the right or below is of another cell. */
function paintEdges(image, ids, dark) {
  const { data, width, height } = image;
  const [r, g, b, strength] = dark ? EDGE.dark : EDGE.light;
  const edges = new Int32Array(ids.length);
  let count = 0;
  for (let row = 0; row < height - 1; row++)
    for (let column = 0, at = row * width; column < width - 1; column++, at++)
      if (ids[at] !== ids[at + 1] || ids[at] !== ids[at + width]) edges[count++] = at;
  const share = count / ids.length;
  if (share > CROWD) return;
  const mix = strength * (1 - share / CROWD);
  for (let k = 0; k < count; k++) {
    const at = edges[k];
    data[4 * at] += mix * (r - data[4 * at]);
    data[4 * at + 1] += mix * (g - data[4 * at + 1]);
    data[4 * at + 2] += mix * (b - data[4 * at + 2]);
    data[4 * at + 3] = 255;
  }
}
