"""Every kind of mistake in a configuration is one line that says what was found, expected and to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.config import compose
from src.errors import UserError

MISTAKES = {
    "modle=clip4clip": "unknown key 'modle' in the command line; did you mean 'model'?",
    "model=clip2vidoe": "unknown option 'clip2vidoe' of the group 'model'; did you mean 'model=clip2video'?",
    "model.head=wtii": "unknown option 'wtii' of the group 'model.head'; did you mean 'model.head=wti'?",
    "model.head=[wti,ti]": "model.head is a list, expected one option; give model.head=wti, or -m model.head=A,B",
    "model.head=wti,ti": "model.head=wti,ti lists several values, expected one in a single run; add -m",
    "model.head={_target_:x}": "model.head._target_ cannot be set in the command line",
    "model.head=wti model.head.num_centers=7": "unknown key 'model.head.num_centers' in the command line",
    "model.head.num_centers=few": "model.head.num_centers is the text 'few', expected a whole number",
    "+model.head.host=1": "unknown key 'model.head.host'; known: global_weight, num_centers",
    "model.header=meanP": "unknown key 'model.header' in the command line; did you mean 'model.head'?",
    "task=check_data model=ce model.head=wti": "model=ce has no head, found model.head=wti; leave it out, or choose",
    "experiment=nope": "unknown option 'nope' of the group 'experiment'",
    "modle/x=1": "unknown key 'modle/x' in the command line; did you mean 'model'?",
    "text=opnai": "unknown option 'opnai' of the group 'text'; did you mean 'text=openai'?",
    "text=openai text.dmi=3": "unknown key 'text.dmi' in the command line; did you mean 'text.dim'?",
    "text=openai +text.dmi=3": "unknown key 'text.dmi'; did you mean 'text.dim'?",
    "text=openai text.dim=many": "text.dim is the text 'many', expected a whole number",
    "text=custom": "text.name is required by text=custom and not given; add text.name=…",
    "~text": "the group 'text' was removed, expected one option of it; give text=…",
    "recipe=ce_msrvt": "unknown option 'ce_msrvt' of the group 'recipe'; did you mean 'recipe=ce_msrvtt'?",
    "trainer.max_epoch=3": "unknown key 'trainer.max_epoch' in the command line; did you mean 'trainer.max_epochs'?",
    "max_epochs=3": "did you mean 'dataset.recipe.max_epochs'?",
    "trainer.min_epochs=3": "add it with +trainer.min_epochs=…",
    "+trainer.mni_epochs=3": "unknown key 'trainer.mni_epochs'; did you mean 'trainer.min_epochs'?",
    "trainer.max_epochs=many": "trainer.max_epochs is the text 'many', expected a whole number or null",
    "trainer.precision=bf17": "did you mean 'bf16'?",
    "trainer.precision=bf16-true": "trainer.precision=bf16-true would change the weights themselves, expected 32-true",
    "trainer.precision=64": "trainer.precision=64 would change the weights themselves",
    "+trainer.logger=false": "trainer.logger is passed by the run itself",
    "+nothing=1": "unknown key 'nothing' in the configuration",
    "seed=abc": "seed is the text 'abc', expected a whole number; give seed=…",
    "seed=1.5": "seed is 1.5, expected a whole number",
    "seed=1,2": "add -m to run them all",
    "seed": "cannot read 'seed'",
    "tags=paper": "tags is the text 'paper', expected a list (a text each)",
    "ties=optimist": "expected optimistic | average | pessimistic; did you mean 'optimistic'?",
    "save_similarity=yess": "expected true or false",
    "dataset.recipe.lrr=1": "did you mean 'dataset.recipe.lr'?",
    "dataset.recipe.lr=fast": "dataset.recipe.lr is the text 'fast', expected a number",
    "+dataset.seed=3": "dataset.seed is passed by the run itself; set 'seed' at the root",
    "split.subset=some": "expected full | available",
    "model._target_=os.system": "model._target_ cannot be set in the command line",
    "+model={_target_:os.system}": "model._target_ cannot be set in the command line",
    "~model": "the group 'model' was removed",
    "model=null": "unknown option 'null' of the group 'model'",
    "paths.data_dir=${oc.env:NO_SUCH_VARIABLE}": "Environment variable 'NO_SUCH_VARIABLE' not found",
    "paths.data_dir=${nowhere}": "cannot be resolved: Interpolation key 'nowhere' not found",
    "paths.data_dir=???": "paths.data_dir is required",
    "hydra.run.dri=x": "did you mean 'hydra.run.dir'?",
    "hydra/sweeper=grid": "unknown option 'grid' of the group 'hydra/sweeper'; known: basic",
    "task=score": "task=score has no matrix; give similarity=S.npy",
    "task=score similarity=no.npy": "similarity=no.npy does not exist",
    "task=score task.predictions=no.csv": "predictions=no.csv does not exist",
    "task=evaluate": "task=evaluate has no weights (model=clip2video is not pretrained); give ckpt_path=…",
    "task=export_submission": "task=export_submission has no weights (model=clip2video is not pretrained)",
    "task=export_submission similarity=no.npy": "similarity=no.npy does not exist",
    "ckpt_path=no.ckpt": "ckpt_path=no.ckpt does not exist",
    "dataset=msrvtt": "split=msrvtt has no val part (it has train, test); give selection=last",
    "dataset.provides=[features]": "model=clip2video needs frames, but dataset=toy provides features; choose dataset=",
    "dataset.provides=[smell]": "dataset.provides is the list ['smell'], expected a list",
    "--modle=3": "settings are written without dashes",
    "-m --cfg job": "found -m and --cfg",
    "--resolve": "add --cfg job",
    "-m model=clip4clip,clip2vidoe": "unknown option 'clip2vidoe'",
    "-m model=glob(nope*)": "model=glob(nope*) matches nothing",
    "-m seed=0,1 trainer=ddp": "-m with trainer=ddp (trainer.strategy=ddp, trainer.devices=auto)",
    "-m trainer=auto,ddp_cpu": "-m with trainer=ddp_cpu",
    "-m seed=0,x": "seed is the text 'x', expected a whole number",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistake(words: str) -> None:
    with pytest.raises(UserError) as caught:
        compose.preflight(compose.parse(compose.nested_groups_named(words.split(" "))))
    assert MISTAKES[words] in str(caught.value)
    assert "\n" not in str(caught.value)


GOOD = [
    "trainer.deterministic=warn",
    "trainer.devices=[0]",
    "trainer.limit_train_batches=3",
    "+trainer.min_epochs=3",
    "trainer=ddp",
    "tags=[a,b]",
    "logger=[csv,tensorboard]",
    "logger.csv=null",
    "ckpt_path=last",
    "+experts.ocr.dim=300",
    "optimizer.lr=${dataset.recipe.lr}",
    "hydra.run.dir=somewhere hydra.job.name=train_ddp_process_1 hydra.output_subdir=null",
    "task=evaluate task.random_weights=true",
    "task=evaluate model.pretrained=openai",
    f"task=score task.predictions={Path(__file__).name}",  # of this folder, which the test enters
    "dataset=msrvtt split.val_holdout=500",
    "dataset=msrvtt selection=test",
    "model.head=wti model.head.arch=1",
    "~model.head",
    "experiment=clip4clip_msrvtt_1ka model.head=seqTransf",
]


@pytest.mark.parametrize("words", GOOD)
def test_no_mistake(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    assert len(compose.preflight(compose.parse(compose.nested_groups_named(words.split(" "))))) == 1


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        ("-m seed=0,1 model=clip4clip,clip2video", 4),
        ("-m seed=range(3)", 3),
        ("-m model=clip4clip,clip2video model.head=meanP,wti,xpool", 6),
        ("-m model.head=glob(seq*)", 2),
        ("-m model=glob(clip*)", 3),
        ("-m optimizer.lr=interval(0.1,1)", 1),
        ("-m seed=range(66)", 66),
        ("-m seed=0,1 trainer=ddp_cpu trainer.strategy=ddp_spawn", 2),
    ],
)
def test_every_job_of_a_sweep_is_checked(words: str, jobs: int) -> None:
    assert len(compose.preflight(compose.parse(compose.nested_groups_named(words.split(" "))))) == jobs


def test_config_dir_adds_options(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /trainer: cpu\nseed: 7\n"
    )
    (values,) = compose.preflight(compose.parse(["--config-dir", str(tmp_path), "experiment=mine"]))
    assert (values["seed"], values["trainer"]["accelerator"]) == (7, "cpu")
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nsede: 7\n")
    with pytest.raises(UserError, match="unknown key 'sede' in the configuration; did you mean 'seed'"):
        compose.preflight(compose.parse(["--config-dir", str(tmp_path), "experiment=mine"]))


def test_a_head_is_chosen_by_its_name() -> None:
    words = ["-m", "model.head=meanP,wti", "+model.head.x=1", "model.head={arch:1}", "model.headless=1"]
    named = ["-m", "model/head=meanP,wti", "+model.head.x=1", "model.head={arch:1}", "model.headless=1"]
    assert compose.nested_groups_named(words) == named
    jobs = compose.preflight(compose.parse([*named[:2], "model=clip2video,clip4clip"]))
    assert [job["model"]["head"]["_target_"].split(".")[-2] for job in jobs] == ["mean", "mean", "wti", "wti"]


def test_a_head_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel: {head: wti}\n")
    with pytest.raises(UserError, match=r"model.head is the text 'wti'.*'override /model/head: …' in the defaults"):
        compose.preflight(compose.parse(["--config-dir", str(tmp_path), "experiment=mine"]))


def test_flags_may_stand_anywhere() -> None:
    assert compose.flags_first(["a=1", "-m", "~b", "--config-dir", "x", "c=2"]) == [
        *["-m", "--config-dir", "x"],
        *["a=1", "~b", "c=2"],
    ]


def test_a_task_key_may_be_given_by_its_name() -> None:
    words = ["task=convert", "trust=true", "task.source=a", "seed=1", "model=clip2video", "-m"]
    assert compose.task_keys_named(words) == ["task=convert", "task.trust=true", *words[2:]]
    assert compose.task_keys_named(["trust=true"]) == ["trust=true"]  # fit has no such key; the check will say so
    assert compose.task_keys_named(["task=nonsense", "trust=true"]) == ["task=nonsense", "trust=true"]


def test_torchrun_needs_one_run_folder_for_all_ranks() -> None:
    environment = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "1"}
    with pytest.raises(UserError, match=r"add hydra\.run\.dir="):
        compose.rank_overrides(["seed=1"], environment)
    words = ["hydra.run.dir=runs/x"]
    assert compose.rank_overrides(words, environment) == ["hydra.output_subdir=null"]
    assert compose.rank_overrides(words, {**environment, "RANK": "0"}) == []
    assert compose.rank_overrides(["seed=1"], {}) == []
