// Colours come from the style sheet, so that the figures follow it between light and dark.
"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const touch = matchMedia("(pointer: coarse)").matches;  // there a drag must scroll the page
  const colours = (layout) => {
    const css = getComputedStyle(document.documentElement);
    const [ink, soft, line, card] = ["--ink", "--soft", "--line", "--card"]
      .map((name) => css.getPropertyValue(name).trim());
    const found = {"font.color": ink, "hoverlabel.bgcolor": card, "hoverlabel.font.color": ink,
      "modebar.color": soft, "modebar.activecolor": ink};
    for (const axis of Object.keys(layout).filter((name) => /^[xy]axis/.test(name)))
      for (const part of ["gridcolor", "zerolinecolor"]) found[axis + "." + part] = line;
    return found;
  };
  // The buttons are listed because plotly.js has one that uploads the figure's data.
  const config = {responsive: true, displaylogo: false, plotlyServerURL: "",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]]};
  for (const [id, figure] of Object.entries(figures)) {
    const layout = Object.assign(figure.layout, {dragmode: touch ? false : "zoom"});
    Plotly.newPlot(id, figure.data, layout, config).then(() => {
      const paint = () => Plotly.relayout(id, colours(layout));
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
      return paint();
    });
  }
})();
