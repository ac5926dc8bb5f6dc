"use strict";
// The trade list: sorts, filters, pages, and shows a trade in its chart; `report.js` follows it.
// Names from data reach the page as text only: textContent, never markup.

let trades = null; // decoded when the charts in sight are drawn
const view = { order: [], page: 0, sort: null, down: false };
const RESULTS = ["net", "return", "realised", "unrealised"];
const MOST_PRINTED = 2_000; // about 40 sheets
const column = (key) => trades.columns.find((one) => one.key === key);

function value(one, row) {
  if (one.kind === "text") return one.codes[row] ? one.names[one.codes[row] - 1] : null;
  return Number.isNaN(one.values[row]) ? null : one.values[row];
}

function shownText(one, row) {
  const found = value(one, row);
  if (found === null) return "–";
  if (one.kind === "text") return found;
  if (one.kind === "time") {
    return new Date(found).toISOString().slice(0, trades.wholeDays ? 10 : 16).replace("T", " ");
  }
  one.format ??= new Intl.NumberFormat("en-US", { minimumFractionDigits: one.places,
    maximumFractionDigits: one.places });
  const unit = one.kind === "percent" ? " %" : "";
  const number = unit ? found * 100 : found;
  let text = one.format.format(number);
  if (number && !/[1-9]/.test(text)) { // not nothing, though it rounds to that
    text = number.toLocaleString("en-US", { maximumSignificantDigits: 1 });
  }
  return text.replace("-", "−") + unit;
}

function fillPage(first = view.page * trades.page, end = first + trades.page) {
  const body = document.querySelector("#trades-table tbody");
  const shown = trades.columns.filter((one) => one.shown);
  const rows = Array.from(view.order.slice(first, end), (row) => {
    const line = document.createElement("tr");
    line.dataset.row = row;
    line.setAttribute("aria-current", String(row === view.chosen));
    shown.forEach((one, place) => {
      const cell = document.createElement(place ? "td" : "th");
      if (!place) cell.scope = "row";
      if (one.kind !== "text") cell.className = "number";
      const text = shownText(one, row);
      if (!place && chartOf(row)) {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = text;
        button.title = `Show trade ${text} in the chart`;
        cell.append(button);
      } else {
        cell.textContent = text;
      }
      if (RESULTS.includes(one.key) && value(one, row)) {
        cell.classList.add(value(one, row) > 0 ? "win" : "lose");
      }
      line.append(cell);
    });
    return line;
  });
  body.replaceChildren(...rows);
  const count = view.order.length;
  const pages = Math.max(1, Math.ceil(count / trades.page));
  const sumOf = (keys) => keys.map(column).filter(Boolean).reduce((total, one) =>
    total + view.order.reduce((sum, row) => sum + (value(one, row) ?? 0), 0), 0);
  const open = view.order.filter((row) => value(column("net"), row) === null).length;
  const format = (number, places = 0) => number.toLocaleString("en-US",
    { minimumFractionDigits: places, maximumFractionDigits: places }).replace("-", "−");
  document.getElementById("trades-count").textContent = `${format(count)} of `
    + `${format(trades.rows)} trades, net together ${format(sumOf(["net"]), 2)}`
    + (open ? `; ${format(open)} still open, with ${format(sumOf(["realised", "unrealised"]), 2)}`
      + " so far." : ".")
    + (trades.charts.length ? " A trade's number shows it in the chart." : "");
  document.getElementById("trades-page").textContent = `Page ${view.page + 1} of ${pages}`;
  for (const button of document.querySelectorAll("#trades-pager [data-to]")) {
    const back = ["first", "previous"].includes(button.dataset.to);
    button.disabled = back ? view.page === 0 : view.page === pages - 1;
  }
}

function arrange() {
  const words = document.getElementById("trades-search").value.toLowerCase().split(/\s+/)
    .filter(Boolean);
  const result = document.getElementById("trades-result").value;
  const chosen = Array.from(document.querySelectorAll("#trades-controls [data-filter]"))
    .filter((select) => select.value).map((select) => [column(select.dataset.filter), select.value]);
  const net = column("net");
  const searched = trades.columns.filter((one) => ["text", "time"].includes(one.kind));
  const order = [];
  for (let row = 0; row < trades.rows; row++) {
    const found = value(net, row);
    const kind = found === null ? "open" : found > 0 ? "win" : "loss";
    if (result && result !== kind) continue;
    if (chosen.some(([one, wanted]) => value(one, row) !== wanted)) continue;
    if (words.length) {
      const text = searched.map((one) => shownText(one, row)).join(" ").toLowerCase();
      if (!words.every((word) => text.includes(word))) continue;
    }
    order.push(row);
  }
  if (view.sort) {
    const one = column(view.sort);
    const sign = view.down ? -1 : 1;
    // What has no value stands last either way; equals stay in the order of entry.
    order.sort((a, b) => {
      const [left, right] = [value(one, a), value(one, b)];
      if (left === null || right === null) return (left === null) - (right === null) || a - b;
      return sign * (left < right ? -1 : left > right ? 1 : 0) || a - b;
    });
  }
  view.order = order;
  view.page = 0;
  fillPage();
}

const chartOf = (row) => {
  const found = trades.charts.find(([name]) => name === value(column("instrument"), row));
  return found ? found[1] : null;
};

async function showTrade(row) {
  const id = chartOf(row);
  if (!id) return;
  view.chosen = row;
  for (const line of document.querySelectorAll("#trades-table tbody tr")) {
    line.setAttribute("aria-current", String(Number(line.dataset.row) === row));
  }
  const chart = await draw(id);
  const at = (key) => value(column(key), row);
  const [entry, exit] = [at("entry_time"), at("exit_time") ?? at("entry_time")];
  const full = kept(id);
  const around = (times) => {
    const room = 20 * (times.length > 1 ? smallestStep(times) : 60_000);
    return [entry - room, exit + room];
  };
  // Twenty bars on either side, or candles where its bars are not kept one by one.
  const stretch = full && stretchAround(full, ...around(full.ts));
  const place = chart.data.findIndex((trace) => trace.type === "candlestick");
  const [from, to] = around(stretch ? full.ts : withArrays(figures[id].data[place].x));
  const mark = { type: "scatter", mode: "lines+markers", name: `trade ${at("number")}`,
    showlegend: false, hoverinfo: "skip", x: [entry], y: [at("entry_price")], meta: "chosen",
    line: { color: "#bf3989", width: 2, dash: "dot" },
    marker: { size: 14, symbol: "circle-open", color: "#bf3989", line: { width: 2 } } };
  if (at("exit_time") !== null) {
    mark.x.push(exit);
    mark.y.push(at("exit_price"));
  }
  const traces = chart.data.filter((trace) => trace.meta !== "chosen");
  const shown = full ? detailed(chart, traces, stretch) : traces;
  const seen = visible(shown.find((trace) => trace.type === "candlestick"), from, to);
  const low = Math.min(...mark.y, seen[0]);
  const high = Math.max(...mark.y, seen[1]);
  const margin = 0.05 * (high - low) || 0.01 * high;
  const axes = { xaxis: { ...chart.layout.xaxis, range: [from, to], autorange: false },
    yaxis: { ...chart.layout.yaxis, range: [low - margin, high + margin], autorange: false } };
  await Plotly.react(chart, [...shown, mark], { ...chart.layout, ...axes });
  chart.scrollIntoView({ block: "center",
    behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

function smallestStep(times) {
  let least = Infinity;
  for (let place = 1; place < times.length; place++) {
    least = Math.min(least, times[place] - times[place - 1]);
  }
  return least;
}

function visible(bars, from, to) {
  let [low, high] = [Infinity, -Infinity];
  for (let place = 0; place < bars.x.length; place++) {
    if (bars.x[place] >= from && bars.x[place] <= to) {
      low = Math.min(low, bars.low[place]);
      high = Math.max(high, bars.high[place]);
    }
  }
  return [low, high];
}

function csv() {
  // A text that begins like a formula would be run as one by a spreadsheet.
  const quoted = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? "'" + text : text)
    .replaceAll('"', '""')}"`;
  const written = (one, row) => {
    const found = value(one, row);
    if (found === null) return "";
    if (one.kind === "text") return quoted(found);
    return one.kind === "time" ? new Date(found).toISOString() : String(found);
  };
  const lines = [trades.columns.map((one) => one.key).join(",")];
  for (const row of view.order) {
    lines.push(trades.columns.map((one) => written(one, row)).join(","));
  }
  return lines.join("\r\n") + "\r\n";
}

// On paper: all trades that are chosen, in their order, then the page as it was.
function printTrades() {
  const count = view.order.length;
  fillPage(0, MOST_PRINTED);
  document.getElementById("trades-printed").textContent = count <= MOST_PRINTED ? ""
    : `Printed are the first ${MOST_PRINTED.toLocaleString("en-US")} of `
      + `${count.toLocaleString("en-US")} trades; ${(count - MOST_PRINTED).toLocaleString("en-US")} `
      + "are left out: Download CSV on the page gives all of them.";
}

function startTrades() {
  if (!data.trades) return;
  trades = withArrays(data.trades);
  const shown = trades.columns.filter((one) => one.shown);
  document.querySelectorAll("#trades-table thead th").forEach((head, place) => {
    const key = shown[place].key;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.dataset.label = head.textContent;
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      view.down = view.sort === key ? !view.down : false;
      view.sort = key;
      for (const other of head.parentElement.children) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", view.down ? "descending" : "ascending");
      arrange();
    });
  });
  const controls = document.getElementById("trades-controls");
  const pager = document.getElementById("trades-pager");
  controls.hidden = pager.hidden = false;
  controls.addEventListener("input", arrange);
  document.getElementById("trades-clear").addEventListener("click", () => {
    controls.querySelectorAll("select, input").forEach((one) => { one.value = ""; });
    arrange();
  });
  pager.addEventListener("click", (event) => {
    const last = Math.max(0, Math.ceil(view.order.length / trades.page) - 1);
    const to = { first: 0, previous: view.page - 1, next: view.page + 1, last };
    if (event.target.dataset.to in to) {
      view.page = to[event.target.dataset.to];
      fillPage();
    }
  });
  document.querySelector("#trades-table tbody").addEventListener("click", (event) => {
    if (event.target.closest("button")) showTrade(Number(event.target.closest("tr").dataset.row));
  });
  document.getElementById("trades-csv").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = "trades.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  addEventListener("beforeprint", printTrades);
  addEventListener("afterprint", () => fillPage());
  arrange();
}
