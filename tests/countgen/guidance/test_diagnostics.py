"""Plots and filmstrips show what the history holds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from countgen import CountGuidedPipeline
from countgen.guidance.diagnostics import MOVES, filmstrip, plot_history


def test_a_run_is_plotted_and_shown_as_a_filmstrip(pocket: CountGuidedPipeline) -> None:
    run = pocket.stream("eleven dogs and nine cats", guidance="engine", budget=8, seed=2)
    states = list(run)
    records = run.jobs[0].records
    assert len(records) > 3 and sum(len(state.records) for state in states) == len(records)
    figure = plot_history(records, (11, 9))
    counts, objective, noise = figure.axes[:3]
    hard = counts.get_lines()[1]
    assert list(hard.get_ydata()) == [record.counts[0] for record in records]
    assert list(hard.get_xdata()) == [record.pre for record in records]
    moves = {record.move for record in records}
    assert len(objective.collections) == len(moves) and len(noise.get_lines()) == 2
    assert moves <= {*MOVES}
    climbed = [replace(record, grad_norm=1.0) for record in records]
    still = [replace(record, grad_norm=math.nan) for record in records]
    assert [len(plot_history(rows, (11, 9)).axes) for rows in (climbed, still)] == [4, 3]
    strip = filmstrip(states, side=64, columns=4)
    assert strip.width == 4 * 68 and strip.height == -(-len(records) // 4) * (64 + 24)
    first = np.asarray(strip.crop((0, 16, 64, 80))).astype(float) / 255
    shown = states[0].images[0].permute(1, 2, 0).numpy()
    assert np.abs(first - shown).mean() < 0.02


def test_a_filmstrip_needs_a_look(pocket: CountGuidedPipeline) -> None:
    states = list(pocket.stream("two cats", guidance="none"))
    with pytest.raises(ValueError, match="no look at picture 3"):
        filmstrip(states, index=3)
