// The page of a generator: a plane of its latent space, what it does there, and rows.

/** What a ground of the plane shows: its name, unit, and a value of a cell at a place of the plane. */
function groundsOf(plane, density) {
  const log10 = plane.mass && plane.mass.map((mass) => Math.log10(Math.max(mass, 1e-30)));
  const all = [
    plane.logVolume && {
      name: "density of what is generated",
      unit: "log density on the manifold, nats",
      value: (cell, x, y) => density(x, y) - plane.logVolume[cell],
    },
    { name: "density of the prior", unit: "log density, nats", value: (cell, x, y) => density(x, y) },
    log10 && { name: "prior mass of the cell", unit: "log10 of the mass", value: (cell) => log10[cell] },
    plane.logVolume && { name: "volume factor of the cell", unit: "log √det AᵀA, nats", value: (cell) => plane.logVolume[cell] },
    { name: "cells alone", unit: "", value: () => 0 },
  ];
  return all.filter(Boolean);
}

class LatentPage {
  constructor(payload, state, colours) {
    Object.assign(this, { payload, state, colours });
    this.network = payload.network && new Network(payload.network);
    this.rows = payload.rows;
    this.columns = this.rows ? this.rows.columns.map((spec) => new Column(spec)) : [];
    this.card = element("section", { class: "card", "aria-live": "polite", "aria-label": "Where the cursor is" });
    this.setUp();
    this.controls = element("div", { class: "controls" }, ...this.choices());
    this.legend = element("div", { class: "legends" });
    this.main = element("div", { class: "stage" }, this.controls, this.chart.element, this.legend);
    this.side = element("div", { class: "side" }, this.card);
    if (this.rows) {
      this.sheet = new Sheet(this.columns, state, this.rows.numbers);
      this.side.append(this.sheet.element);
    }
    this.element = element("div", { class: "page" }, this.main, this.side);
    state.on("selection", () => this.chart.drawBase());
    state.on("active", () => this.lookAt(state.active));
    state.on("theme", () => this.recolour());
    this.explain = framed(() => this.fillCard());
    this.recolour();
    this.chart.point(...this.startingPlace());
  }

  /** What the charts of a plane and of a line have in common. */
  chartOptions(what) {
    const options = {
      label: `The latent ${what}: arrow keys move, plus and minus zoom, 0 shows all, Enter looks at the nearest row`,
      paint: (image, chart) => this.paint(image, chart),
      over: (context, chart) => this.over(context, chart),
      hover: () => this.explain(),
      click: (x, y) => this.pick(x, y),
      escape: () => this.state.select([]),
    };
    if (this.rows) options.brush = (x0, x1, y0, y1) => this.state.select(this.points.within(x0, x1, y0, y1));
    return options;
  }

  // A plane

  setUp() {
    this.setPlane(0);
    const { axes: names, home } = this.plane;
    this.chart = new Chart({ ...this.chartOptions("plane"), equal: true, names, home }, this.colours);
  }

  setPlane(place) {
    const { payload } = this;
    this.plane = payload.planes[place];
    this.layer = this.plane.layer ??= new CellLayer(this.plane);
    const quadratic = new PlanePrior(payload.prior, this.plane);
    this.grounds = groundsOf(this.plane, (x, y) => quadratic.logDensity(x, y));
    this.ground = this.grounds[0];
    this.range = null;
    this.maps = this.plane.maps && new Maps(this.plane.maps, payload.D, 2);
    if (this.rows) {
      const at = this.plane.rows;
      const coordinate = (k) => Float32Array.from({ length: this.rows.count }, (_, row) => at[2 * row + k]);
      this.points = new Points(coordinate(0), coordinate(1), this.state);
    }
  }

  choices() {
    const out = [];
    const { planes } = this.payload;
    if (planes && planes.length > 1)
      out.push(
        choice("plane", planes.map((plane) => plane.name.replace("the plane of ", "")), 0, (place) => {
          this.setPlane(place);
          Object.assign(this.chart, { names: this.plane.axes, home: this.plane.home });
          this.recolour();
          this.chart.reset();
          this.chart.point(0, 0);
        }),
      );
    out.push(
      choice("ground", this.grounds.map((ground) => ground.name), 0, (place) => {
        this.ground = this.grounds[place];
        this.range = null;
        this.recolour();
      }),
    );
    return [...out, ...this.colourChoice()];
  }

  colourChoice() {
    if (!this.columns.length) return [];
    const names = ["none", ...this.columns.map((column) => column.name)];
    const first = this.columns.findIndex((column) => !column.isNumber || column.name === "log p");
    this.colourColumn = this.columns[Math.max(0, first)];
    return [
      choice("colour", names, Math.max(0, first) + 1, (place) => {
        this.colourColumn = place ? this.columns[place - 1] : null;
        this.recolour();
      }),
    ];
  }

  recolour() {
    const { dark } = this.colours();
    this.colouring = new Colouring(this.colourColumn, dark);
    this.table = dark ? GROUND_DARK : GROUND;
    this.describe();
    this.chart.drawBase();
    this.chart.drawTop();
  }

  describe() {
    const parts = [];
    if (this.ground?.unit && this.range) {
      const at = (share) => [0, 1, 2].map((c) => this.table[3 * Math.round(255 * share) + c]);
      parts.push(element("span", { class: "key" }, element("b", {}, this.ground.name), ` (${this.ground.unit}) `, scale(...this.range, at)));
    }
    if (this.colourColumn) parts.push(element("span", { class: "key" }, element("b", {}, this.colourColumn.name), " ", this.colouring.legend()));
    this.legend.replaceChildren(...parts);
  }

  paint(image, chart) {
    const ids = this.layer.raster(chart, image.width, image.height);
    if (!this.range) {
      this.range = this.rangeOf(ids, image, chart);
      this.describe();
    }
    paintGround(image, ids, this.ground.value, this.range, this.table, chart);
    paintEdges(image, ids, this.colours().dark);
    if (this.points) this.points.paint(image, chart, this.colouring);
    this.ids = ids;
  }

  /** The range of the colours: what is on most of the pixels of the first view. */
  rangeOf(ids, image, chart) {
    const values = [];
    for (let at = 0; at < ids.length; at += 97) {
      if (ids[at] < 0) continue;
      const [x, y] = chart.at(((at % image.width) + 0.5) * (chart.width / image.width), (Math.floor(at / image.width) + 0.5) * (chart.height / image.height));
      values.push(this.ground.value(ids[at], x, y));
    }
    const [tenth, high] = quantiles(values, [0.1, 0.998]);
    const low = this.ground.depth ? high - this.ground.depth : tenth;
    return high > low ? [low, high] : [low - 1, high + 1];
  }

  over(context, chart) {
    const { text } = this.colours();
    context.strokeStyle = text;
    context.lineWidth = 1.6;
    if (this.cell >= 0) this.layer.outline(context, chart, this.cell);
    const row = this.state.active;
    if (row >= 0 && this.points) {
      context.strokeStyle = MARK;
      context.lineWidth = 2;
      this.points.ring(context, chart, row);
      const spread = this.spreadOf(row);
      if (spread) ellipse(context, chart, this.points.x[row], this.points.y[row], spread);
    }
    if (chart.cursor) cross(context, chart, text);
  }

  /** The covariance of a row's posterior on the plane. */
  spreadOf(row) {
    const { spread } = this.rows;
    const { S } = this.payload;
    if (!spread) return null;
    const across = this.plane.across ??= pseudoInverse(this.plane.basis);
    const out = [];
    for (const [i, j] of [[0, 0], [0, 1], [1, 1]]) {
      let sum = 0;
      for (let s = 0; s < S; s++) for (let t = 0; t < S; t++) sum += across[i][s] * spread[(row * S + s) * S + t] * across[j][t];
      out.push(sum);
    }
    return out;
  }

  // Where the cursor is

  startingPlace() {
    const [x0, x1, y0, y1] = this.plane.home;
    return x0 < 0 && x1 > 0 && y0 < 0 && y1 > 0 ? [0, 0] : [(x0 + x1) / 2, (y0 + y1) / 2];
  }

  latentAt(x, y) {
    const { origin, basis } = this.plane;
    return origin.map((value, s) => value + x * basis[0][s] + y * basis[1][s]);
  }

  /** Everything that the page knows of a place: z, the cell, x, A, b, the pattern. */
  at(x, y) {
    const cell = this.layer.locate(x, y);
    const z = this.latentAt(x, y);
    const found = this.network ? this.network.at(z) : this.maps.at([x, y], cell);
    return { z, cell, ...(found ?? { x: null }) };
  }

  latentNames() {
    if (!this.network) return this.plane.axes;
    return Array.from({ length: this.payload.S }, (_, s) => (this.payload.S === 2 ? this.plane.axes[s] : `z${s + 1}`));
  }

  facts(cell) {
    const { mass, volume, logVolume } = this.plane;
    return [
      ["prior mass", mass && number(mass[cell], 4)],
      [this.payload.S === 1 ? "length" : this.payload.S === 2 ? "area" : "volume", volume && number(volume[cell], 4)],
      ["log √det AᵀA", logVolume && (Number.isFinite(logVolume[cell]) ? `${number(logVolume[cell], 4)} nats` : "−∞: it maps to fewer dimensions")],
    ];
  }

  fillCard() {
    if (!this.chart.cursor) return;
    const [x, y] = this.chart.cursor;
    const found = this.at(x, y);
    this.found = found;
    this.cell = found.cell;
    this.card.replaceChildren(
      element("h2", {}, found.cell >= 0 ? `Cell ${found.cell.toLocaleString("en")}` : "Outside of the cells"),
      this.factList(found),
      found.x ? outputOf(this.payload, found, this.rowValues()) : element("p", { class: "muted" }, "The map of this cell is not in the page."),
      found.x ? this.mapDetails(found) : null,
    );
    this.chart.drawTop();
  }

  factList(found) {
    const z = this.latentText(found.z);
    const facts = found.cell >= 0 ? this.facts(found.cell).filter(([, text]) => text) : [];
    const list = element("dl", {}, ...[["z", z], ...facts].flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
    const row = this.state.active;
    if (row >= 0) list.append(element("dt", {}, `row ${this.rows.numbers[row]}`), element("dd", {}, this.placeOf(row)));
    if (found.pattern?.length) list.append(element("dt", {}, "pattern"), element("dd", {}, patternOf(found.pattern)));
    return list;
  }

  /** Where a row lies: the mean of its posterior, and the deviations. */
  placeOf(row) {
    const { S } = this.payload;
    const { mean, spread } = this.rows;
    const parts = Array.from({ length: S }, (_, s) => {
      const deviation = spread && Math.sqrt(spread[(row * S + s) * S + s]);
      return number(mean[row * S + s], 4) + (spread ? ` ± ${number(deviation, 2)}` : "");
    });
    return `z = ${S === 1 ? parts[0] : `(${parts.slice(0, 8).join(", ")}${S > 8 ? ", ..." : ""})`}`;
  }

  latentText(z) {
    const texts = z.map((value) => number(value, 4));
    if (z.length === 1) return texts[0];
    if (z.length <= 3) return `(${texts.join(", ")})`;
    const moved = texts.flatMap((text, s) => (this.plane.basis.some((direction) => direction[s] !== 0) ? [`z${s + 1} = ${text}`] : []));
    return moved.length > 4 ? `(${texts.join(", ")})` : `${moved.join(", ")}, others 0`;
  }

  mapDetails(found) {
    const details = element("details", { ontoggle: () => (this.mapOpen = details.open), open: this.mapOpen });
    details.append(element("summary", {}, "The map of this cell, g(z) = A z + b"), mapOf(this.payload, found, this.latentNames()));
    return details;
  }

  // Rows

  pick(x, y) {
    if (!this.points) return;
    const row = this.points.nearest(this.chart, x, y);
    this.state.look(row);
  }

  lookAt(row) {
    if (row >= 0) {
      const [x0, x1, y0, y1] = this.chart.view;
      const [x, y] = [this.points.x[row], this.points.y[row]];
      this.chart.held = true;
      if (!(x >= x0 && x <= x1 && y >= y0 && y <= y1)) this.chart.setView(this.plane.home);
      this.chart.point(x, y);
    }
    this.explain();
    this.chart.drawTop();
  }

  /** The entries of the row that is looked at, as far as the page has them. */
  rowValues() {
    const row = this.state.active;
    if (row < 0 || !this.rows) return null;
    const { D, names, range } = this.payload;
    const { pictures } = this.rows;
    const numbered = this.rows.numbers[row];
    if (pictures) {
      if ((row + 1) * D > pictures.length) return null;
      const [low, high] = range;
      const values = Array.from(pictures.subarray(row * D, (row + 1) * D), (byte) => (byte ? low + ((byte - 1) / 254) * (high - low) : NaN));
      return { number: numbered, values };
    }
    const columns = names.map((name) => this.columns.findLast((column) => column.name === name));
    return columns.every(Boolean) ? { number: numbered, values: columns.map((column) => column.values[row]) } : null;
  }

  selectedNumbers() {
    return this.state.rows().map((row) => this.rows.numbers[row]);
  }
}

/** A cross at the cursor. */
function cross(context, chart, colour) {
  const [x, y] = [chart.px(chart.cursor[0]), chart.py(chart.cursor[1])];
  context.strokeStyle = colour;
  context.lineWidth = chart.held ? 2 : 1.2;
  context.beginPath();
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    context.moveTo(x + 4 * dx, y + 4 * dy);
    context.lineTo(x + 11 * dx, y + 11 * dy);
  }
  context.stroke();
}
