"""`jobs.evaluate eyes` on faces in the wild: 98 points a face, by kind of difficulty, with the error of the roll."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.evaluate.data import DataError, decode_column, point_column
from jobs.evaluate.evaluation import Evaluation, Plot
from models.eye_layout import WFLW_EYES
from models.metrics import MAX_NME, cumulative_errors
from models.store import read_card
from pipeline.geometry import eye_centres, roll_deg

if TYPE_CHECKING:
    import pyarrow as pa

POINTS_COLUMN = "points98"
PLOTTED, NONE = ("all", "turned", "occlusion"), np.zeros(0, bool)
LEAST_KEPT = 0.5                      # of the faces, in the plot by spread
SPREAD_SHARES = (0.05, 0.1, 0.2)      # of the faces, those with the largest spread, left out


@dataclass(frozen=True)
class WildErrors:
    """Errors of n faces: of the eye centres over the outer-eye distance, infinite where the face was not found, and of
    the roll in degrees, NaN there. Both (n,).
    """

    centres: np.ndarray
    roll_deg: np.ndarray

    def figures(self, rows: np.ndarray) -> dict[str, Any]:
        """The figures of some of the faces, rows (n,) bool, of which there must be one."""
        rolls = self.roll_deg[rows & np.isfinite(self.roll_deg)]
        return {
            "faces": int(rows.sum()), "found": int(np.isfinite(self.centres[rows]).sum()),
            "median": round(float(np.median(self.centres[rows])), 5),
            "above_10": round(float((self.centres[rows] > MAX_NME).mean()), 5),
            "roll_p90_deg": round(float(np.percentile(rolls, 90)), 2) if len(rolls) else None,
        }


def wild_errors(found: np.ndarray, wanted: np.ndarray) -> WildErrors:
    """The errors of twelve eye points (n, 12, 2), NaN for faces that were not found, by people's points (n, 12, 2)."""
    outer = np.linalg.norm(wanted[:, 0] - wanted[:, 9], axis=1)
    centres, rolls = [], []
    for points in (found, wanted):
        left, right = eye_centres(points)
        centres.append(np.stack([left, right], 1))
        rolls.append(roll_deg(left, right))
    off = np.linalg.norm(centres[0] - centres[1], axis=2).mean(1) / outer
    turned = np.abs((rolls[0] - rolls[1] + 180) % 360 - 180)
    missing = np.isnan(found).any((1, 2))
    return WildErrors(np.where(missing, np.inf, off), np.where(missing, np.nan, turned))


def wild_eyes(table: pa.Table, args: argparse.Namespace) -> Evaluation:
    """How far the eye points are off on faces as our detector boxes them; a face it does not find is a failure."""
    from jobs.evaluate.eyes import AnnotatedFaces, find_eyes

    points98 = point_column(table, POINTS_COLUMN, 98, args.faces)
    eyes = find_eyes(AnnotatedFaces(decode_column(table, args.faces), points98), args)
    errors = wild_errors(eyes.points, points98[:, WFLW_EYES])
    if not np.isfinite(errors.centres).any():
        raise DataError(f"none of the {len(points98)} faces is found: are the points in pixels of the image?")
    groups = groups_of(table)
    figures = {name: errors.figures(rows) for name, rows in groups.items() if rows.any()}
    by_spread = errors_by_spread(errors.centres, eyes.spreads)
    role = "detector" if args.by == "detector" else "keypointer"
    card = read_card(args.weights, role, getattr(args, role))
    evaluation = Evaluation(
        f"Eye centres on {len(points98)} faces in the wild: {eyes.keypointer}, boxes "
        f"{'and points ' if args.by == 'both' else ''}of {eyes.detector}",
        {"detector": eyes.detector, role: eyes.keypointer, **figures} | ({"without_largest_spread": by_spread}
                                                                                if by_spread else {}),
        ("faces", "how many", "found", "median error by outer-eye distance", "above 10%", "error of the roll, p90"),
        [(name, str(of["faces"]), str(of["found"]), f"{of['median']:.1%}", f"{of['above_10']:.1%}",
          "" if of["roll_p90_deg"] is None else f"{of['roll_p90_deg']:.1f}°") for name, of in figures.items()]
        + [(f"found, without the {share} of largest spread", "", "", f"{of['median']:.1%}", f"{of['above_10']:.1%}", "")
           for share, of in by_spread.items()],
        Plot("error of the eye centres (% of the outer-eye distance)", "share of the faces with at most that error",
             {name: _curve(errors.centres[groups[name]]) for name in PLOTTED if groups.get(name, NONE).any()},
             (0, 100 * MAX_NME)),
        {"by-spread": spread_plot(errors.centres, eyes.spreads)} if by_spread else {},
    )
    if args.update_card:
        evaluation.record(args.weights, card, "eyes_wild_by_both" if args.by == "both" else "eyes_wild",
                          args.command_line)
    return evaluation


def groups_of(table: pa.Table) -> dict[str, np.ndarray]:
    """Which faces are of which group, (n,) bool each: all, the turned ones, and every kind by its name."""
    groups = {"all": np.ones(len(table), bool)}
    if "turned" in table.column_names:
        groups["turned"] = np.array(table["turned"].to_pylist(), bool)
    if "kinds" in table.column_names:
        kinds = [set(of or ()) for of in table["kinds"].to_pylist()]
        groups |= {kind: np.array([kind in of for of in kinds]) for kind in sorted(set().union(*kinds))}
    return groups


def errors_by_spread(errors: np.ndarray, spreads: np.ndarray,
                     shares: Sequence[float] = SPREAD_SHARES) -> dict[str, dict[str, float]]:
    """Median and share above 10% of the found faces' errors (n,) without those of the largest spread (n,), by share.

    Nothing where the network says no spreads, which are NaN then.
    """
    known = np.isfinite(spreads) & np.isfinite(errors)
    if not known.any():
        return {}
    ordered = errors[known][np.argsort(spreads[known], kind="stable")]
    left = {share: ordered[: max(1, round(len(ordered) * (1 - share)))] for share in (0.0, *shares)}
    return {
        f"{share:.0%}": {
            "median": round(float(np.median(of)), 5), "above_10": round(float((of > MAX_NME).mean()), 5)
        } for share, of in left.items()
    }


def spread_plot(errors: np.ndarray, spreads: np.ndarray) -> Plot:
    """The found faces' errors (n,) by the share of faces that is kept, those with the largest spread (n,) left out."""
    known = np.isfinite(spreads) & np.isfinite(errors)
    ordered = 100 * errors[known][np.argsort(spreads[known], kind="stable")]
    kept = np.unique(np.ceil(np.linspace(LEAST_KEPT, 1, 100) * len(ordered)).astype(int))
    at = 100 * kept / len(ordered)
    medians = np.array([np.median(ordered[:count]) for count in kept])
    above = np.array([100 * (ordered[:count] > 100 * MAX_NME).mean() for count in kept])
    return Plot(
        "faces kept, those with the largest eye_spread left out (% of the found faces)", "%",
        {"faces with eye centres off by more than 10% of the outer-eye distance": (at, above),
         "median error of the eye centres, % of the outer-eye distance": (at, medians)},
        (100 * LEAST_KEPT, 100), y_range=(0, 1.3 * float(max(above.max(), medians.max()))), legend_at="upper left",
    )


def _curve(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at, share = cumulative_errors(errors)
    return 100 * at, share
