// The token view: the text, one span per token; the active token's keys glow by their weight.
const reader = {
  text: document.getElementById("text"),
  readout: document.getElementById("readout"),
  views: document.getElementById("views"),
  spans: [], lit: [], at: -1, view: null, pinned: false,

  build() {
    if (!data.views.length) return;
    data.views.forEach((view, index) => this.views.append(make("button", {
      role: "radio", "aria-checked": "false", onclick: () => choose(view.layer, view.head, false) },
      make("b", {}, `${view.layer}.${view.head}`), make("small", {}, mainTag(view.layer, view.head)))));
    rove(this.views);
    const token = (event) => event.target.closest?.(".tok");
    this.text.addEventListener("pointerover", (event) => { const span = token(event); if (span && event.pointerType === "mouse" && !this.pinned) this.look(+span.dataset.i); });
    this.text.addEventListener("click", (event) => { const span = token(event); if (span) { this.pinned = !(this.pinned && +span.dataset.i === this.at); this.look(+span.dataset.i); } });
    this.text.addEventListener("keydown", (event) => this.walk(event));
  },

  show(index) {
    this.view = viewOf(index);
    [...this.views.children].forEach((button, i) => { button.setAttribute("aria-checked", String(i === index)); button.tabIndex = i === index ? 0 : -1; });
    const count = Math.max(this.view.queries, this.view.total);
    if (this.spans.length !== count) this.write(count);
    this.look(this.at >= 0 && this.at < this.view.queries ? this.at : this.telling());
    this.reveal();
  },

  telling() { // a first token worth showing: past the middle, where the head reads something other than the first token
    const { queries, shown, keys, weights } = this.view;
    for (let i = queries >> 1; i < queries; i++) if (keys[i * shown] > 0 && weights[i * shown] > 0.3 && data.tokens?.[i]?.trim()) return i;
    return queries >> 1;
  },

  write(count) {
    this.lit = [];
    this.spans = Array.from({ length: count }, (_, i) => {
      const span = make("span", { class: "tok", role: "option", id: `t${i}`, "data-i": i, "aria-selected": "false" });
      if (data.tokens && i < data.tokens.length) span.append(...drawn(data.tokens[i]));
      else { span.classList.add("number"); span.append(String(i)); }
      return span;
    });
    fill(this.text, ...this.spans);
  },

  look(i) {
    if (i < 0 || i >= this.view.queries) return;
    const { keys, weights, shown, total } = this.view;
    this.lit.forEach((span) => { span.style.background = ""; });
    if (this.at >= 0 && this.spans[this.at]) { this.spans[this.at].classList.remove("at"); this.spans[this.at].setAttribute("aria-selected", "false"); }
    this.at = i;
    this.lit = [];
    const reads = [];
    for (let k = i * shown; k < (i + 1) * shown; k++) {
      if (keys[k] < 0 || weights[k] < 0.0005) continue;
      reads.push([keys[k], weights[k]]);
      this.spans[keys[k]].style.background = `rgba(var(--glow),${(0.08 + 0.87 * Math.sqrt(weights[k])).toFixed(3)})`;
      this.lit.push(this.spans[keys[k]]);
    }
    this.spans[i].classList.add("at");
    this.spans[i].setAttribute("aria-selected", "true");
    this.text.setAttribute("aria-activedescendant", `t${i}`);
    this.tell(i, reads, total);
  },

  tell(i, reads, total) {
    const covered = Math.min(1, reads.reduce((sum, [, weight]) => sum + weight, 0));
    const where = (key) => key === i ? "itself" : key === 0 ? "first token" : `${whole(Math.abs(i - key))} ${key < i ? "back" : "ahead"}`;
    const share = reads.length === 1 ? `the one key shown carries ${percent(covered)} of the weight`
      : reads.length ? `the ${reads.length} keys shown carry ${percent(covered)} of the weight` : "no key is visible (padding)";
    const bars = reads.map(([key, weight]) => make("rect", { class: "bar", x: `${(100 * key) / total}%`, width: 4, y: 33 - 30 * weight, height: 30 * weight + 1, rx: 1 }));
    fill(this.readout,
      make("div", { class: "who" },
        make("span", {}, make("span", { class: "word" }, plainWord(i)), ` at ${whole(i)} in head ${this.view.layer}.${this.view.head}`),
        make("small", {}, share + (this.pinned ? " · pinned, choose again to let go" : ""))),
      make("div", { class: "meter", "aria-hidden": "true" }, make("i", { style: `width:${100 * covered}%` })),
      make("svg", { class: "strip", "aria-hidden": "true" }, make("line", { class: "base", x1: 0, x2: "100%", y1: 34.5, y2: 34.5 }), ...bars,
        make("rect", { class: "at", x: `${(100 * i) / total}%`, width: 4, y: 36, height: 5 })),
      make("ul", { class: "reads" }, ...reads.map(([key, weight]) => make("li", {}, make("b", {}, percent(weight)), make("code", {}, plainWord(key)), make("span", {}, where(key))))));
  },

  walk(event) {
    const last = this.view.queries - 1;
    let next = this.at;
    if (event.key === "ArrowRight") next++;
    else if (event.key === "ArrowLeft") next--;
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = last;
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") next = this.lineFrom(event.key === "ArrowDown" ? 1 : -1);
    else return;
    event.preventDefault();
    this.pinned = true;
    this.look(Math.min(last, Math.max(0, next)));
    this.reveal();
  },

  reveal() { // scrolls the text, never the page
    const top = this.spans[this.at].offsetTop, area = this.text;
    if (top < area.scrollTop + 20 || top > area.scrollTop + area.clientHeight - 50) area.scrollTop = top - area.clientHeight / 2;
  },

  lineFrom(by) { // the token nearest in the next line of text, as it is laid out
    const from = this.spans[this.at].getBoundingClientRect();
    let line = null, best = this.at, near = Infinity;
    for (let i = this.at + by; i >= 0 && i < this.view.queries; i += by) {
      const box = this.spans[i].getBoundingClientRect();
      if (by * (box.top - from.top) < 6) continue;
      if (line === null) line = box.top;
      if (Math.abs(box.top - line) > 6) break;
      if (Math.abs(box.left - from.left) < near) { near = Math.abs(box.left - from.left); best = i; }
    }
    return best;
  },
};

// What a head is for says more about where it looks than what is odd about it.
function mainTag(layer, head) {
  const kinds = findingsOf(layer, head).map(([kind]) => data.kinds[kind]);
  return (kinds.find((kind) => kind.tone === "pattern") || kinds[0])?.tag || "";
}

// Control characters get a visible stand-in; a line break shows its mark and then breaks.
const visibleControl = (c) => (c === "\u007f" ? "␡" : String.fromCharCode(0x2400 + c.charCodeAt(0)));
function drawn(word) {
  const out = [];
  for (const part of word.split(/(\n|[\u0000-\u0008\u000b-\u001f\u007f])/)) {
    if (part === "\n") out.push(make("span", { class: "mark" }, "↵"), "\n");
    else if (/^[\u0000-\u0008\u000b-\u001f\u007f]$/.test(part)) out.push(make("span", { class: "mark" }, visibleControl(part)));
    else if (part) out.push(part);
  }
  return out.length ? out : [make("span", { class: "mark" }, "∅")];
}
function plainWord(i) {
  if (!data.tokens || i >= data.tokens.length) return `#${i}`;
  return data.tokens[i].replace(/\n/g, "↵").replace(/[\u0000-\u001f\u007f]/g, visibleControl).replace(/ {3,}/g, " … ").replace(/^ | $/g, "·") || "∅";
}
