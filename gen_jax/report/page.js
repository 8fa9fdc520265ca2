// The page: what was chosen, and everything that follows from it.

const state = { which: 'final', spread: 'se', groups: [], runs: [], columns: new Set() };
const sorting = { groups: {}, runs: {}, tests: {} };
let figures = false;

/** '1.150 ± 0.020' or '1.150 [1.064, 1.236]'. */
function estimateText(cell, metric, spread) {
  if (cell.mean === null || cell.mean === undefined) return '–';
  const mean = shown(cell.mean, metric);
  if (cell.se === null || cell.n < 2) return mean;
  const half = spreadOf(cell.se, cell.n, 'ci');
  return spread === 'ci' ? `${mean} [${shown(cell.mean - half, metric)}, ${shown(cell.mean + half, metric)}]`
    : `${mean} ± ${shown(cell.se, metric)}`;
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, label]) => make('option', { value }, label)));
  select.value = options.some(([value]) => value === chosen) ? chosen : options.length ? options[0][0] : '';
  select.closest('label').hidden = options.length < 2;
}

// ---------------------------------------------------------------- results

const pads = new Map(data.axes.map((a) => [a.name, aligned(data.groups.map((g) => g.settings[a.name].text))]));

/** The group's value of an axis, numbers aligned at the decimal point. */
function settingText(axis, g) {
  const { text } = data.groups[g].settings[axis.name];
  return axis.numeric ? pads.get(axis.name)(text) : text;
}

const seedsOf = (g) => Math.max(0, ...data.metrics.filter((m) => state.columns.has(m.name))
  .map((m) => cellOf(g, m.name, state.which).n));

function estimateCell(g, metric, td) {
  const cell = cellOf(g, metric.name, state.which);
  if (cell.mean === null) return [cell.bad ? 'not finite' : '–', make('span', { className: 'mark' })];
  if (cell.best) td.classList.add('best');
  const [mean, ...rest] = estimateText(cell, metric, state.spread).split(/(?= [±[])/);
  const tested = cell.holm !== null;
  const mark = cell.ref ? '' : tested ? (number(cell.holm) < 0.05 ? '*' : '°') : '';
  td.title = [cell.ref ? 'the reference' : tested ? `p = ${pText(cell.holm)} (${cell.test}, Holm)` : cell.why || '',
    cell.bad ? `${cell.bad} values are not finite and not in the mean` : ''].filter(Boolean).join('; ');
  const parts = [make('span', { className: 'mean' }, mean), make('span', { className: 'spread' }, rest.join('')),
    make('span', { className: 'mark' }, mark)];
  if (cell.n !== seedsOf(g) || cell.bad) {
    parts.push(make('span', { className: 'few' }, cell.bad ? `${cell.bad} not finite` : `n=${cell.n}`));
  }
  return parts;
}

const pText = (p) => (number(p) < 0.001 ? number(p).toExponential(1) : number(p).toFixed(3));

function drawResults() {
  const bare = !data.axes.length;
  const settings = bare ? [{ label: 'runs', get: (g) => data.groups[g].names }] : data.axes.map((a) => ({
    label: a.name, title: a.key, number: a.numeric, get: (g) => data.groups[g].settings[a.name].value,
    cell: (g) => settingText(a, g) }));
  const single = data.groups.every((g) => g.label === g.names) && !bare;
  const metrics = data.metrics.filter((m) => state.columns.has(m.name)).map((m) => ({
    label: m.name, number: true, better: m.better, warn: m.warn.length > 0,
    title: m.warn.length ? `${m.name}: recipes differ in ${m.warn.join(', ')}` : `sort by ${m.name}`,
    get: (g) => cellOf(g, m.name, state.which).mean, cell: (g, td) => estimateCell(g, m, td) }));
  const columns = [...(single ? [{ label: 'run', get: (g) => data.groups[g].names }] : []), ...settings,
    { label: 'n', title: 'seeds', number: true, get: seedsOf }, ...metrics];
  drawTable(byId('groups-table'), columns, state.groups, 'Results', sorting.groups);
  const tested = data.groups.some((_, g) => seedsOf(g) > 1);
  byId('spread').closest('label').hidden = !tested;
  const warned = data.metrics.some((m) => state.columns.has(m.name) && m.warn.length);
  byId('legend').textContent = (tested
    ? `Mean ${state.spread === 'ci' ? 'and 95 % t-interval' : '± standard error'} over n ${data.words}. Bold: best mean. `
      + `* differs from ${data.baseline === null ? 'the best group of several seeds' : `the baseline (${data.baseline})`}, p < 0.05 (t-test, paired where `
      + 'the seeds are the same, else Welch’s; adjusted by Holm over the groups of a column). ° tested, not significant. '
      + 'No mark: no test is possible. A few seeds give an interval, not a proof'
      + (data.baseline === null ? ', and the best group was chosen by these same numbers: name a baseline for a fair test.' : '.')
      + (state.which === 'best' ? ' Best over training: the step was chosen by the value itself, which flatters it.' : '')
    : 'Bold: best. One seed each: there is no interval, and no test of a difference is possible.')
    + (warned ? ' ⚠ Numbers of different recipes stand in this column (see How each metric was computed): they cannot be '
      + 'compared as they stand.' : '');
}

function drawColumns() {
  byId('columns').replaceChildren(...data.metrics.map((m) => {
    const box = make('input', { type: 'checkbox', checked: state.columns.has(m.name) });
    box.addEventListener('change', () => {
      state.columns[box.checked ? 'add' : 'delete'](m.name);
      drawResults();
      drawRuns();
    });
    return make('label', { className: 'check' }, box, ` ${m.name}`);
  }));
}

// ---------------------------------------------------------------- runs, tests

function drawRuns() {
  const value = (r, m) => (state.which === 'best' ? number(data.runs[r].best[m]?.[0] ?? data.runs[r].final[m])
    : number(data.runs[r].final[m]));
  const setting = (r, a) => (data.runs[r].group === null ? null : data.groups[data.runs[r].group].settings[a]);
  drawTable(byId('runs-table'), [
    { label: 'run', get: (r) => data.runs[r].name },
    { label: 'status', get: (r) => data.runs[r].status, cell: (r, td) => {
      td.classList.add(`status-${data.runs[r].status.replace(/\W/g, '')}`);
      td.title = data.runs[r].error;
      return data.runs[r].status;
    } },
    ...data.axes.map((a) => ({ label: a.name, title: a.key, number: a.numeric, get: (r) => setting(r, a.name)?.value,
      cell: (r) => (data.runs[r].group === null ? '–' : settingText(a, data.runs[r].group)) })),
    ...data.seeds.map((s) => ({ label: s, number: true, get: (r) => Number(data.runs[r].seeds[s]), cell: (r) => data.runs[r].seeds[s] })),
    { label: 'step', number: true, get: (r) => data.runs[r].step },
    ...data.metrics.filter((m) => state.columns.has(m.name)).map((m) => ({ label: m.name, better: m.better, number: true,
      get: (r) => value(r, m.name), cell: (r) => shown(value(r, m.name), m) })),
  ], state.runs, 'Runs', sorting.runs);
}

function drawTests() {
  const metric = metricOf(byId('test-metric').value);
  const rows = metric ? state.groups.map((g) => ({ label: data.groups[g].label, ...cellOf(g, metric.name, state.which) }))
    .filter((c) => c.mean !== null && c.mean !== undefined) : [];
  const reference = metric && data.groups.findIndex((_, g) => cellOf(g, metric.name, state.which).ref);
  byId('test-legend').textContent = !metric ? '' : reference < 0
    ? `Which direction of ${metric.name} is better is not known: name it with --better, or give a --baseline.`
    : `Difference: mean of the group minus mean of the reference (${data.groups[reference].label}), with the 95 % interval of `
      + 'this comparison alone. p (Holm) is adjusted over all groups of the metric.';
  const plus = (v) => (v === null ? '–' : (number(v) > 0 ? '+' : '') + shown(v, metric));
  drawTable(byId('tests-table'), [
    { label: 'group', get: (c) => c.label, cell: (c) => c.label + (c.ref ? ' (reference)' : '') },
    { label: 'n', number: true, get: (c) => c.n },
    { label: 'difference', number: true, get: (c) => number(c.diff), cell: (c) => plus(c.diff) },
    { label: '95 % interval', number: true, get: (c) => number(c.dlow), cell: (c) => (c.dlow === null ? '–' : `${plus(c.dlow)} to ${plus(c.dhigh)}`) },
    { label: 'test', get: (c) => c.test, cell: (c) => (c.ref ? '' : [c.test, c.why].filter(Boolean).join(', ') || '–') },
    { label: 'p', number: true, get: (c) => number(c.p), cell: (c) => (c.p === null ? '–' : pText(c.p)) },
    { label: 'p (Holm)', number: true, get: (c) => number(c.holm), cell: (c, td) => {
      if (c.holm !== null && number(c.holm) < 0.05) td.classList.add('best');
      return make('span', { className: 'mean' }, c.holm === null ? '–' : pText(c.holm));
    } },
  ], rows, 'Tests', sorting.tests);
}

// ---------------------------------------------------------------- samples

const pictureSeed = (p) => JSON.stringify([String(p.seed), ...data.seeds.filter((s) => s === 'seed').map((s) => data.runs[p.run].seeds[s])]);

function choosePictures() {
  const named = data.pictures.filter((p) => p.name === byId('picture-name').value);
  const seeds = [...new Set(named.map(pictureSeed))].sort((a, b) => order(a, b, 1));
  fill(byId('picture-seed'), seeds.map((s) => {
    const [sampling, training] = JSON.parse(s);
    return [s, training === undefined ? sampling : `${sampling}, training ${training}`];
  }), byId('picture-seed').value);
  const rows = Math.max(0, ...named.map((p) => p.rows));
  const columns = named.length ? named[0].columns : 0;
  fill(byId('picture-row'), rows > 1 ? [...Array(rows).keys()].map((k) => [String(k), `${k * columns + 1} to ${(k + 1) * columns}`])
    .concat([['all', 'all']]) : [['all', 'all']], byId('picture-row').value);
}

function drawPictures() {
  const [seed, row] = [byId('picture-seed').value, byId('picture-row').value];
  const chosen = data.pictures.filter((p) => p.name === byId('picture-name').value && pictureSeed(p) === seed && state.runs.includes(p.run));
  byId('pictures').replaceChildren(...chosen.map((p) => {
    const run = data.runs[p.run];
    const label = run.group === null || data.groups.length < 2 ? run.name : data.groups[run.group].label;
    const zoom = Math.max(1, Math.floor(40 / ((p.width - 1) / p.columns)));
    const pitch = p.rows > 1 ? (p.height - 1) / p.rows : p.height;
    const image = make('img', { src: p.data, alt: `${p.name}, ${label}`, width: p.width * zoom, height: p.height * zoom });
    const strip = make('div', { className: 'strip' }, image);
    if (row !== 'all' && p.rows > 1) {
      image.style.marginTop = `${-Number(row) * pitch * zoom}px`;
      strip.style.height = `${(pitch + 1) * zoom}px`;
      strip.hidden = Number(row) >= p.rows;
    }
    return make('div', { className: 'row' }, make('span', { title: run.name }, label), strip);
  }));
  byId('picture-legend').textContent = chosen.length
    ? 'Image k of every row was made from the same noise: it depends on the sampling seed and on k only.'
    : data.pictures.length ? 'No run of the filter has a picture here.' : 'No run has a picture.';
}

// ---------------------------------------------------------------- all together

function applyFilter() {
  const terms = parseFilter(byId('filter').value);
  const ofRun = (r) => (key) => {
    const run = data.runs[r];
    if (key.axis) return run.group === null ? [] : [data.groups[run.group].settings[key.axis].text];
    if (key.seed) return [run.seeds[key.seed]];
    return key.metric ? [number(run.final[key.metric] ?? null)] : key.own === 'n' ? [1] : [run[{ run: 'name' }[key.own] || key.own]];
  };
  const ofGroup = (g) => (key) => {
    if (key.axis) return [data.groups[g].settings[key.axis].text];
    if (key.metric) return [cellOf(g, key.metric, state.which).mean];
    return key.own === 'n' ? [seedsOf(g)] : data.groups[g].runs.flatMap((r) => ofRun(r)(key));
  };
  const text = (r) => [data.runs[r].name, data.runs[r].status, data.runs[r].error, data.groups[data.runs[r].group]?.label].join(' ');
  state.groups = [...data.groups.keys()].filter((g) => passes(terms, [data.groups[g].label, ...data.groups[g].runs.map(text)].join(' '), ofGroup(g)));
  state.runs = [...data.runs.keys()].filter((r) => passes(terms, text(r), ofRun(r)));
  byId('matches').textContent = `${state.groups.length} of ${data.groups.length} groups`;
}

function drawFigures() {
  if (!window.Plotly) return;
  if (!figures) {  // each is drawn when it first comes into view
    figures = new Map([['axis', axisFigure], ['curves', curveFigure]]);
    figures.seen = new Set();
    const watch = new IntersectionObserver((entries) => entries.filter((e) => e.isIntersecting).forEach((e) => {
      figures.seen.add(e.target.id);
      figures.get(e.target.id)(state);
      watch.unobserve(e.target);
    }), { rootMargin: '300px' });
    figures.forEach((_, id) => watch.observe(byId(id)));
  }
  figures.seen.forEach((id) => figures.get(id)(state));
}

function drawAll() {
  applyFilter();
  drawResults();
  drawRuns();
  drawTests();
  drawPictures();
  drawFigures();
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  byId('theme').textContent = `Theme: ${name}`;
  try { localStorage.setItem('gen-jax-theme', name); } catch { /* files may have no storage */ }
  drawFigures();
}

/** Logarithms where values are positive and far apart. */
function chooseScales(...changed) {
  const far = (list) => {
    const values = list.filter((v) => typeof v === 'number' && Number.isFinite(v));
    return values.length > 1 && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) >= 8;
  };
  const [x, metric] = [byId('axis-x').value, byId('axis-metric').value];
  if (changed.includes('axis-x') && x) byId('axis-logx').checked = far(data.groups.map((g) => g.settings[x].value));
  if (changed.includes('axis-metric') && metric) {
    byId('axis-logy').checked = far([...data.groups.keys()].map((g) => cellOf(g, metric, state.which).mean));
  }
}

function start() {
  const headlines = data.metrics.filter((m) => m.headline);
  headlines.forEach((m) => state.columns.add(m.name));
  const names = (list) => list.map((m) => [m.name, m.name]);
  const axes = data.axes.map((a) => [a.name, a.name]);
  fill(byId('axis-metric'), names(data.metrics), headlines[0]?.name);
  fill(byId('test-metric'), names(data.metrics), headlines[0]?.name);
  fill(byId('axis-x'), axes, data.x);
  fill(byId('axis-lines'), [['', 'one line'], ...axes], data.lines || '');
  const curves = data.metrics.filter((m) => m.curve);
  const length = (m) => Object.keys(data.curves[m.name].runs).length;
  fill(byId('curve-metric'), names(curves), curves.find((m) => length(m) === Math.max(...curves.map(length)))?.name);
  byId('axis-controls').hidden = !data.axes.length || !data.metrics.length;
  byId('curve-controls').hidden = !Object.keys(data.curves).length;
  fill(byId('picture-name'), [...new Set(data.pictures.map((p) => p.name))].map((n) => [n, n]));
  chooseScales('axis-x', 'axis-metric');
  byId('which').closest('label').hidden = !Object.keys(data.cells.best).length;
  choosePictures();
  drawColumns();
  drawPlain('differences-table', data.differences, 'The runs differ in no setting.');
  drawPlain('recipes-table', data.recipes, 'No run has been evaluated.');
  drawPlain('timing-table', data.timing, 'Nothing is known of time and hardware.');
  byId('filter').addEventListener('input', drawAll);
  for (const key of ['which', 'spread']) byId(key).addEventListener('change', () => { state[key] = byId(key).value; drawAll(); });
  for (const id of ['axis-metric', 'axis-x']) byId(id).addEventListener('change', () => chooseScales(id));
  for (const id of ['axis-metric', 'axis-x', 'axis-lines', 'axis-logx', 'axis-logy', 'curve-metric', 'curve-logx', 'curve-logy', 'curve-runs']) {
    byId(id).addEventListener('change', drawFigures);
  }
  byId('test-metric').addEventListener('change', drawTests);
  byId('picture-name').addEventListener('change', () => { choosePictures(); drawPictures(); });
  for (const id of ['picture-seed', 'picture-row']) byId(id).addEventListener('change', drawPictures);
  let stored = null;
  try { stored = localStorage.getItem('gen-jax-theme'); } catch { /* files may have no storage */ }
  const themes = ['auto', 'light', 'dark'];
  theme(themes.includes(stored) ? stored : 'auto');
  byId('theme').addEventListener('click', () => theme(themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % 3]));
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawFigures);
  drawAll();
}

start();
window.genJaxReport = { drawFigures };
