// The list of lines: search, filters, order and groups.  Without this script it is there, the worst first.
(() => {
  const form = document.getElementById("controls");
  if (!form) return;
  form.hidden = false;
  const by = (id) => document.getElementById(id);
  const lists = [...document.querySelectorAll(".sites")].map((list) => ({list, sites: [...list.children]}));
  const words = new Map(); // what is searched, read once
  const text = (site) => {
    if (!words.has(site)) words.set(site, [
      ...[...site.querySelectorAll("h3, pre, .also, .advice, .facts dd, .stack li")].map((part) => part.textContent),
      site.querySelector("h3 span").title,
      ...["op", "kind", "phase", "module", "library"].map((name) => site.dataset[name] || ""),
    ].join(" ").toLowerCase());
    return words.get(site);
  };
  const place = (site) => site.querySelector("h3 span").textContent;
  const inOrder = new Intl.Collator(undefined, {numeric: true}).compare;

  const sorted = (sites, name) => {
    if (name === "place") return [...sites].sort((a, b) => inOrder(place(a), place(b)));
    if (name === by("sort").options[0].value) return sites; // as they were written
    return [...sites].sort((a, b) => Number(b.dataset[name] || 0) - Number(a.dataset[name] || 0));
  };

  const heading = (name, sites) => {
    const stall = sites.reduce((sum, site) => sum + Number(site.dataset.share || 0), 0);
    const item = Object.assign(document.createElement("li"), {className: "group"});
    const title = Object.assign(document.createElement("h3"), {textContent: name || "not known"});
    const sum = `${sites.length} ${sites.length === 1 ? "line" : "lines"}, ${(stall * 100).toFixed(1)} %`;
    title.append(Object.assign(document.createElement("small"), {textContent: ` ${sum}`}));
    item.append(title);
    return item;
  };

  const update = () => {
    const wanted = by("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const filters = [...form.querySelectorAll("[data-filter]")].filter((filter) => filter.value);
    const hidesAllowed = by("hide-allowed")?.checked;
    let shown = 0, all = 0;
    for (const {list, sites} of lists) {
      const groups = new Map();
      for (const site of sorted(sites, by("sort").value)) {
        const fits = wanted.every((word) => text(site).includes(word))
          && filters.every((filter) => (site.dataset[filter.dataset.filter] || "") === filter.value)
          && !(hidesAllowed && site.classList.contains("allowed"));
        site.hidden = !fits;
        const name = by("group").value && (site.dataset[by("group").value] || "");
        groups.set(name, [...(groups.get(name) || []), site]);
        shown += fits;
        all += 1;
      }
      const items = [];
      for (const [name, members] of groups) {
        const visible = members.filter((site) => !site.hidden);
        if (by("group").value && visible.length) items.push(heading(name, visible));
        for (const member of members) items.push(member);
      }
      list.replaceChildren(...items);
      list.parentElement.hidden = !sites.some((site) => !site.hidden);
    }
    by("found").textContent = shown === all ? `${all} ${all === 1 ? "line" : "lines"}` : `${shown} of ${all} lines`;
  };

  let asked = 0;
  form.addEventListener("input", () => {
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(update);
  });
  form.addEventListener("submit", (event) => event.preventDefault());

  // A link to a line shows it, whatever is filtered out at that moment, and all that is known of it.
  const follow = () => {
    const site = /^#site-\d+$/.test(location.hash) && document.querySelector(location.hash);
    if (!site) return;
    if (site.hidden) {
      form.reset();
      update();
    }
    site.querySelectorAll("details").forEach((details) => { details.open = true; });
    // What has not been drawn yet has a guessed height: the place is known once it has been.
    site.scrollIntoView({block: "center"});
    requestAnimationFrame(() => requestAnimationFrame(() => site.scrollIntoView({block: "center"})));
    site.tabIndex = -1; // so that the keyboard goes on from here
    site.focus({preventScroll: true});
  };
  addEventListener("hashchange", follow);
  addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#site-']");
    if (link && link.hash === location.hash) follow(); // once more
  });

  addEventListener("keydown", (event) => {
    const writing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !writing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      by("search").focus();
    } else if (event.key === "Escape" && event.target === by("search")) {
      by("search").value = "";
      update();
    }
  });
  update();
  follow();
})();
