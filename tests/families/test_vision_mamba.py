"""A Vision Mamba: the plain recurrence, tokens that really leave, and the graph that does it."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import BadInputError, BuildError, PreconditionError
from secateur.export.source import LoadedModel, load
from secateur.export.torch_export import from_torch
from secateur.export.verify import run
from secateur.graph_passes.force_selection import force
from secateur.models.families.vision_mamba import Mixer, Sizes, VisionMamba
from secateur.models.reference import run as reference_run
from secateur.models.selectors import Merge, Selection, selector
from secateur.workflow.golden import token_sites
from secateur.workflow.selecting import Select, select_tokens

CONFIG = {
    "model_type": "vim",
    "image_size": 24,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_labels": 5,
    "state_size": 4,
    "time_step_rank": 2,
}
SIZES = Sizes(**{name: value for name, value in CONFIG.items() if name != "model_type"})
TOKENS, MIDDLE, KEEP = 37, 18, 0.5


def save(folder: Path, **changed: object) -> Path:
    """Parameters large enough that tokens and directions differ."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        net = VisionMamba(SIZES)
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    save_file(net.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | changed))
    return folder


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(save(tmp_path_factory.mktemp("vim")))


@pytest.fixture(scope="module")
def dense(opened: LoadedModel) -> ir.Model:
    return from_torch(opened.net, opened.inputs, opened.dynamic)


def pictures(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 24, 24, generator=torch.Generator().manual_seed(6))


def top_vim(layer: int, keep: float = KEEP) -> Select:
    signals = {"ssm_out_backward": f"layers.{layer}.mixer.from_behind"}
    options = {"flipped": False}
    return Select(
        f"layers.{layer}", "top_vim", keep, 0, options=options, signals=signals, close_gaps=True
    )


def by_norm(layer: int, keep: float = KEEP) -> Select:
    return Select(f"layers.{layer}", "hidden_norm", keep, 0, close_gaps=True)


def feeds(model: ir.Model, x: Tensor) -> dict[str, np.ndarray]:
    budgets = {one.name: np.array([500]) for one in model.graph.inputs if "permille" in one.name}
    return {"pixel_values": x.numpy(), **budgets}


# --- the model ---------------------------------------------------------------------------------


def plain(mixer: Mixer, x: Tensor, end: str) -> Tensor:
    """(N, E) in the order in which it is read -> (N, E): the recurrence, written out."""
    kernel, project, step = (
        mixer.get_submodule(f"{name}{end}") for name in ("conv1d", "x_proj", "dt_proj")
    )
    rates = -mixer.get_parameter(f"A{end}_log").exp()
    rank, states = step.in_features, rates.shape[1]
    state, made = torch.zeros_like(rates), []
    for n in range(len(x)):
        seen = kernel.bias.clone()
        for back in range(min(4, n + 1)):
            seen += kernel.weight[:, 0, 3 - back] * x[n - back]
        seen = F.silu(seen)
        numbers = project(seen)
        low, write, read = numbers[:rank], numbers[rank : rank + states], numbers[rank + states :]
        size = F.softplus(step(low))[:, None]
        state = (size * rates).exp() * state + size * seen[:, None] * write
        made.append(state @ read + mixer.get_parameter(f"D{end}") * seen)
    return torch.stack(made)


@torch.no_grad()
def test_a_mixer_is_the_recurrence_forwards_and_backwards(opened: LoadedModel) -> None:
    mixer = opened.net.get_submodule("layers.1.mixer")
    assert isinstance(mixer, Mixer)
    hidden = torch.randn(TOKENS, 16, generator=torch.Generator().manual_seed(1))
    x, gate = mixer.in_proj(hidden).chunk(2, dim=1)
    both = plain(mixer, x, "") + plain(mixer, x.flip(0), "_b").flip(0)
    want = mixer.out_proj(both * F.silu(gate) / 2)
    torch.testing.assert_close(mixer(hidden[None])[0], want, rtol=1e-4, atol=1e-5)


def test_the_graph_has_one_node_for_a_scan_however_many_tokens(dense: ir.Model) -> None:
    counts = Counter(node.op_type for node in dense.graph)
    assert counts["Scan"] == counts["Conv"] - 1 == 2 * 3
    assert len(dense.graph) < 250


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_size": 20}, "no place in the middle"),
        ({"image_size": 22}, "no place in the middle"),
        ({"hidden_size": 32}, "not those of this Vision Mamba"),
        ({"state_size": "4"}, "state_size is no size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is no size"),
        ({"num_labels": None}, "num_labels is no size"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    changed: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=message):
        load(save(tmp_path, **changed))


def test_weights_that_lack_or_a_part_that_is_named_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path) / "model.safetensors"
    with pytest.raises(BadInputError, match="has no parts"):
        load(f"{tmp_path}#vision")
    tensors = load_file(path)
    del tensors["layers.1.mixer.A_b_log"]
    save_file(tensors, path)
    with pytest.raises(BadInputError, match="A_b_log"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vim"}))
    with pytest.raises(BadInputError, match="a size of the model lacks"):
        load(tmp_path)


# --- tokens leave ------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(
    net: nn.Module, picture: Tensor, chosen: dict[int, str]
) -> tuple[Tensor, list[list[int]]]:
    """One picture whose tokens really leave behind some blocks: the answer, who stays there."""
    assert isinstance(net, VisionMamba)
    rows = net.patch_embed(picture[None])[0]
    stream = torch.cat([rows[:MIDDLE], net.cls_token[0], rows[MIDDLE:]]) + net.pos_embed[0]
    hidden, residual = stream[None], torch.zeros_like(stream)[None]
    place, alive, kept = MIDDLE, list(range(TOKENS)), []
    for i, block in enumerate(net.layers):
        seen: list[Tensor] = []
        handle = block.mixer.from_behind.register_forward_hook(lambda *a, s=seen: s.append(a[2]))
        hidden, residual = block(hidden, residual)
        handle.remove()
        if i not in chosen:
            continue
        score = seen[0][0].clamp(min=0).sum(dim=0)
        if chosen[i] == "norm":
            score = hidden[0].norm(dim=1)
        wanted = math.ceil(len(alive) * 0.5)
        wanted += 1 - wanted % 2 if chosen[i] == "vim" else 0
        ranked = sorted((n for n in range(len(alive)) if n != place), key=lambda n: -score[n])
        others = sorted(ranked[: wanted - 1])
        if chosen[i] == "vim":
            half = (wanted - 1) // 2
            stay = [*others[:half], place, *others[half:]]
        else:
            stay = sorted([*others, place])
        place, alive = stay.index(place), [alive[n] for n in stay]
        hidden, residual = hidden[:, stay], residual[:, stay]
        kept.append(alive)
    return net.head(net.norm_f((hidden + residual)[0, place])), kept


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param({0: "vim", 1: "vim"}, id="vim twice"),
        pytest.param({0: "vim"}, id="vim", marks=pytest.mark.sweep),
        pytest.param({0: "norm"}, id="norm", marks=pytest.mark.sweep),
        pytest.param({0: "norm", 1: "norm"}, id="norm twice", marks=pytest.mark.sweep),
    ],
)
def test_the_graph_is_the_model_whose_tokens_leave(
    opened: LoadedModel, dense: ir.Model, chosen: dict[int, str]
) -> None:
    made = [top_vim(i) if how == "vim" else by_norm(i) for i, how in chosen.items()]
    model = select_tokens(dense, made)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    x = pictures()
    got = run(model, feeds(model, x))
    plain_answer = opened.net(x)["logits"].detach().numpy()
    for b in range(3):
        answer, kept = by_hand(opened.net, x[b], chosen)
        for layer, want in zip(chosen, kept, strict=True):
            assert got[f"layers.{layer}.kept"][b].tolist() == want
        np.testing.assert_allclose(got["logits"][b], answer, rtol=1e-4, atol=1e-5)
        assert np.abs(got["logits"][b] - plain_answer[b]).max() > 1e-3, "nothing was dropped"


def test_the_class_token_stands_in_the_middle_again(dense: ir.Model) -> None:
    model = select_tokens(dense, [top_vim(0)])
    for row in run(model, feeds(model, pictures()))["layers.0.kept"]:
        assert len(row) == 19
        assert row[len(row) // 2] == MIDDLE
        assert sorted(set(row)) == sorted(row)


def test_a_forced_choice_gives_its_tokens_and_its_answer(
    opened: LoadedModel, dense: ir.Model
) -> None:
    model, x = select_tokens(dense, [by_norm(0)]), pictures()
    twin = force(model)
    bias = np.zeros((3, TOKENS), np.float32)
    stay = [*range(0, 36, 2), MIDDLE + 1]
    bias[:, stay] = 1e9
    got = run(twin, feeds(twin, x) | {"layers.0.score_bias": bias})
    assert (got["layers.0.kept"] == sorted(stay)).all()
    free = run(model, feeds(model, x))
    assert (got["layers.0.index"] == free["layers.0.kept"]).all()
    net = opened.net
    assert isinstance(net, VisionMamba)
    with torch.no_grad():
        rows = net.patch_embed(x)
        middle = net.cls_token.expand(3, -1, -1)
        hidden = torch.cat([rows[:, :MIDDLE], middle, rows[:, MIDDLE:]], dim=1) + net.pos_embed
        hidden, residual = net.layers[0](hidden, torch.zeros_like(hidden))
        hidden, residual = hidden[:, sorted(stay)], residual[:, sorted(stay)]
        for layer in net.layers[1:]:
            hidden, residual = layer(hidden, residual)
        place = sorted(stay).index(MIDDLE)
        want = net.head(net.norm_f((hidden + residual)[:, place]))
    np.testing.assert_allclose(got["logits"], want.numpy(), rtol=1e-4, atol=1e-5)


def uneven(hidden: Tensor) -> Selection:
    """As many tokens as have a positive first channel."""
    score = hidden[:, :, 0].float()
    return Selection(score, count=(score > 0).sum(dim=1))


@pytest.mark.sweep
@pytest.mark.parametrize("made", [top_vim(0), by_norm(0)], ids=["top_vim", "hidden_norm"])
def test_a_picture_in_a_batch_gets_what_it_gets_alone(dense: ir.Model, made: Select) -> None:
    _alone(select_tokens(dense, [made]))


def test_pictures_that_keep_different_numbers_do_not_see_empty_slots(dense: ir.Model) -> None:
    model = select_tokens(
        dense, [Select("layers.0", f"{__name__}:uneven", KEEP, 0, close_gaps=True)]
    )
    kept = run(model, feeds(model, pictures()))["layers.0.kept"]
    assert len({int((row >= 0).sum()) for row in kept}) > 1, "the case tests too little"
    _alone(model)


def _alone(model: ir.Model) -> None:
    x = pictures()
    together = run(model, feeds(model, x))["logits"]
    for b in range(3):
        single = run(model, feeds(model, x[b : b + 1]))["logits"]
        np.testing.assert_allclose(together[b : b + 1], single, rtol=1e-4, atol=1e-5)


def test_what_reads_neighbours_has_to_be_told_that_gaps_close(dense: ir.Model) -> None:
    with pytest.raises(PreconditionError, match="mixes neighbours") as caught:
        select_tokens(dense, [Select("layers.0", "hidden_norm", KEEP, 0)])
    assert "close_gaps" in str(caught.value)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param([top_vim(0), top_vim(1)], id="vim"),
        pytest.param([by_norm(0), by_norm(1)], id="norm"),
    ],
)
def test_the_reference_lets_tokens_leave_and_close_up(
    opened: LoadedModel, dense: ir.Model, made: list[Select]
) -> None:
    model, x = select_tokens(dense, made), pictures()
    got = run(model, feeds(model, x))
    assert opened.net is not None
    want = reference_run(opened.net, {"pixel_values": x}, token_sites(model, {}))
    for site, run_there in want.sites.items():
        assert (got[f"{site}.kept"] == run_there.kept.numpy()).all()
    np.testing.assert_allclose(got["logits"], want.outputs["logits"], rtol=1e-4, atol=1e-5)


def test_the_reference_takes_a_forced_choice(opened: LoadedModel, dense: ir.Model) -> None:
    model, x = select_tokens(dense, [by_norm(0)]), pictures()
    stay = [*range(0, 36, 2), MIDDLE + 1]
    bias = np.zeros((3, TOKENS), np.float32)
    bias[:, stay] = 1e9
    twin = force(model)
    got = run(twin, feeds(twin, x) | {"layers.0.score_bias": bias})
    told = {"layers.0": torch.tensor([sorted(stay)] * 3)}
    assert opened.net is not None
    sites = token_sites(model, {})
    want = reference_run(opened.net, {"pixel_values": x}, sites, forced=told)
    np.testing.assert_allclose(got["logits"], want.outputs["logits"], rtol=1e-4, atol=1e-5)


def test_the_reference_closes_all_gaps_or_none(opened: LoadedModel, dense: ir.Model) -> None:
    assert opened.net is not None
    sites = token_sites(select_tokens(dense, [by_norm(0), by_norm(1)]), {})
    x = {"pixel_values": pictures()}
    with pytest.raises(BadInputError, match="no reference for this site"):
        reference_run(opened.net, x, [sites[0], replace(sites[1], close_gaps=False)])
    with pytest.raises(BadInputError, match="lets a token go that the module reads later"):
        reference_run(opened.net, x, sites, forced={"layers.0": torch.tensor([[0, 1, 2]] * 3)})
    with pytest.raises(BadInputError, match="are not put back"):
        reference_run(opened.net, x, sites, restore=["layers.2"])
    with pytest.raises(BadInputError, match="reads the signal 'class_row'"):
        reference_run(opened.net, x, [replace(sites[0], selector="class_row")])


LATER = [pytest.param(one, marks=pytest.mark.sweep) for one in ("fopru", "flowcut")]


@pytest.mark.parametrize("by", ["class_row", "hiprune", *LATER])
def test_a_signal_of_attention_is_refused_by_name(dense: ir.Model, by: str) -> None:
    with pytest.raises(BadInputError, match=r"reads the signal '\w+', which this site cannot give"):
        select_tokens(dense, [Select("layers.0", by, KEEP, 0, close_gaps=True)])


def merging(layer: int, protected: int = 0) -> Select:
    return Select(f"layers.{layer}", "aim", 0.7, protected, close_gaps=True)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param([merging(0, 1)], id="the class token takes others in"),
        pytest.param([merging(0), merging(1)], marks=pytest.mark.sweep, id="twice"),
    ],
)
def test_merged_tokens_merge_in_the_residual_stream_too(
    opened: LoadedModel, dense: ir.Model, made: list[Select]
) -> None:
    model, x = select_tokens(dense, made), pictures()
    share = {f"{one.site}.permille": np.array([700]) for one in made}
    got = run(model, {"pixel_values": x.numpy(), **share})
    assert opened.net is not None
    want = reference_run(opened.net, {"pixel_values": x}, token_sites(model, {}))
    np.testing.assert_allclose(got["logits"], want.outputs["logits"], rtol=1e-4, atol=1e-5)


def adding(hidden: Tensor, index: Tensor) -> Merge:
    """What is kept, and the mean of all."""
    same = torch.eye(hidden.shape[1])[index]
    mean = torch.full_like(same[:, :1], 1 / hidden.shape[1])
    return Merge(torch.cat([same, mean], dim=1))


@selector("test_adding", source="none", kind="merge", combine=adding)
def norm_and_mean(hidden: Tensor) -> Tensor:
    return hidden.float().square().sum(dim=2)


def test_tokens_that_a_method_adds_have_no_place_among_neighbours(
    opened: LoadedModel, dense: ir.Model
) -> None:
    made = Select("layers.0", "test_adding", KEEP, 0, close_gaps=True)
    with pytest.raises(PreconditionError, match="the method adds"):
        select_tokens(dense, [made])
    assert opened.net is not None
    site = token_sites(select_tokens(dense, [by_norm(0)]), {})[0]
    with pytest.raises(BadInputError, match="the method adds"):
        reference_run(
            opened.net, {"pixel_values": pictures()}, [replace(site, selector="test_adding")]
        )


def test_a_module_that_is_not_there_is_no_site(dense: ir.Model) -> None:
    with pytest.raises(BadInputError, match="no attention block") as caught:
        select_tokens(dense, [by_norm(7)])
    assert "name the module" in str(caught.value)
    signals = {"ssm_out_backward": "layers.0.mixer.sideways"}
    with pytest.raises(BadInputError, match=r"has no value 'layers\.0\.mixer\.sideways'"):
        select_tokens(dense, [replace(top_vim(0), signals=signals)])


@pytest.mark.sweep
@pytest.mark.parametrize("made", [top_vim(0), by_norm(0)], ids=["top_vim", "hidden_norm"])
def test_an_engine_is_built_where_the_share_is_a_constant(
    dense: ir.Model, made: Select, tmp_path: Path
) -> None:
    assert len(_engine(select_tokens(dense, [replace(made, budget="constant")]), tmp_path)) > 1000


@pytest.mark.sweep
def test_the_builder_dies_of_a_scan_whose_length_an_input_says(
    dense: ir.Model, tmp_path: Path
) -> None:
    """A committed refusal of TensorRT-RTX 1.7: where this fails, it has learned it."""
    with pytest.raises(BuildError, match="the builder died"):
        _engine(select_tokens(dense, [by_norm(0)]), tmp_path)


def _engine(model: ir.Model, folder: Path) -> bytes:
    from secateur.runtime.backend import BACKENDS, EngineSpec
    from secateur.runtime.budgets import default_shape_values
    from secateur.runtime.onnx_outline import read_outline
    from secateur.runtime.profiles import profiles_from_dimensions
    from secateur.runtime.sites import sites_from_metadata

    path = folder / "model.onnx"
    onnx.save(ir.to_proto(model), path)
    outline = read_outline(path)
    inputs = [one for one in outline.inputs if not one.name.endswith(".permille")]
    ranges = profiles_from_dimensions(inputs, {"batch": (1, 2, 4)})
    spec = EngineSpec(profiles=ranges, compute_capabilities=("sm86",), timeout_s=240)
    sites = sites_from_metadata(outline.metadata)
    spec = replace(spec, shape_values=default_shape_values(outline, sites, spec.profiles))
    return BACKENDS["rtx"]().build(path, spec)
