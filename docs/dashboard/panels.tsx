/** Draws the panels of a dashboard with Grafana's own components, where the dashboard's file has them. */

import {
  applyFieldOverrides,
  cacheFieldDisplayNames,
  createTheme,
  type DataFrame,
  dateTime,
  type Field,
  FieldColorModeId,
  type FieldConfigSource,
  FieldConfigOptionsRegistry,
  FieldType,
  type GrafanaTheme2,
  getDisplayValueAlignmentFactors,
  getFieldDisplayValues,
  renderLegendFormat,
  standardTransformers,
  standardTransformersRegistry,
  ThemeContext,
  type TimeRange,
  transformDataFrame,
  VizOrientation,
} from "@grafana/data";
import { BigValue, BigValueTextMode, GlobalStyles, PanelChrome, TimeSeries, VizRepeater } from "@grafana/ui";
import { TableNG } from "@grafana/ui/unstable";
import { type ReactNode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { firstValueFrom } from "rxjs";

interface Target {
  refId: string;
  expr: string;
  legendFormat: string;
  format?: "table";
}

/** In columns of the dashboard, and in rows. */
interface Place {
  x: number;
  y: number;
  w: number;
  h: number;
}

interface Panel {
  id: number;
  type: "stat" | "table" | "timeseries";
  title: string;
  description: string;
  gridPos: Place;
  fieldConfig: FieldConfigSource;
  options: any;
  targets: Target[];
  transformations?: { id: string; options: any }[];
}

/** A series as Prometheus sends it: a value at one time, or several; times in s. */
interface Series {
  metric: Record<string, string>;
  value?: [number, string];
  values?: [number, string][];
}

/** What `queries.py` hands over: times and steps in ms, answers by panel and query, how wide the page is in px. */
interface Shown {
  board: { panels: Panel[] };
  answers: Record<number, Record<string, Series[]>>;
  steps: Record<number, number>;
  properties: string[];
  from: number;
  to: number;
  width: number;
}

interface Room {
  width: number;
  height: number;
}

const TIME_ZONE = "utc";
const COLUMNS = 24;
const ROW = 30;
const GAP = 8;
/** What Grafana's panels have where the dashboard's file says nothing of colours. */
const COLORS: Record<Panel["type"], FieldColorModeId> = {
  stat: FieldColorModeId.Thresholds,
  table: FieldColorModeId.Thresholds,
  timeseries: FieldColorModeId.PaletteClassic,
};
const asItIs = (text: string) => text;

standardTransformersRegistry.setInit(() =>
  [standardTransformers.mergeTransformer, standardTransformers.organizeFieldsTransformer].map((transformation) => ({
    id: transformation.id,
    name: transformation.name,
    transformation: async () => transformation,
    editor: () => null,
    imageDark: "",
    imageLight: "",
  })),
);

function framesOf(panel: Panel, shown: Shown): DataFrame[] {
  return panel.targets.flatMap((target) => {
    const series = shown.answers[panel.id][target.refId];
    if (target.format === "table") {
      return [tableOf(target, series, panel.targets.length > 1)];
    }
    return series.map((one) => overTime(target, one, shown.steps[panel.id]));
  });
}

function overTime(target: Target, series: Series, interval: number): DataFrame {
  const points = series.values ?? [series.value!];
  const name = target.legendFormat && renderLegendFormat(target.legendFormat, series.metric);
  return frame(target.refId, [
    { name: "Time", type: FieldType.time, config: { interval }, values: points.map(([at]) => at * 1000) },
    {
      name: "Value",
      type: FieldType.number,
      labels: series.metric,
      config: name ? { displayNameFromDS: name } : {},
      values: points.map(([, value]) => Number(value)),
    },
  ]);
}

function tableOf(target: Target, series: Series[], isOneOfSeveral: boolean): DataFrame {
  const labels = [...new Set(series.flatMap((one) => Object.keys(one.metric)))].sort();
  const values = series.map((one) => one.value!);
  return frame(target.refId, [
    { name: "Time", type: FieldType.time, config: {}, values: values.map(([at]) => at * 1000) },
    ...labels.map((name) => ({
      name,
      type: FieldType.string,
      config: {},
      values: series.map((one) => one.metric[name] ?? ""),
    })),
    {
      name: isOneOfSeveral ? `Value #${target.refId}` : "Value",
      type: FieldType.number,
      config: {},
      values: values.map(([, value]) => Number(value)),
    },
  ]);
}

function frame(refId: string, fields: Field[]): DataFrame {
  return { refId, fields, length: fields[0].values.length };
}

async function prepared(panel: Panel, shown: Shown, theme: GrafanaTheme2): Promise<DataFrame[]> {
  const answered = framesOf(panel, shown);
  const data = await firstValueFrom(
    transformDataFrame(panel.transformations ?? [], answered, { interpolate: asItIs }),
  );
  const { custom, ...others } = panel.fieldConfig.defaults;
  const defaults = { color: { mode: COLORS[panel.type] }, ...others };
  for (const field of data.flatMap((one) => one.fields)) {
    field.config = { ...field.config, custom: { ...custom } };
  }
  const registry = new FieldConfigOptionsRegistry(() =>
    shown.properties.map((id) => ({
      id,
      path: id.replace(/^custom\./, ""),
      name: id,
      isCustom: id.startsWith("custom."),
      editor: () => null,
      override: () => null,
      process: (value: unknown) => value,
      shouldApply: () => true,
    })),
  );
  const overridden = applyFieldOverrides({
    data,
    fieldConfig: { ...panel.fieldConfig, defaults },
    fieldConfigRegistry: registry,
    replaceVariables: asItIs,
    theme,
    timeZone: TIME_ZONE,
  });
  cacheFieldDisplayNames(overridden);
  return overridden;
}

function Stat({ panel, data, theme, width, height }: Drawn) {
  const { reduceOptions, graphMode, colorMode } = panel.options;
  const getValues = () =>
    getFieldDisplayValues({
      data,
      fieldConfig: panel.fieldConfig,
      reduceOptions,
      replaceVariables: asItIs,
      sparkline: graphMode !== "none",
      theme,
      timeZone: TIME_ZONE,
    });
  return (
    <VizRepeater
      getValues={getValues}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, alignmentFactors, count, ...room }) => (
        <BigValue
          value={value.display}
          sparkline={value.sparkline}
          textMode={BigValueTextMode.Auto}
          {...{ theme, colorMode, graphMode, alignmentFactors, count }}
          width={room.width}
          height={room.height}
        />
      )}
      source={data}
      renderCounter={0}
      autoGrid
      orientation={VizOrientation.Auto}
      {...{ width, height }}
    />
  );
}

function Lines({ panel, data, timeRange, width, height }: Drawn) {
  return (
    <TimeSeries
      frames={data}
      legend={{ showLegend: true, ...panel.options.legend }}
      timeZone={TIME_ZONE}
      {...{ timeRange, width, height }}
    />
  );
}

function Rows({ panel, data, timeRange, width, height }: Drawn) {
  const { showHeader, sortBy } = panel.options;
  return (
    <TableNG
      data={data[0]}
      noHeader={!showHeader}
      fieldConfig={panel.fieldConfig}
      enableVirtualization={false}
      {...{ sortBy, timeRange, width, height }}
    />
  );
}

interface Drawn extends Room {
  panel: Panel;
  data: DataFrame[];
  theme: GrafanaTheme2;
  timeRange: TimeRange;
}

const KINDS: Record<Panel["type"], (drawn: Drawn) => ReactNode> = { stat: Stat, timeseries: Lines, table: Rows };

function Chrome({ shown, panel, theme }: { shown: Shown; panel: Panel; theme: GrafanaTheme2 }) {
  const [data, setData] = useState<DataFrame[]>();
  useEffect(() => {
    prepared(panel, shown, theme).then(setData, failed);
  }, []);
  const timeRange = rangeOf(shown);
  const Kind = KINDS[panel.type];
  const { x, y, w, h } = panel.gridPos;
  const column = (shown.width - GAP) / COLUMNS;
  const width = w * column - GAP;
  const height = h * (ROW + GAP) - GAP;
  const left = GAP + x * column;
  const top = GAP + y * (ROW + GAP);
  return (
    <div style={{ position: "absolute", left, top, width, height }}>
      <PanelChrome title={panel.title} description={panel.description} {...{ width, height }}>
        {(innerWidth: number, innerHeight: number) =>
          data && <Kind {...{ panel, data, theme, timeRange }} width={innerWidth} height={innerHeight} />
        }
      </PanelChrome>
    </div>
  );
}

function rangeOf(shown: Shown): TimeRange {
  const [from, to] = [dateTime(shown.from), dateTime(shown.to)];
  return { from, to, raw: { from, to } };
}

/** The page's errors are heard where the picture is made; those of a promise are not. */
function failed(error: unknown) {
  setTimeout(() => {
    throw error;
  });
}

async function draw(shown: Shown) {
  const theme = createTheme({ colors: { mode: "dark" } });
  const rows = Math.max(...shown.board.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  document.body.style.height = `${rows * (ROW + GAP) + GAP}px`;
  createRoot(document.getElementById("styles")!).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
    </ThemeContext.Provider>,
  );
  await fontsOf(theme);
  createRoot(document.getElementById("board")!).render(
    <ThemeContext.Provider value={theme}>
      {shown.board.panels.map((panel) => (
        <Chrome key={panel.id} {...{ shown, panel, theme }} />
      ))}
    </ThemeContext.Provider>,
  );
}

/** Wait for the fonts, since the axes are laid out by the width of their text. */
async function fontsOf({ typography }: GrafanaTheme2) {
  await new Promise(requestAnimationFrame);
  const { fontFamily, fontWeightRegular, fontWeightMedium } = typography;
  await Promise.all([fontWeightRegular, fontWeightMedium].map((weight) => document.fonts.load(`${weight} 12px ${fontFamily}`)));
}

fetch("shown.json")
  .then((answer) => answer.json())
  .then(draw)
  .catch(failed);
