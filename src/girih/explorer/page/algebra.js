// What little linear algebra the page needs.

/** The log density of N(0, P) on a plane through the latent space. */
class PlanePrior {
  constructor(prior, { origin, basis }) {
    const { inverse, logDet } = inverted(prior);
    const form = (u, v) => u.reduce((sum, a, s) => sum + a * inverse[s].reduce((part, p, t) => part + p * v[t], 0), 0);
    const [u, v] = basis;
    this.constant = -0.5 * (form(origin, origin) + logDet + prior.length * Math.log(2 * Math.PI));
    this.linear = [-form(origin, u), -form(origin, v)];
    this.square = [-0.5 * form(u, u), -form(u, v), -0.5 * form(v, v)];
  }

  logDensity(x, y) {
    const { constant, linear, square } = this;
    return constant + (linear[0] + square[0] * x + square[1] * y) * x + (linear[1] + square[2] * y) * y;
  }
}

/** The inverse of a symmetric positive definite matrix, and the log of its determinant, by elimination. */
function inverted(matrix) {
  const n = matrix.length;
  const rows = matrix.map((row, i) => [...row, ...row.map((_, j) => +(i === j))]);
  let logDet = 0;
  for (let i = 0; i < n; i++) {
    logDet += Math.log(rows[i][i]);
    const pivot = rows[i][i];
    rows[i] = rows[i].map((value) => value / pivot);
    for (let k = 0; k < n; k++) {
      if (k === i) continue;
      const factor = rows[k][i];
      rows[k] = rows[k].map((value, j) => value - factor * rows[i][j]);
    }
  }
  return { inverse: rows.map((row) => row.slice(n)), logDet };
}

/** The rows that give the coordinates on a plane by least squares, for its two directions. */
function pseudoInverse([u, v]) {
  const dot = (a, b) => a.reduce((sum, value, s) => sum + value * b[s], 0);
  const { inverse } = inverted([[dot(u, u), dot(u, v)], [dot(u, v), dot(v, v)]]);
  return inverse.map(([a, b]) => u.map((value, s) => a * value + b * v[s]));
}
