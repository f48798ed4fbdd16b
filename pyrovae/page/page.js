"use strict";
// Interactive parts of a pyrovae page. No library, no network. The functions above `start` run in Node as well.

// Put the bytes of each number beside each other: all first bytes come first, then all second ones.
function interleaved(bytes, width) {
  const count = bytes.length / width;
  return Uint8Array.from(bytes, (_, place) => bytes[(place % width) * count + Math.floor(place / width)]);
}

async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const packedBytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const raw = interleaved(packedBytes, { f4: 4, f2: 2, u1: 1 }[packed.type]).buffer;
  let values;
  if (packed.type === "f4") {
    values = new Float32Array(raw);
  } else if (packed.type === "f2") {
    values = Float32Array.from(new Uint16Array(raw), half);
  } else {
    values = Float32Array.from(new Uint8Array(raw), (byte) => byte / 255);
  }
  return { shape: packed.shape, values };
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: error below 1.5e-7.
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const sum = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - sum * Math.exp(-x * x));
}

const sigmoid = (h) => 1 / (1 + Math.exp(-h));
const softplus = (h) => (h > 30 ? h : Math.log1p(Math.exp(h)));

const ACTIVATIONS = {
  identity: (h) => h,
  relu: (h) => (h > 0 ? h : 0),
  tanh: Math.tanh,
  sigmoid,
  silu: (h) => h * sigmoid(h),
  gelu: (h) => 0.5 * h * (1 + erf(h / Math.SQRT2)),
  gelu_tanh: (h) => 0.5 * h * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (h + 0.044715 * h ** 3))),
  softplus: (h, beta) => softplus(beta * h) / beta,
  elu: (h, alpha) => (h > 0 ? h : alpha * Math.expm1(h)),
  leaky_relu: (h, slope) => (h > 0 ? h : slope * h),
};

const LINKS = {
  identity: (y) => y,
  sigmoid: (y) => y.map(sigmoid),
  exp: (y) => y.map(Math.exp),
  softplus: (y) => y.map(softplus),
  softmax: (y) => {
    const top = y.reduce((a, b) => Math.max(a, b), -Infinity);
    const powers = y.map((value) => Math.exp(value - top));
    const total = powers.reduce((a, b) => a + b, 0);
    return powers.map((value) => value / total);
  },
};

async function liveDecoder(live) {
  const layers = [];
  for (const layer of live.layers) {
    const [w, b] = [await unpack(layer.w), await unpack(layer.b)];
    layers.push({ w: w.values, b: b.values, act: ACTIVATIONS[layer.act], slope: layer.slope });
  }
  const [a, b] = [(await unpack(live.a)).values, (await unpack(live.b)).values];
  return (z) => {
    let h = Float64Array.from(z);
    for (const { w, b: bias, act, slope } of layers) {
      const next = new Float64Array(bias.length);
      for (let i = 0; i < bias.length; i += 1) {
        let sum = bias[i];
        for (let j = 0; j < h.length; j += 1) sum += w[i * h.length + j] * h[j];
        next[i] = act(sum, slope);
      }
      h = next;
    }
    return LINKS[live.link](h).map((y, d) => a[d] + b[d] * y);
  };
}

// Cell of a place among increasing nodes, and the share of its right end. Places beyond the ends are moved to them.
function cellOf(nodes, place) {
  let i = 0;
  while (i < nodes.length - 2 && nodes[i + 1] < place) i += 1;
  const share = (place - nodes[i]) / (nodes[i + 1] - nodes[i]);
  return [i, Math.min(1, Math.max(0, share))];
}

function scaleOf(scale) {
  const pick = (list, d) => (list.length === 1 ? list[0] : list[d]);
  return {
    toData: (unit, d) => pick(scale.low, d) + (pick(scale.high, d) - pick(scale.low, d)) * unit,
    toUnit: (value, d) => (value - pick(scale.low, d)) / (pick(scale.high, d) - pick(scale.low, d)),
  };
}

// A sheet of means over two dimensions, blended between its four nearest places.
async function sheetDecoder(part) {
  const { shape, values } = await unpack(part.sheet.means);
  const [, columns, size] = shape;
  const { toData } = scaleOf(part.scale);
  const [xs, ys] = part.sheet.nodes;
  return (z) => {
    const [i, s] = cellOf(xs, z[part.dims[0]]);
    const [j, t] = cellOf(ys, z[part.dims[1]]);
    const at = (row, column, d) => values[(row * columns + column) * size + d];
    return Float64Array.from({ length: size }, (_, d) => {
      const below = (1 - s) * at(j, i, d) + s * at(j, i + 1, d);
      const above = (1 - s) * at(j + 1, i, d) + s * at(j + 1, i + 1, d);
      return toData((1 - t) * below + t * above, d);
    });
  };
}

// Lines through the codes of a few data: one dimension moves, the others stay at the code.
async function traversalDecoder(part) {
  const { shape, values } = await unpack(part.traversals.means);
  const [, dims, steps, size] = shape;
  const { toData } = scaleOf(part.scale);
  return (z, base, slider) => {
    const [k, t] = cellOf(part.traversals.nodes[slider], z[part.sliders[slider]]);
    const start = ((base * dims + slider) * steps + k) * size;
    return Float64Array.from({ length: size }, (_, d) =>
      toData((1 - t) * values[start + d] + t * values[start + size + d], d));
  };
}

function start(root) {
  for (const parent of root.querySelectorAll(".interactive[data-part=plane]")) {
    const part = JSON.parse(parent.querySelector("script").textContent);
    buildPlane(parent, part).catch((error) => {
      parent.append(element("p", { text: `This browser cannot show the interactive part (${error.message}).` }));
      console.error(error);
    });
  }
  const unfold = () => root.querySelectorAll("details").forEach((each) => { each.open = true; });
  window.addEventListener("beforeprint", unfold);
}

function element(name, { text, parent, ...attributes } = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// The same colours as those of the pictures.
const COLOURS = ["#332288", "#88CCEE", "#CC6677", "#117733", "#DDCC77", "#AA4499", "#44AA99", "#882255", "#999933",
  "#777777"];
const minus = (text) => text.replace("-", "\u2212");
const shown = (value) => (Number.isFinite(value) ? minus(Number(value.toPrecision(3)).toString()) : "?");

async function buildPlane(parent, part) {
  const [codes, data] = [await unpack(part.points.z), await unpack(part.points.values)];
  const missing = part.points.missing ? (await unpack(part.points.missing)).values : null;
  const [count, latents] = codes.shape;
  const size = data.shape[1];
  const { toData, toUnit } = scaleOf(part.scale);
  const mode = part.live ? "live" : part.sheet ? "sheet" : "traversal";
  const decoder = await (mode === "live" ? liveDecoder(part.live)
    : mode === "sheet" ? sheetDecoder(part) : traversalDecoder(part));
  const code = (n) => Array.from(codes.values.slice(n * latents, (n + 1) * latents));
  const datum = (n) => Float64Array.from({ length: size }, (_, d) =>
    (missing && missing[n * size + d] ? NaN : toData(data.values[n * size + d], d)));
  const nameOf = (n) => {
    const label = part.points.labels[n];
    const known = label !== undefined && label >= 0 ? `, ${part.points.labelNames[label]}` : "";
    return `row ${part.points.rows[n]}${known}`;
  };

  const state = { z: part.start.slice(), chosen: null, base: 0, slider: 0 };
  if (mode === "traversal") {
    [state.chosen] = part.traversals.data;
    state.z = code(state.chosen);
  }

  // A latent with the decimals that its range needs.
  const place = (value, j) => minus(value.toFixed(
    Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(part.range[j][1] - part.range[j][0]))))));
  const twoD = part.dims.length === 2;
  const movable = mode !== "traversal";
  const wrapper = element("div", { class: "plane", parent });
  const left = element("div", { class: "space", parent: wrapper });
  const canvas = twoD ? element("canvas", {
    tabindex: "0", role: "application", parent: left,
    "aria-label": movable
      ? `Plane of ${part.names[part.dims[0]]} and ${part.names[part.dims[1]]}. Arrow keys move, with Shift ten times as `
        + "far; Home goes to the prior's median; Enter goes to the nearest datum."
      : `Plane of ${part.names[part.dims[0]]} and ${part.names[part.dims[1]]}. Arrow keys choose the next datum.`,
  }) : null;
  const live = element("p", { class: "place", "aria-live": "polite", parent: left });
  const right = element("div", { class: "decoded", parent: wrapper });
  const views = element("div", { class: "views", parent: right });
  const decodedView = makeView(views, "decoded mean", part, toUnit);
  const datumView = makeView(views, `${part.split} datum`, part, toUnit);
  const buttons = element("div", { class: "buttons", parent: right });
  const step = (by) => {
    if (mode === "traversal") {
      state.base = (state.base + by + part.traversals.data.length) % part.traversals.data.length;
      choose(part.traversals.data[state.base]);
    } else {
      choose(((state.chosen ?? (by > 0 ? -1 : 0)) + by + count) % count);
    }
  };
  for (const [text, by] of [["previous datum", -1], ["next datum", 1]]) {
    element("button", { type: "button", text, parent: buttons }).addEventListener("click", () => step(by));
  }
  const sliders = part.sliders.map((j, slider) => {
    const [low, high] = part.range[j];
    const line = element("label", { class: "slider", parent: right });
    element("span", { text: part.names[j], parent: line });
    const input = element("input", { type: "range", min: low, max: high, step: (high - low) / 100, parent: line });
    const output = element("output", { parent: line });
    input.addEventListener("input", () => {
      if (mode === "traversal") state.z = code(part.traversals.data[state.base]);
      state.z[j] = Number(input.value);
      state.slider = slider;
      update();
    });
    return { j, input, output };
  });

  function choose(n) {
    state.chosen = n;
    const base = mode === "traversal" ? part.traversals.data.indexOf(n) : 0;
    if (base >= 0) {
      state.base = base;
      state.z = code(n);
    }
    update();
  }

  function nearest(z, dims) {
    const far = (n) => dims.reduce((sum, j) => {
      const width = part.range[j][1] - part.range[j][0];
      return sum + ((codes.values[n * latents + j] - z[j]) / width) ** 2;
    }, 0);
    let best = 0;
    for (let n = 1; n < count; n += 1) if (far(n) < far(best)) best = n;
    return [best, Math.sqrt(far(best))];
  }

  function update() {
    const decoded = decoder(state.z, state.base, state.slider);
    decodedView.show(decoded);
    datumView.show(state.chosen === null ? null : datum(state.chosen));
    for (const { j, input, output } of sliders) {
      input.value = state.z[j];
      output.textContent = place(state.z[j], j);
    }
    const numbers = part.sliders.slice(0, 4).map((j) => `${part.names[j]} = ${place(state.z[j], j)}`).join(", ");
    const chosen = state.chosen === null ? "" : `; ${part.split} datum: ${nameOf(state.chosen)}`;
    live.textContent = `${numbers}${part.sliders.length > 4 ? ", …" : ""}${chosen}`;
    if (canvas) draw();
  }

  // The plane.
  const margin = { left: 38, right: 8, top: 8, bottom: 34 };
  const bounds = () => part.dims.map((j) => {
    const [low, high] = part.range[j];
    return [low - 0.03 * (high - low), high + 0.03 * (high - low)];
  });
  function toCanvas(z) {
    const { width, height } = canvas.getBoundingClientRect();
    const [[x0, x1], [y0, y1]] = bounds();
    return [
      margin.left + ((z[part.dims[0]] - x0) / (x1 - x0)) * (width - margin.left - margin.right),
      height - margin.bottom - ((z[part.dims[1]] - y0) / (y1 - y0)) * (height - margin.top - margin.bottom),
    ];
  }
  function fromCanvas(x, y) {
    const { width, height } = canvas.getBoundingClientRect();
    const [[x0, x1], [y0, y1]] = bounds();
    const clip = (value, [low, high]) => Math.min(high, Math.max(low, value));
    return [
      clip(x0 + ((x - margin.left) / (width - margin.left - margin.right)) * (x1 - x0), [x0, x1]),
      clip(y0 + ((height - margin.bottom - y) / (height - margin.top - margin.bottom)) * (y1 - y0), [y0, y1]),
    ];
  }
  function draw() {
    const box = canvas.getBoundingClientRect();
    const density = window.devicePixelRatio || 1;
    canvas.width = Math.round(box.width * density);
    canvas.height = Math.round(box.height * density);
    const pen = canvas.getContext("2d");
    pen.scale(density, density);
    const style = getComputedStyle(canvas);
    const [ink, faint] = [style.color, style.getPropertyValue("--faint")];
    pen.font = "12px system-ui, sans-serif";
    pen.strokeStyle = faint;
    pen.fillStyle = ink;
    const [xs, ys] = bounds().map(ticks);
    pen.textAlign = "center";
    for (const x of xs) {
      const [at] = toCanvas(withPlane(x, ys[0]));
      line(pen, at, margin.top, at, box.height - margin.bottom);
      pen.fillText(shown(x), at, box.height - margin.bottom + 14);
    }
    pen.textAlign = "right";
    for (const y of ys) {
      const at = toCanvas(withPlane(xs[0], y))[1];
      line(pen, margin.left, at, box.width - margin.right, at);
      pen.fillText(shown(y), margin.left - 4, at + 4);
    }
    pen.textAlign = "center";
    pen.fillText(part.names[part.dims[0]], (box.width + margin.left) / 2, box.height - 5);
    pen.save();
    pen.translate(10, (box.height - margin.bottom) / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(part.names[part.dims[1]], 0, 0);
    pen.restore();
    for (let n = 0; n < count; n += 1) {
      const [x, y] = toCanvas(code(n));
      const label = part.points.labels[n];
      if (label === undefined || label < 0) {
        pen.fillStyle = part.points.labels.length ? "#777777" : COLOURS[0];
        pen.globalAlpha = 0.7;
        pen.beginPath();
        pen.arc(x, y, 2.5, 0, 7);
        pen.fill();
      } else {
        const name = String(part.points.labelNames[label]);
        pen.fillStyle = COLOURS[label % COLOURS.length];
        pen.globalAlpha = 0.85;
        if (name.length === 1) {
          pen.font = "bold 12px system-ui, sans-serif";
          pen.fillText(name, x, y + 4);
        } else {
          pen.beginPath();
          pen.arc(x, y, 3, 0, 7);
          pen.fill();
        }
      }
    }
    pen.globalAlpha = 1;
    if (state.chosen !== null) {
      pen.strokeStyle = ink;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(...toCanvas(code(state.chosen)), 8, 0, 7);
      pen.stroke();
    }
    const [x, y] = toCanvas(state.z);
    pen.strokeStyle = ink;
    pen.lineWidth = 2;
    line(pen, x - 11, y, x + 11, y);
    line(pen, x, y - 11, x, y + 11);
  }
  function withPlane(x, y) {
    const z = state.z.slice();
    [z[part.dims[0]], z[part.dims[1]]] = [x, y];
    return z;
  }
  function at(event) {
    const box = canvas.getBoundingClientRect();
    const [x, y] = fromCanvas(event.clientX - box.left, event.clientY - box.top);
    return withPlane(x, y);
  }
  if (canvas) {
    canvas.addEventListener("pointermove", (event) => {
      if (movable) {
        state.z = at(event);
        update();
      }
    });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.focus();
      const z = at(event);
      const [n, far] = nearest(z, part.dims);
      if (far < 0.05) {
        choose(n);
      } else if (movable) {
        state.z = z;
        update();
      }
    });
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };
      const move = moves[event.key];
      if (move && !movable) {
        step(move[0] + move[1]);
      } else if (move) {
        part.dims.forEach((j, axis) => {
          const [low, high] = part.range[j];
          const by = move[axis] * (event.shiftKey ? 0.1 : 0.01) * (high - low);
          state.z[j] = Math.min(high, Math.max(low, state.z[j] + by));
        });
        update();
      } else if (event.key === "Home" && movable) {
        state.z = part.start.slice();
        update();
      } else if (event.key === "Enter") {
        choose(nearest(state.z, part.dims)[0]);
      } else {
        return;
      }
      event.preventDefault();
    });
    new ResizeObserver(draw).observe(canvas);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  }
  update();
}

function ticks([low, high]) {
  const rough = (high - low) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const by = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let k = Math.ceil(low / by); k * by <= high; k += 1) found.push(k * by);
  return found;
}

function line(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

// A view of one datum: pixels of an image, or a table of columns, or a line over many columns.
function makeView(parent, title, part, toUnit) {
  const figure = element("figure", { class: part.image ? "" : "columns", parent });
  const caption = element("figcaption", { text: title });
  if (part.image || part.columns.length > 40) {
    const canvas = element("canvas", { class: "pixels", role: "img", "aria-label": title, parent: figure });
    figure.append(caption);
    return {
      show: (x) => {
        figure.hidden = x === null;
        if (x !== null) (part.image ? drawImage : drawLine)(canvas, x, part, toUnit);
      },
    };
  }
  const table = element("table", { parent: figure });
  const rows = part.columns.map((name, d) => {
    const row = element("tr", { parent: table });
    element("th", { scope: "row", text: name, parent: row });
    const number = element("td", { parent: row });
    const meter = element("meter", { min: 0, max: 1, "aria-hidden": "true", parent: element("td", { parent: row }) });
    return { d, number, meter };
  });
  figure.append(caption);
  return {
    show: (x) => {
      figure.hidden = x === null;
      if (x === null) return;
      for (const { d, number, meter } of rows) {
        number.textContent = Number.isNaN(x[d]) ? "missing" : shown(x[d]);
        meter.value = Number.isNaN(x[d]) ? 0 : toUnit(x[d], d);
      }
    },
  };
}

function drawImage(canvas, x, part, toUnit) {
  const [channels, height, width] = part.image.length === 2 ? [1, ...part.image] : part.image;
  [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d");
  const pixels = pen.createImageData(width, height);
  const grey = (place) => 255 * Math.min(1, Math.max(0, Number.isNaN(x[place]) ? 0.5 : toUnit(x[place], place)));
  for (let k = 0; k < width * height; k += 1) {
    for (let c = 0; c < 3; c += 1) pixels.data[4 * k + c] = grey((channels === 1 ? 0 : c) * width * height + k);
    pixels.data[4 * k + 3] = 255;
  }
  pen.putImageData(pixels, 0, 0);
}

function drawLine(canvas, x, part, toUnit) {
  [canvas.width, canvas.height] = [320, 160];
  const pen = canvas.getContext("2d");
  pen.strokeStyle = COLOURS[2];
  pen.beginPath();
  x.forEach((value, d) => pen.lineTo(5 + (310 * d) / (x.length - 1), 155 - 150 * toUnit(value, d)));
  pen.stroke();
}

if (typeof document !== "undefined") start(document);
if (typeof module !== "undefined") module.exports = { unpack, half, erf, liveDecoder, sheetDecoder, cellOf };
