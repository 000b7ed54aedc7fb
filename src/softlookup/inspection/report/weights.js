// The tokens of its strongest pair, where they are known.
function pairOf(layer, head) {
  const pair = data.layers[layer].pairs?.[head];
  if (!pair) return [];
  const words = (list) => make("span", {}, ...list.flatMap((word) => [make("code", { class: "piece" }, word), " "]));
  return [make("p", { class: "alike" }, `Its strongest pair has ${percent(pair[0])} of W_Q W_K^T. Queries look for it from `, words(pair[1]), "; keys are found by ", words(pair[2]),
    make("small", {}, "Token embeddings along the two directions; early layers are nearest to tokens."))];
}

// What the weights of one head say: every measure beside its chance level, and the head that is most alike.
function weightsOf(layer, head) {
  const found = data.layers[layer].geometry;
  if (!found) return [make("p", { class: "stat-help" }, "The weights of this layer were not read.")];
  const cell = (value, chance) => make("td", {}, make("b", {}, number(value)), make("small", {}, `  ${number(chance)}`));
  const rows = data.stats.filter((stat) => stat.tab === "weights").map((stat) => make("tr", { class: stat === state.stat ? "mapped" : null },
    make("td", {}, make("button", { onclick: () => chooseStat(stat), title: "show on the map" }, stat.label), make("small", {}, stat.help)), cell(valueOf(stat.name, layer, head), found.chance[stat.name]),
    found.weighted ? cell(found.weighted.values[stat.name][head], found.weighted.chance[stat.name]) : null));
  const [other, cosine] = found.alike[head];
  const column = (title) => make("th", { scope: "col" }, title, make("small", {}, "  chance"));
  return [
    make("table", { class: "measures" },
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, ""), column("its weights"), found.weighted ? column("in this text") : null)),
      make("tbody", {}, ...rows)),
    other === head ? null : make("p", { class: "alike" }, "Most alike in its layer: ", make("a", { href: `#h${layer}.${other}` }, `${layer}.${other}`), `, cosine ${number(cosine)} (chance 0).`),
    ...pairOf(layer, head),
    found.weighted ? make("p", { class: "stat-help" }, "In this text: directions count by how much of what the layer read lies in them.") : null];
}
