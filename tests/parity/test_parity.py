"""The four parts of parity, on an engine made of loops that gather the tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.parity import tiny
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.models.reference import TokenSite
from secateur.workflow.golden import Golden, golden_from_torch, renamed
from secateur.workflow.parity import METRICS, Options, Task, check

Arrays = dict[str, NDArray]
SITES = {"layers.0": (0, 700), "layers.2": (2, 600)}


class ClassRow:
    signals = ("class_row",)

    def score(self, class_row: Tensor) -> Tensor:
        return class_row


@dataclass
class Engine:
    """TinyBert that gathers, sample by sample; ``spoil`` changes what it returns."""

    net: nn.Module
    spoil: Callable[[Arrays], None] = lambda arrays: None
    score_noise: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def score(self, rows: NDArray, k: NDArray, v: NDArray, hidden: NDArray) -> NDArray:
        score = tiny.class_row(rows, k, v, hidden)
        return score + self.score_noise * self.rng.uniform(-1, 1, score.shape)

    def __call__(self, arrays: Arrays) -> Arrays:
        lengths = arrays["attention_mask"].sum(axis=1)
        pooled, states = [], []
        for i, length in enumerate(lengths):
            drops = tuple(
                tiny.Drop(layer, permille, self.score, self._bias(arrays, site, i))
                for site, (layer, permille) in SITES.items()
            )
            mean, state = tiny.loop_bert(self.net, arrays["input_ids"][i, :length], drops)
            pooled.append(mean)
            states.append(state)
        out = {"pooled": np.stack(pooled)}
        for i, site in enumerate(SITES):
            width = arrays[f"{site}.score_bias"].shape[1] if f"{site}.score_bias" in arrays else 99
            out[f"{site}.score"] = padded([s.scores[i] for s in states], width, 0.0)
            out[f"{site}.index"] = padded([s.would_be[i] for s in states], None, -1)
        self.spoil(out)
        return out

    @staticmethod
    def _bias(arrays: Arrays, site: str, sample: int) -> NDArray | None:
        return arrays[f"{site}.score_bias"][sample] if f"{site}.score_bias" in arrays else None


def padded(rows: list[NDArray], width: int | None, fill: float) -> NDArray:
    out = np.full((len(rows), width or max(map(len, rows))), fill, rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return tiny.seeded(tiny.TinyBert)


@pytest.fixture(scope="module")
def golden(net: nn.Module) -> Golden:
    ids = torch.randint(0, 40, (3, 20), generator=torch.Generator().manual_seed(5)).numpy()
    mask = (np.arange(20) < np.array([[20], [13], [6]])).astype(np.int64)
    sites = [TokenSite(site, ClassRow(), amount=share) for site, (_, share) in SITES.items()]
    found = golden_from_torch(net, {"input_ids": ids, "attention_mask": mask}, sites)
    return next(renamed([replace(found, outputs={"pooled": found.outputs["pooled"]})], ["pooled"]))


def test_the_same_model_passes_all_four_parts(net: nn.Module, golden: Golden) -> None:
    engine = Engine(net)
    tasks = (Task("cosine", "pooled", bound=0.9999), Task("nearest_neighbour", "pooled"))
    report = check([golden, golden], engine, free=engine, options=Options(tasks=tasks))
    assert report.passed
    assert [row.part for row in report.rows()] == ["score"] * 2 + ["flips"] * 2 + ["value"] + [
        "task"
    ] * 2
    assert report.tasks[0].samples == 6
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


def test_a_planted_wrong_index_fails(net: nn.Module, golden: Golden) -> None:
    def plant(out: Arrays) -> None:
        index = out["layers.2.index"][0]
        free = next(i for i in range(1, 14) if i not in index)
        out["layers.2.index"][0] = np.sort(np.append(index[:-1], free))

    report = check([golden], Engine(net, plant), free=None, options=Options())
    assert not report.passed
    assert [site.passed for site in report.sites] == [True, False]
    assert "near-tie" in report.sites[1].reason


def test_another_number_of_tokens_fails(net: nn.Module, golden: Golden) -> None:
    def plant(out: Arrays) -> None:
        out["layers.0.index"][1, 3] = -1

    report = check([golden], Engine(net, plant), free=None, options=Options())
    assert "another number of tokens" in report.sites[0].reason


def test_a_score_error_above_the_bound_fails(net: nn.Module, golden: Golden) -> None:
    report = check([golden], Engine(net, score_noise=1e-3), free=None, options=Options())
    assert not report.passed
    assert "score error" in report.sites[0].reason


def test_values_are_compared_on_equal_tokens(net: nn.Module, golden: Golden) -> None:
    """Noise that flips tokens leaves the values alone: the forced twin keeps the reference's."""
    report = check([golden], Engine(net, score_noise=0.5), free=None, options=Options())
    assert sum(site.flips for site in report.sites) > 0
    assert all(output.passed for output in report.outputs)


def test_a_value_error_fails(net: nn.Module, golden: Golden) -> None:
    def plant(out: Arrays) -> None:
        out["pooled"][1, 2] += 1e-2

    report = check([golden], Engine(net, plant), free=None, options=Options())
    assert not report.passed
    assert report.outputs[0].worst == (1, 2)


def test_nan_fails(net: nn.Module, golden: Golden) -> None:
    def plant(out: Arrays) -> None:
        out["pooled"][1, 2] = np.nan

    assert not check([golden], Engine(net, plant), free=None, options=Options()).passed


def test_a_missed_task_fails(net: nn.Module, golden: Golden) -> None:
    def plant(out: Arrays) -> None:
        out["pooled"] = -out["pooled"]

    options = Options(tasks=(Task("top1", "pooled", bound=0.9),))
    report = check([golden], Engine(net), free=Engine(net, plant), options=options)
    assert not report.passed
    assert not report.tasks[0].passed


def test_nothing_compared_is_no_pass(net: nn.Module) -> None:
    assert not check([], Engine(net), free=None, options=Options()).passed


def test_an_engine_without_scores_is_refused(net: nn.Module, golden: Golden) -> None:
    with pytest.raises(BadInputError, match="forced twin"):
        check(
            [golden], lambda _: {"pooled": golden.outputs["pooled"]}, free=None, options=Options()
        )


def test_an_unknown_precision_is_refused(net: nn.Module, golden: Golden) -> None:
    with pytest.raises(BadInputError, match="float8"):
        check([golden], Engine(net), free=None, options=Options(precision="float8"))


def test_tasks_without_the_shipped_engine_are_refused(net: nn.Module, golden: Golden) -> None:
    with pytest.raises(BadInputError, match="free-running"):
        check([golden], Engine(net), free=None, options=Options(tasks=(Task("top1", "pooled"),)))


def test_other_output_names_are_taken_by_position(golden: Golden) -> None:
    assert list(next(renamed([golden], ["sentence"])).outputs) == ["sentence"]
    with pytest.raises(BadInputError, match="different numbers"):
        next(renamed([golden], ["a", "b"]))


@pytest.mark.parametrize(
    ("metric", "same", "other"),
    [("top1", 1.0, 0.0), ("cosine", 1.0, -1.0), ("nearest_neighbour", 1.0, None)],
)
def test_metrics_of_equal_and_opposite_outputs(
    metric: str, same: float, other: float | None
) -> None:
    x = np.random.default_rng(0).standard_normal((6, 5))
    assert METRICS[metric](x, x) == pytest.approx(same)
    if other is not None:
        assert METRICS[metric](-x, x) == pytest.approx(other)


def test_restored_outputs_are_compared_on_kept_rows_only(net: nn.Module, golden: Golden) -> None:
    hidden = np.random.default_rng(0).standard_normal((3, 20, 4))
    kept = golden.kept()
    assert kept is not None
    spoilt = hidden.copy()
    dropped = next(i for i in range(20) if i not in kept[0])
    spoilt[0, dropped] = 9.0
    with_hidden = replace(golden, outputs={"hidden": hidden})

    def engine(arrays: Arrays) -> Arrays:
        return Engine(net)(arrays) | {"hidden": spoilt}

    options = Options(token_outputs=frozenset({"hidden"}))
    assert check([with_hidden], engine, free=None, options=options).passed
    spoilt[0, kept[0, 1]] = 9.0
    assert not check([with_hidden], engine, free=None, options=options).passed


def test_gathered_rows_are_compared_with_the_kept_rows(net: nn.Module, golden: Golden) -> None:
    hidden = np.random.default_rng(0).standard_normal((3, 20, 4))
    kept = golden.kept()
    assert kept is not None
    gathered = np.take_along_axis(hidden, np.maximum(kept, 0)[:, :, None], axis=1)
    with_hidden = replace(golden, outputs={"hidden": hidden})

    def engine(arrays: Arrays) -> Arrays:
        return Engine(net)(arrays) | {"hidden": gathered}

    assert check([with_hidden], engine, free=None, options=Options()).passed
