// Reading the data: numbers arrive as base64 of 16-bit steps.
const data = JSON.parse(document.getElementById("data").textContent);

function bytes(text) {
  const raw = atob(text), out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return new DataView(out.buffer);
}

function unpack({ low, high, data: text }) {
  const view = bytes(text), out = new Float64Array(view.byteLength / 2);
  for (let i = 0; i < out.length; i++) {
    const step = view.getUint16(2 * i, true);
    out[i] = step === 65535 ? NaN : low + (step / 65534) * (high - low);
  }
  return out;
}

function unpackKeys({ width, data: text }) {
  const view = bytes(text), none = width === 2 ? 65535 : 4294967295;
  return Array.from({ length: view.byteLength / width }, (_, i) => {
    const key = width === 2 ? view.getUint16(2 * i, true) : view.getUint32(4 * i, true);
    return key === none ? -1 : key;
  });
}

const lazily = (make) => { const known = new Map(); return (key) => { if (!known.has(key)) known.set(key, make(key)); return known.get(key); }; };
const curvesOf = lazily((layer) => unpack(data.layers[layer].entropy));
const keysShareOf = lazily((layer) => unpack(data.layers[layer].histogram.keys));
const weightShareOf = lazily((layer) => unpack(data.layers[layer].histogram.weight));
const viewOf = lazily((index) => ({ ...data.views[index], keys: unpackKeys(data.views[index].keys), weights: unpack(data.views[index].weights) }));

const findingsOf = (layer, head) => data.findings.filter(([, l, h]) => l === layer && h === head);
const tagsOf = (layer, head) => findingsOf(layer, head).map(([kind]) => data.kinds[kind].tag);
const viewIndex = (layer, head) => data.views.findIndex((view) => view.layer === layer && view.head === head);
const valueOf = (stat, layer, head) => data.values[stat][layer][head];

// Words and numbers for people.
const number = (value) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e5) return value.toExponential(1);
  if (size >= 100) return Math.round(value).toLocaleString("en");
  if (size === 0) return "0";
  if (size < 0.001) return value.toExponential(1).replace("-", "−").replace("e-", "e−");
  return String(Number(value.toPrecision(3))).replace("-", "−");
};
const whole = (value) => Math.round(value).toLocaleString("en");
const percent = (value) => (value > 0 && value < 0.005 ? "<1 %" : `${Math.round(value * 100)} %`);

// Elements are built, never parsed: text from the model cannot become markup. What is not there is left out: the DOM would write "null".
const present = (children) => children.filter((child) => child !== null && child !== undefined);
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "rect", "circle", "text", "g"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...present(children));
  return node;
}
function fill(node, ...children) { node.replaceChildren(...present(children)); }
