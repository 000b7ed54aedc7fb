// One head from near: what the findings say, its numbers among those of all heads, and two charts.
const SHOWN = ["entropy_ratio", "effective_keys", "sink_mass", "distance", "max_logit", "logit_var"];

const headPanel = {
  element: document.getElementById("head"),

  show() {
    const { layer, head } = state, about = data.layers[layer];
    const step = (by) => () => { const all = order(), at = all.findIndex(([l, h]) => l === layer && h === head); const [l, h] = all[(at + by + all.length) % all.length]; choose(l, h, false); };
    const said = findingsOf(layer, head).map(([kind, , , value, threshold]) => {
      const what = data.kinds[kind], [meaning, advice] = about.causal ? what.wordsIfCausal : what.words;
      return make("li", { class: what.tone }, make("b", {}, `${what.singular[0].toUpperCase()}${what.singular.slice(1)}. `),
        `${what.quantity} ${number(value)} (${what.above ? ">" : "<"} ${number(threshold)}). ${meaning}`, make("p", {}, advice));
    });
    const common = [
      make("div", { class: "head-title" },
        make("div", {}, make("h3", {}, `Layer ${layer}, head ${head}`), make("p", { class: "path" }, about.path + (about.cross ? " (cross attention)" : ""))),
        make("div", { class: "steps" }, make("button", { onclick: step(-1), "aria-label": "previous head" }, "←"), make("button", { onclick: step(1), "aria-label": "next head" }, "→"))),
      said.length ? make("ul", { class: "said" }, ...said) : null];
    if (state.tab === "weights") fill(this.element, ...common, ...weightsOf(layer, head));
    else this.inText(common, layer, head);
  },

  inText(common, layer, head) {
    const about = data.layers[layer];
    const entropy = make("div", { class: "chart" }), hover = make("small", {}), logits = make("div", { class: "chart" });
    const points = data.rowsPerPoint > 1 ? `Each point is the mean of up to ${data.rowsPerPoint} queries.` : "Each point is a query.";
    const say = (text) => { hover.textContent = text || `Dashed: log(visible), the most it can be. ${points}`; };
    say(null);
    const view = viewIndex(layer, head);
    fill(this.element, ...common,
      make("dl", { class: "numbers" }, ...SHOWN.filter((name) => name in data.values).map((name) => this.figure(name, layer, head))),
      make("figure", {}, make("figcaption", {}, "Entropy over the text", hover), entropy),
      about.histogram ? make("figure", {}, make("figcaption", {}, "Logits", make("small", {}, make("i", { class: "sample keys" }), "all visible keys   ", make("i", { class: "sample weight" }), `where the weight goes, ${about.histogram.queries} sampled queries`)), logits) : null,
      make("p", { class: "to-view" }, view >= 0 ? make("a", { href: "#tokens" }, "See where it looks in the text ↓")
        : `No token view: rerun with --heads ${layer}.${head} (in Python heads=[(${layer}, ${head})]).`));
    entropyChart(entropy, layer, head, say);
    if (about.histogram) histogramChart(logits, layer, head);
  },

  figure(name, layer, head) {
    const stat = data.stats.find((s) => s.name === name), scale = scaleOf({ ...stat, domain: null }), value = valueOf(name, layer, head);
    const dot = value === null ? null : make("i", { style: `left:${100 * scale.share(value)}%` });
    return make("div", { title: `${stat.help} All heads: ${number(scale.low)} to ${number(scale.high)}.` },
      make("dt", {}, stat.label), make("dd", {}, number(value)), make("div", { class: "among", "aria-hidden": "true" }, dot));
  },
};

const order = () => data.layers.flatMap((layer, l) => Array.from({ length: layer.heads }, (_, h) => [l, h]));
