// Looking into single clients: the heat map, the slider over kept rounds, the evidence.
"use strict";
const clients = (() => {
  let runs = skymask.content("clients");
  const state = {run: 0, frame: -1, client: null};  // frame -1: the last one; client: an id
  const byId = (id) => document.getElementById(id);
  const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();

  const unpacked = (array) => {
    const bytes = Uint8Array.from(atob(array.bdata), (c) => c.charCodeAt(0));
    const kinds = {u1: Uint8Array, i4: Int32Array, f4: Float32Array};
    return new kinds[array.dtype](bytes.buffer);
  };
  const run = () => runs[state.run];
  const chosen = () => run().clients.indexOf(state.client);
  const frame = () => run().kept.at(state.frame) || run().kept.at(-1);
  const percent = (share) => (100 * share).toFixed(1) + " %";

  const told = (value, bin) => {
    const last = (run().edges[bin + 1] ?? run().rounds);
    const first = run().edges[bin] + 1;
    const when = first === last ? `round ${first}` : `rounds ${first} to ${last}`;
    if (value === 120) return `${when}: not asked`;
    if (value === 140) return `${when}: not there`;
    if (first === last) return `${when}: ${value ? "left out" : "accepted"}`;
    return `${when}: left out in ${value} % of them`;
  };

  const heat = () => {
    const {data, layout, group} = run().heat;
    const shapes = layout.shapes.slice(), row = chosen();
    if (row >= 0) {
      const at = Math.floor(row / group);
      shapes.push({type: "rect", xref: "paper", x0: 0, x1: 1, y0: at - 0.5, y1: at + 0.5,
        line: {color: ink(), width: 2}});
    }
    skymask.draw("heat", {data, layout: Object.assign({}, layout, {shapes})});
  };

  const strip = () => {
    const row = chosen();
    byId("strip").hidden = row < 0;
    byId("story").textContent = row < 0 ? "" : `Client ${run().labels[row]}: ${run().told[row]}.`;
    if (row < 0) return;
    const width = run().edges.length, cells = unpacked(run().cells);
    const trace = Object.assign({}, run().heat.data[0],
      {z: [Array.from(cells.slice(row * width, (row + 1) * width))], y: [0], text: null});
    const axis = {showticklabels: false, showgrid: false, zeroline: false, fixedrange: true};
    const layout = Object.assign({}, run().heat.layout,
      {shapes: [], height: 64, yaxis: axis, xaxis: axis,
       margin: {l: 84, r: 12, t: 8, b: 8}});
    skymask.draw("strip", {data: [trace], layout});
  };

  const closeup = () => {
    const kept = run().kept, one = frame();
    const told = one && (one.points.length || one.ones.length || Object.keys(one.values).length);
    byId("closeup").hidden = !told;
    if (!told) return;
    const slider = byId("slider");
    slider.max = kept.length - 1;
    slider.value = state.frame < 0 ? kept.length - 1 : state.frame;
    slider.disabled = kept.length < 2;
    slider.setAttribute("aria-valuetext", `round ${one.round}`);
    byId("kept").textContent = `round ${one.round} of ${run().rounds}`;
    const row = state.client === null ? -1 : unpacked(one.clients).indexOf(chosen());
    byId("scatter-part").hidden = !one.points.length;  // Plotly measures what is seen
    byId("ones-part").hidden = !one.ones.length;
    const points = one.points.slice(), shares = one.ones.slice();
    for (const trace of row < 0 ? [] : one.points) {
      const at = unpacked(trace.customdata).indexOf(row);
      if (at >= 0) points.push({type: "scatter", mode: "markers", name: "chosen",
        x: [unpacked(trace.x)[at]], y: [unpacked(trace.y)[at]], hoverinfo: "none",
        marker: {size: 20, symbol: "circle-open", color: ink(), line: {width: 3}}});
    }
    if (row >= 0 && one.single) {
      const layers = one.ones[0].x.length, all = unpacked(one.single);
      shares.push({type: "scatter", mode: "markers", name: "chosen",
        x: [...Array(layers).keys()],
        y: [...all.slice(row * layers, (row + 1) * layers)].map((share) => share / 200),
        marker: {size: 11, symbol: "diamond-open", color: ink(), line: {width: 2}},
        hovertemplate: "%{y:.1%}"});
    }
    if (points.length) skymask.draw("scatter", {data: points, layout: run().scatter});
    if (shares.length) skymask.draw("ones", {data: shares, layout: run().ones});
    byId("gain").textContent = one.gain === null ? "" :
      `Two clusters describe these points ${one.gain > 0 ? "better" : "no better"} than one ` +
      `(${one.gain} in BIC per client).`;
    evidence(one, row);
  };

  const evidence = (one, row) => {
    const place = byId("evidence");
    const pairs = [];
    if (state.client === null) place.replaceChildren("Choose a client: a point above, a row of " +
      "the map, or its name in the field.");
    else if (row < 0) place.replaceChildren(`Client ${state.client} is not in this round.`);
    if (row < 0) return;
    const why = unpacked(one.why)[row], apart = unpacked(one.apart);
    pairs.push(["verdict", why < 0 ? "accepted" : "left out"]);
    if (why >= 0) pairs.push(["because", one.reasons[why]]);
    if (apart.length) pairs.push(["mask", apart[row] ? "in the other cluster" :
      "in the root's cluster"]);
    for (const [name, values] of Object.entries(one.values)) {
      const value = unpacked(values)[row];
      if (Number.isFinite(value)) pairs.push([name, String(Number(value.toPrecision(4)))]);
    }
    const list = document.createElement("dl");
    list.className = "facts wide";
    for (const [term, text] of pairs) {
      const item = document.createElement("div");
      const [dt, dd] = ["dt", "dd"].map((tag) => document.createElement(tag));
      dt.textContent = term;
      dd.textContent = text;
      item.append(dt, dd);
      list.append(item);
    }
    const title = document.createElement("h3");
    title.textContent = `Client ${run().labels[chosen()]} in round ${one.round}`;
    place.replaceChildren(title, list);
  };

  const choose = (client) => {
    state.client = client;
    byId("find").value = client === null ? "" : run().labels[chosen()];
    heat();
    strip();
    closeup();
  };

  const nearest = (round) => {
    const away = run().kept.map((one) => Math.abs(one.round - round));
    return away.indexOf(Math.min(...away));
  };

  let listening = false;
  const listen = () => {
    if (listening) return;
    listening = true;
    byId("heat").on?.("plotly_hover", (event) => {
      const {pointIndex: [row, bin]} = event.points[0];
      const names = run().heat.data[0].text;
      byId("cell").textContent = `${names[row]}, ${told(event.points[0].z, bin)}`;
    });
    byId("heat").on?.("plotly_click", (event) => {
      const {pointIndex: [row, bin]} = event.points[0];
      if (run().kept.length) state.frame = nearest(run().edges[bin] + 1);
      choose(run().clients[row * run().heat.group]);
    });
    byId("scatter").on?.("plotly_click", (event) => {
      const row = event.points[0].customdata;
      const at = row === undefined ? -1 : unpacked(frame().clients)[row];
      if (at >= 0) choose(run().clients[at]);
    });
  };

  const fill = () => {
    byId("names").replaceChildren(...run().labels.map((label) => {
      const option = document.createElement("option");
      option.value = label;
      return option;
    }));
    byId("which").replaceChildren(...runs.map((one, index) => {
      const option = document.createElement("option");
      option.value = index;
      option.textContent = one.name;
      return option;
    }));
    byId("which").value = state.run;
    byId("which-part").hidden = runs.length < 2;
  };

  const find = () => {
    const text = byId("find").value.trim();
    if (!text) return choose(null);
    const {labels, clients: ids} = run();
    let at = labels.indexOf(text);
    if (at < 0) at = ids.indexOf(text);
    if (at < 0) at = labels.findIndex((label) => label.toLowerCase().includes(text.toLowerCase()));
    if (at < 0) byId("story").textContent = `No client is called ${text}.`;
    else choose(ids[at]);
  };

  const update = (found) => {
    runs = found;
    byId("clients-part").hidden = !runs.length;
    if (!runs.length) return;
    state.run = Math.min(state.run, runs.length - 1);
    fill();
    choose(run().clients.includes(state.client) ? state.client : null);
    listen();
  };

  byId("find").addEventListener("change", find);
  byId("clear").addEventListener("click", () => choose(null));
  byId("slider").addEventListener("input", () => {
    const at = Number(byId("slider").value);
    state.frame = at === run().kept.length - 1 ? -1 : at;  // the last one goes on with the run
    closeup();
  });
  byId("which").addEventListener("change", () => {
    Object.assign(state, {run: Number(byId("which").value), frame: -1, client: null});
    update(runs);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change",
    () => runs.length && choose(state.client));
  // The curves are seen first; this may be a lot, so that it waits until they are on the screen.
  requestAnimationFrame(() => setTimeout(() => {
    update(runs);
    document.documentElement.dataset.ready = "yes";
  }));
  return {update};
})();
