// What the page is given, as typed arrays and columns; numbers as text; elements; colours.

const KINDS = { f4: Float32Array, f8: Float64Array, i4: Int32Array, u2: Uint16Array, u1: Uint8Array };

/** Every packed array within a value, decoded. */
function unpack(value) {
  if (Array.isArray(value)) return value.map(unpack);
  if (value === null || typeof value !== "object") return value;
  if ("base64" in value) {
    const text = atob(value.base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
    return new KINDS[value.type](bytes.buffer);
  }
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, unpack(part)]));
}

/** A column of a table: numbers, or labels by code (0 where missing). */
class Column {
  constructor(spec) {
    Object.assign(this, spec);
    this.isNumber = "values" in spec;
  }

  missing(row) {
    return this.isNumber ? Number.isNaN(this.values[row]) : this.codes[row] === 0;
  }

  /** A number to sort and to draw by; NaN where missing. */
  value(row) {
    return this.isNumber ? this.values[row] : this.codes[row] || NaN;
  }

  text(row) {
    if (this.missing(row)) return "";
    if (this.date) return day(this.values[row]);
    if (!this.isNumber) return this.levels[this.codes[row] - 1];
    return this.whole ? String(this.values[row]).replace("-", "−") : number(this.values[row], this.digits);
  }
}

/** A number with six digits at most. */
function number(value, digits = 6) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const text =
    size !== 0 && (size >= 1e7 || size < 1e-4) ? trimmed(value.toExponential(digits - 1)) : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

/** The date of a number of days since 1970-01-01. */
function day(value) {
  const date = new Date(Math.round(value) * 864e5);
  return Number.isNaN(date.getTime()) ? number(value) : date.toISOString().slice(0, 10);
}

function trimmed(text) {
  return text.replace(/\.?0+e/, "e").replace("e+", "e");
}

/** An element with attributes, listeners (names that begin with "on") and children; text is never read as HTML. */
function element(name, attributes = {}, ...children) {
  const out = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) out.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) out.setAttribute(key, value === true ? "" : value);
  }
  out.append(...children.filter((child) => child !== null && child !== undefined));
  return out;
}

/** A labelled choice of several texts; `onpick` gets the place of the chosen one. */
function choice(label, texts, chosen, onpick) {
  const list = element("select", { onchange: () => onpick(list.selectedIndex) });
  texts.forEach((text, place) => list.append(element("option", { selected: place === chosen }, text)));
  const out = element("label", { class: "choice" }, element("span", {}, label), list);
  out.list = list;
  return out;
}

/** The q-quantiles of the finite ones of some numbers. */
function quantiles(values, levels) {
  const sorted = Float64Array.from(values).filter(Number.isFinite).sort();
  if (!sorted.length) return levels.map(() => 0);
  return levels.map((q) => sorted[Math.min(sorted.length - 1, Math.round(q * (sorted.length - 1)))]);
}

// Okabe and Ito (2008): distinct under every common colour blindness.
// Beyond their seven come three more, and grey for the rest.
const HUES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C564B", "#A3A500", "#17202A", "#8A8A8A"];
const HUES_DARK = ["#8CCBF5", "#FF8A3D", "#2FD6A3", "#F0A6CF", "#F0E442", "#56B4E9", "#BFA3FF", "#D2A58A", "#B5D33D", "#FFFFFF", "#A8B0BA"];
const MARK = "#D55E00";

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** 256 colours between some, as bytes. */
function ramp(stops) {
  const colours = stops.map(rgb);
  const out = new Uint8Array(256 * 3);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (colours.length - 1);
    const low = Math.min(Math.floor(place), colours.length - 2);
    for (let c = 0; c < 3; c++) out[3 * i + c] = colours[low][c] + (place - low) * (colours[low + 1][c] - colours[low][c]);
  }
  return out;
}

// Viridis without the end that is too pale on paper, or too dark on a dark page.
const LATENT = ramp(["#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#9fda3a"]);
const LATENT_DARK = ramp(["#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725"]);
const GROUND = ramp(["#ffffff", "#e6eff7", "#c3dbec", "#a3cbe4", "#7fb7db"]);
const GROUND_DARK = ramp(["#14181f", "#182533", "#1c3a55", "#204b6d", "#275d87"]);

/** How a column colours rows: the colour of a row as three bytes, and a legend. */
class Colouring {
  constructor(column, dark) {
    this.column = column;
    this.levels = column && !column.isNumber ? column.levels : null;
    this.table = dark ? LATENT_DARK : LATENT;
    this.hues = dark ? HUES_DARK : HUES;
    this.codes = this.hues.map(rgb);
    this.paper = rgb(dark ? "#14181f" : "#ffffff");
    this.plain = rgb(dark ? "#8db8dc" : "#33658f");
    this.none = rgb(dark ? "#6b7280" : "#9aa3af");
    if (column && column.isNumber) [this.low, this.high] = quantiles(column.values, [0.01, 0.99]);
  }

  of(row) {
    if (!this.column) return this.plain;
    if (this.column.missing(row)) return this.none;
    if (this.levels) return this.codes[Math.min(this.column.codes[row], this.codes.length) - 1];
    return this.at((this.column.values[row] - this.low) / (this.high - this.low || 1));
  }

  /** The colours of all rows, three bytes each, made once. */
  bytes(count) {
    if (this.made?.length !== 3 * count) {
      this.made = new Uint8Array(3 * count);
      for (let row = 0; row < count; row++) this.made.set(this.of(row), 3 * row);
    }
    return this.made;
  }

  at(share) {
    const i = 3 * Math.round(255 * Math.max(0, Math.min(1, share)));
    return [this.table[i], this.table[i + 1], this.table[i + 2]];
  }

  legend() {
    if (!this.column) return element("span", {});
    if (this.levels) {
      const shown = this.levels.slice(0, this.hues.length - 1);
      const rest = this.levels.length - shown.length;
      const chips = shown.map((level, code) => chip(this.hues[code], level));
      if (rest > 0) chips.push(chip(this.hues[this.hues.length - 1], rest === 1 ? this.levels[shown.length] : `${rest} more`));
      return element("span", { class: "legend" }, ...chips);
    }
    return scale(this.low, this.high, (share) => this.at(share));
  }
}

function chip(colour, text) {
  return element("span", { class: "chip" }, element("i", { style: `background:${colour}` }), text);
}

/** A bar of colours between two numbers. */
function scale(low, high, at) {
  const stops = [0, 0.25, 0.5, 0.75, 1].map((share) => `rgb(${at(share).map(Math.round).join(" ")})`);
  const bar = element("i", { class: "bar", style: `background:linear-gradient(90deg,${stops.join(",")})` });
  return element("span", { class: "legend" }, number(low, 3), bar, number(high, 3));
}
