// Draws the panels of deploy/monitoring/dashboard.json with the components that Grafana draws them with. What Grafana's
// server does is done here in a few lines: the queries, the names of the series, the grid.
import { createRoot } from 'react-dom/client';
import {
  FieldType, ThemeContext, createDataFrame, createTheme, dateTime, getDisplayProcessor, getDisplayValueAlignmentFactors,
} from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, Table, TimeSeries } from '@grafana/ui';
import dashboard from '../../deploy/monitoring/dashboard.json';

const theme = createTheme({ colors: { mode: 'light' } });
const parameters = new URLSearchParams(location.search);
const from = Number(parameters.get('from'));
const to = Number(parameters.get('to'));
const width = 1600;
const column = width / 24;
const row = 38; // as in Grafana: 30 and a gap of 8

async function prometheus(path, query) {
  const answer = await (await fetch(`/api/v1/${path}?${new URLSearchParams(query)}`)).json();
  if (answer.status !== 'success') {
    throw new Error(`${query.query}: ${answer.error}`);
  }
  return answer.data.result;
}

const legend = (format, labels) => format.replace(/{{(.*?)}}/g, (_, name) => labels[name] ?? '');

function field(name, type, values, defaults = {}, seriesIndex = 0) {
  const config = { ...defaults, displayName: name, color: { mode: 'fixed', fixedColor: theme.visualization.palette[seriesIndex % theme.visualization.palette.length] } };
  const f = { name, type, values, config };
  f.display = getDisplayProcessor({ field: f, theme, timeZone: 'utc' });
  return f;
}

// frames has a frame for each series of a panel, or for a table one with all of them.
async function frames(panel) {
  const defaults = panel.fieldConfig.defaults;
  if (panel.type === 'timeseries') {
    const step = Math.max(5, Math.round((to - from) / 400));
    const found = [];
    for (const target of panel.targets) {
      for (const series of await prometheus('query_range', { query: target.expr, start: from, end: to, step })) {
        const at = new Map(series.values.filter(([, value]) => value !== 'NaN').map(([time, value]) => [Math.round(time), Number(value)]));
        const times = [];
        for (let time = from; time <= to; time += step) {
          times.push(time);
        }
        found.push(createDataFrame({
          fields: [
            field('Time', FieldType.time, times.map((time) => time * 1000)),
            field(legend(target.legendFormat, series.metric), FieldType.number, times.map((time) => at.get(time) ?? null), defaults, found.length),
          ],
        }));
      }
    }
    return found;
  }
  const series = await prometheus('query', { query: panel.targets[0].expr, time: to });
  const values = series.map((s) => Number(s.value[1]));
  if (panel.type === 'stat') {
    return values.length ? [createDataFrame({ fields: [field('Value', FieldType.number, values, defaults)] })] : [];
  }
  const labels = ['volume_namespace', 'volume'];
  return [createDataFrame({
    fields: [
      ...labels.map((name) => field(name, FieldType.string, series.map((s) => s.metric[name]))),
      field('Value', FieldType.number, values, defaults),
    ],
  })];
}

function Inside({ panel, data, width, height }) {
  if (data.length === 0 || data[0].length === 0) {
    return <div data-empty={panel.title}>No data</div>;
  }
  switch (panel.type) {
    case 'stat': {
      const value = data[0].fields[0];
      const shown = value.display(value.values[0]);
      return <BigValue value={{ ...shown, color: theme.colors.text.primary }} width={width} height={height} theme={theme}
        colorMode="value" graphMode="none" justifyMode="center" alignmentFactors={getDisplayValueAlignmentFactors([{ display: shown }])} />;
    }
    case 'table':
      return <Table data={data[0]} width={width} height={height} />;
    default:
      return <TimeSeries frames={data} structureRev={1} width={width} height={height} timeZone="utc"
        timeRange={{ from: dateTime(from * 1000), to: dateTime(to * 1000), raw: { from: '', to: '' } }}
        legend={{ displayMode: 'list', placement: 'bottom', calcs: [], showLegend: true }} options={{}} />;
  }
}

const panels = await Promise.all(dashboard.panels.map(async (panel) => ({ panel, data: await frames(panel) })));
const bottom = Math.max(...dashboard.panels.map(({ gridPos: g }) => g.y + g.h));

createRoot(document.getElementById('root')).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <div style={{ position: 'relative', width, height: bottom * row, background: theme.colors.background.canvas }}>
      {panels.map(({ panel, data }) => {
        const g = panel.gridPos;
        return (
          <div key={panel.id} style={{ position: 'absolute', left: g.x * column, top: g.y * row }}>
            <PanelChrome title={panel.title} description={panel.description} width={g.w * column - 8} height={g.h * row - 8}>
              {(innerWidth, innerHeight) => <Inside panel={panel} data={data} width={innerWidth} height={innerHeight} />}
            </PanelChrome>
          </div>
        );
      })}
    </div>
    <div id="ready" />
  </ThemeContext.Provider>,
);
