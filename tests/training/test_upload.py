"""Batches reach the device whole, before what is launched after them and without waiting for what is before."""

import pytest
import torch

from visionattn.training.upload import Upload


def test_on_a_cpu_tensors_stay_where_they_are() -> None:
    x, y = torch.arange(6), torch.ones(2, dtype=torch.uint8)
    found = Upload(torch.device("cpu"))(x, y)
    assert found[0] is x and found[1] is y


@pytest.mark.gpu
def test_copies_arrive_before_what_follows_and_are_not_overwritten_by_the_next() -> None:
    device = torch.device("cuda", 0)
    upload, kept = Upload(device), []
    work = torch.randn(4096, 4096, device=device)
    for step in range(20):
        for _ in range(4):
            work = (work @ work).tanh()  # the device stays behind the host
        (x,) = upload(torch.full((8, 1 << 20), step, dtype=torch.uint8).pin_memory())
        kept.append(x.sum(dtype=torch.int64))
        del x
    assert [n.item() for n in kept] == [step * 8 << 20 for step in range(20)]


@pytest.mark.gpu
def test_a_copy_does_not_wait_for_the_computation_before_it() -> None:
    device = torch.device("cuda", 0)
    upload, work = Upload(device), torch.randn(8192, 8192, device=device)
    source = torch.ones(1 << 20, dtype=torch.uint8).pin_memory()
    upload(source)
    torch.cuda.synchronize()
    computed, copied = torch.cuda.Event(), torch.cuda.Event()
    for _ in range(200):
        work = (work @ work).tanh()
    computed.record()
    upload(source)
    copied.record(upload.stream)
    copied.synchronize()
    assert not computed.query()
    torch.cuda.synchronize()
