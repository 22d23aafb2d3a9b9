"""Codes and latents on disk. Oracle: the arrays that were written."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from models.data import codes as codes_module
from models.data.codes import CodeWriter, Manifest, read_manifest
from models.data.loader import Loader
from models.data.source import open_source
from models.data.transforms import DrawView
from models.errors import UserError


def manifest(**changes: object) -> Manifest:
    options: dict[str, object] = {
        "kind": "codes",
        "tokenizer": "t0",
        "source": "s0",
        "shape": (2, 3),
        "count": 23,
        "num_codes": 300,
        "shard_size": 5,
    }
    return Manifest(**(options | changes))  # type: ignore[arg-type]


def values_of(what: Manifest, index: np.ndarray) -> np.ndarray:
    """Codes that tell which sample and view they are of."""
    cells = int(np.prod(what.shape))
    values = index[:, None, None] * 10 + np.arange(what.views)[:, None] + np.arange(cells) % 3
    return values.reshape(len(index), what.views, *what.shape)


def fill(folder: Path, what: Manifest, skip: tuple[int, ...] = (), only: tuple[int, ...] | None = None) -> CodeWriter:
    writer = CodeWriter(folder, what)
    for number in writer.missing() if only is None else only:
        index = np.array([sample for sample in what.span(number) if sample not in skip], np.int64)
        label = index % 4 if what.labels else None
        writer.write(number, values_of(what, index), index, label)
    return writer


@pytest.mark.parametrize(
    ("num_codes", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "int32")]
)
def test_codes_come_back_from_the_smallest_integers(tmp_path: Path, num_codes: int, dtype: str) -> None:
    what = manifest(num_codes=num_codes, labels=("a", "b", "c", "d"), settings={"crop": 256})
    fill(tmp_path, what)
    assert read_manifest(tmp_path) == what
    assert what.dtype == dtype
    train, val = (open_source(f"codes:{tmp_path}", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (21, 2)
    assert train.labels == ("a", "b", "c", "d")
    for source, kept in ((train, [n for n in range(23) if n % 10 != 9]), (val, [9, 19])):
        for position, sample in enumerate(kept):
            got = source.read(position)
            assert got is not None
            assert got.image.dtype == dtype
            assert np.array_equal(got.image, values_of(what, np.array([sample]))[0])
            assert got.label == sample % 4


def test_latents_of_ten_views_with_samples_left_out(tmp_path: Path) -> None:
    what = manifest(kind="latents", num_codes=None, views=10, shape=(4, 2, 2), dtype="float16")
    fill(tmp_path, what, skip=(0, 7, 15, 16, 17, 18, 19))  # one shard has nothing in it
    train, val = (open_source(f"latents:{tmp_path}", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (15, 1)
    left = [n for n in range(23) if n not in (0, 7, 15, 16, 17, 18, 19)]
    for source, kept in ((train, [n for place, n in enumerate(left) if place % 10 != 9]), (val, left[9:10])):
        for position, sample in enumerate(kept):
            assert source.source_index(position) == sample  # type: ignore[attr-defined]
            assert np.array_equal(source.read(position).image, values_of(what, np.array([sample]))[0])  # type: ignore[union-attr]


def test_batches_of_codes_and_latents(tmp_path: Path) -> None:
    fill(tmp_path / "codes", manifest(views=3, labels=("a", "b", "c", "d")))
    fill(tmp_path / "latents", manifest(kind="latents", num_codes=None))
    source = pickle.loads(pickle.dumps(open_source(f"codes:{tmp_path / 'codes'}", "train")))
    batches = []
    for workers in (0, 1):
        with Loader(source, DrawView(), batch_size=8, workers=workers) as loader:
            batches.append(next(iter(loader)))
    for batch in batches:
        assert (str(batch["codes"].dtype), batch["codes"].shape) == ("torch.int64", (8, 2, 3))
        assert all(batches[0][key].equal(batch[key]) for key in ("codes", "label", "index"))
        sample, view = batch["codes"][:, 0, 0] // 10, batch["codes"][:, 0, 0] % 10
        assert sample.remainder(4).equal(batch["label"])
        assert len(view.unique()) > 1
    with Loader(open_source(f"latents:{tmp_path / 'latents'}", "train"), DrawView(), batch_size=8) as loader:
        batch = next(iter(loader))
    assert (str(batch["latents"].dtype), batch["latents"].shape) == ("torch.float32", (8, 2, 3))


def test_writing_goes_on_where_it_stopped_and_is_shared(tmp_path: Path) -> None:
    writer = fill(tmp_path, manifest(), only=(1, 3))
    assert writer.missing() == [0, 2, 4]
    assert [writer.missing(rank, 2) for rank in (0, 1)] == [[0, 2, 4], []]
    assert [CodeWriter(tmp_path, manifest()).missing(rank, 3) for rank in (0, 1, 2)] == [[0], [4], [2]]
    with pytest.raises(
        UserError, match=r"is not finished, 3 of 5 shards are missing; the command that made it goes on"
    ):
        open_source(f"codes:{tmp_path}", "train")
    fill(tmp_path, manifest())
    assert len(open_source(f"codes:{tmp_path}", "train")) == 21


def test_a_folder_is_of_one_making(tmp_path: Path) -> None:
    CodeWriter(tmp_path, manifest(settings={"crop": 256}))
    CodeWriter(tmp_path, manifest(settings={"crop": 256}))
    for changes, text in (
        (
            {"tokenizer": "t1", "settings": {"crop": 256}},
            r"another tokenizer \('t0', now 't1'\); choose another folder",
        ),
        ({"settings": {"crop": 128}}, "another settings"),
        ({"shape": (3, 2), "views": 2, "settings": {"crop": 256}}, "another shape, views"),
    ):
        with pytest.raises(UserError, match=text):
            CodeWriter(tmp_path, manifest(**changes))


def test_codes_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, manifest())
    source = open_source(f"codes:{tmp_path}", "train")
    source.check_tokenizer("t0")  # type: ignore[attr-defined]
    with pytest.raises(
        UserError, match=r"made by another tokenizer \(fingerprint t0, expected t1\); extract them again"
    ):
        source.check_tokenizer("t1")  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"data: expected latents in .*, got codes"):
        open_source(f"latents:{tmp_path}", "train")


def test_train_and_val_may_be_extracted_apart(tmp_path: Path) -> None:
    fill(tmp_path / "train", manifest(count=6))
    fill(tmp_path / "val", manifest(count=4, source="s1"))
    train, val = (open_source(f"codes:{tmp_path}", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (6, 4)
    assert train.fingerprint != val.fingerprint


@pytest.mark.parametrize("end", [0, 5, 60, -1])
def test_a_truncated_shard_is_an_error_of_one_line(tmp_path: Path, end: int) -> None:
    fill(tmp_path, manifest())
    path = tmp_path / "shard_00002.safetensors"
    os.truncate(path, end if end >= 0 else path.stat().st_size - 1)
    with pytest.raises(
        UserError, match=r"shard_00002.safetensors: truncated or not a shard of codes .*; remove it"
    ) as raised:
        open_source(f"codes:{tmp_path}", "train")
    assert "\n" not in str(raised.value)
    path.unlink()
    fill(tmp_path, manifest())
    assert len(open_source(f"codes:{tmp_path}", "train")) == 21


def test_a_shard_of_another_shape_is_an_error_of_one_line(tmp_path: Path) -> None:
    fill(tmp_path / "a", manifest())
    fill(tmp_path / "b", manifest(shape=(3, 3)))
    (tmp_path / "b" / "shard_00001.safetensors").replace(tmp_path / "a" / "shard_00001.safetensors")
    with pytest.raises(
        UserError, match=r"shard_00001.safetensors: expected codes of shape \[1, 2, 3\], got \[1, 3, 3\]"
    ):
        open_source(f"codes:{tmp_path / 'a'}", "train")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 9}', '{"format": 1, "shape": 3}'])
def test_a_broken_manifest_is_an_error_of_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest.json: (not a manifest|expected format 1, got 9)"):
        open_source(f"codes:{tmp_path}", "train")


def test_no_manifest_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a folder of codes or latents, got .* without manifest.json"):
        open_source(f"codes:{tmp_path}", "train")


def test_a_shard_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = fill(tmp_path, manifest(), only=(0,))
    monkeypatch.setattr(
        codes_module.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(UserError, match=r"shard_00001.safetensors: not written \(No space left\)"):
        fill(tmp_path, manifest(), only=(1,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "shard_00000.safetensors"]
    assert writer.missing() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": "images"}, "kind: expected codes or latents, got 'images'"),
        ({"num_codes": None}, "num_codes: expected a number for codes"),
        ({"dtype": "float32"}, "dtype: expected one of .* for codes, got 'float32'"),
        ({"count": 0}, "count, views, shard_size, shape: expected 1 or more, got 0, 1, 5"),
    ],
)
def test_bad_manifests_are_named(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        manifest(**changes)


def test_bad_shards_are_named(tmp_path: Path) -> None:
    what = manifest(labels=("a",))
    writer, index = CodeWriter(tmp_path, what), np.arange(5, 10)
    values = values_of(what, index)
    for arguments, text in (
        ((1, values[:, :, :1], index, index), r"values: expected \[5, 1, 2, 3\], got \[5, 1, 1, 3\]"),
        ((0, values, index, index), "index: expected numbers of 0 to 4, ascending"),
        ((1, values, index[::-1], index), "index: expected numbers of 5 to 9, ascending"),
        ((1, values, index, None), r"label: expected \[n\], got None"),
        ((1, values + 250, index, index), "values: expected codes below 300, got 300 to 3"),
    ):
        with pytest.raises(ValueError, match=text):
            writer.write(*arguments)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "manifest.json").read_text())["dtype"] == "uint16"
