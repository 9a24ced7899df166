"""torch.compile without graph breaks, torch.export and ONNX, from the CPU."""

import pytest
import timm
import torch

import visionattn  # noqa: F401

# every neighborhood of the family on as few blocks as that takes
SHORT = {"dims": (32, 64, 64), "depths": (2, 1, 1), "num_heads": (1, 2, 2), "num_classes": 10}
# from the smallest unclamped size on: that, the shape traced, and others
DYNAMIC = (224, (2, 3, 224, 256), [(3, 3, 300, 231), (1, 3, 224, 257)])


def _model(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("gna_nano", **{**SHORT, **kwargs})


def test_compiles_as_one_graph_forward_and_backward(compiled_whole):
    eager, compiled = compiled_whole(_model(), torch.randn(2, 3, 64, 97), backend="aot_eager")
    torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_feature_maps_compile_as_one_graph(compiled_whole, checkpointing):
    model = _model(features_only=True, out_indices=(0, 1), dims=(32, 32), depths=(1, 1), num_heads=(1, 1))
    model.set_grad_checkpointing(checkpointing)
    eager, compiled = compiled_whole(model, torch.randn(2, 3, 64, 64), backend="eager")
    torch.testing.assert_close(compiled, eager)


@pytest.mark.slow
def test_inductor_gives_the_eager_result(compiled_whole):
    eager, compiled = compiled_whole(_model(), torch.randn(2, 3, 64, 97))
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_one_dynamic_graph_serves_every_size_above_the_smallest_unclamped_one():
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = _model().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    with torch.no_grad():
        # no batch of one: torch itself compiles that apart
        for shape in [(2, 3, 40, 64), (2, 3, 300, 240), (3, 3, 225, 301), (4, 3, 256, 333)]:
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == 2, "one for the clamped size, one for the others"


def test_exports_at_a_fixed_size():
    model = _model().eval()
    x = torch.randn(2, 3, 64, 97)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_onnx_with_dynamic_sizes_is_equal_in_onnxruntime(onnx_equal, tmp_path):
    onnx_equal(_model(dims=(32,), depths=(2,), num_heads=(1,)).eval(), tmp_path / "model.onnx", *DYNAMIC)


@pytest.mark.slow
def test_onnx_of_gna_nano_with_dynamic_sizes_is_equal_in_onnxruntime(onnx_equal, tmp_path):
    torch.manual_seed(0)
    onnx_equal(timm.create_model("gna_nano").eval(), tmp_path / "model.onnx", *DYNAMIC)
