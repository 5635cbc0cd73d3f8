"""Tests that a lost device is distinguished from a full one."""

import gc
import weakref

import pytest
import torch

from farm.base.device.cuda_errors import device_is_lost, without_frames
from farm.errors import FarmError


@pytest.mark.parametrize(
    ("text", "is_lost"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("CUDA error: out of memory", False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_only_an_error_that_ends_the_context_means_a_lost_device(text, is_lost):
    error = RuntimeError(text)
    assert device_is_lost(error) is is_lost
    wrapped = FarmError("the picture could not be decoded", "try again")
    wrapped.__cause__ = error
    assert device_is_lost(wrapped) is is_lost
    assert not device_is_lost(None)


def test_an_exception_kept_without_its_frames_keeps_no_tensor():
    kept, tensors = [], []

    def fail():
        tensor = torch.ones(3)
        tensors.append(weakref.ref(tensor))
        raise RuntimeError(str(tensor))

    try:
        fail()
    except RuntimeError as error:
        kept.append(without_frames(error))
    gc.collect()
    assert kept
    assert tensors[0]() is None
