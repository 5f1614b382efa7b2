from __future__ import annotations

from importlib.metadata import distribution

import epsilon_resnet


def test_distribution_has_the_version_of_the_module_and_says_that_the_method_is_not_written_yet():
    installed = distribution("epsilon-resnet")
    assert installed.version == epsilon_resnet.__version__
    assert "not written yet" in installed.metadata["Summary"]
    assert "not written yet" in epsilon_resnet.__doc__


def test_nothing_pretends_to_work():
    assert not distribution("epsilon-resnet").entry_points
    assert [name for name in vars(epsilon_resnet) if not name.startswith("_")] == []
