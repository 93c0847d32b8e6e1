"""A safetensors file that is written a tensor at a time is the one that the library writes."""

import hashlib
import io

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tformer.run.tensors import WRITTEN, write_tensors

SHAPES = st.lists(st.integers(0, 4), max_size=3)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__"
)


def written(tensors: dict[str, torch.Tensor]) -> bytes:
    """The file's bytes, whose length and hash are the ones that were told."""
    file = io.BytesIO()
    length, sha256 = write_tensors(file, tensors)
    data = file.getvalue()
    assert (length, sha256) == (len(data), hashlib.sha256(data).hexdigest())
    return data


@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(list(WRITTEN)), SHAPES), max_size=6))
def test_it_is_the_file_of_the_library(drawn):
    tensors = {name: torch.randn(shape).mul(9).to(dtype) for name, (dtype, shape) in drawn.items()}
    assert written(tensors) == safetensors.torch.save(tensors, metadata={"format": "pt"})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_tensor_may_lie_in_any_order_and_need_a_gradient(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    tensor = torch.randn(3, 5, device=device).T.requires_grad_()
    back = safetensors.torch.load(written({"turned": tensor, "number": torch.tensor(2.5, device=device)}))
    assert torch.equal(back["turned"], tensor.detach().cpu()) and back["number"] == 2.5
    assert back["turned"].shape == (5, 3)


def test_no_copy_of_all_tensors_is_made():
    """Each is written by itself."""

    pieces = []

    class Heard(io.RawIOBase):
        def write(self, data):
            pieces.append(memoryview(data).nbytes)

    write_tensors(Heard(), {f"w{n}": torch.zeros(1_000_000) for n in range(8)})
    assert max(pieces) == 4_000_000
