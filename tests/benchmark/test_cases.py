"""The shapes that are measured and the floor under them."""

import pytest

from visionattn.benchmark.cases import (
    BIFORMER,
    CLASSIFIER,
    DAVIT,
    GROUPS,
    HALONET50TS,
    INLINE,
    SWIN,
    VSA,
    Case,
    ChannelCase,
    HaloCase,
    LinearCase,
    RoutingCase,
    VariedCase,
    WindowCase,
)
from visionattn.benchmark.depthwise_cases import DEPTHWISE, DepthwiseCase


def test_the_six_classifier_rows_come_first_so_that_a_short_run_has_them():
    assert GROUPS["neighborhood"]["all"][:6] == CLASSIFIER
    assert len(GROUPS["neighborhood"]["all"]) == 13
    assert GROUPS["window"]["all"][:5] == SWIN
    assert GROUPS["halo"]["all"][:3] == HALONET50TS
    assert GROUPS["channel"]["all"][:4] == DAVIT
    assert GROUPS["varied_window"]["all"][:4] == VSA
    assert GROUPS["linear"]["all"][: len(INLINE)] == INLINE
    assert GROUPS["routing"]["all"][:3] == BIFORMER
    assert GROUPS["depthwise"]["all"][: len(DEPTHWISE)] == DEPTHWISE


NEIGHBORHOODS = [case for group in GROUPS["neighborhood"].values() for case in group]


@pytest.mark.parametrize("case", NEIGHBORHOODS, ids=lambda case: case.name)
def test_every_neighborhood_fits_its_map(case):
    assert min(case.height, case.width) // case.dilation >= case.kernel
    assert 1 <= case.stride <= case.kernel


def test_names_are_unique_and_say_dilation_and_stride():
    for groups in GROUPS.values():
        names = [case.name for case in groups["all"]]
        assert len(set(names)) == len(names)
    assert WindowCase(1, 8, 8, 1, 8, 4, 2).name == "B1 8x8 h1 d8 w4 shift 2"
    assert VariedCase(1, 8, 8, 1, 8, 4, 3).name == "B1 8x8 h1 d8 w4 spread 3"
    assert HaloCase(1, 8, 8, 1, 8, 8, 4, 1).name == "B1 8x8 h1 d8 b4 halo 1"
    assert HaloCase(1, 8, 8, 1, 8, 20, 4, 1, 2).name == "B1 8x8 h1 d8/20 b4 halo 1 stride 2"
    assert LinearCase(1, 8, 8, 1, 8, 1).name == "B1 8x8 h1 d8 1 before"
    assert DepthwiseCase(1, 8, 9, 24, 5).name == "B1 8x9 c24 k5"
    assert RoutingCase(1, 8, 8, 1, 8, 2).name == "B1 8x8 h1 d8 top2"
    assert RoutingCase(1, 8, 8, 1, 8, 2, 4).name == "B1 8x8 h1 d8 top2 of 4x4"
    assert Case(1, 8, 8, 1, 8, 2, dilation=3, stride=2).name == "B1 8x8 h1 d8 k2 dilation 3 stride 2"


def test_floor_is_bytes_or_products_whichever_takes_longer():
    case = Case(2, 10, 20, 3, 16, 5)
    elements = 2 * 10 * 20 * 3 * 16
    unlimited = float("inf")
    assert case.floor_ms(2, 1000.0, unlimited, backward=False) == pytest.approx(4 * elements * 2 / 1000)
    assert case.floor_ms(2, 1000.0, unlimited, backward=True) == pytest.approx(12 * elements * 2 / 1000)
    # A product over a window costs two operations an element and key.
    assert case.floor_ms(2, unlimited, 1000.0, backward=False) == pytest.approx(2 * 2 * elements * 25 / 1000)
    assert case.floor_ms(2, unlimited, 1000.0, backward=True) == pytest.approx(7 * 2 * elements * 25 / 1000)


def test_floor_of_halos_counts_the_queries_that_there_are_and_the_values_own_width():
    case = HaloCase(2, 8, 12, 3, 16, 40, 4, 1, 2)
    queries, keys, seen = 2 * 4 * 6 * 3, 2 * 8 * 12 * 3, 6 * 6
    unlimited = float("inf")
    elements = queries * 16 + keys * (16 + 40) + queries * 40  # q, k and v, the output
    assert case.floor_ms(2, 1000.0, unlimited, backward=False) == pytest.approx(elements * 2 / 1000)
    assert case.floor_ms(2, 1000.0, unlimited, backward=True) == pytest.approx(3 * elements * 2 / 1000)
    assert case.floor_ms(2, unlimited, 1.0, backward=False) == pytest.approx(2 * queries * seen * (16 + 40))
    assert case.floor_ms(2, unlimited, 1.0, backward=True) == pytest.approx(2 * queries * seen * (4 * 16 + 3 * 40))


def test_floor_of_channels_moves_every_map_once_and_multiplies_tokens_by_squares():
    case, unlimited = ChannelCase(2, 8, 12, 3, 16), float("inf")
    assert case.name == "B2 8x12 g3 d16"
    elements = 2 * 8 * 12 * 3 * 16
    assert case.floor_ms(2, 1000.0, unlimited, backward=False) == pytest.approx(4 * elements * 2 / 1000)
    assert case.floor_ms(2, 1000.0, unlimited, backward=True) == pytest.approx(11 * elements * 2 / 1000)
    assert case.floor_ms(2, unlimited, 1.0, backward=False) == pytest.approx(2 * 2 * elements * 16)
    assert case.floor_ms(2, unlimited, 1.0, backward=True) == pytest.approx(6 * 2 * elements * 16)


def test_floor_of_varied_windows_is_that_of_windows():
    unlimited = float("inf")
    case, plain = VariedCase(2, 8, 12, 3, 16, 4), WindowCase(2, 8, 12, 3, 16, 4)
    for rates in ((1000.0, unlimited), (unlimited, 1000.0)):
        assert case.floor_ms(2, *rates, backward=True) == plain.floor_ms(2, *rates, backward=True) > 0


def test_floor_of_linear_attention_grows_with_the_tokens_alone():
    case = LinearCase(2, 10, 20, 3, 16)
    elements = 2 * 10 * 20 * 3 * 16
    unlimited = float("inf")
    assert case.floor_ms(2, 1000.0, unlimited, backward=False) == pytest.approx(4 * elements * 2 / 1000)
    assert case.floor_ms(2, 1000.0, unlimited, backward=True) == pytest.approx(11 * elements * 2 / 1000)
    assert case.floor_ms(2, unlimited, 1000.0, backward=False) == pytest.approx(elements * (4 * 16 + 18) / 1000)
    assert case.floor_ms(2, unlimited, 1000.0, backward=True) == pytest.approx(3 * elements * (4 * 16 + 18) / 1000)
    assert LinearCase(2, 10, 20, 3, 16, 1).shape == (2, 1, 201, 3, 16)


def test_floor_of_routing_counts_the_tokens_of_the_chosen_regions():
    case, unlimited = RoutingCase(2, 14, 28, 3, 16, 4), float("inf")
    elements = 2 * 14 * 28 * 3 * 16
    assert case.floor_ms(2, 1000.0, unlimited, backward=True) == pytest.approx(12 * elements * 2 / 1000)
    assert case.floor_ms(2, unlimited, 1.0, backward=False) == pytest.approx(2 * 2 * elements * (4 * 2 * 4))


def test_floor_of_depthwise_convolutions_moves_every_map_once_and_multiplies_every_tap():
    case, unlimited = DepthwiseCase(2, 10, 20, 24, 5), float("inf")
    elements = 2 * 10 * 20 * 24
    assert case.floor_ms(2, 1000.0, unlimited, backward=False) == pytest.approx(2 * elements * 2 / 1000)
    assert case.floor_ms(2, 1000.0, unlimited, backward=True) == pytest.approx(5 * elements * 2 / 1000)
    assert case.floor_ms(2, unlimited, 1000.0, backward=False) == pytest.approx(2 * elements * 25 / 1000)
    assert case.floor_ms(2, unlimited, 1000.0, backward=True) == pytest.approx(6 * elements * 25 / 1000)
