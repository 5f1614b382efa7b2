from __future__ import annotations

from importlib.metadata import distribution

import adn


def test_distribution_has_the_version_of_the_module_and_says_that_the_method_is_not_written_yet():
    installed = distribution("adn")
    assert installed.version == adn.__version__
    assert "not written yet" in installed.metadata["Summary"]
    assert "not written yet" in adn.__doc__


def test_nothing_pretends_to_work():
    assert not distribution("adn").entry_points
    assert [name for name in vars(adn) if not name.startswith("_")] == []
