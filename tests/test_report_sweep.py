"""The table, the picture and the best setting of a sweep, from scores that are known."""

import itertools

import numpy as np
import pytest

from fedjax_mm import report
from fedjax_mm.report.__main__ import main
from fedjax_mm.run import Sweep
from fedjax_mm.run.sweep_files import SweepDirectory


def swept(axes, score, seeds=(0, 1), diverged=()):
    """A sweep whose "valid/accuracy" after 2 and after 4 rounds is 0 and `score(*values)`, give or take .1 by seed."""
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    last = np.array([[score(*point.values()) + 0.1 * (2 * s - 1) for s in range(len(seeds))] for point in points])
    lost = np.zeros(last.shape, int)
    for p, s in diverged:
        lost[p, s], last[p, s] = 3, np.nan
    scores = {"test/accuracy": last + 1, "valid/accuracy": last, "all/loss": -last, "all/clients": last}
    both = {name: np.stack([np.zeros_like(values), values], -1) for name, values in scores.items()}
    return Sweep(tuple(points), tuple(seeds), (2, 4), both, lost)


GRID = {"lr": [0.1, 0.2, 0.4], "prox": [0.0, 1.0]}
SCORE = lambda lr, prox: 0.5 + lr * (lr < 0.3) - 0.1 * prox


def test_a_row_has_mean_and_sample_std_of_the_last_evaluation():
    rows = report.sweep_table(swept(GRID, SCORE))
    assert len(rows) == 6 and rows[2]["lr"] == "0.2" and rows[2]["prox"] == "0" and rows[2]["seeds"] == 2
    assert rows[2]["valid/accuracy"] == pytest.approx((0.7, 0.1 * 2**0.5))
    assert set(rows[0]) == {"lr", "prox", "seeds", "valid/accuracy", "test/accuracy", "all/loss"}


def test_a_setting_of_which_a_seed_diverged_has_no_score_and_is_not_the_best():
    found = swept(GRID, SCORE, diverged=[(2, 1)])
    row = report.sweep_table(found)[2]
    assert row["valid/accuracy"] is None and row["diverged"] == 1
    assert report.best_setting(found)[0] in (0, 3)  # which are as good
    with pytest.raises(ValueError, match="no setting has valid/accuracy of all seeds.*lower the learning rate"):
        report.best_setting(swept(GRID, SCORE, diverged=[(p, 0) for p in range(6)]))


def test_the_best_is_chosen_on_valid_by_the_metrics_own_direction():
    found = swept(GRID, SCORE)
    best, said = report.best_setting(found)
    assert found.settings[best] == {"lr": 0.2, "prox": 0.0}
    assert said == ["Best by valid/accuracy: lr 0.2, prox 0 (0.70 ± 0.14)."]
    assert report.best_setting(found, "all/loss")[0] == 2  # -score
    assert "no score on validation data" in report.best_setting(found, "test/accuracy")[1][1]
    with pytest.raises(ValueError, match=r"no metric 'f1'; it has \['all/clients', "):
        report.best_setting(found, "f1")


@pytest.mark.parametrize(
    ("score", "warned"),
    [
        (lambda lr, prox: lr - prox, ["lr 0.4 lies at the edge of its values, 0.1 to 0.4"]),
        (lambda lr, prox: prox - lr, ["lr 0.1 lies at the edge", "prox 1 lies at the edge"]),
        (lambda lr, prox: -abs(lr - 0.2) - prox, []),  # at 0 prox ends by itself
    ],
)
def test_a_best_value_at_the_end_of_its_axis_is_warned_of(score, warned):
    said = report.best_setting(swept(GRID, score))[1][1:]
    assert len(said) == len(warned) and all(map(str.startswith, said, warned))


@pytest.mark.parametrize(
    ("axes", "score"),
    [
        ({"lr": [0.01, 0.1, 1.0], "kind": ["a"]}, lambda lr, kind: lr),
        ({"kind": ["a", "b"]}, lambda kind: 0.5),
        ({}, lambda: 0.5),
    ],
)
def test_one_axis_is_a_line_with_a_dot_for_each_seed(tmp_path, figures, axes, score):
    report.plot_sweep(swept(axes, score), tmp_path / "a.png")
    (panel,) = figures[0].axes
    line, *dots = panel.lines
    assert len(dots) == 2 and line.get_ydata().tolist() == pytest.approx(
        [score(*v) for v in itertools.product(*axes.values())]
    )
    assert panel.get_xscale() == ("log" if "lr" in axes else "linear") and (tmp_path / "a.png").stat().st_size > 1000


def test_two_axes_are_a_heat_map_and_a_third_a_panel_for_each_value(tmp_path, figures):
    axes = {"kind": ["a", "b"], **GRID}
    found = swept(axes, lambda kind, lr, prox: SCORE(lr, prox) + (kind == "b"), diverged=[(11, 0)])
    report.plot_sweep(found, tmp_path / "a.png")
    first, second, _ = figures[0].axes  # and the colours' scale
    assert [panel.get_title(loc="left") for panel in (first, second)] == ["kind a", "kind b"]
    np.testing.assert_allclose(first.images[0].get_array(), [[0.6, 0.5], [0.7, 0.6], [0.5, 0.4]])
    assert (first.get_xlabel(), first.get_ylabel()) == ("prox", "lr") and not first.patches and len(second.patches) == 1
    assert second.texts[-1].get_text() == "1 of 2\ndiverged" and second.images[0].get_array().mask.sum() == 1
    with pytest.raises(ValueError, match="have 13 combinations; sweep fewer"):
        report.plot_sweep(swept({"n": [*range(13)], **GRID}, lambda n, lr, prox: lr), tmp_path / "a.png")


def test_the_command_reports_a_sweep(tmp_path, capsys):
    about = {"grid": GRID, "seeds": [0, 1]}
    SweepDirectory(tmp_path / "sweep", about).write(swept(GRID, SCORE))
    main((tmp_path / "sweep",), tmp_path / "out")
    text = (tmp_path / "out/sweep.md").read_text()
    assert "Best by valid/accuracy: lr 0.2, prox 0" in text and "| 0.2 | 0 | 2 | 0.70 ± 0.14 |" in text
    assert "Best by valid/accuracy" in capsys.readouterr().out and (tmp_path / "out/sweep.png").is_file()
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        report.write_sweep(tmp_path, tmp_path)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    from fedjax_mm.report import sweeps

    seen, save = [], sweeps.save
    monkeypatch.setattr(sweeps, "save", lambda figure, path: seen.append(figure) or save(figure, path))
    return seen
