// The layer × head map: a grid that is walked with the arrow keys (one stop for Tab) and coloured by the chosen statistic.
const map = {
  element: document.getElementById("map"),
  width: Math.max(0, ...data.layers.map((layer) => layer.heads)),
  cells: [],

  build() {
    const tall = Math.max(12, Math.min(30, Math.floor(620 / data.layers.length)));
    this.element.style.setProperty("--cell", `${tall}px`);
    this.element.style.gridTemplateColumns = `auto repeat(${this.width}, minmax(9px, 1fr))`;
    this.element.setAttribute("aria-rowcount", data.layers.length);
    const sparse = this.width > 20 ? 4 : 1;
    const names = Array.from({ length: this.width }, (_, h) => make("span", { class: "column-name" }, h % sparse ? "" : String(h)));
    this.element.append(make("div", { class: "row", "aria-hidden": "true" }, make("span", { class: "row-name" }, ""), ...names));
    data.layers.forEach((layer, l) => {
      const row = make("div", { class: "row", role: "row" }, make("span", { class: "row-name", role: "rowheader", "aria-label": `layer ${l}` }, String(l)));
      this.cells.push(Array.from({ length: layer.heads }, (_, h) => {
        const cell = make("div", { class: "cell", role: "gridcell", tabindex: "-1", "data-layer": l, "data-head": h });
        row.append(cell);
        return cell;
      }));
      for (let h = layer.heads; h < this.width; h++) row.append(make("span"));
      this.element.append(row);
    });
    const target = (event) => event.target.closest?.(".cell");
    this.element.addEventListener("click", (event) => { const cell = target(event); if (cell) choose(+cell.dataset.layer, +cell.dataset.head, true); });
    this.element.addEventListener("pointerover", (event) => { const cell = target(event); if (cell && event.pointerType !== "touch") this.tell(cell); });
    this.element.addEventListener("pointerleave", hideTip);
    this.element.addEventListener("focusin", (event) => { const cell = target(event); if (cell?.matches(":focus-visible")) this.tell(cell); });
    this.element.addEventListener("focusout", hideTip);
    this.element.addEventListener("keydown", (event) => this.walk(event));
  },

  walk(event) {
    const cell = event.target.closest?.(".cell");
    if (!cell) return;
    let [layer, head] = [+cell.dataset.layer, +cell.dataset.head];
    if (event.key === "Enter" || event.key === " ") { choose(layer, head, true); event.preventDefault(); return; }
    if (event.key === "ArrowLeft") head--;
    else if (event.key === "ArrowRight") head++;
    else if (event.key === "ArrowUp") layer--;
    else if (event.key === "ArrowDown") layer++;
    else if (event.key === "Home") head = 0;
    else if (event.key === "End") head = data.layers[layer].heads - 1;
    else return;
    event.preventDefault();
    const next = this.cells[layer]?.[Math.min(head, data.layers[layer].heads - 1)];
    if (head >= 0 && next) { this.stop(next); next.focus(); }
  },

  stop(cell) { // the one cell that Tab reaches
    this.element.querySelectorAll('.cell[tabindex="0"]').forEach((other) => other.setAttribute("tabindex", "-1"));
    cell.setAttribute("tabindex", "0");
  },

  tell(cell) {
    const [layer, head] = [+cell.dataset.layer, +cell.dataset.head];
    const kinds = tagsOf(layer, head).join(", ");
    showTip(cell, make("b", {}, `${layer}.${head}`), ` ${state.stat.label} ${number(valueOf(state.stat.name, layer, head))}`, kinds ? make("div", {}, kinds) : null);
  },

  paint() {
    const scale = scaleOf(state.stat);
    this.cells.forEach((row, l) => row.forEach((cell, h) => {
      const value = valueOf(state.stat.name, l, h);
      cell.classList.toggle("none", value === null);
      cell.style.background = value === null ? "" : colour(scale.share(value));
      cell.setAttribute("aria-label", [`layer ${l} head ${h}`, `${state.stat.label} ${number(value)}`, ...tagsOf(l, h)].join(", "));
    }));
    document.getElementById("stat-help").textContent = state.stat.help;
    this.legend(scale);
  },

  legend(scale) {
    const bins = new Array(32).fill(0);
    scale.all.forEach((value) => bins[Math.min(31, Math.floor(scale.share(value) * 32))]++);
    const most = Math.max(...bins, 1);
    const bars = bins.map((count) => make("i", { style: `height:${count ? Math.max(6, (100 * count) / most) : 0}%` }));
    const stops = Array.from({ length: 17 }, (_, i) => colour(i / 16)).join(",");
    fill(document.getElementById("legend"),
      make("div", { class: "counts" }, ...bars),
      make("div", { class: "ramp", style: `background:linear-gradient(90deg,${stops})` }),
      make("div", { class: "ends" }, make("span", {}, number(scale.low)), make("span", {}, scale.logarithmic ? "how many heads; logarithmic scale" : "how many heads"), make("span", {}, number(scale.high))));
  },

  mark() {
    this.cells.flat().forEach((cell) => cell.setAttribute("aria-selected", "false"));
    const cell = this.cells[state.layer][state.head];
    cell.setAttribute("aria-selected", "true");
    this.stop(cell);
  },

  filter(kind) { // show the heads of one kind of finding, or all
    this.element.classList.toggle("filtered", kind !== null);
    this.cells.flat().forEach((cell) => cell.classList.remove("kept"));
    if (kind !== null) data.findings.filter(([name]) => name === kind).forEach(([, l, h]) => this.cells[l][h].classList.add("kept"));
    const note = document.getElementById("filter-note");
    note.hidden = kind === null;
    note.textContent = kind === null ? "" : `Every ${data.kinds[kind].singular}; others are dimmed.`;
  },
};

const tip = document.getElementById("tip");
function showTip(anchor, ...content) {
  fill(tip, ...content);
  tip.hidden = false;
  const box = anchor.getBoundingClientRect(), own = tip.getBoundingClientRect();
  tip.style.left = `${Math.min(window.innerWidth - own.width - 8, Math.max(8, box.left + box.width / 2 - own.width / 2))}px`;
  tip.style.top = `${box.top > own.height + 14 ? box.top - own.height - 8 : box.bottom + 8}px`;
}
function hideTip() { tip.hidden = true; }
