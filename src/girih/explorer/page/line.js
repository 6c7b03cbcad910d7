// The page of a generator with S = 1: the latent along one axis, an output or a column of the rows along the other.

/** The cells of the line, with what a chart asks of a layer. */
class LineLayer {
  constructor(spec) {
    Object.assign(this, spec);
  }

  locate(z) {
    let [low, high] = [0, this.upper.length - 1];
    if (z < this.lower[0] || z > this.upper[high]) return -1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (z <= this.upper[middle]) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  raster(chart, width, height) {
    const ids = new Int32Array(width * height);
    const [x0, x1] = chart.view;
    for (let column = 0; column < width; column++) ids[column] = this.locate(x0 + ((column + 0.5) / width) * (x1 - x0));
    for (let row = 1; row < height; row++) ids.copyWithin(row * width, 0, width);
    return ids;
  }
}

class LinePage extends LatentPage {
  setUp() {
    const { payload } = this;
    this.plane = payload.line;
    this.layer = new LineLayer(this.plane);
    this.maps = this.plane.maps && new Maps(this.plane.maps, payload.D, 1);
    this.variance = payload.prior[0][0];
    this.heights = this.heightChoices();
    this.chart = new Chart({ ...this.chartOptions("line"), names: ["z", ""], home: [0, 1, 0, 1] }, this.colours);
    this.setHeight(0);
  }

  /** What can be the height: outputs with their column of the rows, and other columns of numbers. */
  heightChoices() {
    const { names, D } = this.payload;
    const outputs = names.slice(0, TABLE).map((name, output) => ({ name, output, column: this.columns.findLast((column) => column.name === name) }));
    const others = this.columns.filter((column) => column.isNumber && !names.includes(column.name)).map((column) => ({ name: column.name, output: -1, column }));
    return D > TABLE && this.rows ? [...others, ...outputs] : [...outputs, ...others];
  }

  setHeight(place) {
    this.height = this.heights[place];
    const { output, column, name } = this.height;
    const [z0, z1] = this.plane.home;
    this.curve = output >= 0 ? this.curveOf(output, z0, z1) : null;
    const seen = (this.curve ?? []).filter(([z]) => z >= z0 && z <= z1).map(([, x]) => x);
    if (this.curve) seen.push(...[z0, z1].map((z) => this.valueAt(z, output)).filter((x) => x !== null));
    const values = [...seen, ...(column?.values ?? [])];
    const [low, high] = quantiles(values, [0, 1]);
    const margin = 0.06 * (high - low) || 1;
    this.chart.home = [z0, z1, low - margin, high + margin];
    this.chart.names = ["z", name];
    if (this.rows) this.points = new Points(this.rows.mean, column ? column.values : new Float32Array(this.rows.count).fill(NaN), this.state);
    this.grounds = this.groundsOfLine(output);
    this.ground = this.grounds[0];
    this.range = null;
    this.chart.setView(this.chart.home);
  }

  /** Where the curve bends, and its ends: straight lines between these are the curve. */
  curveOf(output, z0, z1) {
    const reach = 4 * (z1 - z0);
    const knots = Array.from(this.plane.upper).filter((z) => z > z0 - reach && z < z1 + reach);
    const places = [z0 - reach, ...knots, z1 + reach];
    return places.map((z) => [z, this.valueAt(z, output)]).filter(([, x]) => x !== null);
  }

  valueAt(z, output) {
    if (this.network) return this.network.at([z]).x[output];
    return this.maps.at([z], this.layer.locate(z))?.x[output] ?? null;
  }

  groundsOfLine(output) {
    const { noise } = this.payload;
    const prior = (z) => -0.5 * ((z * z) / this.variance + Math.log(2 * Math.PI * this.variance));
    const out = [];
    if (noise && output >= 0) {
      const spread = noise[output];
      const map = (cell) => (this.slopes[cell] ??= this.slopeOf(cell, output));
      this.slopes = [];
      out.push({
        name: `density of z and ${this.payload.names[output]}`,
        unit: "log density, nats",
        depth: 12,
        value: (cell, z, x) => {
          const [a, b] = map(cell);
          const rest = x - a * z - b;
          return prior(z) - 0.5 * ((rest * rest) / spread + Math.log(2 * Math.PI * spread));
        },
      });
    }
    const { mass, logVolume } = this.plane;
    out.push({ name: "density of the prior", unit: "log density, nats", value: (cell, z) => prior(z) });
    out.push({ name: "prior mass of the cell", unit: "log10 of the mass", value: (cell) => Math.log10(Math.max(mass[cell], 1e-30)) });
    if (logVolume) out.push({ name: "volume factor of the cell", unit: "log √det AᵀA, nats", value: (cell) => logVolume[cell] });
    return out;
  }

  /** The slope and shift of an output on a cell. */
  slopeOf(cell, output) {
    const { lower, upper } = this.layer;
    const [low, high] = [lower[cell], upper[cell]];
    const z = Number.isFinite(low + high) ? (low + high) / 2 : Number.isFinite(low) ? low + 1 : Number.isFinite(high) ? high - 1 : 0;
    const found = this.network ? this.network.at([z]) : this.maps.at([z], cell);
    return found ? [found.A[0][output], found.b[output]] : [NaN, NaN];
  }

  choices() {
    const height = choice("height", this.heights.map((one) => one.name), 0, (place) => {
      this.setHeight(place);
      this.groundList.replaceWith((this.groundList = this.groundChoice()));
      this.recolour();
    });
    this.groundList = this.groundChoice();
    return [height, this.groundList, ...this.colourChoice()];
  }

  groundChoice() {
    return choice("ground", this.grounds.map((ground) => ground.name), 0, (place) => {
      this.ground = this.grounds[place];
      this.range = null;
      this.recolour();
    });
  }

  over(context, chart) {
    const { text } = this.colours();
    if (this.curve) {
      context.strokeStyle = text;
      context.lineWidth = 2;
      context.beginPath();
      for (const [z, x] of this.curve) context.lineTo(chart.px(z), chart.py(x));
      context.stroke();
    }
    const row = this.state.active;
    if (row >= 0 && this.points) {
      context.strokeStyle = MARK;
      context.lineWidth = 2;
      this.points.ring(context, chart, row);
      if (this.rows.spread) {
        const [z, y] = [this.points.x[row], chart.py(this.points.y[row])];
        const deviation = Math.sqrt(this.rows.spread[row]);
        context.beginPath();
        context.moveTo(chart.px(z - 2 * deviation), y);
        context.lineTo(chart.px(z + 2 * deviation), y);
        context.stroke();
      }
    }
    if (!chart.cursor) return;
    context.strokeStyle = text;
    context.lineWidth = 1;
    context.setLineDash(chart.held ? [] : [4, 4]);
    const at = chart.px(chart.cursor[0]);
    context.beginPath();
    context.moveTo(at, 0);
    context.lineTo(at, chart.height);
    context.stroke();
    context.setLineDash([]);
    if (this.curve && this.found?.x) {
      context.fillStyle = text;
      context.beginPath();
      context.arc(at, chart.py(this.found.x[this.height.output]), 4, 0, 2 * Math.PI);
      context.fill();
    }
  }

  startingPlace() {
    const [z0, z1, y0, y1] = this.chart.home;
    return [z0 < 0 && z1 > 0 ? 0 : (z0 + z1) / 2, (y0 + y1) / 2];
  }

  at(z) {
    const cell = this.layer.locate(z);
    const found = this.network ? this.network.at([z]) : this.maps.at([z], cell);
    return { z: [z], cell, ...(found ?? { x: null }) };
  }

  latentNames() {
    return ["z"];
  }
}
