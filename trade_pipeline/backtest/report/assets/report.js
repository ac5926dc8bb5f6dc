// Draws the charts and switches between light and dark; `trades.js` stands before it.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const root = document.documentElement;

// ---- Arrays: whole numbers n stand for (offset + step n) / scale; each is decoded once.

const packed = read("arrays");
const unpacked = new Map();
const KINDS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array,
  f8: Float64Array };

function array(number) {
  if (!unpacked.has(number)) {
    const { dtype, bdata, offset, step, scale } = packed[number];
    const bytes = Uint8Array.from(atob(bdata), (letter) => letter.charCodeAt(0));
    let values = new KINDS[dtype](bytes.buffer);
    if (step !== undefined) {
      values = Float64Array.from(values, (count) => (offset + step * count) / scale);
    }
    unpacked.set(number, values);
  }
  return unpacked.get(number);
}

function withArrays(value) {
  if (Array.isArray(value)) return value.map(withArrays);
  if (value === null || typeof value !== "object") return value;
  if ("array" in value) return array(value.array);
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, withArrays(one)]));
}

const figures = read("figures");
const data = read("data");

// ---- Light and dark: the system decides until the button does, which is remembered.

const THEME = "trade_pipeline theme";
try {
  const chosen = localStorage.getItem(THEME);
  if (["light", "dark"].includes(chosen)) root.dataset.theme = chosen;
} catch { /* kept from pages on disk by some browsers: then the choice holds for this page */ }

const system = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;

function colours() {
  const style = getComputedStyle(root);
  return { ink: style.getPropertyValue("--soft"), line: style.getPropertyValue("--line") };
}

function themed(layout) {
  const { ink, line } = colours();
  const changes = { "font.color": ink, "modebar.color": ink };
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
    for (const part of ["gridcolor", "zerolinecolor", "linecolor"]) {
      changes[`${name}.${part}`] = line;
    }
  }
  return changes;
}

function showTheme() {
  root.toggleAttribute("data-dark", isDark());
  themeButton.setAttribute("aria-pressed", String(isDark()));
  for (const id of drawn.keys()) {
    drawn.get(id).then((chart) => Plotly.relayout(chart, themed(figures[id].layout)));
  }
}

// ---- Charts: those in sight first, the others when the browser has nothing else to do.

const config = { responsive: true, displaylogo: false,
  showSendToCloud: false, plotlyServerURL: "", // plotly offers to upload charts by default
  modeBarButtonsToRemove: ["lasso2d", "select2d"] };
const touch = matchMedia("(pointer: coarse)").matches;
const drawn = new Map();

function draw(id) {
  if (!drawn.has(id)) {
    const { data: traces, layout } = withArrays(figures[id]);
    if (touch) layout.dragmode = false; // a finger on a chart scrolls the page
    for (const [path, value] of Object.entries(themed(layout))) {
      const [part, name] = path.split(".");
      layout[part][name] = value;
    }
    const chart = document.getElementById(id);
    drawn.set(id, Plotly.newPlot(chart, traces, layout, config).then(() => prepare(id, chart)));
  }
  return drawn.get(id);
}

function prepare(id, chart) {
  if (kept(id)) chart.on("plotly_relayout", () => showDetail(chart));
  if (id === "excursion-chart") {
    chart.on("plotly_click", (event) => {
      const row = column("number").values.indexOf(event.points[0].customdata);
      if (row >= 0) showTrade(row);
    });
  }
  return chart;
}

function drawAll(then) {
  const waiting = Object.keys(figures).filter((id) => document.getElementById(id));
  const idle = window.requestIdleCallback || ((work) => setTimeout(work, 1));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      seen.unobserve(entry.target);
      draw(entry.target.id);
    }
  }, { rootMargin: "200px" });
  waiting.forEach((id) => seen.observe(document.getElementById(id)));
  const next = () => {
    const id = waiting.find((one) => !drawn.has(one));
    if (id !== undefined) {
      draw(id).then(() => idle(next));
    } else {
      root.dataset.charts = "drawn";
    }
  };
  // After the first look of the observer, which takes those in sight.
  requestAnimationFrame(() => requestAnimationFrame(() => {
    Promise.all(drawn.values()).then(() => {
      root.dataset.charts = "in sight";
      idle(() => { then(); next(); });
    });
  }));
}

for (const button of document.querySelectorAll("button.log")) {
  button.addEventListener("click", () => {
    const log = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(log));
    draw(button.dataset.chart).then((chart) =>
      Plotly.relayout(chart, { "yaxis.type": log ? "log" : "linear" }));
  });
}

// ---- Candles: once all bars in sight are kept at full resolution, they take the candles' place.

const PRICES = ["open", "high", "low", "close"];
const windows = new Map();

function kept(id) {
  if (!data.windows || !(id in data.windows)) return null;
  if (!windows.has(id)) windows.set(id, withArrays(data.windows[id]));
  return windows.get(id);
}

const ms = (value) => typeof value === "number" ? value : Date.parse(
  value.replace(" ", "T") + (value.includes(" ") ? "" : "T00:00") + "Z");

function showDetail(chart) {
  const [from, to] = chart.layout.xaxis.autorange ? [-Infinity, Infinity]
    : chart.layout.xaxis.range.map(ms);
  const stretch = stretchAround(kept(chart.id), from, to);
  if (String(chart.stretch) !== String(stretch)) {
    Plotly.react(chart, detailed(chart, chart.data, stretch), chart.layout);
  }
}

function detailed(chart, traces, stretch) {
  chart.stretch = stretch;
  const bars = kept(chart.id);
  const hint = document.getElementById(`${chart.id}-detail`);
  hint.dataset.candles ??= hint.textContent;
  hint.textContent = stretch ? "Each candle is one bar." : hint.dataset.candles;
  return traces.map((trace, place) => {
    const first = figures[chart.id].data[place];
    if (trace.type === "candlestick") {
      const shown = { ...trace };
      shown.x = stretch ? bars.ts.subarray(...stretch) : withArrays(first.x);
      for (const name of PRICES) {
        shown[name] = stretch ? bars[name].subarray(...stretch) : withArrays(first[name]);
      }
      return shown;
    }
    if (first && first.mode === "markers") { // small where many stand close together
      return { ...trace, marker: { ...trace.marker, size: stretch ? 10 : first.marker.size } };
    }
    return trace;
  });
}

function stretchAround(bars, from, to) {
  [from, to] = [Math.max(from, bars.first), Math.min(to, bars.last)];
  for (let number = 0; number < bars.starts.length; number++) {
    const first = bars.starts[number];
    const end = number + 1 < bars.starts.length ? bars.starts[number + 1] : bars.ts.length;
    if (bars.ts[first] <= from && to <= bars.ts[end - 1]) return [first, end];
  }
  return null;
}

// ---- Paper: what is folded shows.

const folded = document.querySelectorAll("details:not(.meaning, [open])");
addEventListener("beforeprint", () => folded.forEach((one) => { one.open = true; }));
addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));

// ---- Start.

themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem(THEME, root.dataset.theme);
  } catch { /* as above */ }
  showTheme();
});
system.addEventListener("change", showTheme);
showTheme();
drawAll(startTrades);
