// Two small charts, drawn at the size that they are shown at so that their lettering never shrinks.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const out = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) out.push(Number(v.toPrecision(8)));
  return out;
}

function frame(width, height, x, y, labels) {
  const pad = { left: 34, right: 8, top: 8, bottom: 32 };
  const px = (v) => pad.left + ((v - x[0]) / (x[1] - x[0] || 1)) * (width - pad.left - pad.right);
  const py = (v) => height - pad.bottom - ((v - y[0]) / (y[1] - y[0] || 1)) * (height - pad.top - pad.bottom);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": labels.summary });
  for (const v of ticks(y[0], y[1], 4)) {
    svg.append(make("line", { class: "grid-line", x1: pad.left, x2: width - pad.right, y1: py(v), y2: py(v) }),
      make("text", { x: pad.left - 6, y: py(v) + 4, "text-anchor": "end" }, labels.y(v)));
  }
  for (const v of ticks(x[0], x[1], Math.max(2, Math.floor(width / 75)))) {
    svg.append(make("text", { x: px(v), y: height - pad.bottom + 16, "text-anchor": "middle" }, labels.x(v)));
  }
  svg.append(make("text", { x: (pad.left + width - pad.right) / 2, y: height - 2, "text-anchor": "middle" }, labels.below));
  return { svg, px, py, base: height - pad.bottom, top: pad.top };
}

function line(xs, ys, px, py) { // gaps where a point is missing
  let path = "", pen = "M";
  xs.forEach((x, i) => {
    if (!Number.isFinite(ys[i]) || x === null) { pen = "M"; return; }
    path += `${pen}${px(x).toFixed(1)} ${py(ys[i]).toFixed(1)}`;
    pen = "L";
  });
  return path;
}

function entropyChart(box, layer, head, say) {
  const axis = data.axes[data.layers[layer].axis], points = axis.positions.length;
  const ys = Array.from(curvesOf(layer).slice(head * points, (head + 1) * points));
  const bound = axis.bound.map((v) => (v === null ? NaN : v));
  const high = Math.max(0.5, ...bound.filter(Number.isFinite), ...ys.filter(Number.isFinite));
  const ends = [axis.positions[0], axis.positions[points - 1]];
  const mean = valueOf("entropy", layer, head);
  const chart = frame(box.clientWidth || 520, 210, ends, [0, high * 1.04], {
    x: whole, y: number, below: "query position",
    summary: `Entropy over positions of layer ${layer} head ${head}: mean ${number(mean)} nats, log(visible) reaches ${number(Math.max(...bound.filter(Number.isFinite)))}.` });
  const { svg, px, py, base, top } = chart;
  const path = line(axis.positions, ys, px, py);
  const single = path.split("M").length === 2 && points > 1;
  if (single) svg.append(make("path", { class: "under", d: `${path}L${px(ends[1]).toFixed(1)} ${base}L${px(ends[0]).toFixed(1)} ${base}Z` }));
  svg.append(make("path", { class: "bound", d: line(axis.positions, bound, px, py) }), make("path", { class: "curve", d: path }));
  const cross = make("line", { class: "cross", y1: top, y2: base, visibility: "hidden" });
  const knob = make("circle", { class: "knob", r: 4.5, visibility: "hidden" });
  svg.append(cross, knob);
  const show = (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    let best = 0;
    axis.positions.forEach((x, i) => { if (Math.abs(px(x) - at) < Math.abs(px(axis.positions[best]) - at)) best = i; });
    if (!Number.isFinite(ys[best])) return;
    for (const [name, value] of [["x1", px(axis.positions[best])], ["x2", px(axis.positions[best])]]) cross.setAttribute(name, value);
    knob.setAttribute("cx", px(axis.positions[best])); knob.setAttribute("cy", py(ys[best]));
    cross.setAttribute("visibility", "visible"); knob.setAttribute("visibility", "visible");
    say(`query ${whole(axis.positions[best])}: ${number(ys[best])} of at most ${number(bound[best])} nats, e^H ≈ ${number(Math.exp(ys[best]))} keys`);
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => { cross.setAttribute("visibility", "hidden"); knob.setAttribute("visibility", "hidden"); say(null); });
  fill(box, svg);
}

function histogramChart(box, layer, head) {
  const found = data.layers[layer].histogram, bins = found.bins;
  const keys = keysShareOf(layer).slice(head * bins, (head + 1) * bins), weight = weightShareOf(layer).slice(head * bins, (head + 1) * bins);
  let [low, high] = [found.low[head], found.high[head]];
  if (high - low < 1e-6) { low -= 0.5; high += 0.5; }
  const most = Math.max(...keys, ...weight, 1e-9), step = (high - low) / bins;
  const { svg, px, py, base } = frame(box.clientWidth || 520, 180, [low, high], [0, most * 1.05], {
    x: number, y: percent, below: "logit",
    summary: `Logits of layer ${layer} head ${head} run from ${number(low)} to ${number(high)}.` });
  for (const [name, shares] of [["keys", keys], ["weight", weight]]) {
    const outline = Array.from(shares, (s, i) => `L${px(low + i * step).toFixed(1)} ${py(s).toFixed(1)}L${px(low + (i + 1) * step).toFixed(1)} ${py(s).toFixed(1)}`).join("");
    svg.append(make("path", { class: `bars-${name}`, d: `M${px(low).toFixed(1)} ${base}${outline}L${px(high).toFixed(1)} ${base}Z` }));
    if (name === "weight") svg.append(make("path", { class: "curve", d: `M${outline.slice(1)}` }));
  }
  fill(box, svg);
}
