"""Experiment files that list what a multirun goes through: each of its jobs is a published row."""

from __future__ import annotations

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from src.config import compose
from src.config.validate import CONF
from src.tasks import build

JOBS = [
    ("ce_capacity", "model.shared_dim", "experiment=ce_msrvtt model.shared_dim={}", 6),
    ("ce_captions", "split.captions.train", "experiment=ce_msrvtt split.captions.train={}", 2),
]
COUNTS = {384: 88_618_655, 512: 119_507_743, 640: 151_117_727, 768: 183_448_607, 892: 215_456_603, 1024: 250_273_055}


@pytest.mark.parametrize(("name", "key", "row", "number"), JOBS)
def test_sweep_goes_through_the_published_rows(name: str, key: str, row: str, number: int) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra_compose("config", [f"experiment=[ce_msrvtt,{name}]"], return_hydra_config=True)
    swept = OmegaConf.to_container(cfg.hydra.sweeper.params)
    assert isinstance(swept, dict)
    assert list(swept) == [key]
    choices = swept[key].split(",")
    assert len(set(choices)) == number
    for choice in choices:
        words = [f"experiment=[ce_msrvtt,{name}]", f"{key}={choice}"]
        (job,), (published,) = (
            compose.preflight(compose.parse(typed)) for typed in (words, row.format(choice).split(" "))
        )
        assert job == published
        if key == "model.shared_dim":
            model = build.empty_model(OmegaConf.create(job))
            assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[int(choice)]
