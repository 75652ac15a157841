"""The user's inputs: texts, arrays and loader scripts become samples and ragged batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from secateur.errors import BadInputError
from secateur.recipe import Data
from secateur.workflow.data import load_samples, read_arrays, read_texts


class Words:
    """A tokenizer of one id a word, with the parts that ours are used by."""

    pad_token_id = 9

    def __call__(self, texts, *, truncation, max_length):
        assert truncation
        ids = [[len(word) for word in text.split()][:max_length] for text in texts]
        masks = [[1] * len(row) for row in ids]
        return {"input_ids": ids, "attention_mask": masks, "token_type_ids": masks}

    def convert_ids_to_tokens(self, ids):
        return [f"w{i}" for i in ids]


@dataclass(frozen=True)
class Model:
    """What a model says of its inputs."""

    inputs: tuple[str, ...]
    tokenizer: Words | None = None
    prepare: Callable | None = None


INPUTS = ("input_ids", "attention_mask")
READER = Model(INPUTS, Words())


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("# heading\na bb ccc\n\ndddd eeeee\n", encoding="utf-8")
    return path


def test_headings_and_empty_lines_are_no_texts(texts):
    assert read_texts(texts) == ["a bb ccc", "dddd eeeee"]


def test_texts_are_tokenised_one_by_one_and_padded_in_a_batch(texts):
    samples = load_samples(Data(texts=texts), READER)
    batch = samples.batch([0, 1])
    assert samples.arrays[1]["input_ids"].shape == (1, 2)
    np.testing.assert_array_equal(batch["input_ids"], [[1, 2, 3], [4, 5, 9]])
    np.testing.assert_array_equal(batch["attention_mask"], [[1, 1, 1], [1, 1, 0]])
    assert samples.pieces[1] == ("w4", "w5")


def test_inputs_that_the_model_does_not_take_are_left_out(texts):
    samples = load_samples(Data(texts=texts), READER)
    assert set(samples.arrays[0]) == set(INPUTS)


def test_texts_without_a_tokenizer_are_refused(texts):
    with pytest.raises(BadInputError, match="this model has none"):
        load_samples(Data(texts=texts), Model(INPUTS))


def test_arrays_are_split_into_samples(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.arange(12.0).reshape(3, 4))
    samples = load_samples(Data(npz=tmp_path / "x.npz", limit=2), Model(("x",)))
    assert len(samples) == 2
    assert [b["x"].shape for b in samples.batches(2)] == [(2, 4)]


def test_a_missing_input_is_named(tmp_path):
    np.savez(tmp_path / "x.npz", y=np.zeros((3, 4)))
    with pytest.raises(BadInputError, match="no array for input 'x'"):
        load_samples(Data(npz=tmp_path / "x.npz"), Model(("x",)))


def test_arrays_of_different_counts_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 4)), y=np.zeros((2, 4)))
    with pytest.raises(BadInputError, match="different numbers of samples"):
        load_samples(Data(npz=tmp_path / "x.npz"), Model(("x",)))


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"not a zip")
    with pytest.raises(BadInputError, match="no NumPy arrays"):
        read_arrays(tmp_path / "x.npz")


def test_pickled_objects_are_not_loaded(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BadInputError, match="no NumPy arrays"):
        read_arrays(tmp_path / "x.npz")


def test_a_loader_script_yields_batches_of_arrays(tmp_path):
    script = tmp_path / "loader.py"
    script.write_text(
        "import numpy as np\ndef load_data():\n    yield {'x': np.zeros((3, 4), np.float32)}\n"
    )
    for spec in (f"{script}:load_data", str(script)):
        assert len(load_samples(Data(loader=spec), Model(("x",)))) == 3


@pytest.mark.parametrize("spec", ["no.such.module:f", "json:nothing", "nowhere.py:f"])
def test_a_loader_that_does_not_exist_is_named(spec):
    with pytest.raises(BadInputError, match="loader function cannot be found"):
        load_samples(Data(loader=spec), Model(("x",)))


def test_samples_of_different_shapes_are_not_padded_silently(tmp_path):
    script = tmp_path / "loader.py"
    script.write_text(
        "import numpy as np\n"
        "def load_data():\n"
        "    yield {'x': np.zeros((1, 4))}\n"
        "    yield {'x': np.zeros((1, 5))}\n"
    )
    samples = load_samples(Data(loader=str(script)), Model(("x",)))
    with pytest.raises(BadInputError, match="different shapes"):
        samples.batch([0, 1])


def test_an_empty_text_file_is_refused(tmp_path):
    (tmp_path / "t.txt").write_text("# only a heading\n")
    with pytest.raises(BadInputError, match="no samples"):
        load_samples(Data(texts=tmp_path / "t.txt"), READER)


def test_json_inputs_are_read(tmp_path):
    (tmp_path / "x.json").write_text('{"x": [[1, 2]]}')
    assert read_arrays(tmp_path / "x.json")["x"].shape == (1, 2)


def test_json_that_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(BadInputError, match="cannot be read"):
        read_arrays(tmp_path / "x.json")


# --- pictures ------------------------------------------------------------------------------


def brightness(images):
    """What a vision model's family makes of pictures, in short."""
    return {
        "pixels": np.stack([np.asarray(image, np.float32).mean(axis=(0, 1)) for image in images])
    }


VIEWER = Model(("pixels",), prepare=brightness)


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    (tmp_path / "more").mkdir()
    for place, level in (("b.png", 20), ("a.PNG", 10), ("more/c.jpg", 30)):
        Image.new("L", (8, 6), level).save(tmp_path / place)
    (tmp_path / "notes.md").write_text("not a picture", encoding="utf-8")
    return tmp_path


def test_pictures_of_a_folder_are_prepared_in_the_order_of_their_names(pictures):
    samples = load_samples(Data(images=pictures), VIEWER)
    assert samples.labels == ("a.PNG", "b.png", "more/c.jpg")
    assert samples.batch([0, 1, 2])["pixels"][:, 0].tolist() == [10, 20, 30]


def test_no_more_pictures_are_read_than_asked_for(pictures):
    assert len(load_samples(Data(images=pictures, limit=2), VIEWER)) == 2


def test_a_damaged_picture_is_named(pictures):
    (pictures / "b.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(BadInputError, match="cannot be read") as caught:
        load_samples(Data(images=pictures), VIEWER)
    assert "b.png" in str(caught.value.where)


def test_a_picture_that_would_fill_the_memory_is_refused(pictures, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(BadInputError, match="too large"):
        load_samples(Data(images=pictures), VIEWER)


def test_a_folder_without_pictures_says_what_they_look_like(tmp_path):
    with pytest.raises(BadInputError, match="no pictures") as caught:
        load_samples(Data(images=tmp_path), VIEWER)
    assert ".png" in str(caught.value.wanted)


@pytest.mark.parametrize("model", [READER, Model(("pixels",))], ids=["texts", "arrays"])
def test_pictures_for_a_model_that_takes_none_are_refused(pictures, model):
    with pytest.raises(BadInputError, match="how it takes pictures") as caught:
        load_samples(Data(images=pictures), model)
    assert "loader" in caught.value.next_step


# --- what a choice of data is known by -----------------------------------------------------


def test_texts_of_a_folder_follow_each_other_by_name(texts):
    (texts.parent / "a.txt").write_text("first of all\n", encoding="utf-8")
    assert read_texts(texts.parent) == ["first of all", "a bb ccc", "dddd eeeee"]


def test_the_hash_changes_with_a_number_a_name_and_the_order(tmp_path):
    def hashed(**arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        return load_samples(Data(npz=tmp_path / "x.npz"), Model(tuple(arrays))).sha256

    base = hashed(x=np.array([1.0, 2.0]))
    assert hashed(x=np.array([1.0, 2.0])) == base
    others = {
        hashed(x=np.array([1.0, 3.0])),
        hashed(y=np.array([1.0, 2.0])),
        hashed(x=np.array([2.0, 1.0])),
        hashed(x=np.array([1.0, 2.0], np.float32)),
    }
    assert len(others | {base}) == 5
