// Asks where the page came from for what is new, and puts it in place.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const shown = new Map();
  let version = "", looked = 0, stale = false;

  const told = (text) => byId("live").textContent = ` \u00b7 ${text}`;

  const put = (content) => {
    for (const [name, html] of Object.entries(content.parts)) {
      const place = byId(name.replace("_", "-"));
      if (!place || shown.get(name) === html) continue;  // what is open stays open
      place.innerHTML = html;  // all text in it was escaped where it was made
      shown.set(name, html);
    }
    skymask.drawAll(content.figures);
  };

  const poll = async () => {
    let wait = 1000;
    try {
      const begin = performance.now();
      const answer = await fetch(`content.json?have=${version}`, {cache: "no-store"});
      const content = await answer.json();
      const fresh = content.version !== version;
      if (fresh) put(content);
      version = content.version;
      told(content.state);
      wait = Math.max(wait, 2 * (performance.now() - begin));
      stale ||= fresh;
      if (stale && performance.now() > looked) {
        stale = false;
        const start = performance.now();
        clients.update(await (await fetch("clients.json", {cache: "no-store"})).json());
        // Of a large run this takes its time, so that it is not done at every round.
        looked = performance.now() + 10 * (performance.now() - start);
      }
    } catch (error) {
      told("the watcher has ended; what is shown is the last that it told");
      wait = 3000;
    }
    setTimeout(poll, wait);
  };
  poll();
})();
