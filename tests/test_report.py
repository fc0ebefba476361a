"""Reports of runs written by hand, against NumPy; and of one that run.train wrote."""

import json
import re

import matplotlib.image
import numpy as np
import pytest
import tyro

from fedjax_mm import report, run
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods.fedavg import FedAvgConfig, build
from fedjax_mm.models import heads, mlp
from fedjax_mm.report import plots, tables
from fedjax_mm.report.__main__ import main as report_main

F1, ACCURACY = "test/left+right/macro_f1", "test/left/accuracy"
SPLIT = {
    "left": {"examples": [3, 0, 7], "arrays": ["group", "image", "label"], "classes": [[1, 2], [0, 0], [0, 7]]},
    "both": {"examples": [5, 4], "arrays": ["audio", "has_audio", "image", "label"], "classes": [[2, 3], [4, 0]]},
}
COST = {"bytes_down": 2_500_000, "bytes_up": 1_000_000, "bytes_held": 0, "flops": 3e9, "xla_flops": 1.0}
COSTS = {"left": {**COST, "peak_bytes": 40_000_000}, "both": {**COST, "bytes_up": 4_000_000, "peak_bytes": 7_000_000}}


def row(number, seconds=1.0, clients=2.0, **test):
    trained = {"left/loss": 2.0 / number, "left/clients": clients, "left/left_out": 0.0}
    return {"round": number, **trained, "seconds": seconds, **{k.replace("_at_", "/"): v for k, v in test.items()}}


def write_run(path, seed=0, rows=None, f1=0.5, config=None, split=SPLIT, costs=COSTS, **settings):
    """A run's directory by hand, with two rounds unless given others."""
    path.mkdir(parents=True)
    versions = {"versions": {"jax": f"0.{seed}"}, "device": f"{seed} x cpu"}
    settings = {"per_round": 2, "seed": seed, "sizes": {"left": 3, "both": 2}, "config": config, **versions, **settings}
    rows = rows or [row(1, 9.0) | {F1: 0.1}, row(2) | {F1: f1, ACCURACY: 0.75}]
    for name, content in (("config", settings), ("split", split), ("costs", costs)):
        (path / f"{name}.json").write_text(json.dumps(content))
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def load_all(*paths):
    return [report.load(path) for path in paths]


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, in place of their files."""
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    return drawn


def is_picture(path):
    pixels = matplotlib.image.imread(path)
    return path.stat().st_size > 8000 and pixels.shape[1] >= 900 and pixels[..., :3].std() > 0.05


def test_load_leaves_out_a_last_line_cut_off_by_a_kill(tmp_path):
    path = write_run(tmp_path / "fedavg", f1=0.25)
    with open(path / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row(3) | {F1: 0.9})[:-7])
    loaded = report.load(path)
    assert loaded.name == "fedavg" and loaded.split == SPLIT and loaded.costs == COSTS
    assert [r["round"] for r in loaded.rows] == [1, 2]
    assert report.summary([loaded])[0][F1] == 0.25


@pytest.mark.parametrize("missing", ["config.json", "split.json", "costs.json"])
def test_load_names_what_a_directory_lacks(tmp_path, missing):
    path = write_run(tmp_path / "other")
    (path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"other is no run, it has no {missing}; give"):
        report.load(path)


def test_load_refuses_no_directory_a_damaged_file_and_a_run_without_rounds(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no directory; give"):
        report.load(tmp_path / "nowhere")
    path = write_run(tmp_path / "run")
    (path / "metrics.jsonl").write_text('{"round": 1, "lo')
    with pytest.raises(FileNotFoundError, match="no finished round"):
        report.load(path)
    (path / "metrics.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="no finished round"):
        report.load(path)
    (path / "costs.json").write_text("{")
    with pytest.raises(ValueError, match="costs.json is damaged"):
        report.load(path)


def test_summary_is_numpys_mean_and_sample_std_over_seeds(tmp_path):
    scores, seconds = [0.61, 0.66, 0.74], [[50.0, 1.0, 3.0], [60.0, 8.0, 2.0], [70.0, 4.0, 9.0]]
    paths = [
        write_run(
            tmp_path / f"fedavg-seed{seed}",
            seed,
            [row(r + 1, seconds[seed][r]) | ({F1: score if r == 2 else 0.0} if r else {}) for r in range(3)],
            config={"seed": seed, "lr": 0.1},
        )
        for seed, score in enumerate(scores)
    ]
    (found,) = report.summary(load_all(*paths))
    assert found["run"] == "fedavg" and found["seeds"] == 3 and found["rounds"] == 3
    np.testing.assert_allclose(found[F1], (np.mean(scores), np.sqrt(np.sum((scores - np.mean(scores)) ** 2) / 2)))
    assert found["s per round"] == 3.5  # of 1, 3, 8, 2, 4, 9: the first rounds are left out
    assert (found["MB down"], found["MB up"], found["GFLOP per step"], found["peak MB"]) == (2.5, 4, 3, 40)


def test_summary_of_seeds_that_do_not_match(tmp_path):
    """One seed has no std; a metric that a seed lacks is none; seeds that ended apart say so."""
    one, short = write_run(tmp_path / "a-0", 0, f1=0.5), write_run(tmp_path / "a-1", 1, [row(1) | {F1: 0.7}])
    assert report.summary(load_all(one))[0][F1] == 0.5
    (found,) = report.summary(load_all(one, short))
    np.testing.assert_allclose(found[F1], (0.6, np.std([0.5, 0.7], ddof=1)))
    assert found[ACCURACY] is None and found["rounds"] == "1 to 2"
    untested = write_run(tmp_path / "b", 0, [row(1), row(2)], config="b")
    (found,) = report.summary(load_all(untested))
    assert found["rounds"] == 2 and not [key for key in found if key.startswith("test/")]


def test_runs_are_grouped_by_everything_but_seed_versions_and_device(tmp_path):
    paths = [
        write_run(tmp_path / name, seed, config={"lr": lr, "seed": seed}, per_round=per_round)
        for name, seed, lr, per_round in (
            ("fedavg-seed0", 0, 0.1, 2),
            ("fedavg_1", 1, 0.1, 2),
            ("fedavg-10", 10, 0.1, 2),
            ("slow/fedavg-seed0", 0, 0.01, 2),
            ("many/seed3", 3, 0.1, {"left": 3, "both": 1}),
        )
    ]
    groups = report.group(load_all(*paths))
    assert {name: [r.config["seed"] for r in same] for name, same in groups.items()} == {
        "fedavg (lr 0.1)": [0, 1, 10],
        "fedavg (lr 0.01)": [0],
        "many": [3],
    }


def test_a_name_loses_its_own_seed_only(tmp_path):
    names = ["fedavg-10", "s0", "prox0.10", "lr-0.1"]
    runs = load_all(*(write_run(tmp_path / "up" / name, 0, config=name) for name in names))
    assert list(report.group(runs)) == ["fedavg-10", "up", "prox0.10", "lr-0.1"]


def test_the_same_seed_twice_is_refused(tmp_path):
    runs = load_all(write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    with pytest.raises(ValueError, match="runs a and b have the same settings and the same seed"):
        report.summary(runs)


def test_costs_and_split_tables(tmp_path):
    more = {**COSTS, "left": {**COSTS["left"], "peak_bytes": 50_000_000}}
    runs = load_all(write_run(tmp_path / "a-0", 0), write_run(tmp_path / "a-1", 1, costs=more))
    left, both = report.costs_table(runs)
    units = {"MB down": 2.5, "MB up": 1.0, "MB held": 0.0, "GFLOP per step": 3.0, "peak MB": 50.0}
    assert left == {"run": "a", "cohort": "left"} | units
    assert both == {"run": "a", "cohort": "both"} | units | {"MB up": 4.0, "peak MB": 7.0}
    left, both = report.split_table(SPLIT)
    assert list(left.values()) == ["left", "image", 3, 10, "0 / 3 / 7", "0 / 1 / 2"]
    assert list(both.values()) == ["both", "audio, image", 2, 9, "4 / 4.5 / 5", "1 / 1.5 / 2"]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        ("a", "a"),
        (12, "12"),
        (np.int32(7), "7"),
        (0.0, "0"),
        (0.83149, "0.831"),
        (np.float32(0.0125), "0.0125"),
        (1234.5, "1234"),
        (3e-9, "3.00e-09"),
        (float("nan"), "nan"),
        ((0.83149, 0.01234), "0.831 ± 0.012"),
        ((0.83149, 0.00044), "0.8315 ± 0.0004"),
        ((83.149, 1.234), "83.1 ± 1.2"),
        ((83.149, 12.34), "83 ± 12"),
        ((0.5, 0.0), "0.500 ± 0"),
        ((1.0, 6.9e-8), "1.00 ± 0"),
        ((0.0, 0.02), "0.00 ± 0.02"),
    ],
)
def test_cells_have_sensible_digits(cell, text):
    assert tables.cell_text(cell) == text


def test_markdown_parses_back(capsys):
    rows = [{"run": "a|b", "F1": (0.8125, 0.0312), "MB": 1.5}, {"run": "[red]c", "F1": None, "more": "x\ny"}]
    lines = report.table(rows).splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert cells[0] == ["run", "F1", "MB", "more"] and cells[1] == ["---", "---:", "---:", "---"]
    assert cells[2] == ["a\\|b", "0.812 ± 0.031", "1.50", "–"] and cells[3] == ["\\[red\\]c", "–", "–", "x y"]
    mean, std = map(float, cells[2][1].split(" ± "))
    np.testing.assert_allclose((mean, std), rows[0]["F1"], atol=5.1e-4)
    assert report.table(rows, {"F1": "macro F1"}).splitlines()[0] == "| macro F1 |"
    assert report.table(rows, ["MB", "run"]).splitlines()[2] == "| 1.50 | a\\|b |"
    assert report.table([{"run": "<i>a</i> [b](http://c)"}]).splitlines()[2] == (
        "| &lt;i&gt;a&lt;/i&gt; \\[b\\](http://c) |"
    )
    report.show(rows, {"run": "method", "F1": "F1"})
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("method", "a|b", "[red]c", "0.812 ± 0.031")) and "MB" not in shown


def test_names_for_people():
    assert tables.heading(F1) == "left+right macro F1" and tables.heading("MB up") == "MB up"
    assert tables.quantity("test/i2t_r10") == "image to text R@10 (%)"
    assert tables.quantity("test/t2i_medr") == "text to image median rank"
    assert tables.quantity("left/loss") == "loss"


def test_split_bars_add_up_to_the_examples(figures):
    plain = {"text": {"examples": [2, 6], "arrays": ["text"]}}
    report.plot_split(SPLIT | plain, "", classes=["cat", "dog"])
    for panel, (cohort, holds) in zip(figures[0].axes, (SPLIT | plain).items(), strict=True):
        held = np.zeros(len(holds["examples"]))
        for bar in panel.patches:
            held[round(bar.get_x() + bar.get_width() / 2)] += bar.get_height()
        assert held.tolist() == holds["examples"]
        assert [text.get_text() for text in panel.texts] == [str(size) for size in holds["examples"]]
        assert panel.get_title("left") == {"left": "left: image", "both": "both: audio, image", "text": "text"}[cohort]
        tops = {bar.get_y() + bar.get_height() for bar in panel.patches}
        assert max(tops) == max(holds["examples"]) < panel.get_ylim()[1]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["dog", "cat"]


def test_curves_are_means_in_bands_of_the_rounds_all_seeds_have(tmp_path, figures):
    losses = np.array([[2.0, 1.0, 0.5, 0.4], [3.0, 1.5, 0.7, 0.6]])
    paths = []
    for seed, of_seed in enumerate(losses):
        rows = [row(r + 1, clients=2.0 * (r != 1)) | {"left/loss": x} for r, x in enumerate(of_seed)]
        paths.append(write_run(tmp_path / f"a-{seed}", seed, rows[: 4 - seed]))  # nobody took part in round 2
    report.plot_curves(load_all(*paths, write_run(tmp_path / "b", config="b")), "left/loss", "")
    panel = figures[0].axes[0]
    first, second = panel.lines
    assert first.get_xdata().tolist() == [1, 3] and second.get_xdata().tolist() == [1, 2]
    np.testing.assert_allclose(first.get_ydata(), losses[:, [0, 2]].mean(0))
    band = {tuple(corner) for corner in panel.collections[0].get_paths()[0].vertices}
    assert {(1, 2.0), (3, 0.5), (1, 3.0), (3, 0.7)} <= band
    assert [t.get_text() for t in figures[0].legends[0].get_texts()] == ["a (2 seeds)", "b"]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("communication round", "loss")


def test_curves_mark_where_stages_begin(tmp_path, figures):
    staged = [row(r) | {"stage": stage} for r, stage in zip((1, 2, 3, 4), (1, 1, 2, 3), strict=True)]
    whole = [row(r) for r in (1, 2, 3, 4)]
    runs = load_all(write_run(tmp_path / "s", rows=staged), write_run(tmp_path / "w", rows=whole, config="w"))
    report.plot_curves(runs, "left/loss", "")
    panel = figures[0].axes[0]
    marks = [line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == ":"]
    assert marks == [3, 4] and [text.get_text().strip() for text in panel.texts] == ["stage 2", "stage 3"]


def test_costs_are_bars_side_by_side_and_a_plan_of_one_stage_a_line(tmp_path, figures):
    cost = lambda plan, stage, mb: {"plan": plan, "stage": stage, "MB": mb}
    rows = [
        cost("whole", 1, 9.0),
        cost("layers", 1, 3.0),
        cost("layers", 2, 4.0),
        cost("more", 1, 3.5),
        cost("more", 2, 9.0),
    ]
    plots.plot_costs(rows, "", costs=("MB",))
    panel = figures[0].axes[0]
    assert [bar.get_height() for bar in panel.patches] == [3.0, 4.0, 3.5, 9.0]
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in panel.patches] == [0, 1, 0, 1]
    assert panel.lines[0].get_ydata() == [9.0, 9.0] and panel.get_title(loc="left") == "MB"


def test_curves_refuse_a_metric_nobody_has(tmp_path):
    with pytest.raises(ValueError, match="no run has the metric 'left/los'; they have left/clients, left/left_out"):
        report.plot_curves(load_all(write_run(tmp_path / "a")), "left/los", tmp_path / "x.png")


def test_bars_show_quality_and_stacked_cost_and_grey_controls(figures):
    rows = [
        {"run": "local", "F1": (0.5, 0.02), "MB down": 0.0, "MB up": 0.0},
        {"run": "fedavg", "F1": (0.8, 0.01), "MB down": 4.0, "MB up": 3.0},
        {"run": "central", "F1": 0.9, "MB down": None, "MB up": None},
    ]
    report.plot_bars(rows, "", quality="F1", controls=("local", "central"))
    left, right = figures[0].axes
    assert [bar.get_width() for bar in left.patches] == [0.5, 0.8, 0.9]
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in left.patches]
    assert colours == [plots.GREY, plots.COLOURS[0], plots.GREY]
    down, up = right.containers
    assert (down[1].get_width(), up[1].get_x(), up[1].get_width()) == (4.0, 4.0, 3.0)
    assert [text.get_text() for text in right.texts] == ["0", "7.00", "–"]
    assert [text.get_text() for text in left.texts] == ["0.500 ± 0.020", "0.800 ± 0.010", "0.900"]
    assert [text.get_text() for text in left.get_yticklabels()] == ["local", "fedavg", "central"]
    ends = [line.vertices[:, 0] for line in left.collections[0].get_paths() if np.isfinite(line.vertices).all()]
    np.testing.assert_allclose(ends, [[0.48, 0.52], [0.79, 0.81]])


def test_groups_of_bars_share_their_axes_and_keep_their_own_rows(figures):
    groups = {
        "one": [{"run": "local", "F1": 0.5, "MB": 0.0}, {"run": "fedavg", "F1": (0.8, 0.01), "MB": 4.0}],
        "two": [{"run": "other", "F1": 0.2, "MB": 8.0}],
    }
    report.plot_bar_groups(groups, "", quality="F1", cost=("MB",), controls=("local",), quality_axis="F1")
    first, _, second, last = figures[0].axes
    assert [axis.get_title(loc="left") for axis in (first, second)] == ["one", "two"]
    assert [bar.get_width() for bar in second.patches] == [0.2] and [bar.get_width() for bar in last.patches] == [8.0]
    assert [text.get_text() for text in first.get_yticklabels()] == ["local", "fedavg"]
    assert [text.get_color() for text in first.get_yticklabels()] == [plots.GREY, "black"]
    assert first.get_xlim() == second.get_xlim() == pytest.approx((0, 1.4 * 0.81))
    assert last.get_xlim() == pytest.approx((0, 1.4 * 8)) and second.get_xlabel() == "F1" and not first.get_xlabel()


def test_write_and_the_command_line(tmp_path, capsys):
    paths = [write_run(tmp_path / f"{name}-{s}", s, config=name, f1=f) for name, s, f in [("a", 0, 0.5), ("a", 1, 0.7)]]
    paths.append(write_run(tmp_path / "b-0", 0, config="b", split={"left": SPLIT["left"]}))
    paths.append(write_run(tmp_path / "c-0", 0, config="c"))  # its split is a's and is shown once
    out = tmp_path / "deep" / "out"
    tyro.cli(report_main, args=[*map(str, paths), "--out", str(out)])
    assert "0.60 ± 0.14" in capsys.readouterr().out
    text = (out / "report.md").read_text()
    assert "| a | 2 | 2 | 0.60 ± 0.14 | 0.750 ± 0 |" in text and "| b | both | 2.50 | 4.00 |" in text
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert pictures == ["curves-test.png", "curves-loss.png", "split-1.png", "split-2.png"]
    assert all(is_picture(out / name) for name in pictures)
    report.plot_bars(report.summary(load_all(*paths)), out / "bars.png", quality=F1)
    assert is_picture(out / "bars.png")
    with pytest.raises(SystemExit, match="is no run"):
        tyro.cli(report_main, args=[str(tmp_path), "--out", str(out)])
    with pytest.raises(SystemExit, match="no run is given"):
        tyro.cli(report_main, args=["--out", str(out)])


def test_privacy_is_that_of_the_last_round_and_the_largest_over_seeds(tmp_path):
    spent = lambda epsilons: [
        row(i + 1) | {"privacy/epsilon": e, "privacy/delta": 0.01} for i, e in enumerate(epsilons)
    ]
    write_run(tmp_path / "quiet-s0", 0, rows=spent([1.0, 2.0]))
    write_run(tmp_path / "quiet-s1", 1, rows=spent([1.0, 2.5]))
    write_run(tmp_path / "loud", 0, rows=spent([None]), config={"noise": 0})
    write_run(tmp_path / "silent", 0, config={"noise": None})
    runs = load_all(*(tmp_path / name for name in ("quiet-s0", "quiet-s1", "loud", "silent")))
    rows = report.privacy_table(runs)
    assert [(r["rounds"], r["epsilon"], r["delta"]) for r in rows] == [(2, 2.5, 0.01), (1, "infinite", 0.01)]
    text = report.write([tmp_path / "loud"], tmp_path / "out").read_text()
    assert "## Privacy" in text and "infinite" in text
    assert "## Privacy" not in report.write([tmp_path / "silent"], tmp_path / "out").read_text()


def test_reads_what_train_writes(tmp_path):
    x, label = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32), np.arange(12, dtype=np.int32) % 3
    data = FederatedData.from_arrays({"x": x, "label": label}, np.repeat(np.arange(3), [2, 4, 6]))
    config = FedAvgConfig(batch_size=2)
    method, test = build(config, data, {"x": mlp.encoder((), 5)}, heads.linear(3)), {"x": x, "label": label}
    settings = {"per_round": 2, "config": config, "test": test, "log": lambda line: None}
    run.train(method, data, rounds=2, directory=tmp_path / "seed0", **settings)
    text = report.write([tmp_path / "seed0"], tmp_path / "out").read_text()
    assert "x macro F1" in text and "| all | x | 3 | 12 | 2 / 4 / 6 | 2 / 3 / 3 |" in text
