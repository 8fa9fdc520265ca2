// Figures, drawn by plotly when they come into view.

const LIGHT = ['#0072b2', '#d55e00', '#009e73', '#b8579a', '#c98a00', '#3a9bd6', '#8c564b', '#6a51a3', '#6f7378', '#7d8b00'];
const DARK = ['#5fb3ea', '#f2935a', '#3fcf9f', '#e59dcb', '#f0bd4a', '#9bd4f7', '#cfa093', '#b3a0e8', '#b4b8be', '#cdd14a'];
const SYMBOLS = ['circle', 'square', 'diamond', 'triangle-up', 'x', 'star'];
const MOST_LINES = 12;

const dark = () => getComputedStyle(document.documentElement).colorScheme === 'dark';
const colour = (i) => (dark() ? DARK : LIGHT)[i % LIGHT.length];
const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
/** plotly reads a little HTML in its texts; what comes from runs is text. */
const plain = (text) => String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
const faint = (hex, alpha) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(',')},${alpha})`;
const metricOf = (name) => data.metrics.find((m) => m.name === name);

/** A cell of the results as an object, null where there is none. */
function cellOf(group, metric, which) {
  const table = data.cells[which][metric] || data.cells.final[metric];
  if (!table) return null;
  const cell = Object.fromEntries(data.cell.map((key, i) => [key, table[group][i]]));
  return { ...cell, mean: number(cell.mean), se: number(cell.se) };
}

/** Half the length of an error bar: a standard error, or half of the 95 % t-interval. */
const spreadOf = (se, n, spread) => (se === null || n < 2 ? 0 : se * (spread === 'ci' ? data.t[n] || 1.96 : 1));

/** Ticks of a logarithmic axis at 1, 2 and 5 where its values span enough. */
function logTicks(values) {
  const good = values.filter((v) => typeof v === 'number' && v > 0);
  return Math.max(...good) / Math.min(...good) >= 8 ? { dtick: 'D2', tickformat: '~g' } : {};
}

function layout(traces, x, y, logX, logY, names, extra = {}) {
  const line = { gridcolor: variable('--hair'), linecolor: variable('--rule'), zeroline: false, ticks: 'outside',
    tickcolor: variable('--hair'), automargin: true };
  const below = window.innerWidth < 640 || Math.max(0, ...names.map((n) => n.length)) > 44;
  return {
    template: {}, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: variable('--ink') },
    margin: { l: 56, r: 12, t: 34, b: 48 }, hovermode: 'closest',
    modebar: { bgcolor: 'rgba(0,0,0,0)', color: variable('--soft'), activecolor: variable('--accent') },
    hoverlabel: { bgcolor: variable('--paper'), bordercolor: variable('--hair'), font: { color: variable('--ink') }, align: 'left' },
    legend: below ? { orientation: 'h', x: 0, y: 0, yref: 'container', yanchor: 'bottom', font: { size: 11 } } : { font: { size: 12 } },
    height: 400 + (below && names.length > 1 ? 19 * names.length : 0),
    xaxis: { ...line, showgrid: false, title: { text: plain(x) },
      ...(logX ? { type: 'log', ...logTicks(traces.flatMap((t) => t.x)) } : {}), ...extra },
    yaxis: { ...line, title: { text: plain(y) }, exponentformat: 'power',
      ...(logY ? { type: 'log', ...logTicks(traces.flatMap((t) => t.y)) } : {}) },
  };
}

// Named one by one: by default there is one that uploads the figure.
const CONFIG = { responsive: true, displaylogo: false, plotlyServerURL: '',
  modeBarButtons: [['toImage'], ['zoom2d', 'pan2d', 'resetScale2d']] };

function draw(id, traces, shape, empty) {
  const host = byId(id);
  host.classList.toggle('idle', !traces.length);
  if (!traces.length) {
    if (window.Plotly) window.Plotly.purge(host);
    host.replaceChildren(make('p', { className: 'empty' }, empty));
  } else {
    if (host.firstElementChild && host.firstElementChild.className === 'empty') host.replaceChildren();
    window.Plotly.react(host, traces, shape, CONFIG);
  }
}

/** Axes that are neither x nor lines but change along a line, and not simply with x: each value is a line of its own. */
function restAxes(groups, x, lines) {
  const text = (g, axes) => axes.map((a) => data.groups[g].settings[a].text).join('\u0000');
  const count = (members, axes) => new Set(members.map((g) => text(g, axes))).size;
  const chosen = [lines].filter(Boolean);
  for (const axis of data.axes.map((a) => a.name).filter((n) => n !== x && n !== lines)) {
    const along = new Map();
    groups.forEach((g) => along.set(text(g, chosen), [...(along.get(text(g, chosen)) || []), g]));
    if ([...along.values()].some((line) => ![1, count(line, [x])].includes(count(line, [axis]))
      || count(line, [x, axis]) > count(line, [x]))) chosen.push(axis);
  }
  return chosen.filter((a) => a !== lines);
}

/** A metric against a setting. */
function axisFigure(state) {
  const metric = metricOf(byId('axis-metric').value);
  const [x, lines] = [byId('axis-x').value, byId('axis-lines').value];
  if (!metric || !x) {
    draw('axis-figure', [], {}, 'The groups differ in no setting.');
    byId('axis-legend').textContent = '';
    return;
  }
  const axis = data.axes.find((a) => a.name === x);
  const points = state.groups.filter((g) => Number.isFinite(cellOf(g, metric.name, state.which)?.mean ?? NaN)
    && data.groups[g].settings[x].value !== null);
  const rest = restAxes(points, x, lines);
  const values = lines ? [...new Set(data.groups.map((g) => g.settings[lines].text))] : [''];
  const traces = new Map();
  const kinds = [];
  for (const g of points) {
    const settings = data.groups[g].settings;
    const kind = rest.filter((a) => settings[a].text !== '–').map((a) => `${a}=${settings[a].text}`).join(', ');
    const value = lines ? settings[lines].text : '';
    const key = `${value}\u0000${kind}`;
    if (!kinds.includes(kind)) kinds.push(kind);
    if (!traces.has(key)) traces.set(key, { value, kind, points: [] });
    traces.get(key).points.push(g);
  }
  const drawn = [...traces.values()].sort((a, b) => values.indexOf(a.value) - values.indexOf(b.value)).map((t) => {
    const sorted = axis.numeric ? t.points.sort((a, b) => data.groups[a].settings[x].value - data.groups[b].settings[x].value)
      : t.points;
    const cells = sorted.map((g) => cellOf(g, metric.name, state.which));
    const hue = colour(values.indexOf(t.value));
    return {
      type: 'scatter', mode: axis.numeric ? 'lines+markers' : 'markers', name: plain([t.value, t.kind].filter(Boolean).join(', ')),
      x: sorted.map((g) => (axis.numeric ? data.groups[g].settings[x].value : plain(data.groups[g].settings[x].text))),
      y: cells.map((c) => c.mean),
      error_y: { type: 'data', array: cells.map((c) => spreadOf(c.se, c.n, state.spread)), thickness: 1, width: 3, color: hue },
      line: { color: hue, width: 1.8, dash: ['solid', 'dash', 'dot', 'dashdot'][kinds.indexOf(t.kind) % 4] },
      marker: { color: hue, size: 7, symbol: SYMBOLS[kinds.indexOf(t.kind) % SYMBOLS.length] },
      text: sorted.map((g, i) => `${plain(data.groups[g].label)}<br>${plain(estimateText(cells[i], metric, state.spread))} (n=${cells[i].n})`),
      hovertemplate: '%{text}<extra></extra>', showlegend: traces.size > 1,
    };
  });
  const ticks = [...new Set(points.map((g) => data.groups[g].settings[x].value))];
  const extra = !axis.numeric ? { type: 'category' }
    : ticks.length <= 8 ? { tickmode: 'array', tickvals: ticks, ticktext: ticks.map(String) } : {};
  draw('axis-figure', drawn, layout(drawn, x, metric.name, byId('axis-logx').checked && axis.numeric, byId('axis-logy').checked,
    drawn.map((t) => t.name), extra),
    'No group of the filter has a value here.');
  byId('axis-legend').textContent = drawn.length
    ? `Bars: ${state.spread === 'ci' ? '95 % t-interval' : 'standard error'} over seeds; none where there is one seed.` : '';
}

/** Learning curves: the mean over seeds with its band, single runs thin. */
function curveFigure(state) {
  const metric = metricOf(byId('curve-metric').value);
  if (!metric) {
    draw('curve-figure', [], {}, 'No metric was logged at more than one step.');
    byId('curve-legend').textContent = '';
    return;
  }
  const { runs, groups } = data.curves[metric.name];
  const all = state.groups.filter((g) => groups[g]);
  const way = metric.better === 'up' ? -1 : 1;
  const ranked = metric.better ? [...all].sort((a, b) => order(cellOf(a, metric.name, 'final').mean,
    cellOf(b, metric.name, 'final').mean, way)) : all;
  const chosen = all.filter((g) => ranked.slice(0, MOST_LINES).includes(g));
  const traces = [];
  chosen.forEach((g, i) => {
    const hue = colour(i);
    const [steps, mean, se, n] = groups[g];
    const label = data.groups[g].label;
    const half = steps.map((_, k) => spreadOf(number(se[k]), n[k], state.spread));
    const several = half.some((h) => h > 0);
    if (several && byId('curve-runs').checked) {
      for (const r of data.groups[g].runs.filter((r) => runs[r])) {
        traces.push({ type: 'scatter', mode: 'lines', x: runs[r][0], y: runs[r][1], line: { color: faint(hue, 0.45), width: 0.8 },
          hoverinfo: 'skip', showlegend: false, legendgroup: String(g) });
      }
    }
    if (several) {
      const low = mean.map((m, k) => m - half[k]);
      const floor = Math.min(...mean.filter((m) => m > 0)) / 10;
      const down = byId('curve-logy').checked ? low.map((v) => Math.max(v, floor)) : low;
      traces.push({ type: 'scatter', mode: 'lines', x: [...steps, ...[...steps].reverse()],
        y: [...mean.map((m, k) => m + half[k]), ...down.reverse()], fill: 'toself', fillcolor: faint(hue, 0.16),
        line: { width: 0 }, hoverinfo: 'skip', showlegend: false, legendgroup: String(g) });
    }
    traces.push({ type: 'scatter', mode: steps.length < 12 ? 'lines+markers' : 'lines', x: steps, y: mean, name: plain(label),
      line: { color: hue, width: 2 }, marker: { color: hue, size: 5 }, legendgroup: String(g), showlegend: chosen.length > 1,
      text: steps.map((_, k) => plain(estimateText({ mean: mean[k], se: number(se[k]), n: n[k] }, metric, state.spread))
        + (n[k] > 1 ? ` (n=${n[k]})` : '')),
      hovertemplate: `${plain(label)}<br>step %{x}<br>%{text}<extra></extra>` });
  });
  draw('curve-figure', traces, layout(traces, 'step', metric.name, byId('curve-logx').checked, byId('curve-logy').checked,
    chosen.map((g) => data.groups[g].label)),
    'No run of the filter has a curve of this metric.');
  byId('curve-legend').textContent = [
    traces.some((t) => t.fill) ? `Mean over seeds; band: ${state.spread === 'ci' ? '95 % t-interval' : 'standard error'} at each step.` : '',
    all.length > MOST_LINES ? `${MOST_LINES} of ${all.length} groups are drawn, the best at the end; filter to see others.` : '',
  ].filter(Boolean).join(' ');
}
