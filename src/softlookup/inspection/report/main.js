// The page's state, and who hears of a change.
const TABS = { text: "Attention", weights: "Geometry" };
const tabs = Object.keys(TABS).filter((tab) => data.stats.some((stat) => stat.tab === tab));
const mappedIn = (tab) => data.stats.filter((stat) => stat.tab === tab && (stat.mapped || tab === "weights"));
const state = { tab: tabs[0], stat: mappedIn(tabs[0])[0] || data.stats[0], layer: 0, head: 0 };

function choose(layer, head, scroll) {
  Object.assign(state, { layer, head });
  map.mark();
  headPanel.show();
  const view = viewIndex(layer, head);
  if (view >= 0) reader.show(view);
  history.replaceState(null, "", `#h${layer}.${head}`);
  const narrow = window.matchMedia("(max-width: 860px)").matches;
  if (scroll && narrow) headPanel.element.scrollIntoView({ block: "start" });
}

function chooseTab(tab) {
  state.tab = tab;
  [...document.getElementById("tabs").children].forEach((button) => {
    const on = button.dataset.tab === tab;
    button.setAttribute("aria-selected", String(on));
    button.tabIndex = on ? 0 : -1;
  });
  const stats = document.getElementById("stats");
  fill(stats, ...mappedIn(tab).map((stat) => make("button", { role: "radio", "data-stat": stat.name, onclick: () => chooseStat(stat) }, stat.label)));
  chooseStat(state.stat.tab === tab ? state.stat : mappedIn(tab)[0] || data.stats[0]);
  headPanel.show();
}

function chooseStat(stat) {
  state.stat = stat;
  [...document.getElementById("stats").children].forEach((button) => {
    const on = button.dataset.stat === stat.name;
    button.setAttribute("aria-checked", String(on));
    button.tabIndex = on ? 0 : -1;
  });
  map.paint();
  if (state.tab === "weights") headPanel.show();
}

// A radio group has one stop for Tab; arrows move inside it.
function rove(group) {
  group.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const all = [...group.children], next = all[(all.indexOf(document.activeElement) + by + all.length) % all.length];
    next.focus();
    next.click();
  });
}

function fromAddress(scroll) {
  const found = /^#h(\d+)\.(\d+)$/.exec(location.hash);
  if (!found || !map.cells[+found[1]]?.[+found[2]]) return false;
  choose(+found[1], +found[2], false);
  if (scroll) document.getElementById("heads").scrollIntoView({ block: "start" });
  return true;
}

// The head that the page opens with: one whose behaviour shows at a glance in the text, if there is one.
function opening() {
  for (const wanted of ["previous_token", "local"]) {
    const found = data.views.find(({ layer, head }) => findingsOf(layer, head).some(([kind]) => kind === wanted));
    if (found) return { layer: found.layer, head: found.head };
  }
  const [, layer, head] = data.findings[0] || [null, 0, 0];
  return { layer, head };
}

function start() {
  const choice = document.getElementById("tabs");
  choice.hidden = tabs.length < 2;
  tabs.forEach((tab) => choice.append(make("button", { role: "tab", "data-tab": tab, onclick: () => chooseTab(tab) }, TABS[tab])));
  rove(choice);
  rove(document.getElementById("stats"));
  map.build();
  reader.build();
  if (data.views.length) reader.show(0);
  if (!fromAddress(false)) {
    Object.assign(state, opening());
    map.mark();
    headPanel.show();
    const view = viewIndex(state.layer, state.head);
    if (view >= 0) reader.show(view);
  }
  chooseTab(state.tab);
  document.querySelectorAll("[data-kind]").forEach((button) => button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    document.querySelectorAll("[data-kind]").forEach((other) => other.setAttribute("aria-pressed", "false"));
    button.setAttribute("aria-pressed", String(on));
    map.filter(on ? button.dataset.kind : null);
    if (on && tabs.includes(data.kinds[button.dataset.kind].tab)) chooseTab(data.kinds[button.dataset.kind].tab);
    if (on) document.getElementById("heads").scrollIntoView({ block: "start" });
  }));
  document.querySelectorAll("a.chip").forEach((chip) => chip.addEventListener("click", (event) => {
    event.preventDefault();
    history.replaceState(null, "", chip.getAttribute("href"));
    fromAddress(true);
  }));
  window.addEventListener("hashchange", () => fromAddress(true));
  dark.addEventListener("change", () => map.paint());
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; headPanel.show(); } });
}
if (data.layers.length) start();
