from . import reference
from .geometry import make_geometry


def neighborhood_attention(q, k, v, kernel_size, dilation=1, stride=1, bias=None, scale=None):
    geometry = make_geometry(kernel_size, dilation, stride)
    geometry.check_map(q.shape[1], q.shape[2])
    return reference.neighborhood_attention(q, k, v, bias, geometry, q.shape[-1] ** -0.5 if scale is None else scale)


def neighborhood_attention_packed(qkv, kernel_size, dilation=1, stride=1, bias=None, scale=None):
    return neighborhood_attention(*qkv.unbind(3), kernel_size, dilation, stride, bias, scale)
