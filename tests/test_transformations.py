"""Where elements of SpatialData lie: the same matrices as spatialdata has, whatever is composed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcgn_hub.data.transformations import moved, placed, scale_of
from tcgn_hub.errors import SectionError

XY = ("x", "y")
NUMBERS = st.floats(-50, 50).filter(lambda value: abs(value) > 0.01)


@st.composite
def steps(draw, depth: int = 2):
    from spatialdata.transformations import Affine, Identity, MapAxis, Scale, Sequence, Translation

    axes = draw(st.permutations(XY))
    kind = draw(st.sampled_from(["identity", "scale", "translation", "map", "affine", *["sequence"] * (depth > 0)]))
    if kind == "identity":
        return Identity()
    if kind == "map":
        return MapAxis(dict(zip(XY, axes, strict=True)))
    if kind == "affine":
        values = draw(st.lists(NUMBERS, min_size=6, max_size=6))
        matrix = np.vstack([np.reshape(values, (2, 3)), [0, 0, 1]])
        return Affine(matrix, input_axes=tuple(axes), output_axes=tuple(draw(st.permutations(XY))))
    if kind == "sequence":
        return Sequence(draw(st.lists(steps(depth - 1), min_size=1, max_size=3)))
    values = draw(st.lists(NUMBERS, min_size=2, max_size=2))
    return (Scale if kind == "scale" else Translation)(values, axes=tuple(axes))


@settings(deadline=None, max_examples=150)
@given(step=steps(), axes=st.sampled_from([XY, ("c", "y", "x"), ("y", "x")]))
def test_any_composition_is_what_spatialdata_makes_of_it(step, axes):
    from spatialdata.transformations.ngff._utils import get_default_coordinate_system

    stated = step.to_ngff(input_axes=axes, output_axes=axes)
    stated.input_coordinate_system = get_default_coordinate_system(axes)
    stated.output_coordinate_system = get_default_coordinate_system(axes)
    stated.output_coordinate_system.name = "global"
    found = placed([stated.to_dict()], element="it")
    np.testing.assert_allclose(found["global"], step.to_affine_matrix(XY, XY), rtol=1e-9, atol=1e-9)


def test_lengths_are_scaled_alike_in_all_directions_or_refused():
    turned = np.array([[0.0, -3.0, 10.0], [3.0, 0.0, 20.0], [0, 0, 1]])
    assert scale_of(turned, what="it is placed") == pytest.approx(3)
    np.testing.assert_allclose(moved(turned, np.array([[1.0, 2.0]])), [[4.0, 23.0]])
    for bad in (np.diag([1.0, 1.1, 1]), np.array([[1.0, 0.2, 0], [0, 1, 0], [0, 0, 1]]), np.diag([0.0, 0, 1])):
        with pytest.raises(SectionError, match=r"^it is placed by a transformation that stretches or shears"):
            scale_of(bad, what="it is placed")


@pytest.mark.parametrize(
    "stated",
    [
        [{"type": "displacements", "input": {"axes": []}, "output": {"name": "global"}}],
        [{"type": "identity"}],
        [{"type": "affine", "affine": [[1, 2]], "input": {"axes": [{"name": "x"}]}, "output": {"name": "g"}}],
        [7],
        None,
    ],
)
def test_what_is_no_transformation_is_one_sentence(stated):
    with pytest.raises(SectionError, match=r"^shapes/a of b\.zarr states where it lies in a way that is not read"):
        placed(stated, element="shapes/a of b.zarr")
