"""Weights and supports of every mixer: what a layer computes, and loops over positions that know nothing of the ops."""

import math

import pytest
import timm
import torch
from torch import nn

from visionattn import layers
from visionattn.visualize import attending_layers, find
from visionattn.visualize.pattern import make_pattern

DIM, HEADS = 24, 3


def neighborhood_sees(q, k, n, kernel, dilation, stride):
    if q % dilation != k % dilation:
        return False
    length = len(range(q % dilation, n, dilation))
    leader = min(q // dilation // stride * stride + stride // 2, length - 1)
    start = min(max(leader - kernel // 2, 0), length - kernel)
    return start <= k // dilation < start + kernel


def block_sees(q, k, n, window, shift=0):
    return (q - shift) // window == (k - shift) // window


def grid_sees(q, k, n, window):
    return q % -(-n // window) == k % -(-n // window)


def halo_sees(q, k, n, block, halo):
    return q // block * block - halo <= k < q // block * block + block + halo


def loop(size, sees_y, sees_x, at):
    """bool [H, W]: the keys of a query whose rows and columns are seen apart."""
    return torch.tensor([[sees_y(at[0], y) and sees_x(at[1], x) for x in range(size[1])] for y in range(size[0])])


def same_for_both(sees, *parameters):
    return lambda size, at: loop(size, *(lambda q, k, n=n: sees(q, k, n, *parameters) for n in size), at)


# layer, map, brute-force support
AXIS_WISE = {
    "neighborhood": (
        lambda: layers.NeighborhoodAttention(DIM, HEADS, 5),
        (11, 9),
        same_for_both(neighborhood_sees, 5, 1, 1),
    ),
    "dilated and strided": (
        lambda: layers.NeighborhoodAttention(DIM, HEADS, 4, dilation=2, stride=3),
        (13, 10),
        same_for_both(neighborhood_sees, 4, 2, 3),
    ),
    "filled up": (
        lambda: layers.NeighborhoodAttention(DIM, HEADS, 3, dilation=3, pad_small=True),
        (7, 8),
        lambda size, at: same_for_both(neighborhood_sees, 3, 3, 1)((9, 9), at)[:7, :8],
    ),
    "window": (lambda: layers.WindowAttention(DIM, HEADS, 4), (9, 8), same_for_both(block_sees, 4)),
    "shifted": (lambda: layers.WindowAttention(DIM, HEADS, 4, shift=1), (8, 12), same_for_both(block_sees, 4, 1)),
    "grid": (
        lambda: layers.WindowAttention(DIM, HEADS, 3, partition="grid", attend_padding=False),
        (7, 9),
        same_for_both(grid_sees, 3),
    ),
    "halo": (lambda: layers.HaloAttention(DIM, num_heads=HEADS, block_size=3, halo_size=2), (8, 7),
             same_for_both(halo_sees, 3, 2)),
    "halo, strided": (lambda: layers.HaloAttention(DIM, stride=2, num_heads=HEADS, block_size=4, halo_size=1), (9, 8),
                      same_for_both(halo_sees, 4, 1)),
    "linear": (lambda: layers.LinearAttention(DIM, HEADS), (7, 8), lambda size, at: torch.ones(size, dtype=torch.bool)),
    "global": (lambda: layers.GlobalAttention(DIM, HEADS), (7, 8), lambda size, at: torch.ones(size, dtype=torch.bool)),
}  # fmt: skip
PLACES = [(0, 0), (4, 3), (6, 5), (2, 6)]


def plain(layer):
    """A float64 layer without output projection and convolutions beside its attention, with filters that are the same
    for all channels of a head: its output is A v."""
    layer = layer.double().eval()
    for name, module in layer.named_modules():
        if name == "lepe" or name.startswith("lepe."):
            for parameter in module.parameters(recurse=False):
                nn.init.zeros_(parameter)
    if isinstance(layer, layers.LinearAttention):
        nn.init.zeros_(layer.residual[2].weight)
        head_dim = layer.head_dim
        layer.residual[2].bias.data = torch.randn(HEADS, 1, 9).expand(-1, head_dim, -1).flatten().double()
    if hasattr(layer, "proj"):
        layer.proj = nn.Identity()
    return layer


def watched(layer, size, *more):
    x = torch.randn(1, *size, DIM, dtype=torch.float64)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = layer

        def forward(self, x):
            return self.attn(x, *more)

    model = Network()
    (found,) = attending_layers(model, x)
    with torch.no_grad():
        return found, model(x)


@pytest.mark.parametrize("name", AXIS_WISE)
def test_support_is_that_of_a_loop_over_positions(name):
    make, size, expected = AXIS_WISE[name]
    found, _ = watched(plain(make()), size)
    stride = found.calls[0].parameters[0].stride if name == "halo, strided" else (1, 1)
    for y, x in PLACES:
        y, x = y // stride[0] * stride[0], x // stride[1] * stride[1]
        support = found.look(y, x).support
        assert support.shape == (HEADS, *size)
        assert (support == expected(size, (y, x))).all(), f"query {(y, x)}"


@pytest.mark.parametrize("name", AXIS_WISE)
def test_weights_sum_to_one_and_give_what_the_layer_computes(name):
    make, size, _ = AXIS_WISE[name]
    layer = plain(make())
    found, out = watched(layer, size)
    (call,) = found.calls
    for y, x in PLACES:
        look = found.look(y, x)
        total = look.weights.sum((1, 2)) + sum(look.rest.values())
        if look.local is not None:
            total = total - look.local.sum((1, 2))
        torch.testing.assert_close(total, torch.ones(HEADS, dtype=torch.float64), rtol=0, atol=1e-12)
        assert (look.weights[~look.support] == 0).all()
        row = torch.einsum("hyx,yxhd->hd", call.row(y, x), call.tensors[2][0])
        torch.testing.assert_close(row.flatten(), out[(0, *call.query(y, x))], rtol=0, atol=1e-12)


def test_padding_of_swins_kind_is_a_key_and_its_share_is_told():
    found, _ = watched(plain(layers.WindowAttention(DIM, HEADS, 4, rel_bias=False)), (6, 8))
    whole, cut = found.look(1, 1), found.look(5, 5)
    assert whole.rest["padding"].abs().max() < 1e-12
    assert cut.support.sum() == HEADS * 8  # half of the window lies on padding
    torch.testing.assert_close(cut.rest["padding"], 1 - cut.weights.sum((1, 2)))
    assert (cut.rest["padding"] > 0.1).all()


def test_zero_keys_take_the_softmax_weight_that_a_loop_over_a_halo_gives():
    layer = plain(layers.HaloAttention(DIM, num_heads=HEADS, block_size=2, halo_size=1))
    found, _ = watched(layer, (4, 4))
    q, k, _ = found.calls[0].tensors
    tables = found.calls[0].extras.values()
    look = found.look(1, 0)
    for head in range(HEADS):
        logits = {}
        for y in range(-1, 3):  # the block's rows and columns 0 and 1, and one on each side
            for x in range(-1, 3):
                query = q[0, 1, 0, head]
                key = k[0, y, x, head] if y >= 0 and x >= 0 else torch.zeros_like(query)
                row, column = (t[3 + displaced] for t, displaced in zip(tables, (y + 1 - 1, x + 1)))
                logits[y, x] = float(query @ key * query.numel() ** -0.5 + query @ row + query @ column)
        weights = {place: math.exp(logit) for place, logit in logits.items()}
        total = sum(weights.values())
        outside = sum(w for (y, x), w in weights.items() if y < 0 or x < 0) / total
        assert float(look.rest["zero keys"][head]) == pytest.approx(outside, abs=1e-12)
        assert float(look.weights[head, 2, 2]) == pytest.approx(weights[2, 2] / total, abs=1e-12)


def test_routed_regions_are_those_of_the_chosen_routes():
    layer = plain(layers.RoutedAttention(DIM, HEADS, regions=(3, 2), topk=2))
    size = (8, 6)  # regions of 3 x 3, the last ones of which reach onto padding
    found, out = watched(layer, size)
    routes = found.calls[0].extras["routes"][0].tolist()
    for y, x in ((0, 0), (7, 5), (3, 4)):
        seen = routes[y // 3 * 2 + x // 3]
        expected = torch.tensor([[(i // 3 * 2 + j // 3) in seen for j in range(size[1])] for i in range(size[0])])
        look = found.look(y, x)
        assert (look.support == expected).all()
        torch.testing.assert_close(look.weights.sum((1, 2)) + look.rest["padding"], torch.ones(HEADS).double())
        row = torch.einsum("hyx,yxhd->hd", found.calls[0].row(y, x), found.calls[0].tensors[2][0])
        torch.testing.assert_close(row.flatten(), out[0, y, x], rtol=0, atol=1e-12)


def test_varied_windows_see_the_corners_around_their_sampled_places():
    layer = plain(layers.VariedWindowAttention(DIM, HEADS, 3))
    layer.places.bias.data = torch.randn(4 * HEADS).double()
    size = (9, 6)
    found, out = watched(layer, size)
    for y, x in ((0, 0), (4, 5), (8, 2)):
        look = found.look(y, x)
        for head in range(HEADS):
            numbers = found.calls[0].extras["sampling"][0, y // 3, x // 3, head].tolist()
            axes = []
            for axis, n in enumerate(size):
                centre = (y, x)[axis] // 3 * 3 + 1 + numbers[axis]
                places = [centre + (1 + numbers[2 + axis]) * i for i in (-1, 0, 1)]
                axes.append({k for k in range(n) for place in places if abs(place - k) < 1})
            expected = torch.tensor([[i in axes[0] and j in axes[1] for j in range(size[1])] for i in range(size[0])])
            assert (look.support[head] == expected).all()
        ones = torch.ones_like(found.calls[0].tensors[2])
        inside = found.calls[0].attend(ones)[0, y, x, :, 0]  # zero keys give nothing
        torch.testing.assert_close(look.rest["zero keys"], 1 - inside)
        row = torch.einsum("hyx,yxhd->hd", look.weights, found.calls[0].tensors[2][0])
        torch.testing.assert_close(row.flatten(), out[0, y, x], rtol=0, atol=1e-12)


def test_global_queries_see_the_window_that_their_place_lies_in():
    layer = plain(layers.WindowAttention(DIM, HEADS, 4, shared_query=True, attend_padding=False))
    found, out = watched(layer, (8, 7), torch.randn(1, 4, 4, DIM).double())
    assert found.setting == "window 4, shared queries"
    look = found.look(5, 6)
    assert (look.support == same_for_both(block_sees, 4)((8, 7), (5, 6))).all() and not look.rest
    row = torch.einsum("hyx,yxhd->hd", look.weights, found.calls[0].tensors[2][0])
    torch.testing.assert_close(row.flatten(), out[0, 5, 6], rtol=0, atol=1e-12)


def test_heads_of_stripes_stand_side_by_side():
    found, _ = watched(plain(layers.CrossShapedAttention(DIM, 2, width=2)), (6, 8))
    look = found.look(3, 5)
    assert found.heads == 2 and found.setting == "window 6x2 + window 2x8"
    columns = torch.zeros(6, 8, dtype=torch.bool)
    columns[:, 4:6] = True
    rows = torch.zeros(6, 8, dtype=torch.bool)
    rows[2:4] = True
    assert torch.equal(look.support, torch.stack((columns, rows)))
    torch.testing.assert_close(look.weights.sum((1, 2)), torch.ones(2).double())


def test_the_local_residual_is_the_filter_that_meets_each_neighbour():
    layer = plain(layers.LinearAttention(DIM, HEADS))
    found, _ = watched(layer, (5, 6))
    filters = layer.residual[2].bias.view(HEADS, -1, 3, 3)[:, 0]
    look = found.look(0, 3)
    expected = torch.zeros(HEADS, 5, 6, dtype=torch.float64)
    expected[:, 0:2, 2:5] = filters[:, 1:]  # the filter's first row lies above the map
    torch.testing.assert_close(look.local, expected.detach(), rtol=0, atol=1e-12)


def test_channels_have_no_place():
    found, _ = watched(plain(layers.ChannelAttention(DIM, HEADS)), (4, 4))
    assert not found.spatial and found.setting == "between channels"
    with pytest.raises(ValueError, match="no place on the image"):
        found.look(0, 0)


def test_a_position_outside_the_map_is_refused():
    found, _ = watched(plain(layers.WindowAttention(DIM, HEADS, 4)), (6, 8))  # padded to 8 x 8
    with pytest.raises(ValueError, match=r"must lie on the map of 6 x 8, got \(6, 0\)"):
        found.look(6, 0)


FAMILIES = ("gna_nano", "dinat_mini", "fused_swin_tiny", "fused_maxvit_tiny", "fused_gcvit_xxtiny", "fused_davit_tiny",
            "fused_halonet_h0", "biformer_tiny", "vsa_swin_tiny", "inline_deit_tiny", "inline_pvt_tiny",
            "inline_cswin_tiny")  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_read_layer_by_layer_and_left_as_it_was(name):
    torch.set_num_threads(1)
    model = timm.create_model(name, num_classes=3).train()
    image = torch.randn(1, 3, 65, 70)
    found = attending_layers(model, image)
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    mixers = [n for n, m in model.named_modules() if type(m).__module__.startswith("visionattn.layers.")
              and type(m).__name__.endswith("Attention")]  # fmt: skip
    assert [layer.name for layer in found] == mixers
    for layer in {layer.setting: layer for layer in found}.values():
        if layer.spatial:
            look = layer.look(layer.size[0] - 1, layer.size[1] // 2)
            total = look.weights.sum((1, 2)) + sum(look.rest.values())
            if look.local is not None:
                total = total - look.local.sum((1, 2))
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-10)
            assert look.weights.shape == look.support.shape == (layer.heads, *layer.size)


def test_layers_are_found_by_name_beginning_and_number():
    found = attending_layers(timm.create_model("gna_nano"), torch.randn(1, 3, 64, 64))
    assert find(found, "stages.1.blocks.0") is find(found, "stages.1.blocks.0.attn") is found[2]
    assert find(found, "-1") is found[-1] and find(found, "0") is found[0]
    for wanted, said in (("99", "number from -14 to 13, got 99"), ("stages.1", "is 2 layers"), ("head", "is unknown")):
        with pytest.raises(ValueError, match=said):
            find(found, wanted)
    with pytest.raises(ValueError, match="no layer"):
        find([], "0")


PATTERNS = {
    "neighborhood": dict(kernel_size=3, dilation=2, stride=2),
    "window": dict(window_size=(3, 4), shift=(1, 2)),
    "halo": dict(block_size=2, halo_size=(1, 2), stride=2),
    "routed": dict(regions=(3, 2), topk=2),
    "varied_window": dict(window_size=4, move=(1.5, -2.0), stretch=(0.3, 0.0)),
    "linear": {},
    "global": {},
}


@pytest.mark.parametrize("op", PATTERNS)
def test_gradients_and_one_hot_values_give_the_same_patterns(op):
    call = make_pattern(op, (8, 7), **PATTERNS[op])
    matrix = call.matrix()
    step = PATTERNS[op].get("stride", 1) if op == "halo" else 1
    expected = [call.row(y, x, equal=True) != 0 for y in range(0, 8, step) for x in range(0, 7, step)]
    assert torch.equal(matrix, torch.stack(expected))


@pytest.mark.parametrize("op, setting, said", [
    ("neighborhood", {}, "kernel_size is needed"),
    ("neighborhood", dict(kernel_size=7, dilation=2), r"7 \* 2 = 14 > 8"),
    ("window", dict(window_size=4, shift=4), "shift"),
    ("halo", dict(block_size=4, halo_size=1, stride=3), "stride must divide block_size"),
    ("routed", dict(regions=2), "topk or routes is needed"),
    ("routed", dict(regions=2, topk=5), "between 1 and 4"),
    ("routed", dict(regions=2, routes=[4]), "regions from 0 to 3"),
    ("channel", {}, "no pattern"),
    ("swin", {}, "op must be one of"),
])  # fmt: skip
def test_a_setting_that_cannot_be_is_refused_by_name(op, setting, said):
    with pytest.raises(ValueError, match=said):
        make_pattern(op, (8, 9), **setting)
