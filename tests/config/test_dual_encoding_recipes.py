"""The frozen recipes of Dual Encoding say what was published, whatever the defaults become."""

from __future__ import annotations

from typing import Any

import pytest

from src.config import compose
from src.config.help import first_comment
from src.config.validate import CONF

HYBRID = ("msrvtt_full", "msrvtt_1kb_miech", "msrvtt_1k_yu", "vatex", "avs")


def recipe(name: str, *words: str) -> dict[str, Any]:
    (values,) = compose.preflight(compose.parse([f"experiment=dual_encoding_{name}", *words]))
    return values


@pytest.mark.parametrize("name", [*HYBRID, "msvd"])
def test_optimisation_is_the_published_one(name: str) -> None:
    values = recipe(name)
    assert values["optimizer"]["_target_"].endswith("AdamFactory")
    assert values["optimizer"]["lr"] == 1e-4
    assert values["dataset"]["batch_size"] == 128
    assert values["trainer"]["max_epochs"] == 50
    assert values["trainer"]["gradient_clip_val"] == 2.0
    assert values["selection"] == "val"
    scheduler, stop = values["scheduler"], values["callbacks"]["early_stop"]
    assert values["optimized_metric"] == scheduler["monitor"] == stop["monitor"] == "val/SumR"
    assert (scheduler["decay"], scheduler["factor"], scheduler["patience"]) == (0.99, 0.5, 2)
    assert stop["patience"] == 11
    assert not values["dataset"]["unique_videos_in_batch"]


@pytest.mark.parametrize("name", HYBRID)
def test_the_spaces_are_those_of_the_paper(name: str) -> None:
    values = recipe(name)
    model = values["model"]
    assert (model["space"], model["concate"], model["gru_pool"], model["padding"]) == (
        "hybrid",
        "full",
        "mean",
        "upstream",
    )
    assert (model["margin"], model["margin_2"], model["max_violation"], model["cost_style"]) == (0.2, 0.2, True, "sum")
    assert (model["visual_rnn_size"], model["embed_dim"], model["num_concepts"], model["alpha"]) == (
        512,
        1536,
        512,
        0.6,
    )
    assert values["experts"]["concepts"]["dim"] == 512
    assert {e["max_steps"] for key, e in values["experts"].items() if key != "concepts"} == {64}


def test_topics_are_searched_with_the_published_weights() -> None:
    model = recipe("avs")["model"]
    assert (model["alpha"], model["measure"], model["measure_2"]) == (0.6, "cosine", "jaccard")  # validation
    assert (model["topic_alpha"], model["topic_measure_2"]) == (0.8, "cosine")


def test_the_older_paper_has_one_space_and_other_sizes() -> None:
    model = recipe("msvd")["model"]
    assert (model["space"], model["visual_rnn_size"], model["embed_dim"]) == ("latent", 1024, 2048)


@pytest.mark.parametrize("name", [n for n in (*HYBRID, "msvd") if n != "avs"])
def test_the_published_row_stands_beside_it(name: str) -> None:
    assert "published t2v" in first_comment(CONF / "experiment" / f"dual_encoding_{name}.yaml")


def test_map_selects_the_checkpoint_the_rate_and_the_stop() -> None:
    values = recipe("msrvtt_full", "optimized_metric=val/SumAP")
    assert values["scheduler"]["monitor"] == values["callbacks"]["early_stop"]["monitor"] == "val/SumAP"


def test_experts_combine() -> None:
    values = recipe("msrvtt_full", "experts=[resnext101,resnet152,concepts]")
    assert list(values["experts"]) == ["resnext101", "resnet152", "concepts"]
