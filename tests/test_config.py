"""The configuration of a run: the same names everywhere, and every mistake named before anything is loaded."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from shearfx.config import ShearConfig
from shearfx.errors import CheckpointError, PlanError
from shearfx.run_directory import RunDirectory, asked


def test_yaml_gives_back_what_was_written(tmp_path: Path) -> None:
    for config in (
        ShearConfig(), ShearConfig.paper(pretrain=("a.txt", "b.parquet")), ShearConfig(tokens=None, minutes=2.5),
        ShearConfig(gamma="auto", knowledge_ratios=(0.25, 0.5), half_space_eps=0.9),
    ):  # fmt: skip
        path = tmp_path / "c.yaml"
        path.write_text(config.to_yaml())
        assert ShearConfig.read(path) == config


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("ratio: 0.3\nlr: 1e-3\npretrain: a.txt\n")
    config = ShearConfig.read(path, ratio=0.5)
    assert (config.ratio, config.lr, config.pretrain) == (0.5, 1e-3, ("a.txt",))


def test_minutes_replace_the_default_of_tokens() -> None:
    config = ShearConfig.of_mapping({"minutes": 10})
    assert config.minutes == 10 and config.tokens is None


def test_compensation_is_named_or_as_it_was_true_or_false(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for written, meant in (("true", "least_squares"), ("false", "none"), ("none", "none"), ("bias", "bias")):
        path.write_text(f"compensation: {written}\n")
        assert ShearConfig.read(path).compensation == meant
        assert ShearConfig.read(path) == ShearConfig.of_mapping({"compensation": meant})
    assert ShearConfig(compensation=True) == ShearConfig()  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="bias is for structures that go at once"):
        ShearConfig.of_mapping({"compensation": "bias", "prune_share": 0.5})


def test_the_paper_is_the_paper() -> None:
    config = ShearConfig.of_mapping({"recipe": "paper", "ratio": 0.5})
    assert config == ShearConfig.paper(ratio=0.5)
    assert (config.merge, config.carrier, config.saliency, config.min_tokens) == ("period", "weights", "combined", 64)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ratoi": 0.2}, "no option 'ratoi'"),
        ({"ratio": 1.5}, "ratio: 1.5 is not a share"),
        ({"ratio": "much"}, "ratio: 'much' is not a number"),
        ({"batch_size": 2.5}, "batch_size: 2.5 is not a whole number"),
        ({"batch_size": 0}, "batch_size: 0 is not a whole number of at least 1"),
        ({"merge": "always"}, "merge: 'always' is not one of end, period, never"),
        ({"pretrain": 3.5}, r"pretrain: \(?3.5,?\)? is not a list of texts|pretrain: 3.5 is not a list of texts"),
        ({"gamma": 1.0}, "gamma: 1.0 is not a share below 1"),
        ({"tokens": 100, "minutes": 3.0}, r"a run has one budget \(tokens: 100 and minutes: 3\)"),
        ({"steps": 3, "minutes": 3.0}, r"a run has one budget \(steps: 3 and minutes: 3\)"),
        ({"steps": -3}, "steps: -3 is not a positive"),
        ({"minutes": 0}, "minutes: 0.0 is not a positive"),
        ({"minutes": float("inf")}, "minutes: inf is not a number"),
        ({"lr": float("nan")}, "lr: nan is not a number"),
        ({"seed": -1}, "seed: -1 is not a whole number"),
        ({"weight_decay": -1.0}, "weight_decay: -1.0 is not a number of at least 0"),
        ({"lr": 0}, 'lr: 0.0 is not a positive number, or "auto"'),
        ({"lr": "fast"}, "lr: 'fast' is not a number"),
        ({"max_tokens": float("inf")}, "max_tokens: inf is not a whole number"),
        ({"layers": 2, "knowledge": "k.json"}, "layers: 2 goes before widths are cut"),
        ({"tokens": None}, "a run has one budget"),
        ({"seed": None}, "seed: None is not a"),
        ({"compensation": "yes"}, "compensation: 'yes' is not one of least_squares, bias, none"),
        ({"merge": "period", "prune_share": 0.5, "distill": 0.5}, "merge: period, carrier: gates change the weights"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        ShearConfig.of_mapping(values)


def test_a_file_that_is_no_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        ShearConfig.read(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(PlanError, match="holds no names"):
        ShearConfig.read(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1,\n")
    with pytest.raises(PlanError, match="cannot be read"):
        ShearConfig.read(tmp_path / "bad.yaml")


def test_every_option_says_what_it_is() -> None:
    source = inspect.getsource(ShearConfig)
    for field in dataclasses.fields(ShearConfig):
        after = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
        assert after.strip().startswith('"""'), field.name


LATER = {"lr": 1e-4, "distill": 0.0, "batch_size": 2, "accumulate": 2, "gradient_checkpointing": True}


def test_what_only_matters_later_may_change_in_a_run_that_goes_on(tmp_path: Path) -> None:
    """What errors say to lower, and nothing that what is done depends on."""
    first = ShearConfig.of_mapping({"ratio": 0.3, "batch_size": 4})
    RunDirectory(tmp_path, "m", first, resume=False).finish("dense", {})
    for options, match in (
        ({"rank": 8}, "rank: 16, not 8(.|\n)*only lr, distill,"),
        ({"batch_size": 2}, "takes 4 windows(.|\n)*2 x 1 are asked for"),
        ({"lr": 1e-4, "ratio": 0.4}, "ratio: 0.3, not 0.4"),
    ):
        with pytest.raises(CheckpointError, match=match):
            RunDirectory(tmp_path, "m", asked(tmp_path, options, resume=True), resume=True)
        assert ShearConfig.read(tmp_path / "config.yaml") == first
    assert asked(tmp_path, {}, resume=True) == first, "nothing given: as it was"
    assert asked(tmp_path, {}, resume=False) == ShearConfig()
    RunDirectory(tmp_path, "m", asked(tmp_path, LATER, resume=True), resume=True)
    assert ShearConfig.read(tmp_path / "config.yaml") == ShearConfig.of_mapping({"ratio": 0.3} | LATER)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    (line,) = (line for line in lines if line["event"] == "options")
    assert line["batch_size"] == [4, 2] and "ratio" not in line


def test_the_wall_clock_may_change_too_but_not_the_kind_of_budget(tmp_path: Path) -> None:
    """Somebody whose ten minutes were over before the end gives ten more."""
    RunDirectory(tmp_path, "m", ShearConfig.of_mapping({"minutes": 10}), resume=False).finish("dense", {})
    more = asked(tmp_path, {"minutes": 20.0}, resume=True)
    assert RunDirectory(tmp_path, "m", more, resume=True).changed == {"minutes": [10, 20]}
    with pytest.raises(CheckpointError, match="asked for something else: tokens"):
        RunDirectory(tmp_path, "m", ShearConfig(tokens=1000), resume=True)


def test_a_folder_of_an_older_version_is_gone_on_with(tmp_path: Path) -> None:
    """Its config.yaml does not know options that came later: they are what the run was made with."""
    config = ShearConfig.of_mapping({"ratio": 0.3})
    RunDirectory(tmp_path, "m", config, resume=False).finish("dense", {})
    kept = tmp_path / "config.yaml"
    kept.write_text("".join(line for line in kept.read_text().splitlines(True) if not line.startswith("layers")))
    assert RunDirectory(tmp_path, "m", config, resume=True).done("dense")
    for other, model in ((ShearConfig.of_mapping({"ratio": 0.3, "layers": 1}), "m"), (config, "n")):
        with pytest.raises(CheckpointError, match=r'asked for something else: (layers: 0, not 1|# model: "n")'):
            RunDirectory(tmp_path, model, other, resume=True)
