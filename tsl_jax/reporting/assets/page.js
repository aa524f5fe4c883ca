// Draws the figures of a report. Each holds its views as JSON; colours there are names of the page's CSS variables
// ("--blue") or places on its sequential scale ("seq:0.3"), looked up whenever the reader's theme changes.
"use strict";
(() => {
  const PRINT_WIDTH = 690; // CSS pixels of an A4 page within its margins
  const narrow = () => matchMedia("(max-width: 34rem), (pointer: coarse)").matches;

  function palette() {
    const style = getComputedStyle(document.documentElement);
    const named = (name) => style.getPropertyValue(name).trim();
    const stops = [0, 1, 2, 3, 4].map((k) => named(`--seq-${k}`).match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16)));
    const between = (place) => {
      const at = Math.min(Math.floor(place * 4), 3), rest = place * 4 - at;
      return `rgb(${stops[at].map((low, k) => Math.round(low + rest * (stops[at + 1][k] - low))).join(", ")})`;
    };
    return (name) => (name.startsWith("seq:") ? between(Number(name.slice(4))) : named(name));
  }

  // A copy of a view in which every colour is one of the theme.
  function coloured(value, colour) {
    if (typeof value === "string") return /^(--[a-z]|seq:)/.test(value) ? colour(value) : value;
    if (Array.isArray(value)) return value.map((one) => coloured(one, colour));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one, colour)]));
  }

  function template(colour) {
    const font = { family: colour("--sans"), size: 12.5, color: colour("--ink") };
    const axis = {
      gridcolor: colour("--grid"), zeroline: false, automargin: true, ticks: "outside", ticklen: 4,
      tickcolor: colour("--rule"), tickfont: { color: colour("--muted"), size: 12 },
      title: { font: { color: colour("--muted"), size: 12.5 }, standoff: 10 }, minor: { ticks: "" },
    };
    return { layout: {
      font, showlegend: false, hovermode: "closest", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { bgcolor: colour("--paper"), bordercolor: colour("--rule"), font },
      xaxis: { ...axis, showline: true, linecolor: colour("--rule") }, yaxis: axis,
      annotationdefaults: { font: { color: colour("--muted"), size: 12.5 } },
    } };
  }

  function swatch(entry, colour) {
    if (entry.mark === "block") {
      const block = document.createElement("i");
      block.style.background = colour(entry.colour);
      return block;
    }
    const dash = { dash: "6 4", solid: "" }[entry.dash] ?? entry.dash.replaceAll("px", "").replaceAll(",", " ");
    const shapes = {
      line: `<path d="M1 7H25" stroke-width="2.4" stroke-dasharray="${dash}"/>`,
      dot: `<circle cx="13" cy="7" r="3.6" fill="currentColor"/>`,
      ring: `<circle cx="13" cy="7" r="3.4" stroke-width="1.4"/>`,
      cross: `<path d="M9.5 3.5l7 7m0-7l-7 7" stroke-width="1.6"/>`,
      square: `<rect x="9.4" y="3.4" width="7.2" height="7.2" fill="currentColor"/>`,
      area: `<rect x="1" y="1" width="24" height="12" fill="currentColor" stroke="none"/>`,
    };
    const holder = document.createElement("span");
    holder.innerHTML =
      `<svg width="26" height="14" aria-hidden="true" fill="none" stroke="currentColor">${shapes[entry.mark]}</svg>`;
    holder.firstChild.style.color = colour(entry.colour);
    return holder.firstChild;
  }

  class Drawing {
    constructor(figure) {
      this.figure = figure;
      this.plot = figure.querySelector(".plot");
      this.legend = figure.querySelector(".legend");
      Object.assign(this, JSON.parse(figure.querySelector("script").textContent));
      this.hidden = new Map(); // legend entry -> whether the reader switched it off
      figure.querySelectorAll("input").forEach((input) => input.addEventListener("change", () => this.draw()));
    }

    key() {
      const chosen = (start, k) => this.figure.querySelector(`input[name$="-${k}"]:checked`)?.value ?? start;
      return this.start.map(chosen).join(",");
    }

    isHidden(entry) {
      return this.hidden.get(entry.key) ?? !entry.shown;
    }

    draw(width) {
      const key = this.key(), colour = palette();
      const view = this.views[key] ?? { data: [], legend: [], layout: { height: 120 } };
      const off = new Set(view.legend.filter((entry) => this.isHidden(entry)).map((entry) => entry.key));
      const data = coloured(view.data, colour).map((trace, k) => (
        { ...trace, visible: !off.has(view.data[k].legendgroup) }));
      const layout = { ...coloured(view.layout, colour), template: template(colour), uirevision: key };
      Object.assign(layout, { autosize: !width, dragmode: narrow() ? false : "zoom", ...(width && { width }) });
      const config = { displayModeBar: false, responsive: true, doubleClick: "reset", showTips: false };
      this.plot.style.minHeight = "";
      this.explain(view, colour);
      return Plotly.react(this.plot, data, layout, config);
    }

    explain(view, colour) {
      const focused = document.activeElement?.dataset?.key;
      this.legend.replaceChildren(...view.legend.map((entry) => {
        const item = document.createElement(entry.mark === "area" ? "span" : "button");
        item.append(swatch(entry, colour), entry.label);
        if (item.tagName === "SPAN") return item;
        Object.assign(item.dataset, { key: entry.key });
        item.type = "button";
        item.title = "show or hide";
        item.setAttribute("aria-pressed", String(!this.isHidden(entry)));
        item.addEventListener("click", () => { this.hidden.set(entry.key, !this.isHidden(entry)); this.draw(); });
        return item;
      }));
      if (!view.data.length) this.legend.textContent = "Nothing to draw for this choice.";
      if (focused !== undefined) [...this.legend.children].find((item) => item.dataset.key === focused)?.focus();
    }
  }

  const drawings = [...document.querySelectorAll("figure")].map((figure) => new Drawing(figure));
  const drawAll = (width) => Promise.all(drawings.map((drawing) => drawing.draw(width)));
  const root = document.documentElement;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());
  addEventListener("beforeprint", () => {
    root.dataset.print = "";
    document.querySelectorAll("details:not([open])").forEach((one) => { one.open = true; one.dataset.opened = ""; });
    drawAll(PRINT_WIDTH);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.print;
    document.querySelectorAll("details[data-opened]").forEach((one) => { one.open = false; delete one.dataset.opened; });
    drawAll();
  });
  drawAll().then(() => { root.dataset.drawn = String(drawings.length); });
})();
