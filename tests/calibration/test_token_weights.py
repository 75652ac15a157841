"""How much each token counts: in every sum, behind selections, and as a recipe chooses it."""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.parity import tiny
from torch import Tensor, nn

from secateur import cli
from secateur.calibration.activations import TOKEN_WEIGHTS, observe
from secateur.calibration.importance import Context, rank
from secateur.calibration.planning import removable
from secateur.calibration.sample_choice import are_misconceptions, evidence
from secateur.calibration.statistics import Gram, Moments, all_places, gather, places_of
from secateur.calibration.statistics.moments import Fluctuation, Sums
from secateur.calibration.token_choice import neighbour_scores, token_losses, token_scores
from secateur.errors import BadInputError, PreconditionError
from secateur.export.onnx_file import save
from secateur.export.torch_export import from_torch
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.sites import Site
from secateur.recipe import Calibrate
from secateur.workflow.calibration_choice import choose_samples
from secateur.workflow.data import Samples
from secateur.workflow.pruning import Fitting, Removal, prune_and_fit
from secateur.workflow.recipe_file import load_recipe
from secateur.workflow.selecting import Select, select_tokens

WORDS, LENGTHS = 40, (9, 6, 4, 7, 5, 8)
COUNTS = np.random.default_rng(3).integers(0, 3, (3, 12)).astype(np.float32)
COUNTS[:, 0] = 1  # no sample without a token
ACCUMULATORS = {"moments": Moments, "gram": Gram, "sums": partial(Sums, np.abs)}


class Scorer(nn.Module):
    """Scores of the next token by one layer of attention."""

    def __init__(self, words: int = WORDS) -> None:
        super().__init__()
        self.tokens = nn.Embedding(WORDS, tiny.D)
        self.layers = nn.ModuleList([tiny.Layer(fused=False)])
        self.head = nn.Linear(tiny.D, words)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = (1 - attention_mask[:, None, None, :].float()) * -1e9
        return 5 * self.head(self.layers[0](self.tokens(input_ids), mask))


@cache
def scorer(seed: int = 0, words: int = WORDS) -> ir.Model:
    torch.manual_seed(seed)
    inputs = {name: torch.from_numpy(x) for name, x in tiny.BATCH.items()}
    axes = {name: {0: "batch", 1: "tokens"} for name in inputs}
    return from_torch(Scorer(words).eval(), inputs, axes)


@cache
def texts() -> Samples:
    rng = np.random.default_rng(0)
    arrays = tuple(
        {
            "input_ids": rng.integers(1, WORDS, (1, n)),
            "attention_mask": np.ones((1, n), np.int64),
        }
        for n in LENGTHS
    )
    padding = {"input_ids": 0.0, "attention_mask": 0.0}
    return Samples(arrays, tuple(f"text {n}" for n in LENGTHS), (), padding)


def seen(model: ir.Model, sample: dict, *, attention: bool = False) -> np.ndarray:
    """Scores, or attention probabilities, of one sample by itself."""
    name = str(model.graph.outputs[0].name)
    if attention:
        name = next(node for node in model.graph if node.op_type == "Softmax").outputs[0].name
    ((_, found),) = observe(model, [name], [sample])
    return found[name][0]


@pytest.mark.parametrize("kind", sorted(ACCUMULATORS))
def test_a_token_of_weight_two_counts_as_two_and_one_of_weight_zero_is_not_there(kind: str) -> None:
    analysis = analyse(tiny.exported())
    (place,) = places_of(analysis.group("FFN of layers.0"), all_places(analysis))
    found, rows = ACCUMULATORS[kind](), []
    gather(analysis.model, [(place, found)], [{**tiny.BATCH, TOKEN_WEIGHTS: COUNTS}])
    for i in range(3):
        one = {name: x[i : i + 1] for name, x in tiny.BATCH.items()}
        ((_, values),) = observe(analysis.model, [place.value], [one])
        real = tiny.BATCH["attention_mask"][i].astype(bool)
        rows.append(np.repeat(values[place.value][0][real], COUNTS[i][real].astype(int), axis=0))
    want = ACCUMULATORS[kind]()
    want.add(rows)
    assert found.n_rows == want.n_rows
    np.testing.assert_allclose(found.total, want.total, rtol=1e-4, atol=1e-5)
    if kind == "gram":
        np.testing.assert_allclose(found.products, want.products, rtol=1e-4, atol=1e-5)
    if kind == "moments":
        np.testing.assert_allclose(found.square, want.square, rtol=1e-4)


def test_fluctuation_weighs_means_and_distances() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal((n, 5)) for n in (3, 4)]
    weights = [np.array([2.0, 0.0, 1.0]), np.array([1.0, 1.0, 3.0, 0.0])]
    found, want = Fluctuation(), Fluctuation()
    found.add(samples, weights)
    want.add([np.repeat(x, w.astype(int), 0) for x, w in zip(samples, weights, strict=True)])
    np.testing.assert_allclose(found.mean, want.mean)
    np.testing.assert_allclose(found.fluctuation, want.fluctuation)


def test_weights_follow_the_tokens_that_a_selection_keeps() -> None:
    model = select_tokens(tiny.exported(), [Select("layers.0", keep=0.5)])
    analysis = analyse(model)
    (place,) = places_of(analysis.group("FFN of layers.1"), all_places(analysis))
    batch = tiny.BATCH | {"layers.0.permille": np.array([500], np.int64)}
    ((_, found),) = observe(model, ["layers.0.kept"], [batch])
    kept = found["layers.0.kept"]
    sums = Moments()
    gather(model, [(place, sums)], [{**batch, TOKEN_WEIGHTS: COUNTS}])
    assert sums.n_rows == sum(COUNTS[i, k[k >= 0]].sum() for i, k in enumerate(kept))


def test_a_selection_that_hides_what_it_kept_is_refused() -> None:
    model = select_tokens(tiny.exported(), [Select("layers.0", keep=0.5)]).clone()
    records = json.loads(model.metadata_props["secateur.sites"])
    model.metadata_props["secateur.sites"] = json.dumps([records[0] | {"kept_output": None}])
    analysis = analyse(model)
    (place,) = places_of(analysis.group("FFN of layers.1"), all_places(analysis))
    batch = tiny.BATCH | {"layers.0.permille": np.array([500], np.int64), TOKEN_WEIGHTS: COUNTS}
    with pytest.raises(PreconditionError, match="does not show which stay"):
        gather(model, [(place, Moments())], [batch])


def test_a_removal_is_decided_fitted_and_proved_with_weights() -> None:
    batch = {**tiny.BATCH, TOKEN_WEIGHTS: COUNTS}
    removal = Removal(what="ffn", ratio=0.5, importance="wanda")
    fitting = Fitting(compensate="least_squares")
    pruned = prune_and_fit(tiny.exported(), (removal,), fitting, batches=[batch])
    assert all(proof.passed for proof in pruned.proofs)
    analysis = analyse(tiny.exported())
    groups = removable(analysis, "ffn")
    plain, weighed = (
        rank("wanda", Context(analysis, groups, [one])) for one in (tiny.BATCH, batch)
    )
    name = groups[0].name
    assert not np.allclose(plain[name] / plain[name].sum(), weighed[name] / weighed[name].sum())


def learned(folder: Path, **options: object) -> Calibrate:
    save(scorer(1), folder / "before.onnx")
    rules = {"by": "learned", "before": str(folder / "before.onnx"), "prompt": 2, **options}
    return Calibrate(samples=4, tokens=rules)


@pytest.mark.parametrize("weigh", [False, True])
def test_tokens_that_were_learned_and_look_at_the_prompt_count(
    tmp_path: Path, *, weigh: bool
) -> None:
    chosen = choose_samples(texts(), scorer(), learned(tmp_path, keep=0.5, weigh=weigh))
    assert chosen.indices == (0, 1, 2, 3)
    for one, sample in zip(chosen.samples.arrays, texts().arrays, strict=False):
        ids = sample["input_ids"][0]
        labels = np.where(np.arange(len(ids)) < 2, -1, ids)
        then, now = (token_losses(seen(scorer(s), sample), labels) for s in (1, 0))
        attention = seen(scorer(), sample, attention=True).mean(0)
        scores = token_scores(then - now, attention, labels < 0, 0.5)
        weights = one[TOKEN_WEIGHTS][0]
        assert not weights[:2].any()
        if weigh:
            np.testing.assert_array_equal(np.argsort(weights[2:]), np.argsort(scores))
            np.testing.assert_allclose(weights[2:].mean(), 1, rtol=1e-5)
        else:
            best = np.sort(np.argsort(-scores)[: -(-len(scores) // 2)])
            np.testing.assert_array_equal(np.flatnonzero(weights[2:]), best)


def test_the_weights_stand_in_the_record_with_a_hash(tmp_path: Path) -> None:
    half, most = (
        choose_samples(texts(), scorer(), learned(tmp_path, keep=k)).record() for k in (0.5, 0.9)
    )
    assert half["sha256"] == most["sha256"] == texts().subset((0, 1, 2, 3)).sha256
    assert half["tokens"]["sha256"] != most["tokens"]["sha256"]
    assert (half["tokens"]["by"], half["tokens"]["counted"], half["tokens"]["of"]) == (
        *("learned", sum(-(-(n - 2) // 2) for n in LENGTHS[:4])),
        sum(LENGTHS[:4]),
    )


def test_only_samples_the_model_is_surely_wrong_about_lose_tokens() -> None:
    rules = {"by": "q_tuning", "neighbours": 0.25, "keep": 0.5}
    settings = Calibrate(choose="q_tuning", samples=6, tokens=rules)
    chosen = choose_samples(texts(), scorer(), settings)
    losses, plane = [], []
    for one in texts().arrays:
        logits, ids = seen(scorer(), one), one["input_ids"][0]
        losses.append(token_losses(logits, ids))
        plane.append(np.ravel(evidence(logits[None], ids[None], np.ones((1, len(ids)), bool))))
    wrong = are_misconceptions(*np.array(plane).T)
    assert 0 < wrong.sum() < len(wrong)
    for one, own, cut in zip(chosen.samples.arrays, losses, wrong, strict=True):
        kept = np.flatnonzero(one[TOKEN_WEIGHTS][0])
        best = np.argsort(-neighbour_scores(own, 0.25))[: -(-len(own) // 2)]
        np.testing.assert_array_equal(kept, np.sort(best) if cut else np.arange(len(own)))


def test_a_token_is_scored_with_those_beside_it() -> None:
    losses = np.log([9.0, 2.0, 4.0, 8.0])  # the first token has no prediction
    np.testing.assert_allclose(neighbour_scores(losses, 0.5), [1.0, 3.0, 7.0, 6.0])


def test_a_sample_that_is_all_prompt_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no response behind its prompt") as caught:
        choose_samples(texts(), scorer(), learned(tmp_path, prompt=4))
    assert "sample 2: 'text 4'" in str(caught.value)


def test_a_checkpoint_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    settings = learned(tmp_path)
    save(scorer(1, WORDS + 4), tmp_path / "before.onnx")
    with pytest.raises(BadInputError, match="scores other tokens"):
        choose_samples(texts(), scorer(), settings)


def test_attention_that_does_not_show_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none: tuple[Site, ...] = ()
    monkeypatch.setattr("secateur.workflow.calibration_tokens.find_sites", lambda _model: none)
    with pytest.raises(PreconditionError, match="no attention probabilities"):
        choose_samples(texts(), scorer(), learned(tmp_path))


def test_a_model_that_scores_no_tokens_is_refused() -> None:
    settings = Calibrate(tokens={"by": "q_tuning"})
    with pytest.raises(BadInputError, match="scores the next token"):
        choose_samples(texts(), tiny.exported(), settings)


RECIPE = """\
schema: 1
name: weighed
model: {source: model.onnx}
data: {npz: data.npz}
calibrate: {choose: q_tuning, samples: 4, tokens: {by: learned, before: before.onnx, prompt: 2}}
remove: [{what: ffn, ratio: 0.5, importance: wanda}]
compensate: least_squares
output: out
"""


def test_a_bundle_says_which_tokens_counted(tmp_path: Path) -> None:
    save(scorer(0), tmp_path / "model.onnx")
    save(scorer(1), tmp_path / "before.onnx")
    np.savez(
        tmp_path / "data.npz",
        input_ids=np.random.default_rng(0).integers(1, WORDS, (8, 7)),
        attention_mask=np.ones((8, 7), np.int64),
    )
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert cli.run(["deploy", str(tmp_path / "recipe.yaml")]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    tokens = manifest["facts"]["calibration"]["tokens"]
    assert (tokens["by"], tokens["counted"], tokens["of"]) == ("learned", 12, 28)
    assert len(tokens["sha256"]) == 64


def test_a_mistake_in_the_rules_is_named_with_its_key(tmp_path: Path) -> None:
    text = RECIPE.replace("prompt: 2", "keep: 2")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match="keep"):
        load_recipe(tmp_path / "recipe.yaml")
