"""Make wvmonitor.json, the Grafana dashboard: `python make_dashboard.py` (extra `dashboard`).

grafana-foundation-sdk is pinned exactly: its versions begin with an epoch, by which pip would take
the SDK of the oldest Grafana for the newest release.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    statushistory,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
WHICH = 'run=~"$run",reference=~"$reference"'
RUN = 'run=~"$run"'

STATES = {
    "2": ("alarm", "red"),
    "1": ("warn", "orange"),
    "0": ("ok", "green"),
    "-1": ("warming", "blue"),
    "-2": ("unknown", "purple"),
}

VERDICT = "sum by (run, reference) (" + " or ".join(
    f'max by (run, reference, verdict) (wvmonitor_verdict{{{WHICH},verdict="{state}"}}) * {code}'
    for code, (state, _) in STATES.items()
) + ")"  # fmt: skip

LAST_VERDICT = "sum by (run, reference, instance) (" + " or ".join(
    "max by (run, reference, instance, verdict) "
    f'(wvmonitor_verdict{{{WHICH},verdict="{state}"}}) * {code}'
    for code, (state, _) in STATES.items()
) + ")"  # fmt: skip

SEEN = f"(last_over_time(wvmonitor_expected{{{WHICH}}}[$__range]) * 0 + 1)"


def each(expression: str, *by: str) -> str:
    """One series a run and reference, wherever it was scraped from."""
    return f"max by ({', '.join(by or ('run', 'reference'))}) ({expression})"


def query(expression: str, legend: str, *, name: str = "A", instant: bool = False) -> Any:
    """A query of a panel."""
    built = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(name)
    built = built.datasource(SOURCE)
    return built.instant().format("table") if instant else built.range()  # type: ignore[arg-type]


def panel(
    kind: Any, title: str, words: str, *queries: Any, width: int = 12, height: int = 8
) -> Any:
    """A panel with its queries."""
    built = kind.Panel().title(title).description(words).datasource(SOURCE)
    built = built.span(width).height(height)
    for one in queries:
        built = built.with_target(one)
    return built


def curves(title: str, words: str, *queries: Any, width: int = 12, unit: str = "short") -> Any:
    """A panel of curves; readings are rare, so a point is shown for each and gaps are bridged."""
    built = panel(timeseries, title, words, *queries, width=width).unit(unit).line_width(2)
    built = built.show_points(kinds.VisibilityMode.AUTO).span_nulls(span_nulls=True)
    legend = common.VizLegendOptions().display_mode(kinds.LegendDisplayMode.LIST)
    tooltip = common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI)
    return built.legend(legend.placement(kinds.LegendPlacement.BOTTOM)).tooltip(tooltip)


def states(built: Any) -> Any:
    """Verdicts as words and colours instead of numbers."""
    mapping = {
        code: model.ValueMappingResult(text=text, color=color, index=index)
        for index, (code, (text, color)) in enumerate(STATES.items())
    }
    colors = dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS)
    return built.mappings([model.ValueMap(options=mapping)]).color_scheme(colors)


def prop(name: str, value: object) -> model.DynamicConfigValue:
    """One property of an override."""
    return model.DynamicConfigValue(id_val=name, value=value)


def sweep() -> list[Any]:
    """Many runs side by side."""
    verdict = states(
        panel(
            statetimeline,
            "Verdicts",
            "What is thought of each run and behaviour. Warming: too little has changed to judge. "
            "Unknown is never ok: it could not be judged.",
            query(VERDICT, "{{run}} · {{reference}}"),
            width=14,
            height=9,
        )
    )
    return [verdict, side_by_side()]


def side_by_side() -> Any:
    """Each run and behaviour in a row: how bad, how far, where, and what to open."""
    by = ("run", "reference", "instance")
    columns = {
        "verdict": each(f"last_over_time(({LAST_VERDICT})[$__range:])", *by),
        "score": each(f"last_over_time(wvmonitor_deciding_score{{{WHICH}}}[$__range])", *by),
        "threshold": each(f"last_over_time(wvmonitor_threshold{{{WHICH}}}[$__range])", *by),
        "step": (
            f"max by (run, instance) (last_over_time(wvmonitor_global_step{{{RUN}}}[$__range])) "
            f"* on (run, instance) group_right() {each(SEEN, *by)}"
        ),
    }
    built = panel(
        table,
        "Runs side by side",
        "The last word on each run and behaviour in the chosen time. The links show that run, "
        "and say what to do about an alarm; the run's folder has its report (`wvmonitor report`).",
        *(
            query(expression, "", name=name, instant=True)
            for name, expression in zip("ABCD", columns.values(), strict=True)
        ),
        width=24,
        height=9,
    )
    renamed = {f"Value #{name}": title for name, title in zip("ABCD", columns, strict=True)}
    order = {name: place for place, name in enumerate(
        ["run", "reference", *renamed, "instance"]
    )}  # fmt: skip
    built = built.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    built = built.with_transformation(
        model.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {"Time": True},
                "indexByName": order,
                "renameByName": renamed,
            },
        )
    )
    words = {
        code: {"text": text, "color": color, "index": index}
        for index, (code, (text, color)) in enumerate(STATES.items())
    }
    alone = "/d/wvmonitor?var-run=${__data.fields.run}&${datasource:queryparam}&${__url_time_range}"
    built = built.override_by_name(
        "run", [prop("links", [{"title": "This run alone", "url": alone}])]
    )
    return built.override_by_name(
        "verdict",
        [
            prop("mappings", [{"type": "value", "options": words}]),
            prop("custom.cellOptions", {"type": "color-text"}),
            prop("links", [{"title": "What to do", "url": "${runbooks}/", "targetBlank": True}]),
        ],
    )


def drift() -> list[Any]:
    """Scores of the runs and behaviours that are chosen."""
    deciding = curves(
        "Deciding score, and the threshold it is held against",
        "The verdict rests on this score. Dashed: the band of benign runs at this progress, or the "
        "published rule where there is no calibration.",
        query(each(f"wvmonitor_deciding_score{{{WHICH}}}"), "{{run}} · {{reference}}"),
        query(
            each(f"wvmonitor_threshold{{{WHICH}}}"), "threshold · {{run}} · {{reference}}", name="B"
        ),
        width=24,
    ).override_by_regexp(
        "/^threshold/",
        [
            prop("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
            prop("color", {"mode": "fixed", "fixedColor": "red"}),
            prop("custom.showPoints", "never"),
        ],
    )
    by = ("run", "reference", "geometry", "score")
    scores = curves(
        "All scores",
        "Every score in every geometry; two that disagree are worth a look.",
        query(
            each(f'wvmonitor_score{{{WHICH},kind="behaviour"}}', *by),
            "{{run}} · {{reference}} · {{geometry}} {{score}}",
        ),
    )
    controls = curves(
        "Controls",
        "Cosines with harmless references. If these rise as well, the run moves a lot in general.",
        query(
            each(f'wvmonitor_score{{{RUN},kind="control",score="cosine"}}', *by),
            "{{run}} · {{reference}} · {{geometry}}",
        ),
    )
    dose = curves(
        "Dose",
        "As if steered by so many times the reference. Scores are about direction, this is about "
        "amount.",
        query(each(f"wvmonitor_dose{{{WHICH}}}"), "{{run}} · {{reference}}"),
    )
    norm = curves(
        "Length of the change, ‖τ‖",
        "How far the weights are from where training began, in units of the weights.",
        query(each(f"wvmonitor_task_vector_norm{{{RUN}}}", "run"), "{{run}}"),
    )
    return [deciding, scores, controls, dose, norm]


def place() -> list[Any]:
    """Where in the model the change lies."""
    share = curves(
        "Share of the change by part of the model",
        "Scores look at the blocks' linear weights unless told otherwise.",
        query(
            each(f"wvmonitor_component_share{{{RUN}}}", "run", "component"),
            "{{run}} · {{component}}",
        ),
        unit="percentunit",
    )
    share = share.min(0).max(1).fill_opacity(20)
    layers = panel(
        statushistory,
        "Drift by layer",
        "How far the run went along the behaviour in each layer (with per_layer in the settings).",
        query(
            each(f"wvmonitor_layer_projection{{{WHICH}}}", "run", "reference", "layer"),
            "{{run}} · {{reference}} · {{layer}}",
        ),
    )
    colors = dashboard.FieldColor().mode(model.FieldColorModeId.CONTINUOUS_BL_YL_RD)
    layers = layers.color_scheme(colors).show_value(kinds.VisibilityMode.NEVER).row_height(0.95)
    return [share, layers]


def health() -> list[Any]:
    """Whether the monitor itself is well."""
    stamp = f"wvmonitor_last_reading_timestamp_seconds{{{RUN}}}"
    age = panel(
        stat,
        "Since the last reading",
        "A run that is being trained and is not measured is not being watched.",
        query(f"time() - {each(stamp, 'run')}", "{{run}}"),
        width=6,
    ).unit("s")
    progress = panel(
        stat,
        "Progress",
        "Share of the planned steps that is done.",
        query(each(f"wvmonitor_progress_ratio{{{RUN}}}", "run"), "{{run}}"),
        width=6,
    ).unit("percentunit")
    step = panel(
        stat,
        "Step",
        "Optimiser step of the last reading.",
        query(each(f"wvmonitor_global_step{{{RUN}}}", "run"), "{{run}}"),
        width=6,
    )
    coverage = panel(
        stat,
        "Seen by the scores",
        "Share of the change that lies where scores look. Below one half no verdict is passed.",
        query(f"min by (run) (wvmonitor_coverage_ratio{{{RUN}}})", "{{run}}"),
        width=6,
    ).unit("percentunit")
    cost = curves(
        "Time that measuring takes",
        "95 % of readings take less.",
        query(
            "histogram_quantile(0.95, sum by (le, instance) "
            "(rate(wvmonitor_measure_duration_seconds_bucket[$__rate_interval])))",
            "{{instance}}",
        ),
        width=8,
        unit="s",
    )
    readings = curves(
        "Readings a minute",
        "By training job.",
        query(
            "60 * sum by (instance) (rate(wvmonitor_readings_total[$__rate_interval]))",
            "{{instance}}",
        ),
        width=8,
    )
    trouble = curves(
        "Errors, and alerts that wait",
        "Errors of the monitor itself in the last hour, and deliveries of its own notifiers.",
        query(
            "sum by (instance, job, where) (increase(wvmonitor_errors_total[1h])) "
            "* on (instance, job) group_left(run) max by (instance, job, run) (wvmonitor_run_info) "
            "or vector(0)",
            "{{run}} {{instance}} {{where}} errors",
        ),
        query(
            "sum by (instance, job) (wvmonitor_outbox_pending) * on (instance, job) "
            "group_left(run) max by (instance, job, run) (wvmonitor_run_info)",
            "{{run}} {{instance}} alerts that wait",
            name="B",
        ),
        width=8,
    )
    return [age, progress, step, coverage, cost, readings, trouble]


def runbooks() -> Any:
    """Where the pages on each alert are; its value is a setting of the dashboard."""
    url = model.VariableOption(
        selected=True,
        text="https://docs.example.org/alerts",
        value="https://docs.example.org/alerts",
    )
    return dashboard.TextBoxVariable("runbooks").label("Runbooks at").current(url)


def variable(name: str, label: str, values: str) -> Any:
    """A choice above the dashboard, with "all" for the beginning."""
    everything = model.VariableOption(selected=True, text=["All"], value=["$__all"])
    built = dashboard.QueryVariable(name).label(label).query(values).datasource(SOURCE)
    built = built.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).multi(multi=True)
    built = built.sort(model.VariableSort.ALPHABETICAL_ASC)
    return built.include_all(include_all=True).all_value(".*").current(everything)


def main() -> None:
    """Write the dashboard beside this script, or to standard output with `-`."""
    built = dashboard.Dashboard("wvmonitor").uid("wvmonitor").tags(["wvmonitor", "training"])
    built = built.description("Drift of fine-tunes towards known behaviours, read in the weights.")
    built = built.time("now-6h", "now").refresh("30s").editable()
    built = built.tooltip(model.DashboardCursorSync.CROSSHAIR)
    built = built.with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
    built = built.with_variable(variable("run", "Run", "label_values(wvmonitor_global_step, run)"))
    built = built.with_variable(
        variable("reference", "Behaviour", "label_values(wvmonitor_verdict, reference)")
    )
    built = built.with_variable(runbooks())
    number = itertools.count(1)
    for title, panels in (
        ("Runs", sweep()),
        ("Drift", drift()),
        ("Where", place()),
        ("The monitor itself", health()),
    ):
        built = built.with_row(dashboard.Row(title).id(next(number)))
        for one in panels:
            built = built.with_panel(one.id(next(number)))
    text = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(built.build()) + "\n"
    if sys.argv[1:] == ["-"]:
        sys.stdout.write(text)
    else:
        Path(__file__).with_name("wvmonitor.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
