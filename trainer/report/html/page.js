"use strict";
// Draws the curves and heat maps of report.html. Everything it needs is in the page: numbers in #data, Plotly in #library.

const PERCENT = ".0%";
const DASHES = ["solid", "dash", "dot", "dashdot"];
const DASH_PATTERNS = ["", "6 4", "2 3", "7 3 2 3"]; // the same, for the legend
const OCTAVES = 3; // heat maps of loads go from 1/8 of the even share to 8 times
const NUMBERED = 16; // most experts for which cells have room for their numbers
const NUMBERED_NARROW = 8;
const LONGEST_ROW = 22; // characters of a row's name in a heat map
const PLAY_MS = 140;
const PAPER = { width: 318, height: 190 }; // of a plot in pixels: two stand side by side on A4 and Letter
const AHEAD = "800px"; // plots are drawn when they come this near

const byId = (id) => document.getElementById(id);
const make = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;"); // Plotly reads markup
const cut = (text, most) => (text.length <= most ? text : text.slice(0, most - 1) + "…");
const isNarrow = () => innerWidth < 640;

const isLayered = (panel) => panel.names.every((name) => /^layer \d+$/.test(name));

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

/** A colour between two, both as #rrggbb: 0 is the first, 1 the second. */
function mixed(one, other, share) {
  const channel = (colour, place) => parseInt(colour.slice(1 + 2 * place, 3 + 2 * place), 16);
  const channels = [0, 1, 2].map((place) => Math.round(channel(one, place) * (1 - share) + channel(other, place) * share));
  return `rgb(${channels.join(",")})`;
}

function swatch(colour, dash) {
  return (
    `<svg width="22" height="8" aria-hidden="true"><line x1="0" y1="4" x2="22" y2="4" stroke="${colour}" stroke-width="2.5" ` +
    `stroke-dasharray="${DASH_PATTERNS[dash]}"/></svg>`
  );
}

class Page {
  constructor(data) {
    this.data = data;
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.printing = false;
    this.hidden = new Set(); // settings that are switched off
    this.plots = new Map(); // element to the function that draws it
    this.drawn = new Set();
    this.nearby = new IntersectionObserver(
      (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => this.draw(entry.target)),
      { rootMargin: AHEAD },
    );
  }

  get theme() {
    return this.data.themes[this.dark.matches && !this.printing ? "dark" : "light"];
  }

  get several() {
    return this.data.runs.length > 1;
  }

  start() {
    this.fillNavigation();
    if (byId("settings")) this.fillLegend();
    for (const section of this.data.sections)
      section.panels.forEach((panel, index) => this.addPanel(byId(`${section.id}-${index}`), panel));
    for (const [id, panel] of Object.entries(this.data.atlas)) this.add(byId(id), (element) => this.drawAtlas(element, panel));
    if (byId("loads")) new Loads(this).start();
    this.dark.addEventListener("change", () => this.redraw());
    addEventListener("beforeprint", () => {
      this.printing = true;
      if (byId("settings")) this.fillLegend();
      for (const element of this.plots.keys()) this.draw(element);
    });
    addEventListener("afterprint", () => {
      this.printing = false;
      this.redraw();
    });
  }

  /** Draw into an element when it comes near, and again whenever that is needed. */
  add(element, draw) {
    this.plots.set(element, draw);
    this.nearby.observe(element);
  }

  draw(element) {
    this.nearby.unobserve(element);
    this.drawn.add(element);
    this.plots.get(element)(element);
  }

  redraw() {
    if (byId("settings")) this.fillLegend();
    for (const element of this.drawn) this.draw(element);
  }

  plot(element, traces, layout) {
    const theme = this.theme;
    const axis = { gridcolor: theme.grid, linecolor: theme.grid, zeroline: false, fixedrange: false, tickfont: { color: theme.soft } };
    const touch = matchMedia("(pointer: coarse)").matches; // there, dragging scrolls the page
    const whole = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: theme.ink },
      margin: { l: 44, r: 10, t: 8, b: 32 },
      showlegend: false,
      dragmode: touch ? false : "zoom",
      hoverlabel: { bgcolor: theme.page, bordercolor: theme.grid, font: { color: theme.ink, size: 12 }, align: "left", namelength: 48 },
      ...layout,
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
    };
    if (this.printing) {
      const height = element.classList.contains("heat") ? element.clientHeight : PAPER.height;
      Object.assign(whole, { width: PAPER.width, height, font: { ...whole.font, size: 10 } });
    }
    Plotly.react(element, traces, whole, { displayModeBar: false, responsive: true, doubleClick: "reset", showTips: false });
    element.dataset.drawn = traces.length;
  }

  fillNavigation() {
    for (const section of document.querySelectorAll("section[data-name]"))
      byId("sections").append(make("a", { href: `#${section.id}`, textContent: section.dataset.name }));
  }

  // Settings, each with a colour of its own

  colour(group) {
    return this.theme.lines[group % this.theme.lines.length];
  }

  dash(group) {
    return Math.floor(group / this.theme.lines.length) % DASHES.length;
  }

  fillLegend() {
    byId("settings").replaceChildren(
      ...this.data.groups.map((name, group) => {
        const label = make("label", { title: "double-click: this one only" });
        const box = make("input", { type: "checkbox", checked: !this.hidden.has(group) });
        box.addEventListener("change", () => this.show(group, box.checked));
        label.addEventListener("dblclick", (event) => this.showOnly(event, group));
        label.append(box);
        label.insertAdjacentHTML("beforeend", swatch(this.colour(group), this.dash(group)));
        label.append(make("span", { textContent: name }));
        return label;
      }),
    );
    const each = byId("each");
    if (each) each.onchange = () => this.redraw();
  }

  show(group, shown) {
    if (shown) this.hidden.delete(group);
    else this.hidden.add(group);
    for (const element of this.drawn) this.draw(element);
  }

  showOnly(event, group) {
    event.preventDefault();
    const others = this.data.groups.map((_, other) => other).filter((other) => other !== group);
    const alone = others.every((other) => this.hidden.has(other));
    this.hidden = new Set(alone ? [] : others);
    this.redraw();
  }

  // Curves

  addPanel(element, panel) {
    const caption = element.parentElement.querySelector("figcaption");
    panel.chosen = panel.metrics.at(isLayered(panel) ? -1 : 0);
    if (this.several && panel.metrics.length > 1) {
      const select = make("select", { ariaLabel: panel.title });
      panel.metrics.forEach((metric, index) => select.append(make("option", { value: metric, textContent: panel.names[index] })));
      select.value = panel.chosen;
      select.addEventListener("change", () => {
        panel.chosen = select.value;
        this.draw(element);
      });
      caption.append(select);
    } else if (panel.metrics.length > 1) {
      caption.append(make("ul", { className: "keys" }));
    }
    this.add(element, () => this.drawPanel(element, panel));
  }

  drawPanel(element, panel) {
    const traces = this.several ? this.curvesOfSettings(panel.chosen) : this.curvesOfMetrics(element, panel);
    const metrics = this.several ? [panel.chosen] : panel.metrics;
    const chances = [...new Set(metrics.map((metric) => this.data.chance[metric]).filter((value) => value !== undefined))];
    const soft = this.theme.soft;
    this.plot(element, traces, {
      hovermode: traces.length > 8 ? "closest" : "x unified",
      xaxis: { title: { text: "step", standoff: 4, font: { size: 11, color: soft } }, hoverformat: ",d", nticks: 6 },
      yaxis: { tickformat: panel.share ? PERCENT : "", hoverformat: panel.share ? ".1%" : ".4~g", automargin: true, nticks: 6 },
      shapes: chances.map((y) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: soft, width: 1, dash: "dot" } })),
      annotations: chances.slice(0, 1).map((y) => ({
        ...{ xref: "paper", x: 1, y, xanchor: "right", yanchor: "bottom", showarrow: false },
        ...{ text: "chance", font: { size: 11, color: soft } },
      })),
    });
  }

  curve(packed, trace) {
    const x = this.data.steps[packed.x];
    const points = x.length < 2 || packed.y.filter((value) => value !== null).length < 3;
    return { type: "scatter", mode: points ? "lines+markers" : "lines", x, y: packed.y, connectgaps: false, marker: { size: 5 }, ...trace };
  }

  /** One run: a line a metric. */
  curvesOfMetrics(element, panel) {
    const colours = this.coloursOf(panel);
    const keys = element.parentElement.querySelector(".keys");
    keys?.replaceChildren(
      ...panel.names.map((name, index) => {
        const item = make("li", { innerHTML: swatch(colours[index], this.dash(index)) });
        item.append(name);
        return item;
      }),
    );
    return panel.metrics.map((metric, index) =>
      this.curve(this.data.curves[metric][0], {
        name: escaped(panel.names[index]),
        line: { color: colours[index], width: 1.8, dash: DASHES[this.dash(index)] },
      }),
    );
  }

  /** Images are blue and texts orange; of several layers the deeper are the stronger. */
  coloursOf(panel) {
    const theme = this.theme;
    const modality = (metric) => metric.match(/[/](image|text)$/)?.[1];
    const own = panel.metrics.map((metric) => theme[modality(metric)]);
    if (new Set(panel.metrics.map(modality)).size === panel.metrics.length && own.every(Boolean)) return own;
    if (!isLayered(panel)) return panel.metrics.map((_, index) => this.colour(index));
    const deepest = Math.max(1, panel.metrics.length - 1);
    return panel.metrics.map((_, index) => mixed(own[0] ?? theme.lines[0], theme.page, 0.5 * (1 - index / deepest)));
  }

  /** Several runs: a line a setting with its deviation, or a line a run. */
  curvesOfSettings(metric) {
    const means = byId("each")?.checked ? {} : (this.data.means[metric] ?? {});
    const traces = [];
    this.data.groups.forEach((name, group) => {
      const line = { color: this.colour(group), width: 1.8, dash: DASHES[this.dash(group)] };
      if (this.hidden.has(group)) return;
      if (means[group]) return traces.push(...this.band(means[group], name, line));
      this.data.runs.forEach((run, index) => {
        const packed = this.data.curves[metric]?.[index];
        if (run.group !== group || !packed) return;
        const thin = this.data.runs.filter((other) => other.group === group).length > 1;
        traces.push(this.curve(packed, { name: escaped(thin ? run.name : name), line: { ...line, width: thin ? 1 : line.width } }));
      });
    });
    return traces;
  }

  band(packed, name, line) {
    const shade = mixed(line.color, line.color, 0).replace("rgb", "rgba").replace(")", ",0.15)");
    const edge = (sign) => packed.y.map((value, index) => (value === null ? null : value + sign * packed.spread[index]));
    const hidden = { mode: "lines", hoverinfo: "skip", line: { width: 0, color: line.color } };
    return [
      this.curve({ x: packed.x, y: edge(-1) }, hidden),
      this.curve({ x: packed.x, y: edge(1) }, { ...hidden, fill: "tonexty", fillcolor: shade }),
      this.curve(packed, { name: escaped(name), line }),
    ];
  }

  // Heat maps

  scale() {
    return [
      [0, this.theme.gained],
      [0.5, this.theme.page],
      [1, this.theme.lost],
    ];
  }

  expertAxis(experts) {
    return { side: "top", dtick: experts <= NUMBERED ? 1 : undefined, ticks: "", showgrid: false, fixedrange: true, range: [-0.5, experts - 0.5] };
  }

  rowAxis(rows) {
    return {
      ...{ tickvals: rows.map((_, row) => row), ticktext: rows.map((row) => escaped(cut(row, LONGEST_ROW))), range: [rows.length - 0.5, -0.5] },
      ...{ automargin: true, ticks: "", showgrid: false, fixedrange: true },
    };
  }

  drawAtlas(element, panel) {
    const experts = panel.values[0].length;
    const largest = Math.max(0.1, ...panel.values.flat().map(Math.abs));
    const said = panel.values.map((row) => row.map((value) => String(Math.round(100 * value) || "").replace("-", "−")));
    const trace = {
      ...{ type: "heatmap", z: panel.values, text: said, colorscale: this.scale(), zmin: -largest, zmax: largest, showscale: false },
      ...{ xgap: 1, ygap: 1, customdata: panel.rows.map((row) => Array(experts).fill(escaped(row))) },
      hovertemplate: "%{customdata}<br>without expert %{x}: %{z:.1%} lost<extra></extra>",
    };
    if (experts <= (isNarrow() ? NUMBERED_NARROW : NUMBERED)) trace.texttemplate = "%{text}";
    const layout = { margin: { l: 20, r: 4, t: 22, b: 4 }, dragmode: false };
    this.plot(element, [trace], { ...layout, xaxis: this.expertAxis(experts), yaxis: this.rowAxis(panel.rows) });
  }
}

/** The load of the experts: at one moment, which a slider chooses, and over the whole run. */
class Loads {
  constructor(page) {
    this.page = page;
    this.slider = byId("loads-step");
    this.moments = []; // heat maps of the chosen moment
    this.histories = [];
  }

  get run() {
    return this.page.data.loads[byId("loads-run")?.value ?? Object.keys(this.page.data.loads)[0]];
  }

  start() {
    byId("loads-run")?.addEventListener("change", () => this.fill());
    this.slider.addEventListener("input", () => this.moveSoon());
    byId("loads-play").addEventListener("click", () => this.play());
    this.fill();
  }

  fill() {
    for (const element of [...this.moments, ...this.histories]) {
      this.page.plots.delete(element);
      this.page.drawn.delete(element);
    }
    this.moments = [];
    this.histories = [];
    this.slider.max = this.run.steps.length - 1;
    this.slider.value = this.slider.max;
    for (const place of ["loads-moments", "loads-histories"]) byId(place).replaceChildren();
    byId("loads-over").hidden = this.run.steps.length < 2;
    for (const [name, layer] of Object.entries(this.run.layers)) this.addLayer(name.replace(/^layer0*(?=\d)/, "layer "), layer);
    this.say();
  }

  addLayer(title, layer) {
    const modalities = Object.keys(layer);
    byId("loads-moments").append(this.figure(title, modalities.length, this.moments, (element) => this.drawMoment(element, layer)));
    if (this.run.steps.length < 2) return;
    const rows = Math.min(12, Math.max(4, layer[modalities[0]][0].length * 0.75));
    for (const modality of modalities) {
      const draw = (element) => this.drawHistory(element, layer[modality]);
      byId("loads-histories").append(this.figure(`${title}, ${modality}`, rows, this.histories, draw));
    }
  }

  figure(title, rows, list, draw) {
    const figure = make("figure", { className: "panel" });
    const caption = make("figcaption");
    caption.append(make("b", { textContent: title }));
    figure.append(caption);
    const element = make("div", { className: "plot heat", role: "img", ariaLabel: `Load of the experts, ${title}` });
    element.style.setProperty("--rows", rows);
    figure.append(element);
    list.push(element);
    this.page.add(element, () => draw(element));
    return figure;
  }

  heat(loads) {
    const height = (load) => (load === null ? null : Math.max(-OCTAVES, Math.min(OCTAVES, Math.log2(Math.max(load, 1e-9)))));
    const z = loads.map((row) => row.map(height));
    return { type: "heatmap", z, customdata: loads, colorscale: this.page.scale(), zmin: -OCTAVES, zmax: OCTAVES, showscale: false };
  }

  drawMoment(element, layer) {
    const rows = Object.keys(layer);
    const loads = rows.map((modality) => layer[modality][this.slider.value]);
    const experts = loads[0].length;
    const trace = { ...this.heat(loads), xgap: 1, ygap: 1 };
    trace.hovertemplate = "expert %{x}: %{customdata:.2f} of its even share<extra></extra>";
    if (experts <= (isNarrow() ? NUMBERED_NARROW : NUMBERED)) {
      trace.text = loads.map((row) => row.map((load) => load?.toFixed(1) ?? ""));
      trace.texttemplate = "%{text}";
    }
    const layout = { margin: { l: 20, r: 4, t: 22, b: 4 }, dragmode: false };
    this.page.plot(element, [trace], { ...layout, xaxis: this.page.expertAxis(experts), yaxis: this.page.rowAxis(rows) });
  }

  drawHistory(element, history) {
    const experts = history[0].length;
    const steps = this.run.steps;
    const byExpert = Array.from({ length: experts }, (_, expert) => history.map((loads) => loads[expert] ?? null));
    const trace = { ...this.heat(byExpert), x: steps };
    trace.hovertemplate = "expert %{y}, step %{x:,d}: %{customdata:.2f}<extra></extra>";
    this.page.plot(element, [trace], {
      margin: { l: 28, r: 4, t: 4, b: 26 },
      dragmode: false,
      shapes: [this.mark()],
      xaxis: { fixedrange: true, showgrid: false, nticks: 6 },
      yaxis: { fixedrange: true, showgrid: false, ticks: "", range: [experts - 0.5, -0.5], dtick: experts <= NUMBERED ? 1 : undefined },
    });
    element.removeAllListeners("plotly_click");
    element.on("plotly_click", (event) => {
      this.slider.value = steps.indexOf(event.points[0].x);
      this.moveSoon();
    });
  }

  mark() {
    const step = this.run.steps[this.slider.value];
    return { type: "line", yref: "paper", x0: step, x1: step, y0: 0, y1: 1, line: { color: this.page.theme.ink, width: 1.5 } };
  }

  moveSoon() {
    cancelAnimationFrame(this.soon);
    this.soon = requestAnimationFrame(() => this.move());
  }

  move() {
    this.say();
    for (const element of this.moments) if (this.page.drawn.has(element)) this.page.draw(element);
    for (const element of this.histories) if (this.page.drawn.has(element)) Plotly.relayout(element, { shapes: [this.mark()] });
  }

  say() {
    byId("loads-said").textContent = `step ${this.run.steps[this.slider.value].toLocaleString("en")}`;
  }

  play() {
    const button = byId("loads-play");
    const stop = () => {
      clearInterval(this.playing);
      this.playing = undefined;
      button.textContent = "▶";
      button.ariaLabel = "Play";
    };
    if (this.playing) return stop();
    if (this.slider.value === this.slider.max) this.slider.value = 0;
    button.textContent = "❚❚";
    button.ariaLabel = "Pause";
    this.playing = setInterval(() => {
      if (this.slider.value === this.slider.max) return stop();
      this.slider.value = Number(this.slider.value) + 1;
      this.move();
    }, PLAY_MS);
  }
}

async function open() {
  const [library, data] = await Promise.all([unpacked("library"), unpacked("data")]);
  document.head.append(make("script", { textContent: library }));
  new Page(JSON.parse(data)).start();
  document.documentElement.dataset.ready = "true";
}

open().catch((problem) => {
  const trouble = byId("trouble");
  trouble.hidden = false;
  trouble.textContent = `Curves and heat maps cannot be drawn (${problem.message}): they need a browser of 2023 or newer.`;
  console.error(problem);
});
