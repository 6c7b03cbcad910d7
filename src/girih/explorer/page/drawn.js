// An output of the generator as an image, a curve or a table; and the pattern of a cell.

const TABLE = 24; // outputs up to which they are a table
const BLOCK = 7; // pixels of a unit in the picture of a pattern
const PAGE = 28; // units in a line of it

/** Which way an output is shown. */
function mannerOf(payload) {
  return payload.image ? "image" : payload.D <= TABLE ? "table" : "curve";
}

/** An image of values; with `signed`, blue below 0 and orange above, by the largest. */
function imageOf(values, payload, signed = false) {
  const { height, width, channels, first } = payload.image;
  const canvas = element("canvas", { class: "image", width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const [low, high] = signed ? [0, values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-300)] : payload.range;
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let c = 0; c < 3; c++) {
      const channel = channels === 3 ? c : 0;
      const value = values[first ? channel * width * height + pixel : pixel * channels + channel];
      const share = (value - low) / (high - low);
      let shade = 255 * Math.max(0, Math.min(1, share));
      if (signed) shade = 255 - Math.abs(share) * (share < 0 ? [255, 141, 77][c] : [42, 161, 255][c]);
      image.data[4 * pixel + c] = shade;
    }
    image.data[4 * pixel + 3] = Number.isNaN(values[pixel]) ? 60 : 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Some curves over the places of the outputs: [values, colour, dashed]. */
function curvesOf(curves, [low, high]) {
  const [width, height] = [600, 180];
  const canvas = element("canvas", { class: "curve", width, height });
  const context = canvas.getContext("2d");
  for (const [values, colour, dashed] of curves) {
    context.strokeStyle = colour;
    context.lineWidth = 2.5;
    context.setLineDash(dashed ? [6, 5] : []);
    context.beginPath();
    let pen = false;
    values.forEach((value, d) => {
      const x = 4 + (d / Math.max(1, values.length - 1)) * (width - 8);
      const y = height - 6 - ((value - low) / (high - low || 1)) * (height - 12);
      if (Number.isNaN(value)) pen = false;
      else {
        if (pen) context.lineTo(x, y);
        else context.moveTo(x, y);
        pen = true;
      }
    });
    context.stroke();
  }
  return canvas;
}

/** A figure with a caption. */
function captioned(picture, text) {
  return element("figure", {}, picture, element("figcaption", {}, text));
}

/** g(z), and beside it a row where one is looked at. */
function outputOf(payload, found, row) {
  const manner = mannerOf(payload);
  if (manner === "image") {
    const pictures = [captioned(imageOf(found.x, payload), "g(z)")];
    if (row) pictures.push(captioned(imageOf(row.values, payload), `row ${row.number}`));
    return element("div", { class: "pictures" }, ...pictures);
  }
  if (manner === "curve") {
    const curves = [[Array.from(found.x), HUES[0], false]];
    if (row) curves.push([row.values, MARK, true]);
    return captioned(curvesOf(curves, payload.range), row ? `g(z), and row ${row.number} dashed` : "g(z)");
  }
  return tableOf(
    ["", "g(z)", ...(row ? [`row ${row.number}`] : [])],
    payload.names.map((name, d) => [name, number(found.x[d]), ...(row ? [number(row.values[d])] : [])]),
  );
}

/** A small table of texts, the first column of names. */
function tableOf(header, rows) {
  const head = element("tr", {}, ...header.map((text) => element("th", { scope: "col" }, text)));
  const lines = rows.map(([name, ...cells]) =>
    element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((text) => element("td", { class: "number" }, text))),
  );
  return element("div", { class: "wide" }, element("table", { class: "small" }, element("thead", {}, head), element("tbody", {}, ...lines)));
}

/** The map of a cell: A and b, as numbers, images or curves. */
function mapOf(payload, found, latents) {
  const manner = mannerOf(payload);
  if (manner === "image") {
    const columns = found.A.map((column, s) => captioned(imageOf(column, payload, true), `A, along ${latents[s]}`));
    return element("div", { class: "pictures" }, ...columns, captioned(imageOf(found.b, payload), "b"));
  }
  if (manner === "curve") {
    const most = Math.max(...found.A.map((column) => column.reduce((top, value) => Math.max(top, Math.abs(value)), 1e-300)));
    const curves = found.A.map((column, s) => [Array.from(column), HUES[s % HUES.length], s > 0]);
    return captioned(curvesOf(curves, [-most, most]), `The columns of A, along ${latents.join(" and (dashed) ")}`);
  }
  const rows = payload.names.map((name, d) => [name, ...found.A.map((column) => number(column[d])), number(found.b[d])]);
  return tableOf(["", ...latents.map((name) => `A, ${name}`), "b"], rows);
}

/** The pattern of a cell, layer by layer: dark where a unit is beyond its kink. */
function patternOf(pattern) {
  const layers = pattern.map((codes, layer) => {
    const lines = Math.ceil(codes.length / PAGE);
    const canvas = element("canvas", { width: Math.min(codes.length, PAGE) * BLOCK, height: lines * BLOCK, class: "pattern" });
    const context = canvas.getContext("2d");
    codes.forEach((code, unit) => {
      context.fillStyle = code > 0 ? HUES[0] : "rgb(128 140 155 / 0.3)";
      context.fillRect((unit % PAGE) * BLOCK, Math.floor(unit / PAGE) * BLOCK, BLOCK - 1, BLOCK - 1);
    });
    const on = codes.reduce((count, code) => count + (code > 0), 0);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Layer ${layer + 1}: ${on} of ${codes.length} units are beyond their kink`);
    return element("span", { class: "layer", title: `Layer ${layer + 1}: ${on} of ${codes.length} on` }, canvas);
  });
  return element("span", { class: "layers" }, ...layers);
}
