"""The pictures, as plain plotly JSON: {"data", "layout", "alt"}.

Colours are names of CSS variables (`--better`), which the page's script reads from the theme in force. Labels inside pictures
are pseudo-HTML to plotly and are escaped as such; rows stand at numbers, so that two names shortened alike stay two rows.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pluribus.study.report.tables import css
from pluribus.study.report.words import Row, deciding, direction, finite, hole, mean, measure, number, short, span

Figure = dict[str, Any]

COLOURS = 7
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px 2px")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star")
AXIS = {"gridcolor": "--line", "zeroline": False, "linecolor": "--soft", "tickfont": {"size": 12}, "fixedrange": True}
_SIDE = {"showgrid": False, "zeroline": False, "fixedrange": True, "tickfont": {"size": 12}}


def dash_of(k: int) -> int:
    """Which dash the k-th candidate has: one further where the colours begin again, so that none looks like another."""
    return (k + k // COLOURS) % len(DASHES)


def label(name: str, most: int = 24) -> str:
    """A name inside a picture."""
    return escape(short(name, most), quote=False)


def _wrapped(name: str) -> str:
    """A name in at most two lines."""
    return "<br>".join(label(line, 24) for line in textwrap.wrap(name, 23, max_lines=2, placeholder="…")) or "?"


def layout_of(height: int, **more: Any) -> dict[str, Any]:
    """The layout that all pictures share, of so many pixels, with `more` keys of plotly's."""
    return {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 28},
        "showlegend": False,
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "dragmode": False,
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "--ink"},
        "hoverlabel": {"bgcolor": "--paper", "bordercolor": "--soft", "font": {"color": "--ink"}, "align": "left"},
        **more,
    }


def around(values: Sequence[Any]) -> list[float]:
    """The range that holds all finite values, with room at both ends."""
    known = [float(v) for v in values if finite(v)]
    low, high = min(known), max(known)
    room = 0.06 * (high - low) or max(abs(high), 1.0)
    return [low - room, high + room]


def gains(comparison: Row, shown: Sequence[str]) -> Figure:
    """Each task's gain on an axis of its own, in its metric's unit: thick the method, thin this file, the tolerance shaded."""
    panel, rows = 96, [row for row in comparison["tasks"] if row["task"] in set(shown)]
    height = panel * len(rows)
    layout = layout_of(height, margin={"l": 62, "r": 14, "t": 0, "b": 0}, shapes=[], annotations=[])
    data: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        key = "" if i == 0 else str(i + 1)
        x, y, top = f"x{key}", f"y{key}", i * panel
        layout[f"xaxis{key}"] = {**AXIS, "anchor": y, "nticks": 5}
        layout[f"yaxis{key}"] = {
            **_SIDE,
            "anchor": x,
            "domain": [1 - (top + 68) / height, 1 - (top + 24) / height],
            "range": [-0.7, 1.7],
            "tickvals": [0, 1],
            "ticktext": ["this file", "method"],
        }
        layout["annotations"].append(
            {
                "text": f"<b>{label(row['task'], 28)}</b> {label(measure(row['metric']), 16)}: {row['word']}",
                "x": 0,
                "xref": "paper",
                "y": 1 - (top + 2) / height,
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "top",
                "showarrow": False,
                "xshift": -58,
                "font": {"color": f"--{css(row['word'])}", "size": 13},
            }
        )
        if finite(row["tolerance"]):
            layout["shapes"].append(
                {
                    "type": "rect",
                    "xref": x,
                    "yref": f"{y} domain",
                    "x0": -row["tolerance"],
                    "x1": 0,
                    "y0": 0,
                    "y1": 1,
                    "fillcolor": "--band",
                    "line": {"color": "--soft", "width": 1},
                    "layer": "below",
                }
            )
        layout["shapes"].append(
            {
                "type": "line",
                "xref": x,
                "yref": f"{y} domain",
                "x0": 0,
                "x1": 0,
                "y0": 0,
                "y1": 1,
                "line": {"color": "--ink", "width": 1.5},
            }
        )
        ends = [row["gain"][scope][end] for scope in ("method", "file") if row["gain"][scope] for end in ("low", "value", "high")]
        layout[f"xaxis{key}"]["range"] = around([0.0, -(row["tolerance"] or 0.0), *ends])
        for scope, at, width in (("method", 1, 6), ("file", 0, 2)):
            found = row["gain"][scope]
            if found is None or not finite(found["value"]):
                continue
            said = f"{label(row['task'], 60)}<br>gain {number(found['value'], '+')}<br>{span(found)}"
            colour = f"--{css(row['word'])}"
            if finite(found["low"]) and finite(found["high"]):
                data.append(
                    {
                        "x": [found["low"], found["high"]],
                        "y": [at, at],
                        "xaxis": x,
                        "yaxis": y,
                        "mode": "lines",
                        "line": {"color": colour, "width": width},
                        "hoverinfo": "skip",
                    }
                )
            data.append(
                {
                    "x": [found["value"]],
                    "y": [at],
                    "xaxis": x,
                    "yaxis": y,
                    "mode": "markers",
                    "text": [said],
                    "hoverinfo": "text",
                    "marker": {"size": 11, "color": "--paper", "symbol": "circle", "line": {"color": colour, "width": 3}},
                }
            )
    said = "; ".join(
        f"{r['task']}: gain {number(deciding(r['gain'])['value'], '+')} in {measure(r['metric'])}, "
        f"{span(deciding(r['gain']))}, tolerance {number(r['tolerance'])}, {r['word']}"
        for r in rows
    )
    return {"data": data, "layout": layout, "alt": f"Gain over {comparison['reference']} with intervals. {said}."}


def scores(
    task: Row, seeds: Mapping[str, Sequence[float]], labels: Mapping[str, str], sure: set[str], intervals: Mapping[str, Row]
) -> Figure:
    """One task, every candidate: a dot a seed, the mean large; filled where the figure is claimed, hollow where exploratory."""
    main = task["metrics"][0]
    known = [name for name in seeds if seeds[name]]
    layout = layout_of(46 * len(known) + 60, margin={"l": 8, "r": 14, "t": 8, "b": 44})
    layout["xaxis"] = {
        **AXIS,
        "nticks": 5,
        "title": {"text": f"{label(measure(main['name']))}, {direction(main['direction'])}", "font": {"size": 12}, "standoff": 6},
    }
    layout["yaxis"] = {
        **_SIDE,
        "automargin": True,
        "tickvals": list(range(len(known))),
        "range": [len(known) - 0.4, -0.6],
        "ticktext": [_wrapped(labels[n]) + ("" if n in sure else "<br><i>exploratory</i>") for n in known],
    }
    data: list[dict[str, Any]] = []
    ends = [v for name in known for v in seeds[name]] + [intervals[n][e] for n in intervals for e in ("low", "high")]
    if any(map(finite, ends)):
        layout["xaxis"]["range"] = around(ends)
    for i, name in enumerate(known):
        colour, values = f"--c{list(seeds).index(name) % COLOURS}", [v for v in seeds[name] if finite(v)]
        if name in intervals and finite(intervals[name]["low"]):
            data.append(
                {
                    "x": [intervals[name]["low"], intervals[name]["high"]],
                    "y": [i, i],
                    "mode": "lines",
                    "line": {"color": colour, "width": 2},
                    "hoverinfo": "skip",
                }
            )
        if not values:
            continue
        data.append(
            {
                "x": values,
                "y": [i] * len(values),
                "mode": "markers",
                "hoverinfo": "x",
                "marker": {"size": 6, "symbol": "line-ns", "line": {"width": 1.5, "color": colour}},
            }
        )
        fill = colour if name in sure else "--paper"
        said = f"{label(labels[name], 60)}<br>mean {number(mean(values))}<br>{'claimed' if name in sure else 'exploratory'}"
        data.append(
            {
                "x": [mean(values)],
                "y": [i],
                "mode": "markers",
                "text": [said],
                "hoverinfo": "text",
                "marker": {"size": 12, "color": fill, "symbol": "diamond", "line": {"width": 2, "color": colour}},
            }
        )
    listed = "; ".join(f"{labels[n]} {number(mean(seeds[n]))}{'' if n in sure else ' (exploratory)'}" for n in known)
    return {"data": data, "layout": layout, "alt": f"{measure(main['name'])} on {task['name']} on the test split: {listed}."}


def curves(task: Row, runs: Mapping[str, Sequence[Sequence[Any]]], labels: Mapping[str, str]) -> Figure:
    """One task's validation metric at each check of the training, a line a seed."""
    main = task["metrics"][0]
    layout = layout_of(220, margin={"l": 8, "r": 12, "t": 8, "b": 40})
    layout["xaxis"] = {**AXIS, "title": {"text": "check during training", "font": {"size": 12}, "standoff": 4}, "nticks": 6}
    longest = [max(map(len, lines)) for lines in runs.values() if any(lines)]
    if max(longest) <= 8:
        layout["xaxis"]["dtick"] = 1
    elif max(longest) >= 8 * min(longest):  # trees check every round, networks every epoch
        layout["xaxis"] |= {"type": "log", "tickvals": [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]}
    layout["yaxis"] = {
        **AXIS,
        "automargin": True,
        "nticks": 5,
        "title": {"text": label(measure(main["name"])), "font": {"size": 12}, "standoff": 4},
    }
    data = []
    for k, (name, lines) in enumerate(runs.items()):
        for line in lines:
            step = max(1, len(line) // 200)  # long runs are thinned: the shape is what is looked at
            at = sorted({*range(0, len(line), step), len(line) - 1}) if line else []
            data.append(
                {
                    "x": [i + 1 for i in at],
                    "y": [line[i] if finite(line[i]) else None for i in at],
                    "mode": "lines+markers" if len(line) < 3 else "lines",
                    "name": label(labels[name], 40),
                    "hoverinfo": "x+y+name",
                    "line": {"color": f"--c{k % COLOURS}", "width": 1.8, "dash": DASHES[dash_of(k)]},
                    "marker": {"symbol": SYMBOLS[k % COLOURS], "size": 7, "color": f"--c{k % COLOURS}"},
                }
            )
    listed = "; ".join(
        f"{labels[n]} ends at {number(mean(line[-1] for line in lines if line))} after {max(map(len, lines))} checks"
        for n, lines in runs.items()
        if any(lines)
    )
    return {"data": data, "layout": layout, "alt": f"{measure(main['name'])} on {task['name']} on validation: {listed}."}


def holes(words: Sequence[str], codes: Mapping[str, Sequence[int]], ordered: str) -> Figure:
    """Tasks by rows: what each cell of the table is."""
    order = list(codes)
    layout = layout_of(max(90, 26 * len(order) + 56), margin={"l": 8, "r": 8, "t": 8, "b": 36})
    layout["yaxis"] = {
        **_SIDE,
        "automargin": True,
        "tickvals": list(range(len(order))),
        "ticktext": [label(n, 20) for n in order],
        "range": [len(order) - 0.5, -0.5],
    }
    layout["xaxis"] = {
        **AXIS,
        "showgrid": False,
        "showticklabels": False,
        "ticks": "",
        "title": {"text": ordered, "font": {"size": 12}, "standoff": 4},
    }
    n = len(words)
    scale = [[(k + e) / n, f"--hole{k}"] for k in range(n) for e in (0, 1)]
    said = [[f"{label(name, 40)}: {hole(words[c])}" for c in codes[name]] for name in order]
    data = [
        {
            "type": "heatmap",
            "z": [list(codes[name]) for name in order],
            "y": list(range(len(order))),
            "zmin": -0.5,
            "zmax": n - 0.5,
            "colorscale": scale,
            "showscale": False,
            "ygap": 3,
            "text": said,
            "hoverinfo": "text",
        }
    ]
    listed = "; ".join(
        f"{name}: " + ", ".join(f"{sum(c == k for c in codes[name])} {hole(w)}" for k, w in enumerate(words) if k in codes[name])
        for name in order
    )
    return {"data": data, "layout": layout, "alt": f"Which cells of the table hold labels. Of the rows shown, {listed}."}


def reliability(task: str, bins: Sequence[Row]) -> Figure:
    """Predicted against observed rate, with intervals; the diagonal is perfect."""
    layout = layout_of(260, margin={"l": 8, "r": 12, "t": 8, "b": 42})
    top = max([1e-3, *(v for b in bins for v in (b["predicted"], b["high"]) if finite(v))])
    low = min([0.0, *(b["predicted"] for b in bins if finite(b["predicted"]))])
    for axis, title in (("xaxis", "predicted probability"), ("yaxis", "observed rate")):
        layout[axis] = {
            **AXIS,
            "range": [low - 0.03 * top, 1.05 * top],
            "nticks": 6,
            "automargin": True,
            "title": {"text": title, "font": {"size": 12}, "standoff": 6},
        }
    layout["shapes"] = [
        {"type": "line", "x0": low, "y0": low, "x1": top, "y1": top, "line": {"color": "--soft", "dash": "dash", "width": 1.5}}
    ]
    up, down = ([abs((b[k] or 0) - (b["observed"] or 0)) for b in bins] for k in ("high", "low"))
    data = [
        {
            "x": [b["predicted"] for b in bins],
            "y": [b["observed"] for b in bins],
            "mode": "markers",
            "hoverinfo": "text",
            "text": [f"predicted {number(b['predicted'])}<br>observed {number(b['observed'])}<br>{b['rows']} rows" for b in bins],
            "marker": {"color": "--c0", "size": 8},
            "error_y": {
                "type": "data",
                "array": up,
                "arrayminus": down,
                "symmetric": False,
                "color": "--c0",
                "thickness": 1.5,
                "width": 3,
            },
        }
    ]
    inside = sum(b["low"] <= b["predicted"] <= b["high"] for b in bins if all(finite(b[k]) for k in ("low", "predicted", "high")))
    alt = f"Reliability of {task}: in {inside} of {len(bins)} bins the predicted probability lies inside the observed interval."
    return {"data": data, "layout": layout, "alt": alt}


def costs(ratios: Mapping[str, float]) -> Figure:
    """How many times cheaper the one model is than the specialists together; 1 is equal."""
    layout = layout_of(34 * len(ratios) + 56, margin={"l": 8, "r": 40, "t": 4, "b": 42})
    layout["xaxis"] = {
        **AXIS,
        "type": "log",
        "title": {"text": "← dearer · times cheaper →", "font": {"size": 12}},
        "tickvals": [0.01, 0.1, 0.25, 0.5, 1, 2, 4, 10, 100, 1000],
        "ticktext": ["0.01", "0.1", "¼", "½", "1", "2", "4", "10", "100", "1000"],
    }
    layout["yaxis"] = {
        **_SIDE,
        "automargin": True,
        "tickvals": list(range(len(ratios))),
        "ticktext": list(ratios),
        "range": [len(ratios) - 0.4, -0.6],
    }
    layout["shapes"] = [
        {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": "--ink", "width": 1.5}}
    ]
    data = []
    for i, ratio in enumerate(ratios.values()):
        colour = "--better" if ratio > 1 else "--worse" if ratio < 1 else "--soft"
        data.append({"x": [1, ratio], "y": [i, i], "mode": "lines", "line": {"color": colour, "width": 4}, "hoverinfo": "skip"})
        data.append(
            {
                "x": [ratio],
                "y": [i],
                "mode": "markers+text",
                "text": [f"{number(float(f'{ratio:.2g}'))}×"],
                "textposition": "middle right" if ratio >= 1 else "middle left",
                "cliponaxis": False,
                "hoverinfo": "skip",
                "marker": {"size": 10, "color": colour},
            }
        )
    edge = max([2.0, *ratios.values(), *(1 / r for r in ratios.values())])
    reach = 1.35 * math.log10(edge)
    layout["xaxis"]["range"] = [-reach, reach]
    listed = ", ".join(f"{name} {number(ratio)} times" for name, ratio in ratios.items())
    return {
        "data": data,
        "layout": layout,
        "alt": f"How many times cheaper the one model is than the specialists together: {listed}.",
    }


def cosines(tasks: Sequence[str], matrix: Sequence[Sequence[float]]) -> Figure:
    """Cosines of the tasks' gradients: a square map, the figures in its cells."""
    T = len(tasks)
    layout = layout_of(max(150, 34 * T + 100), margin={"l": 8, "r": 8, "t": 8, "b": 8})
    ticks = {"tickvals": list(range(T)), "ticktext": [label(name, 16) for name in tasks], "automargin": True}
    layout["yaxis"] = {**_SIDE, **ticks, "range": [T - 0.5, -0.5]}
    layout["xaxis"] = {**_SIDE, **ticks, "range": [-0.5, T - 0.5], "tickangle": -40}
    shown = [[None if i == j or not finite(v) else v for j, v in enumerate(row)] for i, row in enumerate(matrix)]
    data = [
        {
            "type": "heatmap",
            "z": shown,
            "zmin": -1,
            "zmax": 1,
            "colorscale": [[0, "--c1"], [0.5, "--panel"], [1, "--c0"]],
            "showscale": False,
            "xgap": 2,
            "ygap": 2,
            "text": [["" if v is None else f"{v:+.2f}".replace("-", "−") for v in row] for row in shown],
            "texttemplate": "%{text}",
            "hoverinfo": "text",
        }
    ]
    pairs = [f"{a} and {b} {number(matrix[i][j], '+')}" for i, a in enumerate(tasks) for j, b in enumerate(tasks) if i < j]
    return {"data": data, "layout": layout, "alt": f"Cosines of the tasks' gradients: {'; '.join(pairs) or 'one task'}."}


def conflicts(lines: Mapping[str, Sequence[float]], labels: Mapping[str, str]) -> Figure:
    """The conflict ratio of each candidate, window by window, in its learning curve's colour: `labels` are all candidates'."""
    layout = layout_of(260, margin={"l": 8, "r": 12, "t": 8, "b": 42})
    title = {"text": "part of the training", "font": {"size": 12}}
    layout["xaxis"] = {**AXIS, "title": title, "range": [0, 1.02], "tickformat": ".0%"}
    layout["yaxis"] = {**AXIS, "range": [-0.02, 1.02], "tickformat": ".0%", "automargin": True}
    data = [
        {
            "x": [(i + 1) / len(line) for i in range(len(line))],
            "y": list(line),
            "mode": "lines+markers",
            "name": label(labels[name], 40),
            "hoverinfo": "x+y+name",
            "line": {"color": f"--c{k % COLOURS}", "width": 1.8, "dash": DASHES[dash_of(k)]},
            "marker": {"symbol": SYMBOLS[k % COLOURS], "size": 6, "color": f"--c{k % COLOURS}"},
        }
        for k, name in enumerate(labels)
        if (line := lines.get(name))
    ]
    listed = "; ".join(f"{labels[name]} from {line[0]:.0%} to {line[-1]:.0%}" for name, line in lines.items() if line)
    return {"data": data, "layout": layout, "alt": f"Share of task pairs in conflict during training: {listed}."}
