// Draws figures. Colours come from the style sheet, so that they follow it between light and dark.
"use strict";
const skymask = (() => {
  const touch = matchMedia("(pointer: coarse)").matches;  // there a drag must scroll the page
  // The buttons are listed because plotly.js has one that uploads the figure's data.
  const config = {responsive: true, displaylogo: false, plotlyServerURL: "",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]]};
  const drawn = new Map();

  const themed = (layout, id) => {
    const css = getComputedStyle(document.documentElement);
    const [ink, soft, line, card] = ["--ink", "--soft", "--line", "--card"]
      .map((name) => css.getPropertyValue(name).trim());
    const found = Object.assign({}, layout, {
      // What a reader has zoomed into stays while a run goes on.
      uirevision: id, dragmode: touch ? false : "zoom",
      font: Object.assign({}, layout.font, {color: ink}),
      hoverlabel: {bgcolor: card, font: {color: ink}},
      modebar: Object.assign({}, layout.modebar, {color: soft, activecolor: ink}),
    });
    for (const axis of Object.keys(layout).filter((name) => /^[xy]axis/.test(name)))
      found[axis] = Object.assign({gridcolor: line, zerolinecolor: line}, layout[axis]);
    return found;
  };

  const draw = (id, figure) => {
    const place = document.getElementById(id);
    if (!place) return null;
    drawn.set(id, figure);
    place.closest("section").hidden = false;  // Plotly measures what is seen
    Plotly.react(place, figure.data, themed(figure.layout, id), config);
    return place;
  };

  const content = (id) => JSON.parse(document.getElementById(id).textContent);
  const drawAll = (figures) => Object.entries(figures).forEach(([id, figure]) => draw(id, figure));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change",
    () => drawn.forEach((figure, id) => draw(id, figure)));
  drawAll(content("figures"));
  return {draw, drawAll, content};
})();
