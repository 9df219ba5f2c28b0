import pytest

from wardround.aggregators.contract import HospitalInfo
from wardround.simulator.weights import WEIGHTINGS, Examples, Explicit, Uniform

HOSPITALS = [HospitalInfo(name="a", num_examples=30), HospitalInfo(name="b", num_examples=10)]


def test_weights_by_examples_uniform_and_by_hand() -> None:
    assert Examples().weights(HOSPITALS) == {"a": 30.0, "b": 10.0}
    assert Uniform().weights(HOSPITALS) == {"a": 1.0, "b": 1.0}
    assert Explicit(values={"a": 0.1, "b": 0.9}).weights(HOSPITALS) == {"a": 0.1, "b": 0.9}


def test_explicit_weights_name_every_hospital_and_no_other() -> None:
    with pytest.raises(ValueError, match=r"missing \['b'\], unknown \['c'\]"):
        Explicit(values={"a": 0.5, "c": 0.5}).weights(HOSPITALS)


@pytest.mark.parametrize(("values", "message"), [({"a": -1.0}, "at least 0"), ({"a": 0.0}, "one weight above 0")])
def test_bad_explicit_weights_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Explicit(values=values)


def test_the_table_holds_all_three() -> None:
    assert {"examples": Examples, "uniform": Uniform, "explicit": Explicit} == WEIGHTINGS
