from __future__ import annotations

import subprocess
import sys

import pytest
from resless.data import DATASETS, get
from resless.errors import InputError


def test_every_named_data_set_is_complete():
    assert list(DATASETS) == ["digits", "mnist", "cifar10", "cifar100", "svhn", "imagenet"]
    for name, dataset in DATASETS.items():
        assert dataset.name == name
        assert dataset.num_classes >= 10
        assert len(dataset.mean) == len(dataset.std) == dataset.channels
        assert dataset.class_names is None or len(dataset.class_names) == dataset.num_classes


def test_unknown_name_lists_the_nearest():
    with pytest.raises(InputError, match="unknown dataset 'mnst': did you mean mnist"):
        get("mnst")


def test_hub_ids_and_folders_are_taken_as_they_are(tmp_path):
    assert get("zalando-datasets/fashion_mnist").hub_id == "zalando-datasets/fashion_mnist"
    assert get("zalando-datasets/fashion_mnist").folder is None
    assert get(str(tmp_path)).folder == tmp_path
    with pytest.raises(InputError, match="neither an existing folder nor a hub id"):
        get("some/missing/folder")


@pytest.mark.parametrize("module", ["catalog", "cache", "samples", "binary", "sources"])
def test_catalogue_and_files_are_read_without_torch(module):
    code = f"import resless.data.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
