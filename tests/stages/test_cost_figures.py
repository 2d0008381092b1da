"""Accuracy against cost: which algorithms are on the front, and labels that can be read."""

import math

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from stages import cost_figures
from stages.cost_figures import AXES, on_front

LATENCY, MEMORY = AXES


def costs(**seconds: list[float]) -> pd.DataFrame:
    rows = [
        {"algorithm": name, "inference_seconds_per_image": value, "peak_rss_bytes": 1e9 * value}
        | {"processor": "A", "gpu": None, "threads": 1}
        for name, values in seconds.items()
        for value in values
    ]
    return pd.DataFrame(rows)


def test_front_by_hand() -> None:
    values = pd.Series([0.9, 0.8, 0.9, 0.95, 0.7, math.nan], index=list("abcdef"))
    spent = pd.Series([2.0, 1.0, 3.0, math.nan, 1.0, 0.5], index=list("abcdef"))
    # c is as accurate as a and dearer, e as cheap as b and worse, d and f are undefined.
    assert list(on_front(values, spent)) == [True, True, False, False, False, False]


def test_equal_points_are_on_the_front_together() -> None:
    same = pd.Series([0.9, 0.9])
    assert list(on_front(same, same)) == [True, True]


def test_latency_is_the_mean_of_runs_and_memory_the_largest() -> None:
    table = pd.DataFrame({"a": [0.9, 0.7], "b": [0.5, math.nan]})
    measured = costs(a=[0.01, 0.03], b=[0.1])
    points = cost_figures.points_of(table, measured, LATENCY)
    assert points.loc["a", ["value", "cost"]].tolist() == pytest.approx([0.8, 20])
    assert math.isnan(points.loc["b", "value"]) and list(points["front"]) == [True, False]
    assert cost_figures.points_of(table, measured, MEMORY).loc["a", "cost"] == pytest.approx(30)
    words = cost_figures.describe(points, "T", "pl", LATENCY)
    assert "a pl 0.800 at 20 ms (Pareto front); undefined, hence not shown: b" in words


def test_runs_of_several_machines_are_not_compared_silently() -> None:
    measured = costs(a=[0.01], b=[0.1])
    assert cost_figures.machine(measured) == "measured on A, 1 thread(s), GPU none"
    measured.loc[1, "processor"] = "B"
    assert "not to be compared" in cost_figures.machine(measured)


@pytest.mark.parametrize("count", [3, 10, 34])
def test_labels_cover_neither_each_other_nor_points(count: int) -> None:
    names = [f"algorithm_{place}" for place in range(count)]
    # Close together, as good algorithms are.
    table = pd.DataFrame({name: [0.99 - 0.003 * place] for place, name in enumerate(names)})
    measured = costs(**{name: [0.01 * 1.07**place] for place, name in enumerate(names)})
    points = cost_figures.points_of(table, measured, LATENCY)
    figure = cost_figures.draw(points, "T", "pl", LATENCY)
    axes, renderer = figure.axes[0], FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    labels = [text for text in axes.texts if hasattr(text, "xyann")]
    assert len(labels) == count
    boxes = [label.get_window_extent(renderer) for label in labels]
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])
        for x, y in axes.transData.transform(points[["cost", "value"]]):
            assert not box.contains(x, y)
    if count > cost_figures.NAMED:
        (key,) = [text.get_text() for text in axes.texts if not hasattr(text, "xyann")]
        assert key.splitlines()[0] == " 1  algorithm_0" and len(key.splitlines()) == count


def test_nothing_defined_is_said() -> None:
    table = pd.DataFrame({"a": [math.nan]})
    points = cost_figures.points_of(table, costs(a=[0.1]), LATENCY)
    figure = cost_figures.draw(points, "T", "pl", LATENCY)
    assert "undefined, hence not shown: a" in figure.axes[0].get_title(loc="left")
