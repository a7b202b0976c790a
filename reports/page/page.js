"use strict";
// Draws the page's charts in its own colours, light or dark. Their data is the JSON beside this script.
(() => {
  // Okabe and Ito's palette, told apart by colour-blind readers too (Color Universal Design, 2008); on dark the two
  // darkest are lighter. Bars have patterns as well.
  const COLOURS = {
    orange: ["#e69f00", "#e69f00"], sky: ["#56b4e9", "#6cc0ee"], green: ["#009e73", "#1fb98c"],
    yellow: ["#e3d51c", "#f0e442"], blue: ["#0072b2", "#3c93d1"], red: ["#d55e00", "#e8782a"],
    purple: ["#cc79a7", "#d58fb6"], grey: ["#9aa0a6", "#7d858d"],
    ink: ["#3b3f45", "#c9ced4"],
  };
  const ROLES = {
    data: ["orange", "/"], h2d: ["yellow", "."], forward: ["blue", ""], backward: ["sky", "\\"],
    comm_exposed: ["red", "x"], optimizer: ["green", "-"], unattributed: ["grey", "|"],
    "backward.gradient": ["sky", "\\"], "backward.recompute": ["purple", "+"], "comm.transfer": ["red", "x"],
    "comm.waiting": ["purple", "x"], "comm.queued": ["yellow", "x"], compute: ["blue", ""], exposed: ["red", "x"],
    gradient: ["sky", "\\"], recompute: ["purple", "+"], comm: ["red", "x"], events: ["ink", "."],
    transfer: ["red", "x"], waiting: ["purple", "+"], queued: ["yellow", "."], input: ["orange", "/"],
    parameters: ["blue", ""], gradients: ["sky", "\\"], activations: ["orange", "/"],
    communication: ["red", "x"], temporary: ["purple", "+"], batch: ["yellow", "."], unaccounted: ["grey", "|"],
    all_reduce: ["blue", ""], all_gather: ["orange", "/"], reduce_scatter: ["green", "-"], broadcast: ["purple", "+"],
    all_to_all: ["yellow", "."],
    first: ["blue", ""], second: ["orange", "/"], third: ["green", "-"], fourth: ["red", "x"], fifth: ["purple", "+"],
    sixth: ["sky", "\\"], seventh: ["yellow", "."], eighth: ["grey", "|"],
    mean: ["blue", ""], band: ["sky", ""], edge: ["sky", ""], mark: ["red", "x"], quiet: ["grey", ""],
  };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const figures = JSON.parse(document.getElementById("charts").textContent);
  document.documentElement.classList.add("scripted");

  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function colour(role) {
    const [name, pattern] = ROLES[role] || ROLES.quiet;
    return [COLOURS[name][dark.matches ? 1 : 0], pattern];
  }

  // One trace in the page's colours.
  function coloured(trace) {
    const meta = trace.meta || {};
    const [own, pattern] = colour(meta.role);
    const line = Object.assign({ color: own, width: 1.6 }, trace.line);
    const found = Object.assign({}, trace);
    if (trace.type === "bar") {
      const shape = meta.plain ? "" : pattern;
      const fgcolor = dark.matches ? "#000" : "#fff";
      found.marker = { color: own, line: { width: 0 }, pattern: { shape, size: 7, solidity: 0.18, fgcolor, fillmode: "overlay" } };
      return found;
    }
    found.line = line;
    found.fillcolor = own + (meta.area ? "b8" : "40");
    found.marker = Object.assign({ color: own, size: 8, line: { width: 1.5, color: own } }, trace.marker);
    if (meta.hollow) found.marker.color = variable("--card");
    return found;
  }

  function axis(given) {
    return Object.assign(
      { gridcolor: variable("--line"), linecolor: variable("--line"), zerolinecolor: variable("--line"), automargin: true, fixedrange: false },
      given,
      { title: Object.assign({ standoff: 8 }, given && given.title) },
    );
  }

  function layout(figure, width) {
    const narrow = width < 560;
    return Object.assign({}, figure.layout, {
      xaxis: axis(figure.layout.xaxis),
      yaxis: axis(figure.layout.yaxis),
      height: figure.height + (narrow ? 40 : 0),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: variable("--sans"), size: narrow ? 11 : 12.5, color: variable("--text") },
      hoverlabel: { font: { family: variable("--sans") }, namelength: -1 },
      margin: { l: 8, r: 12, t: 12, b: 8 },
      legend: Object.assign({ orientation: "h", yref: "container", yanchor: "bottom", y: 0, x: 0, traceorder: "normal" }, figure.layout.legend),
      showlegend: figure.layout.showlegend !== false && figure.data.length > 1,
      dragmode: narrow ? false : "zoom",
    });
  }

  const CONFIG = {
    displaylogo: false,
    responsive: true,
    modeBarButtonsToRemove: ["toImage", "lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    showTips: false,
  };

  function draw() {
    for (const figure of figures) {
      const place = document.getElementById("chart-" + figure.name);
      try {
        Plotly.react(place, figure.data.map(coloured), layout(figure, place.clientWidth || 800), CONFIG);
        place.dataset.drawn = dark.matches ? "dark" : "light";
      } catch (error) {
        place.textContent = "This picture could not be drawn (" + error.message + "); the tables hold its numbers.";
        place.style.minHeight = 0;
      }
    }
  }

  draw();
  dark.addEventListener("change", draw);
  for (const more of document.querySelectorAll("details")) {
    more.addEventListener("toggle", () => {
      for (const place of more.querySelectorAll(".drawing")) Plotly.Plots.resize(place);
    });
  }
  // What is wider than its box can be scrolled by keyboard.
  function reachable() {
    for (const box of document.querySelectorAll(".scroll")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }
  reachable();
  window.addEventListener("resize", reachable);
  window.addEventListener("beforeprint", () => {
    for (const more of document.querySelectorAll("details")) more.open = true;
  });
})();
