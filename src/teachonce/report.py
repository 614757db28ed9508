"""report.html of a run: one page without anything beside it, to look at or to send.

The configuration, the curves and the result, from what the run's directory holds. Figures are SVG inside the page,
drawn by matplotlib's object interface: no display, no global state.
"""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from teachonce.files import atomic_write, read_json
from teachonce.runs import CONFIG_NAME, METRICS_NAME, REPORT_NAME, WEIGHTS_NAME, Row, read_metrics

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.sub { color: #59636e; margin-top: 0.2rem; }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0; }
.numbers div { border: 1px solid #d1d9e0; border-radius: 6px; padding: 0.6rem 1rem; min-width: 7rem; }
.numbers b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.numbers span { color: #59636e; font-size: 0.85rem; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; }
td { border-top: 1px solid #e4e8ec; padding: 0.2rem 0.6rem 0.2rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { color: #59636e; width: 14rem; }
"""

_KD_NOTE = """<p class="sub">The KD loss is T&sup2; times a cross-entropy: it includes the teacher's own entropy, below
which no student can fall.</p>"""

_LOSSES = {"train_loss": "whole (train)", "label_loss": "label (train)", "kd_loss": "KD (train)",
           "validation_loss": "label (validation)"}  # fmt: skip
_ACCURACIES = {"train_top1": "top-1 (train)", "validation_top1": "top-1 (validation)",
               "validation_top5": "top-5 (validation)"}  # fmt: skip
_COLORS = {"train_loss": "#1b1f24", "label_loss": "#0969da", "kd_loss": "#bc4c00", "validation_loss": "#8250df",
           "train_top1": "#0969da", "validation_top1": "#bc4c00", "validation_top5": "#8250df"}  # fmt: skip


def write_report(run: Path, result: Mapping[str, Any]) -> Path:
    """Write RUN/report.html from config.json, metrics.csv and ``result``; returns its path."""
    config = read_json(run / CONFIG_NAME)
    rows = read_metrics(run)
    teacher = "labels only"
    if config["kd_temp"]:
        source = config["store"] or "image/logit of the records"
        teacher = f"labels and a teacher ({source}) at temperature {config['kd_temp']:g}"
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{_text(run.name)}: teachonce run</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>
<h1>{_text(config["student"])}</h1>
<p class="sub">{_text(teacher)}; {_text(config["data"])}, seed {config["seed"]}</p>
<div class="numbers">{_numbers(result)}</div>
<h2>Curves</h2>
{draw_curves(rows)}
{_KD_NOTE if config["kd_temp"] else ""}
<h2>Result</h2>
{_table(result)}
<h2>Configuration</h2>
{_table(config)}
<p class="sub">Beside this page: {WEIGHTS_NAME} (the weights), {METRICS_NAME} (the curves as numbers).</p>
</body></html>
"""
    with atomic_write(run / REPORT_NAME) as file:
        file.write(page.encode())
    return run / REPORT_NAME


def draw_curves(rows: Sequence[Row]) -> str:
    """Losses, accuracies and learning rate over epochs, as one SVG element."""
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text: smaller, and it can be searched. A fixed salt makes the same curve the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "teachonce", "font.size": 9}):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        losses, accuracies, rate = figure.subplots(1, 3, width_ratios=(4, 4, 2))
        _draw(losses, rows, _LOSSES, "loss in nats")
        _draw(accuracies, rows, _ACCURACIES, "accuracy")
        accuracies.set_ylim(0, 1)
        epochs = [row["epoch"] for row in rows]
        rate.plot(epochs, [row["lr"] for row in rows], color="#59636e", marker="." if len(rows) < 40 else "")
        rate.set_title("learning rate")
        rate.set_xlabel("epoch")
        for axes in (losses, accuracies, rate):
            axes.spines[["top", "right"]].set_visible(False)
            axes.xaxis.get_major_locator().set_params(integer=True)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _draw(axes: Any, rows: Sequence[Row], columns: Mapping[str, str], title: str) -> None:
    for name, label in columns.items():
        points = [(row["epoch"], row[name]) for row in rows if row[name] is not None]
        if not points or (name == "kd_loss" and not any(value for _, value in points)):
            continue
        if name == "train_loss" and all(row["train_loss"] == row["label_loss"] for row in rows):
            continue  # without KD the whole loss is the label loss
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, label=label, color=_COLORS[name], marker="." if len(rows) < 40 else "")
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.grid(axis="y", color="#e4e8ec")
    axes.legend(frameon=False)


def _numbers(result: Mapping[str, Any]) -> str:
    numbers = []
    for name, label in (("top1", "top-1"), ("top5", "top-5"), ("ece", "ECE, 15 bins")):
        if result[name] is not None:
            numbers.append((f"{result[name]:.2%}" if name != "ece" else f"{result[name]:.4f}", label))
    numbers.append((f"{result['train_loss']:.4f}", "train loss"))
    numbers.append((f"{result['images_per_second']:,.0f}", "images/s"))
    numbers.append((f"{result['num_parameters'] / 1e6:,.2f} M", "parameters"))
    return "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in numbers)


def _table(values: Mapping[str, Any]) -> str:
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        shown = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
        lines.append(f"<tr><td>{_text(name)}</td><td>{_text(shown)}</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def _text(value: Any) -> str:
    return html.escape(str(value))
