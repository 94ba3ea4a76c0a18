// What Grafana publishes of its dashboards' files: their fields, and the options of the four kinds of panel used here.
// Queries are left to those who answer them.  `tsc` holds each file against `File`, as test_files.py has it.
import type { Dashboard, FieldConfig, Panel, VariableModel } from "@grafana/schema/dist/esm/raw/dashboard/x/Dashboard_types.gen";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

/** A file may leave out what has a default, and has the values of enums as texts. */
type Written<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]?: Written<T[K]> } : T;

type FieldsOf<Custom> = Omit<NonNullable<Panel["fieldConfig"]>, "defaults"> & {
  defaults: Omit<FieldConfig, "custom"> & { custom: Custom };
};

type PanelOf<Type extends string, Options, Custom> = { type: Type } & Written<
  Omit<Panel, "type" | "options" | "fieldConfig"> & { options: Options; fieldConfig: FieldsOf<Custom> }
>;

type AnyPanel =
  | PanelOf<"timeseries", timeseries.Options, timeseries.FieldConfig>
  | PanelOf<"heatmap", heatmap.Options, heatmap.FieldConfig>
  | PanelOf<"stat", stat.Options, never>
  | PanelOf<"table", table.Options, table.FieldConfig>;

/** `definition`: Grafana writes it beside the query of a variable and shows it in the list; the type does not have it. */
type Variable = Written<VariableModel> & { definition?: string };

export type File = Omit<Written<Dashboard>, "panels" | "schemaVersion" | "templating"> & {
  schemaVersion: number;
  panels: AnyPanel[];
  templating: { list: Variable[] };
};

// Each of these mistakes is one: the compiler complains of a line below it that is right.
const empty = { schemaVersion: 41, templating: { list: [] } };
// @ts-expect-error -- no such field of a dashboard
export const field: File = { ...empty, panels: [], refreshes: "30s" };
// @ts-expect-error -- no such kind of panel
export const kind: File = { ...empty, panels: [{ type: "graph" }] };
// @ts-expect-error -- an option of another kind of panel
export const option: File = { ...empty, panels: [{ type: "table", options: { showHeader: true, graphMode: "area" } }] };
// @ts-expect-error -- not one of the values
export const value: File = { ...empty, panels: [{ type: "table", options: { cellHeight: "tiny" } }] };
// @ts-expect-error -- nor here, further in
export const deep: File = { ...empty, panels: [{ type: "stat", fieldConfig: { defaults: { color: { mode: "rainbow" } } } }] };
// @ts-expect-error -- no such option of lines
export const custom: File = { ...empty, panels: [{ type: "timeseries", fieldConfig: { defaults: { custom: { lineWith: 2 } } } }] };
