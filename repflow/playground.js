// TV-L1 at one scale in the reader's browser, and what it does at one pixel. The first part computes, step by step, what
// repflow/tvl1.py, repflow/spline.py and repflow/solver/reference.py do; the rest is the page around it.

const W = 128, H = 96; // px of every frame shown
const POLE = Math.sqrt(3) - 2, REACH = 12, TINY = 1e-12;
const clip = (x, low, high) => (x < low ? low : x > high ? high : x);

/** An index reflected into 0..size-1 about the centres of the border pixels. */
function mirror(index, size) {
  const period = Math.max(2 * (size - 1), 1), inside = ((index % period) + period) % period;
  return Math.min(inside, period - inside);
}

/** Coefficients of the cubic spline through an image. */
function splineOf(image, width, height) {
  let from = image;
  for (const [size, stride, lines, jump] of [[width, 1, height, width], [height, width, width, 1]]) {
    const to = new Float32Array(from.length);
    for (let k = -REACH; k <= REACH; k++) {
      const tap = Math.sqrt(3) * POLE ** Math.abs(k);
      for (let place = 0; place < size; place++) {
        const there = mirror(place + k, size) * stride, here = place * stride;
        for (let line = 0; line < lines; line++) to[here + line * jump] += tap * from[there + line * jump];
      }
    }
    from = to;
  }
  return from;
}

/** For a coordinate, the four neighbours that count: into `taps`, their indices, weights and slopes of the weights. */
function tapsAt(x, size, taps) {
  const left = Math.floor(x), t = x - left, s = 1 - t;
  for (let k = 0; k < 4; k++) taps[k] = mirror(left + k - 1, size);
  taps.set([s ** 3 / 6, 2 / 3 - (t * t * (1 + s)) / 2, 2 / 3 - (s * s * (1 + t)) / 2, t ** 3 / 6], 4);
  taps.set([(-s * s) / 2, (t * (3 * t - 4)) / 2, (-s * (3 * s - 4)) / 2, (t * t) / 2], 8);
}

/** An image's gradient at its pixels, by its spline: all to the right, then all down. */
function slopesOf(spline, width, height) {
  const n = width * height, slopes = new Float32Array(2 * n);
  const at = (x, y) => spline[mirror(y, height) * width + mirror(x, width)];
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++)
      for (let k = -1; k <= 1; k++) {
        const weight = k ? 1 / 12 : 1 / 3;
        slopes[i] += weight * (at(x + 1, y + k) - at(x - 1, y + k));
        slopes[n + i] += weight * (at(x + k, y + 1) - at(x + k, y - 1));
      }
  return slopes;
}

/** Frame 2 drawn back by a state's flow: the constant part of the residual, and the mean of both frames' gradients. */
function linearise(first, slopes, second, spline, state, width, height) {
  const n = width * height, columns = new Float64Array(12), rows = new Float64Array(12);
  const rhoC = new Float32Array(n), gx = new Float32Array(n), gy = new Float32Array(n);
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++) {
      const u = state[i], v = state[n + i];
      const toX = Math.fround(x + u), toY = Math.fround(y + v); // rounds as single precision does: it decides at the border
      if (!(toX >= 0 && toX <= width - 1 && toY >= 0 && toY <= height - 1)) continue; // no data term
      tapsAt(toX, width, columns);
      tapsAt(toY, height, rows);
      let value = 0, dx = 0, dy = 0;
      for (let j = 0; j < 4; j++) {
        let along = 0, slope = 0;
        for (let k = 0; k < 4; k++) {
          const c = spline[rows[j] * width + columns[k]];
          along += columns[4 + k] * c;
          slope += columns[8 + k] * c;
        }
        value += rows[4 + j] * along;
        dx += rows[4 + j] * slope;
        dy += rows[8 + j] * along;
      }
      if (u === 0 && v === 0) value = second[i];
      [dx, dy] = [(dx + slopes[i]) / 2, (dy + slopes[n + i]) / 2];
      [gx[i], gy[i], rhoC[i]] = [dx, dy, value - first[i] - (dx * u + dy * v)];
    }
  return { rhoC, gx, gy };
}

/** The threshold at a pixel: the residual of (u, v), the step s along the gradient, and w. */
function threshold({ rhoC, gx, gy }, i, u, v, { lam, theta }) {
  const rho = rhoC[i] + gx[i] * u + gy[i] * v, bound = lam * theta;
  const s = clip(-rho / (gx[i] ** 2 + gy[i] ** 2 + TINY), -bound, bound);
  return { rho, s, wu: u + s * gx[i], wv: v + s * gy[i] };
}

/** One iteration. A state holds six fields, one behind the other: u, v, p of u (x, y), p of v (x, y). */
function iterate({ rhoC, gx, gy }, from, to, width, height, { tau, lam, theta }) {
  const n = width * height, bound = lam * theta, length = tau / theta;
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++) {
      const u = from[i], v = from[n + i], a = gx[i], b = gy[i];
      const s = clip(-(rhoC[i] + a * u + b * v) / (a * a + b * b + TINY), -bound, bound);
      to[i] = u + s * a + theta * divergence(from, 2 * n + i, n, x, y, width);
      to[n + i] = v + s * b + theta * divergence(from, 4 * n + i, n, x, y, width);
    }
  for (let f = 0, p = 2 * n; f < 2 * n; p += n)
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++, f++, p++) {
        const dx = x < width - 1 ? to[f + 1] - to[f] : 0, dy = y < height - 1 ? to[f + width] - to[f] : 0;
        const shrink = 1 / (1 + length * Math.sqrt(dx * dx + dy * dy + TINY));
        to[p] = (from[p] + length * dx) * shrink;
        to[p + n] = (from[p + n] + length * dy) * shrink;
      }
}

/** Backward differences of the dual field that begins n before its second part; p is 0 in the last column and row. */
function divergence(state, p, n, x, y, width) {
  return state[p] - (x ? state[p - 1] : 0) + state[p + n] - (y ? state[p + n - width] : 0);
}

/** The median over 3 × 3 pixels of u and v, from one state to another; the border is repeated. */
function medianFilter(from, to, width, height) {
  const n = width * height, nine = new Float32Array(9);
  for (let c = 0; c < 2; c++)
    for (let y = 0, i = c * n; y < height; y++)
      for (let x = 0; x < width; x++, i++) {
        let count = 0;
        for (let dy = -1; dy <= 1; dy++)
          for (let dx = -1; dx <= 1; dx++) {
            const value = from[c * n + clip(y + dy, 0, height - 1) * width + clip(x + dx, 0, width - 1)];
            let k = count++;
            for (; k && nine[k - 1] > value; k--) nine[k] = nine[k - 1];
            nine[k] = value;
          }
        to[i] = nine[4];
      }
}

/**
 * TV-L1 flow between two grey frames (Float32Array, 0..255): `repflow.tvl1` with scales=1 and epsilon=0. Returns every
 * state (one for each warp's start and iterations, then the result) and each warp's linearised problem. States in
 * `memory` are written over.
 */
export function tvl1(first, second, width, height, options, memory = []) {
  const { warps, iterations, median } = options, problems = [];
  const spline = splineOf(second, width, height), slopes = slopesOf(splineOf(first, width, height), width, height);
  const fetch = (_, k) => (memory[k] ??= new Float32Array(6 * width * height));
  const states = Array.from({ length: warps * (iterations + 1) + 1 }, fetch);
  states[0].fill(0);
  let k = 0;
  for (let warp = 0; warp < warps; warp++) {
    problems.push(linearise(first, slopes, second, spline, states[k], width, height));
    for (let end = k + iterations; k < end; k++) iterate(problems[warp], states[k], states[k + 1], width, height, options);
    states[k + 1].set(states[k]);
    if (median) medianFilter(states[k], states[k + 1], width, height);
    k++;
  }
  return { states, problems };
}

// Frames

let seed = 1;
const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
const wave = () => [random() / 10 - 0.05, random() / 10 - 0.05, 2 * Math.PI * random()]; // two frequencies and a phase
const WAVES = [0, 1].map(() => Array.from({ length: 12 }, wave));

function texture(which, x, y) {
  let sum = 127;
  for (const [fx, fy, phase] of WAVES[which]) sum += 14 * Math.sin(2 * Math.PI * (x * fx + y * fy) + phase);
  return clip(sum, 0, 255);
}

/** A textured disc before another texture; `inner` is how far the texture has moved inside the disc. */
function scene({ at = [W / 2, H / 2], inner = 0, turn = 0, behind = [0, 0] }) {
  const frame = new Float32Array(W * H), c = Math.cos(turn), s = Math.sin(turn);
  for (let y = 0, i = 0; y < H; y++)
    for (let x = 0; x < W; x++, i++) {
      const dx = x - at[0], dy = y - at[1], cover = clip(28.5 - Math.hypot(dx, dy), 0, 1);
      if (cover) frame[i] = cover * texture(1, c * dx + s * dy - inner, c * dy - s * dx);
      if (cover < 1) frame[i] += (1 - cover) * texture(0, x - behind[0], y - behind[1]);
    }
  return frame;
}

const MADE = {
  turns: (t) => ({ turn: (3.5 * Math.PI * t) / 180, behind: [1.2 * t, -0.6 * t] }),
  moves: (t) => ({ at: [W / 2 + 1.5 * (t - 1), H / 2] }),
  grows: (t) => ({ inner: [0, 0.6, 2.2][t] }),
  shrinks: (t) => ({ inner: [0, 1.6, 2.2][t] }),
};

/** Frame t of what is made: a disc that turns or moves, or one that stays while the speed of its texture changes. */
export const made = (name, t) => scene(MADE[name](t));

/** Two fields together to 0..255, by their least and greatest value. */
function scaled(fields) {
  const low = Math.min(...fields.map((f) => f.reduce((a, b) => Math.min(a, b))));
  const span = Math.max(...fields.map((f) => f.reduce((a, b) => Math.max(a, b)))) - low;
  return fields.map((f) => f.map((x) => (span > 1e-6 ? (255 * (x - low)) / span : 0)));
}

/** Grey levels of a picture that fills the frame, moved by t steps of (1.5, 0.75) px. */
function greyOf(picture, t) {
  const context = Object.assign(document.createElement("canvas"), { width: W, height: H }).getContext("2d");
  const zoom = 1.1 * Math.max(W / picture.width, H / picture.height), size = [picture.width * zoom, picture.height * zoom];
  context.drawImage(picture, (W - size[0]) / 2 + 1.5 * t, (H - size[1]) / 2 + 0.75 * t, ...size);
  const { data } = context.getImageData(0, 0, W, H), luma = [0.299, 0.587, 0.114];
  return Float32Array.from({ length: W * H }, (_, i) => luma.reduce((sum, weight, k) => sum + weight * data[4 * i + k], 0));
}

/** The camera's film, as it plays. Throws where there is none, or the reader or the page around refuses it. */
async function openCamera() {
  if (!navigator.mediaDevices) throw new Error("This page may not ask for a camera: open it as a file, by https or on localhost.");
  const film = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
  film.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: 320 } });
  await film.play();
  return Object.assign(film, { width: film.videoWidth, height: film.videoHeight });
}

// Pictures and plots

/** Draw a field by its colour at each pixel, (i) => [red, green, blue] in 0..255. */
function paint(canvas, colour) {
  const context = canvas.getContext("2d"), image = context.createImageData(W, H), data = image.data.fill(255);
  for (let i = 0; i < W * H; i++) data.set(colour(i), 4 * i);
  context.putImageData(image, 0, 0);
}

/** The colour of a flow as `repflow.figures.flow_to_rgb` has it: hue is direction, white is rest. */
function flowColour(u, v, largest) {
  const hue = (3 * Math.atan2(v, u)) / Math.PI + 6, full = Math.min(Math.hypot(u, v) / largest, 1);
  return [0, 4, 2].map((shift) => 255 * (1 - full * (1 - clip(Math.abs(((hue + shift) % 6) - 3) - 1, 0, 1))));
}

/** What full colour stands for, px/frame: 99 % of every seventh pixel is slower. One of a few numbers: it seldom jumps. */
function scaleOf(state) {
  const lengths = Float32Array.from({ length: (W * H) / 7 }, (_, i) => Math.hypot(state[7 * i], state[W * H + 7 * i])).sort();
  return [0.25, 0.5, 1, 2, 4, 8].find((largest) => largest >= lengths[Math.floor(0.99 * lengths.length)]) ?? 16;
}

const BRANCHES = ["+λθ", "exact", "−λθ"];

/** All that one pixel is in state k: flow, threshold, dual arrows, energy, and its line a u + b v + c = 0. */
function pixelOf({ states, problems }, k, i, options) {
  const n = W * H, state = states[k], problem = problems[warpOf(k, options)], u = state[i], v = state[n + i];
  const rise = (f, inside, jump) => (inside ? state[f + jump] - state[f] : 0);
  const steep = [i, n + i].map((f) => Math.hypot(rise(f, i % W < W - 1, 1), rise(f, i < n - W, W)));
  const found = threshold(problem, i, u, v, options), line = { a: problem.gx[i], b: problem.gy[i], c: problem.rhoC[i] };
  const branch = Math.abs(found.s) < options.lam * options.theta ? 1 : found.s > 0 ? 0 : 2;
  const energy = steep[0] + steep[1] + options.lam * Math.abs(found.rho);
  return { u, v, ...found, ...line, branch, energy, p: [2, 3, 4, 5].map((c) => state[c * n + i]) };
}

const said = (x) => x.toFixed(2).replace("-", "−");
const warpOf = (k, { warps, iterations }) => Math.min(Math.floor(k / (iterations + 1)), warps - 1);
const svg = (body) => `<svg viewBox="-110 -110 220 220" aria-hidden="true">${body}</svg>`;
const lineTo = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
const trail = (points, kind) => `<path class="trail ${kind}" d="${lineTo(points)}"/>`;
const dot = ([x, y], kind) => `<circle class="${kind}" cx="${x}" cy="${y}" r="6"/>`;
const square = ([x, y], kind) => `<rect class="${kind}" x="${x - 5}" y="${y - 5}" width="10" height="10"/>`;
const text = (x, y, words, anchor = "start") => `<text x="${x}" y="${y}" text-anchor="${anchor}">${words}</text>`;

/** The plane of (u, v): the line ρ = 0, the way of (u, v) until now, and w. */
function planePlot(past) {
  const now = past.at(-1), far = Math.max(...past.flatMap(({ u, v, wu, wv }) => [u, v, wu, wv].map(Math.abs)));
  const reach = [0.5, 1, 2, 4, 8].find((r) => r > far) ?? 16, at = (u, v) => [(100 * u) / reach, (100 * v) / reach];
  const { a, b, c } = now, steep = a * a + b * b, end = (d) => at(-(c * a + d * b) / steep, -(c * b - d * a) / steep);
  const line = steep > 1e-6 ? `<path class="line" d="${lineTo([end(-1e4), end(1e4)])}"/>` : "";
  const words = text(104, -5, `u ${reach} →`, "end") + text(5, 104, `v ${reach} ↓`);
  const marks = square(at(now.wu, now.wv), "w") + dot(at(now.u, now.v), "u");
  const way = trail(past.map(({ u, v }) => at(u, v)), "u");
  return svg(`<path class="axis" d="M-100 0H100M0 -100V100"/>${line}${way}${marks}${words}`);
}

/** The unit disc with the dual arrows of u and v, and their ways until now. */
function discPlot(past) {
  const at = ({ p }, c) => [90 * p[c], 90 * p[c + 1]], now = past.at(-1), way = (c) => past.map((q) => at(q, c));
  const marks = trail(way(0), "u") + trail(way(2), "w") + dot(at(now, 0), "u") + square(at(now, 2), "w");
  return svg(`<circle class="axis" r="90"/><path class="axis" d="M-90 0H90M0 -90V90"/>${marks}`);
}

/** The pixel's energy in all states, and below it which branch of the threshold is active. */
function energyPlot(all, k) {
  const most = Math.max(...all.map((q) => q.energy), 1e-6), width = 175 / all.length, x = (j) => -70 + width * j;
  const strips = BRANCHES.map((name, row) => {
    const marks = all.map((q, j) => (q.branch === row ? `M${x(j).toFixed(1)} ${64 + 16 * row}h${width.toFixed(2)}` : ""));
    return `<path class="strip ${["u", "exact", "w"][row]}" d="${marks.join("")}"/>${text(-76, 68 + 16 * row, name, "end")}`;
  });
  const curve = all.map((q, j) => [x(j + 0.5), 40 - (130 * q.energy) / most]);
  const words = text(-76, -86, most.toPrecision(2), "end") + text(-76, 44, "0", "end") + strips.join("");
  const now = `<path class="line" d="M${x(k + 0.5)} -95V106"/>${dot(curve[k], "u")}`;
  return svg(`<path class="axis" d="M-70 -95V40H105"/>${trail(curve, "u full")}${words}${now}`);
}

// The page

const SLIDERS = {
  tau: [0.01, 0.5, 0.01, 0.25, "step of the dual field"],
  lam: [0.005, 1, 0.005, 0.15, "weight of the data"],
  theta: [0.05, 1, 0.05, 0.3, "coupling"],
  warps: [1, 5, 1, 1, "linearisations"],
  iterations: [1, 50, 1, 30, "per warp"],
};
const CAMERA = "the camera (it waits while you go through the iterations)";
const MOVING = { moves: "a disc moves", drag: "drag the disc", picture: "your picture, moved", camera: CAMERA };
const INPUTS = [
  { turns: "a disc turns, all else moves", ...MOVING },
  { moves: "", grows: "the flow grows in place", shrinks: "the flow shrinks in place", ...MOVING },
];
const STYLE = `
  :host { display: block; container-type: inline-size; color: inherit; font: .9rem/1.45 system-ui, sans-serif;
    --u: light-dark(#0072b2, #56b4e9); --w: light-dark(#b34700, #e69f00); --exact: light-dark(#00795a, #4fc9a4); }
  fieldset { border: 0; margin: 0 0 .6rem; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1rem; }
  .sliders { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .4rem 1rem; }
  [type="range"] { display: block; width: 100%; margin: .1rem 0; }
  b { font-weight: inherit; } input, select { accent-color: var(--u); font: inherit; max-width: 100%; }
  :focus-visible { outline: 3px solid var(--u); outline-offset: 3px; }
  .views, .plots { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .8rem; margin: .6rem 0; }
  figure, p { margin: .1rem 0; } figcaption, .quiet { font-size: .85em; }
  .view { position: relative; cursor: crosshair; touch-action: pan-y; overflow: hidden; } .drag .view { touch-action: none; }
  canvas, svg { display: block; width: 100%; image-rendering: pixelated; font-size: 11px; }
  .ring { position: absolute; width: 11px; height: 11px; margin: -7.5px; border: 2px solid #000; border-radius: 50%;
    box-shadow: 0 0 0 2px #fff; pointer-events: none; }
  .wheel { display: inline-block; width: 1.5em; height: 1.5em; border-radius: 50%; vertical-align: middle;
    background: radial-gradient(#fff, #fff0 75%), conic-gradient(from 90deg, red, yellow, lime, cyan, blue, magenta, red); }
  .u { color: var(--u); } .w { color: var(--w); } .exact { color: var(--exact); }
  svg * { fill: currentColor; } svg path, .axis { fill: none; stroke: currentColor; stroke-width: 2; }
  .axis, .trail { opacity: .5; } .full { opacity: 1; } .strip { stroke-width: 7; } .line { stroke-dasharray: 6 4; }
  .told { min-height: 3em; font-variant-numeric: tabular-nums; } [hidden] { display: none; }
  @container (max-width: 34rem) {
    .views, .plots { grid-template-columns: repeat(2, minmax(0, 1fr)); }
    figure:last-child { grid-column: 1 / -1; }
  }`;

const range = (name, [low, high, step, value, what]) =>
  `<label>${name} <b>${value}</b> <span class="quiet">${what}</span>
   <input type="range" name="${name}" min="${low}" max="${high}" step="${step}" value="${value}"></label>`;
const figure = (inside, caption) => `<figure>${inside}<figcaption>${caption}</figcaption></figure>`;
const view = (caption) =>
  figure(`<div class="view"><canvas width="${W}" height="${H}"></canvas><i class="ring"></i></div>`, caption);
const radio = ([name, words]) => `<label><input type="radio" name="input" value="${name}">${words}</label>`;

const template = (layers, flows) => `<style>${STYLE}</style><section aria-label="TV-L1 playground">
  <fieldset><legend>Frames</legend>${Object.entries(INPUTS[layers - 1]).map(radio).join("")}
    <label hidden>file <input type="file" accept="image/*"></label></fieldset>
  <div class="sliders">${Object.entries(SLIDERS).map(([name, limits]) => range(name, limits)).join("")}
    <label><input type="checkbox" name="median" checked>median filter</label>
    <label ${layers === 2 ? "" : "hidden"}>looked at
      <select>${flows.map((name) => `<option>${name}</option>`).join("")}</select></label></div>
  ${range("shown", [0, 1, 1, 1, ""])}
  <div class="views" tabindex="0" role="application" aria-describedby="keys" aria-label="Pixel cursor on the pictures">
    ${[1, 2, 3].slice(0, layers + 1).map((t) => view(`frame ${t}`)).join("")}
    ${flows.slice(0, -1).map((name) => view(`u of the ${name}`)).join("")}
    ${view('flow; the rim of <i class="wheel"></i> is <b></b>')}</div>
  <p class="quiet" id="keys">Point at a pixel, or use the arrow keys; with Shift they go ten pixels, or push the dragged disc.</p>
  <p class="told" aria-live="polite"></p>
  <div class="plots">${figure("<div></div>", '<b class="u">●</b> (u, v), <b class="w">■</b> w, px/frame; dashed: ρ = 0')}
    ${figure("<div></div>", '<b class="u">●</b> p of u, <b class="w">■</b> p of v, in the unit disc')}
    ${figure("<div></div>", "energy of the pixel over the iterations; below: branch of the threshold")}</div>
  <p class="quiet status"></p></section>`;

/** The widget: model.get("layers") is 1 for the flow of two frames, 2 for the flow of flow of three. */
function render({ model, el }) {
  const layers = model.get("layers"), root = el.attachShadow({ mode: "open" });
  const flows = layers === 2 ? ["flow of frames 1, 2", "flow of frames 2, 3", "flow of these flows’ u"] : ["flow"];
  root.innerHTML = template(layers, flows);
  el.dataset.lmSuppressShortcuts = true; // JupyterLab's own arrow keys
  const find = (selector) => root.querySelector(selector), all = (selector) => [...root.querySelectorAll(selector)];
  const series = (frame) => Array.from({ length: layers + 1 }, (_, t) => frame(t));
  const fields = () => scaled(runs.slice(0, 2).map(({ states }) => states.at(-1).subarray(0, W * H)));
  const views = find(".views"), steps = find("[name=shown]"), looked = find("select"), told = find(".told");
  const canvases = all("canvas"), plots = all(".plots div"), memory = flows.map(() => []);
  let input, frames, runs, options, stale, wanted, cursor = [W / 2, H / 2], disc, target, film;
  const later = (change) => ([stale, wanted] = [stale || change, wanted || requestAnimationFrame(tick)]);

  function tick() {
    if (!el.isConnected) return (wanted = requestAnimationFrame(tick)); // JupyterLab first makes it and then shows it
    const start = performance.now(), changed = target || stale;
    wanted = stale = null;
    if (target) pushDisc();
    if (changed) solve();
    draw();
    const took = `${W} × ${H} px, solved and drawn in ${Math.round(performance.now() - start)} ms. `;
    if (changed) find(".status").textContent = took + (layers === 2 ? means() : "");
    if (target) later(true);
  }

  function pushDisc() {
    const way = target.map((t, i) => t - disc[i]), far = Math.hypot(...way);
    if (far < 1.5) return (target = null); // so that the last two frames differ
    disc = disc.map((d, i) => d + way[i] * Math.min(1, 3 / far));
    frames = [...frames.slice(1), scene({ at: disc })];
  }

  /** Take a camera's newest picture, if there is one, and look for the next. */
  function watch(own, last) {
    if (!own || film !== own) return;
    const now = film.currentTime, due = now !== last && steps.value === steps.max;
    if (due) {
      frames = [...frames.slice(1), greyOf(film, 0)];
      later(true);
    }
    requestAnimationFrame(() => watch(own, due ? now : last));
  }

  function closeCamera() {
    film?.srcObject.getTracks().forEach((track) => track.stop());
    film = null;
  }

  function solve() {
    const end = steps.value === steps.max, run = (pair, i) => tvl1(...pair, W, H, options, memory[i]);
    const numbers = Object.keys(SLIDERS).map((name) => [name, +find(`[name=${name}]`).value]);
    options = { ...Object.fromEntries(numbers), median: find("[name=median]").checked };
    runs = frames.slice(1).map((frame, t) => run([frames[t], frame], t));
    if (layers === 2) runs.push(run(fields(), 2));
    steps.max = runs[0].states.length - 1;
    if (end) steps.value = steps.max;
  }

  function draw() {
    const run = runs[looked.selectedIndex], k = +steps.value, state = run.states[k], largest = scaleOf(run.states.at(-1));
    [...frames, ...(layers === 2 ? fields() : [])].forEach((f, t) => paint(canvases[t], (i) => [f[i], f[i], f[i]]));
    paint(canvases.at(-1), (i) => flowColour(state[i], state[W * H + i], largest));
    find(".wheel + b").textContent = `${largest} px/frame`;
    const [left, top] = cursor.map((c, i) => `${(100 * (c + 0.5)) / [W, H][i]}%`);
    for (const ring of all(".ring")) Object.assign(ring.style, { left, top });
    const pixels = run.states.map((_, j) => pixelOf(run, j, cursor[1] * W + cursor[0], options));
    const past = pixels.slice(0, k + 1), now = pixels[k];
    [planePlot(past), discPlot(past), energyPlot(pixels, k)].forEach((plot, j) => (plots[j].innerHTML = plot));
    const place = k === +steps.max ? "result" : `warp ${warpOf(k, options) + 1}, iteration ${k % (options.iterations + 1)}`;
    steps.ariaValueText = steps.parentElement.querySelector("b").textContent = place;
    const [u, v, wu, wv, rho, energy, ...p] = [now.u, now.v, now.wu, now.wv, now.rho, now.energy, ...now.p].map(said);
    told.textContent =
      `Pixel ${cursor.join(", ")}; ${place}. (u, v) = (${u}, ${v}) px/frame, w = (${wu}, ${wv}), ρ = ${rho} grey levels, ` +
      `step ${BRANCHES[now.branch]}, energy ${energy}, p of u (${p[0]}, ${p[1]}), p of v (${p[2]}, ${p[3]}).`;
    const bright = getComputedStyle(el).color.match(/\d+/g).slice(0, 3).some((c) => c > 140);
    el.style.colorScheme = bright ? "dark" : "light"; // as the page around, whose text it is
  }

  /** The second flow's mean to the right, and away from the middle: what moves has the one, what grows the other. */
  function means() {
    const state = runs.at(-1).states.at(-1), sum = [0, 0];
    for (let i = 0; i < W * H; i++) {
      const x = (i % W) - W / 2, y = Math.floor(i / W) - H / 2;
      sum[0] += state[i];
      sum[1] += (state[i] * x + state[W * H + i] * y) / (Math.hypot(x, y) + TINY);
    }
    return "Flow of flow, mean: " + sum.map((s) => said(s / (W * H))).join(" px/frame to the right, ") + " outwards.";
  }

  async function choose(name) {
    const file = find("[type=file]").files[0];
    [input, target, disc] = [name, null, [W / 2, H / 2]];
    views.className = `views ${name}`;
    find("[type=file]").parentElement.hidden = name !== "picture";
    closeCamera();
    try {
      const picture = name === "picture" && file ? await createImageBitmap(file) : null;
      const opened = name === "camera" ? await openCamera() : null;
      if (opened) {
        closeCamera(); // one that was asked for before
        film = opened;
      }
      if (input !== name) {
        if (opened) closeCamera();
        return; // another choice came meanwhile
      }
      if (picture) frames = series((t) => greyOf(picture, t));
      else if (name === "drag") frames = series((t) => scene({ at: [disc[0] + 2 * (t - layers), disc[1]] }));
      else if (name in MADE) frames = series((t) => made(name, t));
      else if (film) frames = series(() => greyOf(film, 0));
      later(true);
      watch(film);
    } catch (error) {
      told.textContent = `${error.message} Choose other frames.`;
    }
  }

  views.onpointerdown = views.onpointermove = (event) => {
    const box = event.target.closest(".view")?.getBoundingClientRect();
    if (!box) return;
    const place = [((event.clientX - box.left) / box.width) * W, ((event.clientY - box.top) / box.height) * H];
    cursor = place.map((c, i) => clip(Math.floor(c), 0, [W, H][i] - 1));
    if (event.buttons && input === "drag") target = place;
    later(false);
  };
  views.onkeydown = (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    if (event.shiftKey && input === "drag") target = disc.map((d, i) => clip(d + 3 * way[i], 0, [W, H][i]));
    else cursor = cursor.map((c, i) => clip(c + way[i] * (event.shiftKey ? 10 : 1), 0, [W, H][i] - 1));
    later(false);
  };
  find("section").oninput = ({ target: control }) => {
    const value = control.parentElement.querySelector("b");
    if (value) value.textContent = control.value;
    if (control.name === "input" || control.type === "file") choose(control.type === "file" ? "picture" : control.value);
    else later(control !== steps && control !== looked);
  };
  looked.selectedIndex = flows.length - 1;
  find("[value=moves]").checked = true;
  choose("moves");
  return () => [cancelAnimationFrame(wanted), closeCamera()];
}

export default { render };
