"""The page of a report: self-contained and escaped, curves against costs, paired differences, LaTeX and PDF."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import tyro
from scipy import stats
from test_report import COSTS, F1, load_all, row, write_run

from fedjax_mm import report
from fedjax_mm.report import curves, paired, plots, tables
from fedjax_mm.report.__main__ import main as report_main

SCORES = {"base": [0.5, 0.62, 0.55], "new": [0.61, 0.66, 0.7], "odd": [0.4]}
ODD = '<script>alert("x")</script> & |b|'


@pytest.fixture
def runs(tmp_path):
    """Two rows of three seeds, and one of one whose name is HTML."""
    paths = []
    for name, scores in SCORES.items():
        shown = ODD.replace("/", "") if name == "odd" else name
        for seed, f1 in enumerate(scores):
            paths.append(write_run(tmp_path / shown / f"seed{seed}", seed, config={"lr": name}, f1=f1))
    return paths


class Reader(HTMLParser):
    """The tags of a page, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_differences_are_those_of_a_paired_t_test(runs):
    rows = paired.paired_differences(load_all(*runs))
    assert [(r["run"], r["metric"], r["pairs"]) for r in rows] == [("new", F1, 3), ("new", "test/left/accuracy", 3)]
    found = stats.ttest_rel(SCORES["new"], SCORES["base"])
    expected = (np.mean(np.subtract(SCORES["new"], SCORES["base"])), *found.confidence_interval(0.95))
    np.testing.assert_allclose([rows[0][key] for key in ("difference", "low", "high")], expected)
    other = paired.paired_differences(load_all(*runs), baseline="new")
    np.testing.assert_allclose(other[0]["difference"], -expected[0])
    (shown, _) = paired.differences_table(rows)
    assert shown["difference"] == "+0.100" and shown["95 % interval"] == "-0.038 to +0.238"
    with pytest.raises(ValueError, match="baseline is 'nobody'; the runs are base, new"):
        paired.paired_differences(load_all(*runs), baseline="nobody")
    with pytest.raises(ValueError, match="give two or more"):
        paired.interval([1.0])


def test_only_common_seeds_are_pairs(tmp_path):
    of = lambda name, seed, f1: write_run(tmp_path / name / f"seed{seed}", seed, config=name, f1=f1)
    found = load_all(of("a", 0, 0.5), of("a", 1, 0.6), of("a", 2, 0.9), of("b", 2, 0.7), of("b", 1, 0.5))
    (first, _) = paired.paired_differences(found)
    assert first["pairs"] == 2
    np.testing.assert_allclose(first["difference"], np.mean([0.7 - 0.9, 0.5 - 0.6]))


def test_a_full_dot_says_that_an_interval_leaves_out_0(monkeypatch):
    drawn = []
    monkeypatch.setattr(paired, "save", lambda figure, path: drawn.append(figure))
    of = lambda run, low, high: {"run": run, "metric": F1, "difference": (low + high) / 2, "low": low, "high": high}
    paired.plot_differences([of("a", -0.1, 0.3), of("b", 0.1, 0.3)], "")
    panel = drawn[0].axes[0]
    dots = [line for line in panel.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in dots] == pytest.approx([0.1, 0.2])
    assert [line.get_markerfacecolor() for line in dots] == ["white", plots.COLOURS[0]]
    with pytest.raises(ValueError, match="no two runs have two seeds in common"):
        paired.plot_differences([], "")


def test_what_was_spent_goes_by_who_took_part_and_by_the_stages_costs():
    costs = {
        "one/a": {"bytes_down": 2e6, "bytes_up": 1e6, "round_flops": 1e9},
        "two/a": {"bytes_down": 0, "bytes_up": 5e6},
    }
    rows = [
        {"round": 1, "stage": 1, "a/clients": 2.0, "a/left_out": 0.0, "seconds": 1.0},
        {"round": 2, "stage": 1, "a/clients": 1.0, "a/left_out": 1.0, "seconds": 3.0},
        {"round": 3, "stage": 2, "a/clients": 0.0, "a/left_out": 0.0, "seconds": 1.0},
        {"round": 4, "stage": 2, "a/clients": 1.0, "a/left_out": 0.0, "seconds": 1.0},
    ]
    found = curves.with_costs(rows, costs, ["one", "two"])
    assert [row["MB"] for row in found] == [6.0, 12.0, 12.0, 17.0]
    assert [row["spent seconds"] for row in found] == [1.0, 4.0, 5.0, 6.0]
    assert [row.get("GFLOP") for row in found] == [2.0, 4.0, 4.0, None]  # not known of stage two


def test_curves_against_bytes_stand_at_what_was_spent(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    paths = [
        write_run(tmp_path / f"a-{seed}", seed, [row(1, clients=clients), row(2, clients=clients)])
        for seed, clients in enumerate((2.0, 4.0))
    ]
    report.plot_curves(load_all(*paths), "left/loss", "", against="MB")
    panel = drawn[0].axes[0]
    each = (COSTS["left"]["bytes_down"] + COSTS["left"]["bytes_up"]) / 1e6
    assert panel.lines[0].get_xdata().tolist() == [3 * each, 6 * each]
    assert panel.get_xlabel() == curves.AXES["MB"]


def test_the_page_is_self_contained_and_escapes_names(runs, tmp_path, capsys):
    out = tmp_path / "out"
    tyro.cli(report_main, args=[*map(str, runs), "--out", str(out), "--html"])
    assert "95 % interval" in capsys.readouterr().out
    text = (out / "report.html").read_text()
    page = Reader(text)
    names = [tag for tag, _ in page.tags]
    assert "script" not in names and "link" not in names and "iframe" not in names
    shown = ODD.replace("/", "")
    assert shown in page.texts and "base" in page.texts
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert images and all(attrs["src"].startswith("data:image/png;base64,iVBOR") and attrs["alt"] for attrs in images)
    assert not re.search(r"https?://|url\(|@import", text)
    policy = next(attrs for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]
    radios = [attrs["id"] for tag, attrs in page.tags if tag == "input"]
    labels = [attrs["for"] for tag, attrs in page.tags if tag == "label"]
    assert radios == labels == ["c0-0", "c0-1", "c0-2", "c1-0", "c1-1", "c1-2"]  # no round_flops in these costs
    anchors = [attrs["href"][1:] for tag, attrs in page.tags if tag == "a"]
    assert anchors == [attrs["id"] for tag, attrs in page.tags if tag == "h2"] and len(anchors) == 4
    assert not list(out.glob("*.pdf")) and not list(out.glob("*.tex"))


def test_pictures_as_pdf_and_tables_for_latex(runs, tmp_path):
    out = tmp_path / "out"
    tyro.cli(report_main, args=[*map(str, runs[:3]), "--out", str(out), "--pdf", "--latex"])
    pictures = sorted(file.stem for file in out.glob("*.png"))
    assert pictures == sorted(file.stem for file in out.glob("*.pdf"))
    assert (
        all(file.read_bytes().startswith(b"%PDF") for file in out.glob("*.pdf")) and not (out / "report.html").exists()
    )
    table = (out / "results-1.tex").read_text()
    assert table.startswith("\\begin{tabular}{lrrrr}\n\\toprule\nrun & seeds")
    assert r"base & 3 & 2 & $0.557 \pm 0.060$ & $0.750 \pm 0$ \\" in table


def test_latex_shows_what_its_own_characters_say():
    shown = tables.latex([{"run": r"a_b & 5% $x$ #{1} ~^\ <|>", "F1": None, "x": "0.1 ± 0.2"}]).splitlines()[4]
    assert shown == (
        r"a\_b \& 5\% \$x\$ \#\{1\} \textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"\textless{}\textbar{}\textgreater{} & -- & $0.1 \pm 0.2$ \\"
    )
