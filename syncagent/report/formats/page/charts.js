// Two charts, drawn by uPlot: the stall of each step by line, and the time line.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const style = () => getComputedStyle(document.documentElement);
  const color = (name) => style().getPropertyValue(`--${name}`).trim();
  const colorOf = (site) => {
    const number = data.colored.indexOf(site);
    return color(number < 0 ? "color-others" : `color-${number}`);
  };
  const nameOf = (site) => document.querySelector(`#site-${site} h3 span`)?.textContent ?? "(line unknown)";
  const duration = (ms) => (ms <= 0 ? "0" : ms < 0.9995 ? `${Math.round(ms * 1000)} µs`
    : ms < 999.5 ? `${ms.toFixed(ms < 99.95 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(2)} s`) + (ms > 0 ? data.mark : "");
  const axis = (more) => ({
    stroke: () => color("dim"), grid: {stroke: () => color("grid"), width: 1}, ticks: {stroke: () => color("grid"), width: 1}, ...more,
  });

  // 1, 2 and 5 times each power of ten.
  const decades = (first, last) => Array.from({length: last - first + 1}, (_, index) => [1, 2, 5].map((times) => times * 10 ** (first + index))).flat();

  // Keys, wheel and buttons move what a chart shows of `least` to `most`, and never beyond.
  const zoomable = (chart, box, least, most, narrowest, inWords) => {
    const label = box.getAttribute("aria-label");
    const say = () => { if (chart.scales.x.min != null) box.setAttribute("aria-label", `${label} Shown: ${inWords(chart.scales.x.min, chart.scales.x.max)}.`); };
    (chart.hooks.setScale ??= []).push((_, scale) => { if (scale === "x") say(); });
    const show = (from, to) => {
      const width = Math.min(Math.max(to - from, narrowest), most - least);
      const start = Math.min(Math.max(from, least), most - width);
      chart.setScale("x", {min: start, max: start + width});
    };
    const zoom = (factor, at) => {
      const {min, max} = chart.scales.x;
      const fixed = at ?? (min + max) / 2;
      show(fixed - (fixed - min) * factor, fixed + (max - fixed) * factor);
    };
    const move = (share) => {
      const {min, max} = chart.scales.x;
      show(min + (max - min) * share, max + (max - min) * share);
    };
    const can = {
      "left": () => move(-0.3), "right": () => move(0.3), "in": () => zoom(0.5), "out": () => zoom(2), "all": () => show(least, most),
    };
    const keys = {"ArrowLeft": "left", "ArrowRight": "right", "+": "in", "=": "in", "-": "out", "0": "all", "Home": "all"};
    box.addEventListener("keydown", (event) => {
      const name = keys[event.key];
      if (!name || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      can[name]();
    });
    box.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the wheel alone scrolls the page
      event.preventDefault();
      zoom(event.deltaY < 0 ? 0.7 : 1.4, chart.posToVal(event.clientX - chart.over.getBoundingClientRect().left, "x"));
    }, {passive: false});
    chart.over.addEventListener("dblclick", can.all);
    say();
    return {can, show};
  };

  const charts = [];
  const sized = (box, height, make) => {
    const chart = make(Math.max(box.clientWidth, 200), height);
    charts.push(chart);
    new ResizeObserver(() => {
      const width = Math.max(box.clientWidth, 200);
      if (width !== chart.width) chart.setSize({width, height});
    }).observe(box);
    return chart;
  };

  const steps = data.per_step;
  const stepsBox = document.getElementById("chart-steps");
  if (steps && stepsBox) {
    // Of stacked bars the highest is drawn first, and each lower one over it.
    const sums = steps.ms.map((_, row) => steps.steps.map((_, column) =>
      steps.ms.slice(0, row + 1).reduce((sum, values) => sum + values[column], 0)));
    const outputs = document.querySelectorAll("#legend output");
    const bars = uPlot.paths.bars({size: [0.8, 40]});
    const last = sums.length - 1;
    const chart = sized(stepsBox, 240, (width, height) => new uPlot({
      width, height,
      legend: {show: false},
      cursor: {drag: {x: true, y: false}, points: {show: false}},
      scales: {x: {time: false, range: (_, min, max) => [min, max]}, y: {range: (_, min, max) => [0, Math.max(max, 0.001) * 1.05]}},
      axes: [
        axis({label: "step", labelSize: 20, size: 36, incrs: decades(0, 12)}),
        axis({size: 70, values: (_, ticks) => ticks.map(duration)}),
      ],
      series: [{}, ...sums.map((_, index) => {
        const fill = () => color(last - index === last ? "color-others" : `color-${last - index}`);
        return {fill, stroke: fill, width: 0, points: {show: false}, paths: bars};
      })],
      hooks: {setCursor: [(chart) => {
        const column = chart.cursor.idx;
        outputs.forEach((output, row) => { output.textContent = column == null ? "" : duration(steps.ms[row === outputs.length - 1 ? last : row][column]); });
      }]},
    }, [steps.steps, ...[...sums].reverse()], stepsBox));
    // A bar is half a step wider on both sides than its number.
    zoomable(chart, stepsBox, steps.steps[0] - 0.5, steps.steps[steps.steps.length - 1] + 0.5, 4, (from, to) => `step ${Math.ceil(from)} to step ${Math.floor(to)}`).can.all();
  }

  const time = data.timeline;
  const timeBox = document.getElementById("chart-time");
  if (time && timeBox) {
    const {lanes, waits, steps: marked, busy} = time;
    const end = (rows) => rows.start.reduce((most, start, index) => Math.max(most, start + rows.us[index]), 0);
    const whole = Math.max(end(waits), end(marked), end(busy), 1) / 1000;
    // A moment as precisely as it takes to tell it from one that is `apart` ms later: of a long run as hours:minutes:seconds.
    const places = (apart) => Math.min(Math.max(-Math.floor(Math.log10(apart / 1000) + 1e-9), 0), 6);
    const isClock = whole >= 120_000;
    const moment = (ms, apart) => {
      if (whole < 10_000) return `${+ms.toFixed(3)} ms`;
      const digits = places(apart);
      if (!isClock) return `${+(ms / 1000).toFixed(digits)} s`;
      const units = Math.round(ms / 1000 * 10 ** digits), perMinute = 60 * 10 ** digits;
      const seconds = ((units % perMinute) / 10 ** digits).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
      const minutes = Math.floor(units / perMinute);
      return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${seconds}`;
    };
    const seconds = 1000, minutes = 60 * seconds, hours = 60 * minutes, days = 24 * hours;
    const increments = !isClock ? decades(-3, 9) : [
      ...decades(-3, 2), ...[1, 2, 5, 10, 15, 30].map((times) => times * seconds), ...[1, 2, 5, 10, 15, 30].map((times) => times * minutes),
      ...[1, 2, 3, 6, 12].map((times) => times * hours), ...decades(0, 4).map((times) => times * days),
    ];
    const span = (from, to) => `${moment(from, (to - from) / 100)} to ${moment(to, (to - from) / 100)}`;
    const hint = document.getElementById("hint");
    const otherwise = busy.start.length
      ? `The GPU's work is known from ${span(busy.start[0] / 1000, end(busy) / 1000)}.` : "\u00a0";
    hint.textContent = otherwise;
    const font = "12px system-ui, sans-serif";
    const ruler = document.createElement("canvas").getContext("2d");
    const measured = (text) => {
      ruler.font = font;
      return ruler.measureText(text).width;
    };
    const widest = Math.max(...lanes.map(measured));
    const room = (chart) => Math.min(widest + 14, 220, chart.width / 3);
    // A name in so many pixels; of one that is too long the middle is left out, since numbers stand at the ends.
    const fitted = (name, pixels) => {
      const letters = [...name];
      let cut = name;
      for (let kept = letters.length; kept > 1 && measured(cut) > pixels; kept--) {
        const head = Math.ceil(kept / 2);
        cut = `${letters.slice(0, head).join("").trimEnd()}…${letters.slice(letters.length - (kept - head) + 1).join("").trimStart()}`;
      }
      return cut;
    };
    const laneNames = document.getElementById("lanes");
    const rects = (chart, rows, draw) => {
      const {min, max} = chart.scales.x;
      const {left, width} = chart.bbox;
      for (let index = 0; index < rows.start.length; index++) {
        const from = rows.start[index] / 1000, to = from + rows.us[index] / 1000;
        if (to < min || from > max) continue;
        const x0 = Math.max(chart.valToPos(from, "x", true), left), x1 = Math.min(chart.valToPos(to, "x", true), left + width);
        const y0 = chart.valToPos(rows.lane[index] + 0.14, "y", true), y1 = chart.valToPos(rows.lane[index] + 0.86, "y", true);
        draw(index, x0, Math.min(y0, y1), Math.max(x1 - x0, 1), Math.abs(y1 - y0));
      }
    };
    const draw = (chart) => {
      const {ctx} = chart;
      ctx.save();
      ctx.beginPath();
      ctx.rect(chart.bbox.left, chart.bbox.top, chart.bbox.width, chart.bbox.height);
      ctx.clip();
      ctx.font = `${Math.round(11 * devicePixelRatio)}px system-ui, sans-serif`;
      ctx.textBaseline = "middle";
      ctx.textAlign = "left";
      const [even, odd, words] = [color("step"), color("grid"), color("text")];
      rects(chart, marked, (index, x, y, width, height) => {
        ctx.fillStyle = marked.step[index] % 2 ? odd : even;
        ctx.fillRect(x, y, width, height);
        const label = `step ${marked.step[index]}`;
        if (width > ctx.measureText(label).width + 8) {
          ctx.fillStyle = words;
          ctx.fillText(label, x + 4, y + height / 2);
        }
      });
      ctx.fillStyle = color("busy");
      rects(chart, busy, (_, x, y, width, height) => ctx.fillRect(x, y, width, height));
      const fills = new Map();
      rects(chart, waits, (index, x, y, width, height) => {
        const site = waits.site[index];
        if (!fills.has(site)) fills.set(site, colorOf(site));
        ctx.fillStyle = fills.get(site);
        ctx.fillRect(x, y, width, height);
      });
      ctx.restore();
    };
    // The wait under the pointer; one that is narrower than a few pixels is found near it as well.
    const under = (chart) => {
      const {left, top} = chart.cursor;
      if (left == null || left < 0) return -1;
      const at = chart.posToVal(left, "x") * 1000, lane = Math.floor(chart.posToVal(top, "y"));
      const near = (chart.posToVal(left + 3, "x") - chart.posToVal(left, "x")) * 1000;
      return waits.start.findLastIndex((start, index) =>
        waits.lane[index] === lane && at >= start - near && at <= start + waits.us[index] + near);
    };
    const chart = sized(timeBox, 48 + 26 * lanes.length, (width, height) => new uPlot({
      width, height,
      legend: {show: false},
      cursor: {drag: {x: true, y: false}, y: false, points: {show: false}},
      scales: {x: {time: false}, y: {range: () => [0, lanes.length], dir: -1}},
      axes: [
        axis({
          size: 36, font, incrs: increments,
          space: (_, number, min, max) => measured(moment(max ?? whole, Math.max(((max ?? whole) - (min ?? 0)) / 20, 0.001))) + 24,
          values: (_, ticks, number, space, apart) => ticks.map((tick) => moment(tick, apart)),
        }),
        axis({
          size: room, font, grid: {show: false}, ticks: {show: false},
          splits: () => lanes.map((_, lane) => lane + 0.5),
          values: (chart) => {
            const names = lanes.map((name) => fitted(name, room(chart) - 12));
            laneNames.hidden = names.every((name, lane) => name === lanes[lane]);
            return names;
          },
        }),
      ],
      series: [{}, {paths: () => null, points: {show: false}}],
      hooks: {
        draw: [draw],
        setCursor: [(chart) => {
          const index = under(chart), lane = chart.cursor.left >= 0 ? lanes[Math.floor(chart.posToVal(chart.cursor.top, "y"))] : undefined;
          hint.textContent = index < 0 ? lane || otherwise
            : `${nameOf(waits.site[index])}: ${duration(waits.us[index] / 1000)} in step ${waits.step[index]}, ${lanes[waits.lane[index]]}`;
          chart.over.style.cursor = index < 0 ? "" : "pointer";
        }],
      },
    }, [[0, whole], [null, null]], timeBox));
    const {can, show} = zoomable(chart, timeBox, 0, whole, 0.01, span);
    for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", can[button.dataset.do]);
    let pressed = 0;
    chart.over.addEventListener("mousedown", (event) => { pressed = event.clientX; });
    chart.over.addEventListener("mouseup", (event) => {
      const index = under(chart);
      if (Math.abs(event.clientX - pressed) >= 3 || index < 0) return;
      const line = `#site-${waits.site[index]}`;
      if (location.hash === line) dispatchEvent(new Event("hashchange")); // once more
      else location.hash = line;
    });
    // The last whole steps are where a program has found its pace; of those, the ones that the GPU's work is known of.
    const numbers = [...new Set(marked.step)];
    const middle = (index) => marked.start[index] + marked.us[index] / 2;
    const withGpu = new Set(marked.step.filter((_, index) => middle(index) > busy.start[0] && middle(index) < end(busy)));
    const last = (withGpu.size ? [...withGpu] : numbers).slice(-4);
    const first = marked.step.indexOf(last[0]), final = marked.step.lastIndexOf(last.at(-1));
    if (numbers.length > 5) show(marked.start[first] / 1000, (marked.start[final] + marked.us[final]) / 1000);
  }

  // Colours are read while drawing, so another scheme, or paper, needs no more than that.
  for (const media of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(media).addEventListener("change", () => charts.forEach((chart) => chart.redraw(false)));
  }
})();
