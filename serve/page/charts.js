/* Charts of runs: a canvas, what it shows in words, and a table of it. It knows curves and no server. */
import { smoothed, thinned } from "./curves.js";

const { uPlot } = globalThis;

const count = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 4 });
const precise = (value) => (Math.abs(value) >= 1000 ? count.format(value) : `${Number(value.toPrecision(4))}`);
const small = (value) => (value !== 0 && Math.abs(value) < 0.01 ? value.toExponential(2) : precise(value));

export function duration(seconds) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = units.findIndex(([size]) => seconds >= size);
  if (at < 0) return `${Math.round(seconds)} s`;
  const [[size, unit], next] = [units[at], units[at + 1]];
  const rest = next ? Math.floor((seconds % size) / next[0]) : 0;
  return `${Math.floor(seconds / size)} ${unit}${rest > 0 ? ` ${rest} ${next[1]}` : ""}`;
}

const bytes = (value) => (value >= 1e9 ? `${(value / 1e9).toFixed(2)} GB` : `${(value / 1e6).toFixed(0)} MB`);

const kinds = [
  {
    id: "loss",
    title: "Loss",
    unit: "nats a token",
    y: ["loss"],
    heldOut: true,
    log: true,
    format: precise,
    noisy: true,
  },
  {
    id: "gradNorm",
    title: "Gradient norm",
    unit: "before clipping",
    y: ["gradNorm"],
    log: true,
    format: small,
    noisy: true,
  },
  { id: "learningRate", title: "Learning rate", unit: "of each update", y: ["learningRate"], format: small },
  {
    id: "tokensPerSecond",
    title: "Throughput",
    unit: "tokens a second",
    y: ["tokensPerSecond"],
    zero: true,
    format: precise,
    noisy: true,
  },
  {
    id: "memory",
    title: "Memory",
    unit: "device; dashed: process",
    y: ["deviceMemory", "hostMemory"],
    zero: true,
    format: bytes,
  },
];

const axes = {
  step: { label: "update", format: (value) => count.format(value) },
  tokens: { label: "tokens", format: (value) => compact.format(value) },
  time: { label: "training time", format: duration },
};

/** A color as the page has it now, light or dark. */
function colorOf(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

const faint = (color) => color.replace(/^rgb\((.*)\)$/, "rgba($1, 0.28)");

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

class Chart {
  #plot;
  #series = [];
  #key = "";

  constructor(kind, parent) {
    this.kind = kind;
    this.readout = element("p", { className: "readout", ariaHidden: "true" });
    this.canvas = element("div", { className: "canvas", role: "img" });
    this.summary = element("p", { className: "summary" });
    this.table = element("table");
    this.more = element("details", {}, element("summary", { textContent: `${kind.title} as a table` }), this.table);
    this.more.addEventListener("toggle", () => this.#fillTable());
    const head = element(
      "figcaption",
      {},
      element("h2", { textContent: kind.title }),
      element("span", { className: "unit", textContent: kind.unit }),
      this.readout,
    );
    this.figure = element("figure", { id: `chart-${kind.id}` }, head, this.canvas, this.summary, this.more);
    parent.append(this.figure);
    new ResizeObserver(() => this.#plot?.setSize(this.#size())).observe(this.canvas);
  }

  #size() {
    return { width: Math.max(200, this.canvas.clientWidth), height: this.kind.id === "loss" ? 320 : 200 };
  }

  draw(runs, view) {
    this.view = view;
    this.#series = runs.flatMap((run) => seriesOf(this.kind, run, view)).filter(({ x }) => x.length > 0);
    this.canvas.hidden = this.#series.length === 0;
    const data = this.#series.length === 0 ? [[]] : uPlot.join(this.#series.map(({ x, y }) => [x, y]));
    const key = JSON.stringify([view.x, view.log, view.theme, this.#series.map(({ label, color }) => [label, color])]);
    if (key === this.#key && this.#plot) this.#plot.setData(data);
    else {
      this.#plot?.destroy();
      this.#plot = new uPlot(this.#options(), data, this.canvas);
    }
    this.#key = key;
    this.#describe();
    this.#fillTable();
  }

  #options() {
    const { kind, view } = this;
    const [ink, line] = [colorOf("--muted"), colorOf("--line")];
    const axis = {
      stroke: ink,
      grid: { stroke: line, width: 1 },
      ticks: { show: false },
      font: "12px system-ui, sans-serif",
    };
    const log = view.log && kind.log;
    const range = (
      _,
      low,
      high,
    ) => (low === null
      ? [0, 1]
      : uPlot.rangeNum(kind.zero ? 0 : low, high === low ? low + Math.abs(low || 1) * 0.1 : high, 0.06, true));
    return {
      ...this.#size(),
      legend: { show: false },
      cursor: {
        y: false,
        sync: { key: `runs-${view.x}` },
        drag: { x: true, y: false, setScale: true },
        points: { size: 6 },
      },
      scales: { x: { time: false }, y: log ? { distr: 3 } : { range } },
      axes: [
        { ...axis, size: 34, space: 70, values: (_, ticks) => ticks.map((tick) => axes[view.x].format(tick)) },
        {
          ...axis,
          size: 62,
          space: 36,
          values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : kind.format(tick))),
        },
      ],
      series: [
        {},
        ...this.#series.map(({ label, color, width, dash, points }) => ({
          label,
          stroke: color,
          width,
          dash,
          spanGaps: true,
          points: { show: points, size: 5, fill: color },
        })),
      ],
      hooks: { setCursor: [(plot) => this.#readOut(plot)] },
    };
  }

  #readOut(plot) {
    const { idx } = plot.cursor;
    if (idx === null || idx === undefined) return this.readout.textContent = "";
    const at = axes[this.view.x].format(plot.data[0][idx]);
    const values = this.#series.flatMap(({ label, quiet }, i) => {
      const value = plot.data[i + 1][idx];
      return quiet || value === null || value === undefined ? [] : [`${label} ${this.kind.format(value)}`];
    });
    this.readout.textContent = [`${axes[this.view.x].label} ${at}`, ...values].join(" · ");
  }

  #describe() {
    const { format } = this.kind;
    const said = this.#series.filter(({ quiet }) => !quiet).map(({ label, raw, x }) => {
      const values = raw.filter((value) => value !== null);
      if (values.length === 0) return `${label}: nothing yet`;
      const [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [
        Infinity,
        -Infinity,
      ]);
      const at = axes[this.view.x].format(x.at(-1));
      return `${label}: ${format(values.at(-1))} at ${axes[this.view.x].label} ${at}, from ${format(low)} to ${
        format(high)
      }`;
    });
    const text = said.length === 0 ? "Nothing measured yet" : said.join("; ");
    if (this.summary.textContent !== text) this.summary.textContent = text;
    this.canvas.ariaLabel = `${this.kind.title}. ${text}`;
  }

  /** Some values of each curve, evenly over its length. */
  #fillTable() {
    if (!this.more.open) return;
    const shown = this.#series.filter(({ quiet }) => !quiet);
    const head = element(
      "tr",
      {},
      ...["Curve", axes[this.view.x].label, this.kind.title].map((textContent) =>
        element("th", { scope: "col", textContent })
      ),
    );
    const rows = shown.flatMap(({ label, x, raw }) => {
      const some = Math.min(12, x.length);
      return Array.from({ length: some }, (_, i) => {
        const at = some === 1 ? 0 : Math.round(i * (x.length - 1) / (some - 1));
        const value = raw[at] === null ? "not finite" : this.kind.format(raw[at]);
        return element(
          "tr",
          {},
          ...[label, axes[this.view.x].format(x[at]), value].map((textContent) => element("td", { textContent })),
        );
      });
    });
    this.table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
  }
}

/** Curves of one run in one chart. A noisy measure is drawn faint, its running mean over it. */
function seriesOf(kind, { name, color, heldOutColor, curves }, view) {
  const positive = (values) => (view.log && kind.log ? values.map((value) => (value > 0 ? value : null)) : values);
  const line = (label, x, raw, more) => {
    const [tx, ty] = thinned(x, positive(more.y ?? raw));
    return { label, x: tx, y: ty, raw, color, width: 2, points: raw.length === 1, ...more, ...{ y: ty } };
  };
  const x = curves.x(view.x);
  const weight = kind.noisy ? view.smoothing : 0;
  const made = kind.y.filter((measure) => curves.updates[measure].some((value) => value !== null)).flatMap(
    (measure) => {
      const raw = curves.updates[measure];
      const label = measure === "hostMemory" ? `${name} (process)` : name;
      const dash = measure === "hostMemory" ? [6, 5] : undefined;
      if (weight === 0) return [line(label, x, raw, { dash })];
      const under = line(`${label} raw`, x, raw, { color: faint(color), width: 1, quiet: true, points: false });
      return [under, line(label, x, raw, { y: smoothed(raw, weight), dash })];
    },
  );
  if (!kind.heldOut || curves.heldOut.step.length === 0) return made;
  const held = curves.heldOut;
  return [
    ...made,
    line(`${name} held-out`, curves.heldOutX(view.x), held.loss, {
      dash: [6, 4],
      color: heldOutColor,
      points: held.step.length < 60,
      width: 1.5,
    }),
  ];
}

/** @returns a function that draws all charts of these runs: `{ name, color, curves }`, colors being names of CSS variables. The held-out
 * loss has a color of its own where it is that of one run. */
export function createCharts(parent) {
  const charts = kinds.map((kind) => new Chart(kind, parent));
  return (runs, view) => {
    const theme = colorOf("--ink");
    const colored = runs.map((run) => {
      const heldOutColor = colorOf(runs.length === 1 ? "--held-out" : run.color);
      return { ...run, color: colorOf(run.color), heldOutColor };
    });
    for (const chart of charts) chart.draw(colored, { ...view, theme });
  };
}
