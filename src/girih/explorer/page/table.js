// The page of a table: pairs of columns, rows with their reasons, and what was missing.

/** A column of the list of rows, with what its missing entries are filled with. */
class FilledColumn extends Column {
  constructor(spec, filled) {
    super(spec);
    this.fill = new Map(filled ? Array.from(filled.row, (row, place) => [row, place]) : []);
    this.filled = filled;
  }

  place(row) {
    return this.fill.get(row);
  }

  text(row) {
    const place = this.place(row);
    if (place === undefined) return super.text(row);
    return "mean" in this.filled ? this.shown(this.filled.mean[place]) : this.filled.levels[this.filled.level[place]];
  }

  value(row) {
    const place = this.place(row);
    return place !== undefined && "mean" in this.filled ? this.filled.mean[place] : super.value(row);
  }

  shown(value) {
    return this.date ? day(value) : number(value, 4);
  }

  /** How sure a filled entry is, in words. */
  sure(row) {
    const place = this.place(row);
    if (place === undefined) return "";
    if ("mean" in this.filled) return `missing; with probability 0.9 between ${this.shown(this.filled.low[place])} and ${this.shown(this.filled.high[place])}`;
    return `missing; probability ${Math.round(100 * this.filled.chance[place])} %`;
  }
}

class TablePage {
  constructor(payload, state, colours) {
    Object.assign(this, { payload, state, colours });
    this.rows = payload.rows;
    this.axes = payload.axes;
    const first = this.rows.beside + 2; // columns beside the table, how far below usual, log p
    this.columns = this.rows.columns.map((spec, place) => new FilledColumn(spec, payload.filled[place - first]));
    this.own = this.columns.slice(first);
    this.strange = new Map(payload.strange.map((one, place) => [one.row, { ...one, place }]));
    this.reasons = new Set(payload.strange.flatMap((one) => one.reasons.map((reason) => `${one.row} ${reason.column}`)));
    this.own.forEach((column) => {
      column.title = (row) => column.sure(row) || null;
      column.mark = (row) => (column.place(row) !== undefined ? "filled" : this.reasons.has(`${row} ${column.name}`) ? "strange" : "");
    });
    this.card = element("section", { class: "card", "aria-live": "polite", "aria-label": "What is looked at" });
    this.legend = element("div", { class: "legends" });
    this.main = element("div", { class: "stage" });
    if (this.axes.length > 1) this.setUpChart();
    else if (this.axes.length) this.main.append(this.only(this.axes[0]));
    this.main.prepend(element("div", { class: "controls" }, ...this.choices()));
    this.sheet = new Sheet(this.columns, state, this.rows.numbers);
    this.sheet.sort(this.rows.beside);
    this.sheet.sort(this.rows.beside); // the strangest first
    this.element = element("div", { class: "page" }, this.main, element("div", { class: "side" }, this.card, this.sheet.element));
    this.explain = framed(() => this.fillCard());
    state.on("selection", () => this.redraw());
    state.on("active", () => this.lookAt());
    state.on("theme", () => this.recolour());
    this.colourColumn = this.columns.find((column) => !column.isNumber) ?? null;
    this.recolour();
    this.explain();
  }

  valuesOf(axis) {
    const column = this.own[this.axes[axis].place];
    return (column.drawn ??= Float64Array.from({ length: this.state.count }, (_, row) => column.value(row)));
  }

  /** The one column of numbers that a table has. */
  only(axis) {
    return captioned(densityOf(axis, axis.logP, null, { width: 480, height: 220 }), `The exact density of ${axis.name}, from ${number(axis.low, 3)} to ${number(axis.high, 3)}`);
  }

  setUpChart() {
    this.chart = new Chart(
      {
        names: ["", ""],
        home: [0, 1, 0, 1],
        label: "Two columns: arrow keys move, plus and minus zoom, 0 shows all, Enter looks at the nearest row",
        paint: (image, chart) => this.paint(image, chart),
        over: (context, chart) => this.over(context, chart),
        hover: () => {
          this.state.look(-1);
          this.explain();
        },
        click: (x, y) => this.state.look(this.points.nearest(this.chart, x, y)),
        brush: (x0, x1, y0, y1) => this.state.select(this.points.within(x0, x1, y0, y1)),
        escape: () => this.state.select([]),
      },
      this.colours,
    );
    this.matrix = new Matrix(this, (x, y) => {
      this.setPair(x, y);
      this.showMatrix(false);
    });
    this.matrix.element.hidden = true;
    this.main.append(this.chart.element, this.matrix.element, this.legend);
    this.setPair(0, 1);
  }

  setPair(x, y) {
    this.pair = new Pair(this.axes, this.payload.pairs, x, y);
    this.at = [x, y];
    this.points = new Points(this.valuesOf(x), this.valuesOf(y), this.state);
    this.chart.names = [this.pair.x.name, this.pair.y.name];
    this.chart.dates = [this.pair.x.date, this.pair.y.date];
    this.chart.home = [this.pair.x.low, this.pair.x.high, this.pair.y.low, this.pair.y.high];
    this.chart.cursor = null;
    this.chart.reset();
    this.pickers?.forEach((picker, k) => (picker.list.selectedIndex = this.at[k]));
    this.explain?.();
  }

  choices() {
    const out = [];
    if (this.chart) {
      const names = this.axes.map((axis) => axis.name);
      const pick = (k) => (place) => {
        const pair = [...this.at];
        if (pair[1 - k] === place) pair[1 - k] = pair[k]; // the same column twice: they change places
        pair[k] = place;
        this.setPair(...pair);
      };
      this.pickers = [choice("across", names, 0, pick(0)), choice("up", names, 1, pick(1))];
      this.allButton = element("button", { type: "button", "aria-pressed": "false", onclick: () => this.showMatrix(this.matrix.element.hidden) }, "All pairs");
      out.push(...this.pickers, this.axes.length > 2 ? this.allButton : null);
    }
    const texts = ["none", ...this.columns.map((column) => column.name)];
    const chosen = this.columns.findIndex((column) => !column.isNumber) + 1;
    out.push(
      choice("colour", texts, chosen, (place) => {
        this.colourColumn = place ? this.columns[place - 1] : null;
        this.recolour();
      }),
    );
    return out.filter(Boolean);
  }

  showMatrix(on) {
    this.matrix.element.hidden = !on;
    this.chart.element.hidden = on;
    this.allButton.setAttribute("aria-pressed", String(on));
    this.redraw();
  }

  recolour() {
    const { dark } = this.colours();
    this.colouring = new Colouring(this.colourColumn, dark);
    this.table = dark ? GROUND_DARK : GROUND;
    const parts = [element("span", { class: "key" }, element("b", {}, "ground"), " exact density; lines: median and 90 % interval of the column up, given the one across")];
    if (this.colourColumn) parts.push(element("span", { class: "key" }, element("b", {}, this.colourColumn.name), " ", this.colouring.legend()));
    if (this.chart) this.legend.replaceChildren(...parts);
    this.redraw();
  }

  redraw() {
    if (!this.chart) return;
    if (this.matrix.element.hidden) {
      this.chart.drawBase();
      this.chart.drawTop();
    } else this.matrix.draw();
  }

  paint(image, chart) {
    const { pair } = this;
    paintGround(image, new Int32Array(image.width * image.height), (_, x, y) => pair.logP(x, y), [pair.top - DEPTH, pair.top], this.table, chart);
    const columns = this.at.map((axis) => this.own[this.axes[axis].place]);
    this.points.paint(image, chart, this.colouring, (row) => columns.some((column) => column.place(row) !== undefined));
  }

  over(context, chart) {
    const { text } = this.colours();
    const places = this.pair.places();
    [0, 1, 2].forEach((level) => {
      context.strokeStyle = text;
      context.lineWidth = level === 1 ? 1.8 : 1;
      context.setLineDash(level === 1 ? [] : [5, 4]);
      context.beginPath();
      places.forEach((x, k) => context.lineTo(chart.px(x), chart.py(this.pair.bands[level * places.length + k])));
      context.stroke();
    });
    context.setLineDash([]);
    const row = this.state.active;
    if (row >= 0) {
      context.strokeStyle = MARK;
      context.lineWidth = 2;
      this.points.ring(context, chart, row);
      this.bars(context, chart, row);
    }
    if (chart.cursor && row < 0) cross(context, chart, text);
  }

  /** The intervals of imputed entries of a row. */
  bars(context, chart, row) {
    const [x, y] = [this.points.x[row], this.points.y[row]];
    this.at.forEach((axis, k) => {
      const column = this.own[this.axes[axis].place];
      const place = column.place(row);
      if (place === undefined || !("low" in column.filled)) return;
      const ends = [column.filled.low[place], column.filled.high[place]];
      context.beginPath();
      for (const end of ends) context.lineTo(chart.px(k ? x : end), chart.py(k ? end : y));
      context.stroke();
    });
  }

  lookAt() {
    const row = this.state.active;
    if (row >= 0 && this.chart) this.chart.held = true;
    this.explain();
    this.chart?.drawTop();
  }

  fillCard() {
    const row = this.state.active;
    if (row >= 0) this.card.replaceChildren(...this.rowParts(row));
    else if (this.chart?.cursor) this.card.replaceChildren(...this.conditionalParts(...this.chart.cursor));
    else this.card.replaceChildren(element("h2", {}, "Nothing is looked at"), element("p", { class: "muted" }, "Move over the plane for what one column says of the other; choose a row for what makes it strange."));
  }

  /** What the column across says of the column up. */
  conditionalParts(x, y) {
    const { pair } = this;
    const { x: place, quantiles } = pair.given(x);
    const [low, middle, high] = quantiles.map((value) => (pair.y.date ? day(value) : number(value, 4)));
    const at = pair.x.date ? day(place) : number(place, 4);
    const slice = Float64Array.from(pair.slice(x), ([, share]) => Math.log(share));
    return [
      element("h2", {}, `${pair.y.name} given ${pair.x.name} = ${at}`),
      element(
        "dl",
        {},
        element("dt", {}, "median"),
        element("dd", {}, middle),
        element("dt", {}, "90 % interval"),
        element("dd", {}, `${low} to ${high}`),
        element("dt", {}, "log density here"),
        element("dd", {}, `${number(pair.logP(x, y), 4)} nats`),
      ),
      captioned(densityOf(pair.y, slice, y, { width: 260, height: 70 }), `${pair.y.name}, from ${number(pair.y.low, 3)} to ${number(pair.y.high, 3)}`),
    ];
  }

  /** A row: how strange it is, entry by entry. */
  rowParts(row) {
    const [surprise, logP] = [this.rows.beside, this.rows.beside + 1].map((place) => number(this.columns[place].values[row], 4));
    const found = this.strange.get(row);
    const parts = [
      element("h2", {}, `Row ${this.rows.numbers[row]}`),
      element("p", { class: "muted" }, `log p ${logP} nats, ${surprise} standard deviations below rows of which the same entries are known`),
    ];
    if (found) parts.push(element("h3", {}, "What makes it strange"), ...found.reasons.map((reason) => this.reasonPart(row, reason, found.place)));
    const below = this.payload.below;
    const entries = this.own.map((column, place) => [
      column.name,
      column.text(row),
      column.sure(row) || (below && !Number.isNaN(below[row * this.own.length + place]) ? `${number(below[row * this.own.length + place], 3)} nats` : ""),
    ]);
    parts.push(element("h3", {}, "All of its entries"), tableOf(["", "entry", "below usual, given the rest"], entries));
    return parts;
  }

  reasonPart(row, reason, place) {
    const axis = this.axes.findIndex((one) => one.name === reason.column);
    const words = `${reason.column} is ${reason.value}; given the rest of the row: ${reason.usual}; ${number(reason.below, 3)} nats below usual`;
    if (axis < 0 || !this.payload.curves) return element("p", {}, words);
    const count = this.axes[axis].count;
    const start = (place * this.axes.length + axis) * count;
    const curve = this.payload.curves.logP.subarray(start, start + count);
    const entry = this.own[this.axes[axis].place].values[row];
    return captioned(densityOf(this.axes[axis], curve, entry, { width: 260, height: 54 }), words);
  }

  selectedNumbers() {
    return this.state.rows().map((row) => this.rows.numbers[row]);
  }
}
