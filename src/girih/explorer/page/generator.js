// g(z) and its affine map, step by step in float64, as girih computes them.

/** The network of a page. `at(z)` gives the output x, the columns A_1 ... A_S of its map, b = x - A z, and the pattern. */
class Network {
  constructor(spec) {
    this.steps = spec.steps;
  }

  at(z) {
    // channel 0 is the value, channel 1 + s the derivative along latent s
    const channels = z.length + 1;
    const features = [];
    const pattern = [];
    for (const step of this.steps) {
      let out;
      if (step.kind === "latent") {
        out = Array.from({ length: channels }, (_, c) => Float64Array.from(z, (value, s) => (c ? +(s === c - 1) : value)));
      } else {
        const taken = step.inputs.map((place) => features[place]);
        out = STEPS[step.kind](step, taken, channels, pattern);
        if (step.bias) for (let i = 0; i < step.size; i++) out[0][i] += step.bias[i];
      }
      features.push(out);
    }
    const [x, ...A] = features[features.length - 1];
    return { x, A, b: x.map((value, d) => A.reduce((rest, column, s) => rest - column[d] * z[s], value)), pattern };
  }
}

const zeros = (channels, size) => Array.from({ length: channels }, () => new Float64Array(size));

const STEPS = {
  dense(step, [h], channels) {
    const width = h[0].length;
    return h.map((from) => {
      const to = new Float64Array(step.size);
      for (let i = 0, at = 0; i < step.size; i++) {
        let sum = 0;
        for (let j = 0; j < width; j++) sum += step.weight[at++] * from[j];
        to[i] = sum;
      }
      return to;
    });
  },

  sparse(step, taken, channels) {
    const out = zeros(channels, step.size);
    step.parts.forEach(({ row, column, value }, place) => {
      for (let c = 0; c < channels; c++) {
        const from = taken[place][c];
        for (let k = 0; k < row.length; k++) out[c][row[k]] += value[k] * from[column[k]];
      }
    });
    return out;
  },

  convolution(step, [h], channels) {
    const [C, H, W] = step.from;
    const [K, P, Q] = step.to;
    const [kh, kw] = step.window;
    const [sy, sx] = step.stride;
    const [py, px] = step.padding;
    const [dy, dx] = step.dilation;
    const perGroupIn = C / step.groups;
    const perGroupOut = K / step.groups;
    const out = zeros(channels, step.size);
    // the smaller picture is (c, y, x), the larger one (k, Y, X), with Y = y stride - padding + dilation row
    const [outer, inner] = step.transposed ? [C, perGroupOut] : [K, perGroupIn];
    const [hs, ws, hl, wl] = step.transposed ? [H, W, P, Q] : [P, Q, H, W];
    for (let o = 0, at = 0; o < outer; o++) {
      const group = Math.floor(o / (step.transposed ? perGroupIn : perGroupOut));
      for (let i = 0; i < inner; i++) {
        const other = group * inner + i;
        for (let a = 0; a < kh; a++) {
          for (let b = 0; b < kw; b++, at++) {
            const weight = step.kernel[at];
            for (let y = 0; y < hs; y++) {
              const Y = y * sy - py + a * dy;
              if (Y < 0 || Y >= hl) continue;
              for (let x = 0; x < ws; x++) {
                const X = x * sx - px + b * dx;
                if (X < 0 || X >= wl) continue;
                const small = (o * hs + y) * ws + x;
                const large = (other * hl + Y) * wl + X;
                for (let c = 0; c < channels; c++) {
                  if (step.transposed) out[c][large] += weight * h[c][small];
                  else out[c][small] += weight * h[c][large];
                }
              }
            }
          }
        }
      }
    }
    return out;
  },

  kink(step, [h], channels, pattern) {
    const pieces = step.thresholds.length;
    const each = step.slopes.length > pieces + 1 ? step.size : 1;
    const codes = new Int8Array(step.size);
    const out = zeros(channels, step.size);
    for (let i = 0; i < step.size; i++) {
      let piece = 0;
      while (piece < pieces && h[0][i] > step.thresholds[piece]) piece++;
      codes[i] = pieces === 1 ? 2 * piece - 1 : pieces === 2 ? piece - 1 : piece;
      const slope = step.slopes[each === 1 ? piece : piece * each + i];
      out[0][i] = slope * h[0][i] + step.offsets[piece];
      for (let c = 1; c < channels; c++) out[c][i] = slope * h[c][i];
    }
    pattern.push(codes);
    return out;
  },

  max(step, [h], channels, pattern) {
    const codes = new Int8Array(step.size);
    const out = zeros(channels, step.size);
    for (let i = 0; i < step.size; i++) {
      let best = 0;
      for (let k = 1; k < step.width; k++)
        if (h[0][step.windows[i * step.width + k]] > h[0][step.windows[i * step.width + best]]) best = k;
      codes[i] = best;
      const chosen = step.windows[i * step.width + best];
      for (let c = 0; c < channels; c++) out[c][i] = h[c][chosen];
    }
    pattern.push(codes);
    return out;
  },
};

/** The maps of some cells, where the network is too heavy: `at(y, cell)` on a plane or line, `null` for other cells. */
class Maps {
  constructor(spec, D, S) {
    this.spec = spec;
    this.D = D;
    this.S = S;
    this.place = new Map(Array.from(spec.cells, (cell, place) => [cell, place]));
  }

  at(y, cell) {
    const place = this.place.get(cell);
    if (place === undefined) return null;
    const { D, S } = this;
    const b = this.spec.shift.slice(place * D, (place + 1) * D);
    const A = Array.from({ length: S }, (_, s) => Float64Array.from({ length: D }, (_, d) => this.spec.slope[(place * D + d) * S + s]));
    return { x: b.map((value, d) => A.reduce((sum, column, s) => sum + column[d] * y[s], value)), A, b, pattern: [] };
  }
}
