import io

import numpy as np
import pytest
from PIL import Image

from pruneaug.spec.models import PlugIn
from pruneaug.tasks import NetworkSource


@pytest.fixture
def resnet20_source():
    return NetworkSource(PlugIn(name="resnet20"))


@pytest.fixture
def encode_png():
    """An image of one colour as PNG bytes; the colour can be read back from any pixel."""

    def encode(colour=(10, 20, 30), size=(8, 8), mode="RGB"):
        stream = io.BytesIO()
        Image.fromarray(np.full((size[1], size[0], 3), colour, dtype=np.uint8)).convert(mode).save(stream, "PNG")
        return stream.getvalue()

    return encode
