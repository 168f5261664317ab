"""The outcome of an evaluation: a table, figures as JSON, a plot, and an entry in a model's card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jobs.evaluate.data import DataError
from models.store import WeightCard, write_card
from pipeline.text import printable


@dataclass(frozen=True)
class Plot:
    """Curves in one picture: from label to x (n,) and y (n,). The labels of the axes have their units."""

    x_label: str
    y_label: str
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    x_range: tuple[float, float]
    log_x: bool = False
    y_range: tuple[float, float] = (0, 1.01)
    legend_at: Literal["lower center", "upper left"] = "lower center"

    def write(self, path: Path, title: str) -> None:
        """Write a PNG."""
        from matplotlib.figure import Figure  # pyplot would look for a screen

        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.add_subplot()
        for label, (x, y) in self.curves.items():
            axes.plot(x, y, label=label, linewidth=1.5)
        axes.set_xscale("log" if self.log_x else "linear")
        axes.set(xlabel=self.x_label, ylabel=self.y_label, xlim=self.x_range, ylim=self.y_range)
        axes.set_title(title, fontsize=9, wrap=True, parse_math=False)        # paths can contain $
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9, loc=self.legend_at)
        figure.savefig(path, dpi=100)


@dataclass(frozen=True)
class Evaluation:
    """A title, all figures for the JSON file, a table of the main ones, and a plot; more plots by their names."""

    title: str
    figures: dict[str, Any]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    plot: Plot
    more_plots: Mapping[str, Plot] = field(default_factory=dict)

    def markdown(self) -> str:
        """Title and table as Markdown."""
        lines = [f"## {printable(self.title)}", "", *(f"| {' | '.join(row)} |" for row in (self.header, *self.rows))]
        lines.insert(3, "|" + " --- |" * len(self.header))
        return "\n".join(lines) + "\n"

    def write(self, out_dir: Path, name: str) -> None:
        """Write `name.json`, `.md`, `.png` and `name-PLOT.png` into out_dir. Raises DataError when that fails."""
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
            (out_dir / f"{name}.json").write_text(json.dumps(self.figures, indent=2) + "\n", encoding="utf-8")
            (out_dir / f"{name}.md").write_text(self.markdown(), encoding="utf-8")
            for ending, plot in {"": self.plot, **{f"-{of}": plot for of, plot in self.more_plots.items()}}.items():
                plot.write(out_dir / f"{name}{ending}.png", self.title)
        except OSError as error:
            raise DataError(f"cannot write to --out {out_dir}: {error.strerror}; give another folder") from None

    def record(
        self, weights_dir: Path, card: WeightCard, name: str, command: str,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        """Write the figures into the model's card under `name`, with cosine thresholds if given.

        Raises DataError when that fails.
        """
        metrics = card.metrics | {name: self.figures | {"command": command}}
        try:
            write_card(weights_dir, replace(card, metrics=metrics, thresholds=dict(thresholds or card.thresholds)))
        except OSError as error:
            raise DataError(f"--update-card: cannot write to {weights_dir}: {error.strerror}") from None
