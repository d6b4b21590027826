import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from handscroll.base.errors import DataError
from handscroll.report.palette import COLOURS, HEAT_STEPS, contrast, heat
from handscroll.report.plots import NARROW, HeatMap, Series, curve, heat_map, heat_maps, loss_by_position
from handscroll.report.ticks import binary_steps, compact, powers_of_two, spread
from tests.naming import naming

POSITIONS = [256, 768, 1280, 1792, 2304, 2816, 3328, 3840]
CALM = [3.0, 2.8, 2.7, 2.65, 2.6, 2.58, 2.56, 2.55]
WILD = [3.0, 2.8, 2.7, 2.65, 5.0, 7.5, 9.0, 11.25]
HOSTILE = "</text><script>alert('1')</script> & \"$x_$\" \x00 长卷"


def texts(svg: str) -> list[str]:
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    ]


def test_a_loss_plot_names_curves_marks_and_lengths():
    low, high = [y - 0.1 for y in CALM], [y + 0.1 for y in CALM]
    before, after = (
        Series("before", POSITIONS, WILD, emphasis="before"),
        Series("after", POSITIONS, CALM, low, high, "after"),
    )
    svg = loss_by_position([before, after], 2048, 4096, "Loss by position")
    words = texts(svg)
    assert {"Loss by position", "after", "trained 2K", "target 4K", "1K", "2K", "3K", "4K"} <= set(words)
    assert "before ↑ 11.2" in words
    assert "stroke-dasharray" in svg and "var(--line-after, " in svg and "var(--line-before, " in svg


def test_an_exploding_curve_is_cut_and_the_axis_label_says_so():
    calm, wild = Series("a", POSITIONS, CALM), Series("b", POSITIONS, WILD)
    assert any(
        "cut at" in word and "highest: 11.2" in word for word in texts(loss_by_position([calm, wild], 2048, None, "t"))
    )
    assert not any("cut at" in word for word in texts(loss_by_position([calm], 2048, None, "t")))
    assert not any("cut at" in word for word in texts(loss_by_position([wild], 2048, None, "t")))


@pytest.mark.parametrize("width", [NARROW, 736])
def test_the_log_axis_ticks_are_lengths_not_powers(width):
    xs = [2**e for e in range(8, 18)]
    words = texts(loss_by_position([Series("a", xs, [3.0] * 10)], 2048, None, "t", width=width))
    assert "128K" in words and "position (tokens, log scale)" in words
    assert not any("^" in word for word in words)


def test_a_narrow_plot_has_a_legend_instead_of_end_labels():
    words = texts(
        loss_by_position([Series(f"curve {i}", POSITIONS, CALM) for i in range(3)], None, None, "t", width=NARROW)
    )
    assert {"curve 0", "curve 1", "curve 2"} <= set(words)


def test_lines_of_many_series_differ_in_colour_or_dash():
    svg = loss_by_position([Series(f"s{i}", POSITIONS, [y + i / 20 for y in CALM]) for i in range(12)], None, None, "t")
    styles = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="([^"]*line-[^"]*)"', svg)
    assert len(styles) == 12 and len(set(styles)) == 12


def test_missing_values_interrupt_a_line_and_nothing_measured_is_refused():
    hole = [*CALM[:3], None, *CALM[4:]]
    svg = loss_by_position([Series("a", POSITIONS, hole)], None, None, "t")
    assert any(path.count("M ") == 2 for path in re.findall(r'd="([^"]*)"', svg))
    with pytest.raises(DataError, match="nothing"):
        loss_by_position([Series("a", POSITIONS, [None] * 8)], None, None, "t")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [1.0]), naming(1, "2 positions")),
        (([2, 1], [1.0, 1.0]), "rise"),
        (([1, 2], [1.0, float("nan")]), "None"),
        (([1, 2], [1.0, float("inf")]), "None"),
        (([1, 2], [1.0, 1.0], [1.0, 1.0]), naming("low", "high")),
        (([-1, 2], [1.0, 1.0]), "negative"),
    ],
)
def test_a_broken_series_is_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        Series("a", *arguments)


def test_a_heat_map_writes_every_percentage_and_dashes_for_gaps():
    words = texts(heat_map([1024, 2048], [0, 0.5, 1], [[1, 0.5], [0.25, None], [0.999, 0]], "Before"))
    assert {"100%", "50%", "25%", "–", "99%", "0%", "1K", "2K", "Before"} <= set(words)


def test_heat_maps_stand_side_by_side_or_below_each_other():
    one = HeatMap("Before", [1024, 2048], [0, 1], [[1, 0], [1, 0]], trained=1024)
    wide, narrow = heat_maps([one, one]), heat_maps([one, one], width=NARROW)
    sizes = [[float(n) for n in re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0]] for svg in (wide, narrow)]
    assert sizes[0][0] == 736 and sizes[1][0] == NARROW and sizes[1][1] > 1.5 * sizes[0][1]
    assert "trained 1K" in " ".join(texts(wide))


@pytest.mark.parametrize(
    ("lengths", "depths", "accuracy", "message"),
    [
        ([1, 2], [0], [[1, 1], [1, 1]], "1 depths"),
        ([1, 2], [0], [[1]], "2 lengths"),
        ([1], [0], [[1.5]], "share"),
        ([1], [0], [[float("nan")]], "share"),
        ([1], [50], [[1]], "depth 50"),
        ([], [0], [[]], "at least one"),
        ([2, 1], [0], [[1, 1]], "rise"),
    ],
)
def test_a_broken_heat_map_is_refused(lengths, depths, accuracy, message):
    with pytest.raises(DataError, match=message):
        heat_map(lengths, depths, accuracy, "t")


def test_no_heat_map_is_refused():
    with pytest.raises(DataError, match="map"):
        heat_maps([])


def test_a_training_curve_says_when_it_shows_a_running_mean():
    long = texts(curve(range(1, 201), [3 - i / 100 for i in range(200)], "Training"))
    assert any("bold: mean of 11 steps" in word for word in long)
    assert "nats per token" in texts(curve([1], [2.0], "Training"))
    with pytest.raises(DataError, match="2 steps"):
        curve([1, 2], [1.0], "t")


def test_hostile_labels_are_only_text():
    plots = [
        loss_by_position([Series(HOSTILE, POSITIONS, CALM)], None, None, HOSTILE),
        heat_map([1], [0], [[1]], HOSTILE),
        curve([1, 2], [1, 2], HOSTILE, x_label=HOSTILE, y_label=HOSTILE),
    ]
    for svg in plots:
        assert "<script" not in svg and "\x00" not in svg
        assert not {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()} & {
            "script",
            "style",
        }
        assert any("<script>alert" in word and "&" in word for word in texts(svg))
    assert any('"$x_$" \ufffd' in word for word in texts(plots[0]))


def test_the_same_input_gives_the_same_bytes_and_leaves_matplotlib_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots = {loss_by_position([Series("a", POSITIONS, WILD)], 2048, 4096, "t") for _ in range(2)}
    assert len(plots) == 1 and dict(matplotlib.rcParams) == before
    matplotlib.rcParams["font.size"] = 30
    try:
        assert loss_by_position([Series("a", POSITIONS, WILD)], 2048, 4096, "t") in plots
    finally:
        matplotlib.rcParams["font.size"] = before["font.size"]


def test_text_is_readable_on_every_heat_colour_and_on_both_papers():
    for step in range(HEAT_STEPS + 1):
        for dark in (False, True):
            assert contrast(heat(step, dark), COLOURS[f"heat-ink-{step}"][dark]) >= 4.5
    for name in ("ink", "muted", "accent", *(name for name in COLOURS if name.startswith("line-"))):
        for dark in (False, True):
            assert contrast(COLOURS[name][dark], COLOURS["paper"][dark]) >= 4.5, name


def test_contrast_and_lightness_match_known_values():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    values = [contrast(heat(step, dark=False), "#ffffff") for step in range(HEAT_STEPS + 1)]
    assert values == sorted(values) and len(set(values)) == HEAT_STEPS + 1


def test_ticks():
    assert [compact(n) for n in (256, 1024, 1536, 32768, 2**20, 5000)] == ["256", "1K", "1.5K", "32K", "1M", "5000"]
    assert powers_of_two(200, 5000, 9) == [256, 512, 1024, 2048, 4096]
    assert powers_of_two(200, 5000, 3) == [256, 1024, 4096]
    assert binary_steps(4096, 6) == [0, 1024, 2048, 3072, 4096]
    assert spread([10, 11, 50], 5, 0, 100) == [10, 15, 50]
    assert spread([99, 100], 5, 0, 100) == [95, 100]


def test_importing_the_folder_loads_neither_torch_nor_matplotlib_nor_jinja():
    code = "import sys, handscroll.report; assert not {'torch', 'matplotlib', 'jinja2', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
