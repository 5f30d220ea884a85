"""The PNG that a prepared dataset stores."""

import io
import zlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from hf_cxr.data.png import png_of

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)
NOISE = np.random.default_rng(0).integers(0, 256, (500, 600), dtype=np.uint8)


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        hnp.arrays(np.uint8, SHAPES),
        hnp.arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 1, 255])),
        SHAPES.map(lambda shape: np.add.outer(*(np.arange(n) * 3 for n in shape)).astype(np.uint8)),
        st.just(NOISE),  # several chunks
        st.just(NOISE.reshape(10, -1)),
    )
)
def test_a_stored_png_holds_the_pixels_in_the_bytes_that_pillow_writes(grey):
    image, buffer = Image.fromarray(grey), io.BytesIO()
    content = png_of(image)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), grey)
    image.save(buffer, "PNG", compress_type=zlib.Z_RLE)
    if Image.core.zlib_version == zlib.ZLIB_RUNTIME_VERSION:  # one zlib for both, as on Linux
        assert content == buffer.getvalue()
